"""Which counters of a VM are starved, and who has what they lack: in a sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vpmu_agent.counts.counters import Counter, VmCounters
from vpmu_agent.counts.guests import Found
from vpmu_agent.kernel import facts
from vpmu_agent.model.counter_status import CounterStatus, EventState
from vpmu_agent.text import errno_name

MAX_NAMED = 4
"""How many holders a sentence names; of the rest it gives the number."""

WATCHDOG = "the NMI watchdog"


@dataclass(frozen=True, slots=True)
class Share:
    """What somebody has of a CPU's PMU: a process of the host, the NMI watchdog, or another VM."""

    name: str
    events: int
    pinned: int


@dataclass(frozen=True, slots=True)
class Starvation:
    """A VM with starved counters: which they are, and sentence()."""

    vm: str
    counters: Sequence[Counter]
    sentence: str


class NewlyStarved:
    """Remembers which VMs were starved, so that it can be told when it begins."""

    def __init__(self, nmi_watchdog: Callable[[], bool | None] = facts.nmi_watchdog) -> None:
        """`nmi_watchdog` returns what sentence() needs to know."""
        self._nmi_watchdog = nmi_watchdog
        self._pulls = 0
        self._most: dict[str, int] = {}

    def take(self, found: Found) -> list[Starvation]:
        """Return the VMs that have more starved counters than at any time since theirs began to be starved.

        Without a census nothing begins or ends.
        """
        if not found.is_known or found.pulls == self._pulls:
            return []
        before, self._pulls = self._most, found.pulls
        now = {
            vm: count
            for vm, counters in found.counters.items()
            if (count := counters.statuses[CounterStatus.STARVED])
        }
        self._most = {vm: max(count, before.get(vm, 0)) for vm, count in now.items()}
        worse = [vm for vm, count in now.items() if count > before.get(vm, 0)]
        if not worse:
            return []
        nmi_watchdog = self._nmi_watchdog()
        return [
            Starvation(vm, starved(found.counters[vm]), sentence(vm, found, nmi_watchdog=nmi_watchdog))
            for vm in worse
        ]


def starved(counters: VmCounters) -> list[Counter]:
    """Return the starved counters."""
    return [counter for counter in counters.counters if counter.status is CounterStatus.STARVED]


def shares(vm: str, found: Found, cpus: Sequence[int], *, nmi_watchdog: bool | None) -> list[Share]:
    """Return who else has events on any of these CPUs' PMUs, those with the most first.

    An event that follows a thread counts wherever it is now. `nmi_watchdog`: whether it runs, None if that is
    not known; it has one event on each CPU, which no process has open.
    """
    wanted = set(cpus)
    has: list[Share] = []
    for holder in found.holders:
        if holder.active and (not wanted or wanted & set(holder.cpus)):
            on_each = -(-holder.events // max(1, len(holder.cpus)))
            pinned = -(-holder.pinned // max(1, len(holder.cpus)))
            has.append(Share(f"{holder.comm} (pid {holder.tgid})", on_each, pinned))
    for other, events in _of_vms(found, wanted).items():
        if other != vm:
            has.append(Share(f"VM {other}", events, events))
    if nmi_watchdog:
        has.append(Share(WATCHDOG, 1, 1))
    return sorted(has, key=lambda share: (-share.events, share.name))


def _of_vms(found: Found, cpus: set[int]) -> Mapping[str, int]:
    """Return how many events on these CPUs each VM has."""
    has = {}
    for vm, counters in found.counters.items():
        events = sum(
            event.state == EventState.ACTIVE
            for counter in counters.counters
            if not cpus or counter.cpu in cpus
            for event in counter.events
        )
        if events:
            has[vm] = events
    return has


def sentence(vm: str, found: Found, *, nmi_watchdog: bool | None) -> str:
    """Return a sentence, without full stop: how many counters of a VM are starved, and who has events there.

    Empty if none is starved.
    """
    counters = found.counters[vm]
    lacking = starved(counters)
    if not lacking:
        return ""
    cpus = sorted({counter.cpu for counter in lacking if counter.cpu is not None})
    said = f"{vm}: {len(lacking)} of {_wanted(counters)} counters starved"
    where = f"CPU {', '.join(map(str, cpus))}" if cpus else "the host"
    has = shares(vm, found, cpus, nmi_watchdog=nmi_watchdog)
    if not has and found.no_holders:
        return f"{said}; who else has events on {where} is not known"
    if not has:
        return f"{said}; nobody else is known to have events on {where}, so it wants more than the PMU has"
    named = [f"{share.name} has {_events(share)}" for share in has[:MAX_NAMED]]
    if len(has) > MAX_NAMED:
        named.append(f"{len(has) - MAX_NAMED} more have some")
    return f"{said}; on {where} {', '.join(named)}"


def _events(share: Share) -> str:
    count = f"{share.events} event" if share.events == 1 else f"{share.events} events"
    if not share.pinned:
        return count
    return f"{count}, pinned" if share.pinned == share.events else f"{count}, {share.pinned} of them pinned"


def failing_sentence(vm: str, found: Found, *, nmi_watchdog: bool | None) -> str:
    """Return sentence(), and how many counters of a VM fail in another way; empty if none does.

    Failed creations have the errno, if it is known.
    """
    counters = found.counters[vm]
    said = sentence(vm, found, nmi_watchdog=nmi_watchdog)
    others = [
        f"{counters.statuses[status]} {status}{_errnos(counters, status)}"
        for status in CounterStatus
        if status.is_failing and status is not CounterStatus.STARVED and counters.statuses[status]
    ]
    if not others:
        return said
    if said:
        return f"{said}; also {', '.join(others)}"
    return f"{vm}: of {_wanted(counters)} counters {', '.join(others)}"


def _errnos(counters: VmCounters, status: CounterStatus) -> str:
    errnos = {counter.errno for counter in counters.counters if counter.status is status and counter.errno}
    return f" ({', '.join(map(errno_name, sorted(errnos)))})" if errnos else ""


def _wanted(counters: VmCounters) -> int:
    return sum(counters.statuses.values()) - counters.statuses[CounterStatus.IDLE]
