"""The last calls that an operator wants to see in full: divergences, and creations that failed."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from vpmu_agent.model.call import Call
from vpmu_agent.model.verdict import Observation, Verdict

KEPT = 100
"""How many of them are kept; what was before is only counted."""


class Recent:
    """Filled by the loop that polls the probes, read by threads that answer requests."""

    def __init__(self) -> None:
        self._said: deque[Observation] = deque(maxlen=KEPT)
        self._lock = threading.Lock()

    def add(self, call: Call, verdict: Verdict) -> None:
        """Takes what the probes sent, if it is of the kind that is kept here."""
        if verdict.kind.is_divergence or call.result:
            with self._lock:
                self._said.append((call, verdict))

    def last(self) -> Sequence[Observation]:
        """What is kept, the newest first."""
        with self._lock:
            return tuple(reversed(self._said))
