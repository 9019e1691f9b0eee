"""What the daemon tells of VMs whose counters are starved or fail in another way: when it begins and ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vpmu_agent.counts.counters import VmCounters
from vpmu_agent.counts.guests import Found
from vpmu_agent.counts.starvation import failing_sentence
from vpmu_agent.kernel.facts import nmi_watchdog
from vpmu_agent.model.counter_status import CounterStatus
from vpmu_agent.system.journal import Level, tell

FAILING = "07d78254d29e4893b4deea83fdc8ee07"
"""What `journalctl MESSAGE_ID=` finds; made once with `systemd-id128 new`."""

OVER_S = 30.0
"""How long none of a VM's counters must have failed, in seconds, before it is over: many guests measure for a
second, again and again."""

AGAIN_S = 60.0
"""How long after an entry about a VM, in seconds, another may say that more of its counters fail."""

MAX_AT_ONCE = 20
"""How many VMs have an entry of their own when counters of many begin to fail at once, as when a profiler is
started on the host; of the rest, only how many."""


@dataclass(slots=True)
class _Story:
    """What was told of a VM whose counters fail."""

    failing: int = 0
    """How many, in the last entry."""
    statuses: set[CounterStatus] = field(default_factory=set)
    told: float = 0.0
    over: float | None = None
    """Since when none has failed."""


class FailingCounters:
    """Tells of VMs with failing counters: about three entries a minute for each at most."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        tell: Callable[..., None] = tell,
        nmi_watchdog: Callable[[], bool | None] = nmi_watchdog,
    ) -> None:
        """`tell` is journal.tell(), or a test's; `nmi_watchdog` returns what `sentence()` needs to know."""
        self._clock = clock
        self._tell = tell
        self._nmi_watchdog = nmi_watchdog
        self._stories: dict[str, _Story] = {}

    def tell_of(self, found: Found) -> None:
        """Tell what is new; to be called about once a second. Without a census nothing begins or ends."""
        if not found.is_known:
            return
        now = self._clock()
        failing = {vm: fails for vm, counters in found.counters.items() if (fails := _failing(counters))}
        worse = [vm for vm, fails in failing.items() if self._is_worse(vm, sum(fails.values()), now)]
        for vm in worse:
            self._begin(vm, found, failing[vm], now, is_told=vm in worse[:MAX_AT_ONCE])
        if len(worse) > MAX_AT_ONCE:
            self._tell(
                f"counters of {len(worse) - MAX_AT_ONCE} more VMs are failing; vpmu_pmcs has all of them",
                Level.WARNING,
                MESSAGE_ID=FAILING,
            )
        for vm, story in list(self._stories.items()):
            if vm in failing:
                story.statuses |= failing[vm].keys()
                story.over = None
            elif story.over is None:
                story.over = now
            elif now - story.over >= OVER_S:
                self._end(vm, found)

    def _is_worse(self, vm: str, failing: int, now: float) -> bool:
        story = self._stories.get(vm)
        return story is None or (failing > story.failing and now - story.told >= AGAIN_S)

    def _begin(
        self, vm: str, found: Found, failing: Mapping[CounterStatus, int], now: float, *, is_told: bool
    ) -> None:
        story = self._stories.setdefault(vm, _Story())
        story.failing, story.told = sum(failing.values()), now
        if is_told:
            self._tell(
                failing_sentence(vm, found, nmi_watchdog=self._nmi_watchdog()),
                Level.WARNING,
                MESSAGE_ID=FAILING,
                VPMU_VM=vm,
                VPMU_STATUS=",".join(failing),
                VPMU_FAILING=story.failing,
            )

    def _end(self, vm: str, found: Found) -> None:
        story = self._stories.pop(vm)
        if vm not in found.counters:
            return  # the VM is gone
        statuses = found.counters[vm].statuses
        now = ", ".join(f"{statuses[status]} {status}" for status in CounterStatus if statuses[status])
        failed = " or ".join(sorted(story.statuses))
        self._tell(
            f"{vm}: no counter has been {failed} for {OVER_S:.0f} s; now there are {now}",
            Level.NOTICE,
            MESSAGE_ID=FAILING,
            VPMU_VM=vm,
            VPMU_FAILING=0,
        )


def _failing(counters: VmCounters) -> dict[CounterStatus, int]:
    """Return how many counters fail, by status."""
    return {
        status: counters.statuses[status]
        for status in CounterStatus
        if status.is_failing and counters.statuses[status]
    }
