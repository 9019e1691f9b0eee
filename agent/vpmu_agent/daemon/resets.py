"""What the daemon tells of VMs that were reset and whose counters went on: each reset once."""

from __future__ import annotations

import time
from collections.abc import Callable

from vpmu_agent.counts.guests import Found
from vpmu_agent.counts.resets import reset_sentence
from vpmu_agent.system.journal import Level, tell

RESET = "c0105e7f757b474dbb97f2e8f84f3d73"
"""What `journalctl MESSAGE_ID=` finds; made once with `systemd-id128 new`."""

AGAIN_S = 60.0
"""How long after an entry about a VM, in seconds, another may follow: a guest can reset itself in a loop."""


class ResetReport:
    """Tells of counters that outlived a reset of their VM."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, tell: Callable[..., None] = tell) -> None:
        """`tell` is journal.tell(), or a test's."""
        self._clock = clock
        self._tell = tell
        self._told: dict[str, tuple[int, float]] = {}  # by VM: how many counters, and when it was told

    def tell_of(self, found: Found) -> None:
        """Tell what is new; to be called about once a second. Without a census nothing begins or ends."""
        if not found.is_known:
            return
        now = self._clock()
        for vm, counters in found.counters.items():
            count, at = self._told.get(vm, (0, now - AGAIN_S))
            if counters.outlived_reset > count and now - at >= AGAIN_S:
                self._tell(
                    reset_sentence(vm, counters),
                    Level.WARNING,
                    MESSAGE_ID=RESET,
                    VPMU_VM=vm,
                    VPMU_COUNTERS=counters.outlived_reset,
                )
                self._told[vm] = counters.outlived_reset, now
            elif count and not counters.outlived_reset:
                self._told[vm] = 0, at
        for vm, (_, at) in list(self._told.items()):
            if vm not in found.counters and now - at >= AGAIN_S:
                del self._told[vm]
