"""The last calls that an operator wants to see in full: divergences, and creations that failed."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from vpmu_agent.model.call import Call
from vpmu_agent.model.verdict import Observation, Verdict

KEPT = 100
"""How many calls are kept; older ones are only counted."""


class Recent:
    """The last of these calls, added by the loop that polls the probes and read by request threads."""

    def __init__(self) -> None:
        self._observations: deque[Observation] = deque(maxlen=KEPT)
        self._lock = threading.Lock()

    def add(self, call: Call, verdict: Verdict) -> None:
        """Keep a call if it diverged or failed."""
        if verdict.kind.is_divergence or call.result:
            with self._lock:
                self._observations.append((call, verdict))

    def last(self) -> Sequence[Observation]:
        """Return the kept calls, newest first."""
        with self._lock:
            return tuple(reversed(self._observations))
