"""The status of every counter on the host, and who else has events on its PMU, from looks of the census."""

from __future__ import annotations

from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vpmu_agent.model.call import PmcType
from vpmu_agent.model.counter_status import (
    CounterStatus,
    Event,
    EventState,
    Held,
    counter_status,
    is_wanted,
    running_ratio,
)
from vpmu_agent.probes.census import HostEvent, Look, Pmc, Vcpu
from vpmu_agent.probes.layout import FIXED_BASE_IDX, PMC_TYPES, pmc_name

_FIXED = PMC_TYPES.index(PmcType.FIXED)

Key = tuple[int, int, int]
"""Which counter of a process it is: (vcpu_id, pmc_type, pmc_idx), as in `struct vpmu_pmc`."""


@dataclass(frozen=True, slots=True)
class Counter:
    """A counter that its guest has enabled or that has events."""

    vcpu: int
    pmc: str
    status: CounterStatus
    control: int
    """What the guest wrote: a gp counter's event select, a fixed counter's four bits of fixed_ctr_ctrl."""
    config: int | None
    """`attr.config` of its first event; None if it has none."""
    size: int
    """How many events there should be."""
    events: Sequence[Event]
    cpu: int | None
    """The CPU that its vCPU ran on last; None if it never ran."""
    running: float | None
    """Which part of the time that its events were enabled they ran, since the look before; None if none."""
    counted: int
    """What its first event has counted, less what KVM has folded into the counter already."""
    errno: int
    """What its last creation failed with; 0 if it did not, or if that is not known."""


@dataclass(frozen=True, slots=True)
class VmCounters:
    """All counters of one process's VMs."""

    counters: Sequence[Counter] = ()
    """Those that are enabled or have events, by vCPU and counter."""
    statuses: Tally[CounterStatus] = field(default_factory=Tally)
    """How many there are of each status, idle ones included."""
    vcpus: int = 0
    pmu_version: int = 0
    gp: int = 0
    """Of each vCPU; the most, if they differ."""
    fixed: int = 0
    has_filter: bool = False
    running: float | None = None
    """As Counter.running, of all counters that are wanted."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process with events on the host's PMU."""

    tgid: int
    comm: str
    events: int
    pinned: int
    cpus: Sequence[int]
    """The CPUs that its events are bound to, or on now; in order."""
    failed: int
    """Pinned events that got no room."""

    @property
    def active(self) -> bool:
        """Whether it has events that are not in error."""
        return self.events > self.failed


class Counters:
    """Keeps the last look, which tells what stays from what is changing."""

    def __init__(self) -> None:
        self._before: dict[tuple[int, int, int], Held] = {}  # by vCPU's address, type and index

    def take(self, look: Look, errnos: Mapping[tuple[int, Key], int] | None = None) -> dict[int, VmCounters]:
        """Return the counters of each process that has VMs, by tgid.

        `errnos` has, by tgid and Key, what a counter's last creation failed with.
        """
        by_vcpu: defaultdict[int, list[Pmc]] = defaultdict(list)
        for pmc in look.pmcs:
            by_vcpu[pmc.vcpu].append(pmc)
        by_tgid: defaultdict[int, list[Vcpu]] = defaultdict(list)
        for vcpu in look.vcpus:
            by_tgid[vcpu.tgid].append(vcpu)
        before, self._before = self._before, {}
        known = errnos or {}
        return {
            tgid: self._vm(sorted(vcpus, key=_vcpu_id), by_vcpu, before, known)
            for tgid, vcpus in by_tgid.items()
        }

    def _vm(
        self,
        vcpus: Sequence[Vcpu],
        by_vcpu: Mapping[int, Sequence[Pmc]],
        before: Mapping[tuple[int, int, int], Held],
        errnos: Mapping[tuple[int, Key], int],
    ) -> VmCounters:
        found: list[Counter] = []
        now: list[Event] = []
        then: list[Event] = []
        idle = 0
        for vcpu in vcpus:
            of_vcpu = _by_counter(by_vcpu.get(vcpu.address, ()))
            for (pmc_type, pmc_idx), pmcs in of_vcpu.items():
                key = vcpu.address, pmc_type, pmc_idx
                held = self._before[key] = _held(vcpu, pmcs)
                past = before.get(key)
                errno = errnos.get((vcpu.tgid, (vcpu.vcpu_id, pmc_type, pmc_idx)), 0)
                found.append(_counter(vcpu, pmcs, held, past, errno))
                if held.wanted:
                    now += held.events
                    then += past.events if past else ()
            idle += vcpu.gp + vcpu.fixed - len(of_vcpu)
        statuses = Tally(counter.status for counter in found)
        statuses[CounterStatus.IDLE] += idle
        return VmCounters(
            found,
            statuses,
            len(vcpus),
            max(vcpu.pmu_version for vcpu in vcpus),
            max(vcpu.gp for vcpu in vcpus),
            max(vcpu.fixed for vcpu in vcpus),
            any(vcpu.has_filter for vcpu in vcpus),
            running_ratio(now, then),
        )


def holders(events: Iterable[HostEvent]) -> list[Holder]:
    """Return the processes with events on the host's PMU, those with the most first."""
    by_process: defaultdict[tuple[int, str], list[HostEvent]] = defaultdict(list)
    for event in events:
        if event.state >= EventState.ERROR:  # others are exiting
            by_process[event.tgid, event.comm].append(event)
    found = [
        Holder(
            tgid,
            comm,
            len(of_process),
            sum(event.is_pinned for event in of_process),
            sorted({max(event.cpu, event.oncpu) for event in of_process} - {-1}),
            sum(event.state == EventState.ERROR for event in of_process),
        )
        for (tgid, comm), of_process in by_process.items()
    ]
    return sorted(found, key=lambda holder: (-holder.events, holder.tgid))


def _vcpu_id(vcpu: Vcpu) -> int:
    return vcpu.vcpu_id


def _by_counter(pmcs: Iterable[Pmc]) -> dict[tuple[int, int], list[Pmc]]:
    found: defaultdict[tuple[int, int], list[Pmc]] = defaultdict(list)
    for pmc in sorted(pmcs, key=lambda pmc: (pmc.pmc_type, pmc.pmc_idx, pmc.event_index)):
        found[pmc.pmc_type, pmc.pmc_idx].append(pmc)
    return found


def _held(vcpu: Vcpu, pmcs: Sequence[Pmc]) -> Held:
    first = pmcs[0]
    is_fixed = first.pmc_type == _FIXED
    wanted = is_wanted(
        fixed=is_fixed,
        index=first.pmc_idx - FIXED_BASE_IDX if is_fixed else first.pmc_idx,
        control=first.control,
        global_ctrl=vcpu.global_ctrl,
        pmu_version=vcpu.pmu_version,
    )
    events = [
        Event(pmc.event, pmc.state, pmc.enabled_ns, pmc.running_ns, bool(pmc.thread_runs))
        for pmc in pmcs
        if pmc.event
    ]
    return Held(first.control, wanted, first.size, events)


def _counter(vcpu: Vcpu, pmcs: Sequence[Pmc], held: Held, before: Held | None, errno: int) -> Counter:
    first = pmcs[0]
    return Counter(
        vcpu.vcpu_id,
        pmc_name(first.pmc_type, first.pmc_idx),
        counter_status(held, before, filtered=vcpu.has_filter, mediated=vcpu.mediated, errno=errno),
        first.control,
        first.config if first.event else None,
        first.size,
        held.events,
        vcpu.cpu if vcpu.cpu >= 0 else None,
        running_ratio(held.events, before.events if before else ()),
        first.counted,
        errno,
    )
