"""The last calls that an operator wants to see in full: divergences, and creations that failed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from copy import copy

from vpmu_agent.counts.failures import Failures, Key, Story, key
from vpmu_agent.model.call import Call
from vpmu_agent.model.rules import Kind
from vpmu_agent.model.verdict import Observation, Verdict

KEPT = 100
"""How many calls are kept; older ones are only counted."""


class Recent:
    """The last of these calls, added by the loop that polls the probes and read by request threads."""

    def __init__(self) -> None:
        self._observations: dict[tuple[Key, Kind] | int, Observation] = {}  # the last one is last
        self._failures = Failures()
        self._added = 0
        self._lock = threading.Lock()

    def add(self, call: Call, verdict: Verdict) -> None:
        """Keep a call if it diverged or failed. One that fails again takes the place of the one before."""
        if not (verdict.kind.is_divergence or call.result):
            return
        with self._lock:
            self._added += 1
            its: tuple[Key, Kind] | int = self._added
            if call.result:
                self._failures.add(call)
                its = key(call), verdict.kind
            self._observations.pop(its, None)
            self._observations[its] = (call, verdict)
            if len(self._observations) > KEPT:
                del self._observations[next(iter(self._observations))]

    def last(self) -> Sequence[Observation]:
        """Return the kept calls, newest first."""
        with self._lock:
            return tuple(reversed(self._observations.values()))

    def failures(self) -> Sequence[Story]:
        """Return what failed, how often and since when, the one that failed last first."""
        with self._lock:
            return tuple(map(copy, self._failures))
