"""What the daemon tells of events that KVM has leaked: each once, and that they are gone."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Callable

from vpmu_agent.counts.guests import Found
from vpmu_agent.counts.leaks import Leak, sentence
from vpmu_agent.system.journal import Level, tell

LEAKED = "feed671c55914df5b07a8de1dde0330f"
"""What `journalctl MESSAGE_ID=` finds; made once with `systemd-id128 new`."""

BURST, WINDOW_S = 10, 60.0
"""So many leaks have an entry of their own in a window (seconds); of the rest, only how many."""


class LeakReport:
    """Tells of leaked events."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, tell: Callable[..., None] = tell) -> None:
        """`tell` is journal.tell(), or a test's."""
        self._clock = clock
        self._tell = tell
        self._known: dict[int, Leak] = {}
        self._ends = 0.0
        self._told = 0
        self._held_back = Tally[str]()  # by VM

    def tell_of(self, found: Found) -> None:
        """Tell what is new; to be called about once a second. Without a census nothing begins or ends."""
        if not found.is_known:
            return
        if self._clock() >= self._ends:
            self._close()
            self._ends, self._told = self._clock() + WINDOW_S, 0
        now = {leak.id: leak for leaks in found.leaks.values() for leak in leaks}
        for number, leak in now.items():
            if number not in self._known:
                self._begin(leak)
        gone = [leak for number, leak in self._known.items() if number not in now]
        # Of a VM that has ended there is nothing to tell.
        for vm, count in Tally(leak.vm for leak in gone if found.tgids.get(leak.vm) == leak.tgid).items():
            events = "an event is" if count == 1 else f"{count} events are"
            self._tell(
                f"{vm}: {events} no longer leaked: held or released after all, or gone with the thread",
                Level.NOTICE,
                MESSAGE_ID=LEAKED,
                VPMU_VM=vm,
            )
        self._known = now

    def _begin(self, leak: Leak) -> None:
        if self._told == BURST:
            self._held_back[leak.vm] += 1
            return
        self._told += 1
        self._tell(
            sentence(leak),
            Level.WARNING,
            MESSAGE_ID=LEAKED,
            VPMU_VM=leak.vm,
            VPMU_VCPU=leak.vcpu,
            VPMU_PMC=leak.pmc,
        )

    def _close(self) -> None:
        """Tell how many leaks had no entry in the window that is over."""
        if not self._held_back:
            return
        count, vms = self._held_back.total(), len(self._held_back)
        of = next(iter(self._held_back)) if vms == 1 else f"{vms} VMs"
        self._tell(
            f"KVM has leaked {count} more events of {of} within {WINDOW_S:.0f} s; vpmu_leaked_events has all",
            Level.WARNING,
            MESSAGE_ID=LEAKED,
            VPMU_HELD_BACK=count,
        )
        self._held_back.clear()
