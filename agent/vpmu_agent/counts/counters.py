"""The status of every counter on the host, and who else has events on its PMU, from looks of the census."""

from __future__ import annotations

from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

from vpmu_agent.model.call import PmcType
from vpmu_agent.model.counter_status import (
    CounterStatus,
    Event,
    EventState,
    Held,
    counter_status,
    guest_lbr_status,
    is_wanted,
    orphaned_status,
    outlived_reset,
    running_ratio,
    times,
)
from vpmu_agent.probes.census import HostEvent, Look, Pmc, Stray, Vcpu
from vpmu_agent.probes.decoder import precise_ip_of
from vpmu_agent.probes.layout import FIXED_BASE_IDX, PMC_TYPES, pmc_name

_FIXED = PMC_TYPES.index(PmcType.FIXED)

Key = tuple[int, int, int]
"""Which counter of a process it is: (vcpu_id, pmc_type, pmc_idx), as in `struct vpmu_pmc`."""


class Counter(NamedTuple):
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
    outlived_reset: bool
    """Whether it is known that its VM was reset and it went on."""
    precise_ip: int = 0
    """That of its first event's attributes: above 0 if KVM made it for the guest's PEBS."""


class VcpuPmu(NamedTuple):
    """How many counters a vCPU has."""

    vcpu: int
    gp: int
    fixed: int


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
    outlived_reset: int = 0
    """How many counters are known to have gone on after a reset of their VM."""
    by_vcpu: Sequence[VcpuPmu] = ()
    """In order of the vCPUs' numbers. A process with several VMs has some numbers more than once."""
    guest_lbr: Sequence[Counter] = ()
    """The events for the guests' LBR. They are no counters, and in none of the other fields."""


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
    include_guests: int
    """Events without exclude_guest: they count while guests run, too."""

    @property
    def active(self) -> bool:
        """Whether it has events that are not in error."""
        return self.events > self.failed


@dataclass(slots=True)
class _Vm:
    """What tells of a VM, at one look, whether it was reset."""

    tsc_set_ns: int | None
    kvmclock_offset: int
    vcpus: int = 0


class Counters:
    """Keeps the last look, which tells what stays from what is changing."""

    def __init__(self) -> None:
        self._before: dict[int, dict[int, Held]] = {}  # by vCPU's address, and by pmc_idx
        self._vms: dict[int, _Vm] = {}
        self._strays: set[int] = set()  # their numbers

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
        reset = self._reset_vms(look.vcpus)
        guest_lbr = {event.vcpu: event for event in look.guest_lbr}
        orphans = self._orphans(look.strays)
        return {
            tgid: self._vm(sorted(vcpus, key=_vcpu_id), by_vcpu, before, known, reset, guest_lbr, orphans)
            for tgid, vcpus in by_tgid.items()
        }

    def _orphans(self, strays: Sequence[Stray]) -> Mapping[int, dict[int, Stray]]:
        """Return the strays that were some in the last look, by the vCPU's address and by pmc_idx."""
        before, self._strays = self._strays, {stray.id for stray in strays if stray.id}
        found: defaultdict[int, dict[int, Stray]] = defaultdict(dict)
        for stray in strays:
            if stray.id in before:
                found[stray.vcpu][stray.pmc_idx] = stray
        return found

    def _reset_vms(self, vcpus: Iterable[Vcpu]) -> set[int]:
        """Return the addresses of the VMs that were reset since the last look."""
        before, self._vms = self._vms, {}
        for vcpu in vcpus:
            vm = self._vms.setdefault(vcpu.vm, _Vm(vcpu.tsc_set_ns, vcpu.kvmclock_offset))
            vm.vcpus += 1
        return {
            address
            for address, vm in self._vms.items()
            if vm.tsc_set_ns
            and (then := before.get(address))
            and then.tsc_set_ns not in (None, vm.tsc_set_ns)
            and then.kvmclock_offset == vm.kvmclock_offset  # else it was restored, with its counters
            and then.vcpus == vm.vcpus  # KVM sets the TSC of a vCPU that is new, too
        }

    def _vm(
        self,
        vcpus: Sequence[Vcpu],
        by_vcpu: Mapping[int, Sequence[Pmc]],
        before: Mapping[int, Mapping[int, Held]],
        errnos: Mapping[tuple[int, Key], int],
        reset: set[int],
        guest_lbr: Mapping[int, Stray],
        orphans: Mapping[int, dict[int, Stray]],
    ) -> VmCounters:
        found: list[Counter] = []
        enabled_ns = running_ns = 0
        for vcpu in vcpus:
            now: dict[int, Held] = {}
            then = before.get(vcpu.address, {})
            cpu = vcpu.cpu if vcpu.cpu >= 0 else None
            forgotten = orphans.get(vcpu.address, {})
            for pmcs in _by_counter(by_vcpu.get(vcpu.address, ())):
                first = pmcs[0]
                past = then.get(first.pmc_idx)
                held = now[first.pmc_idx] = _held(vcpu, pmcs, past, was_reset=vcpu.vm in reset)
                enabled, running = times(held.events, past.events if past else ())
                if held.wanted:
                    enabled_ns += enabled
                    running_ns += running
                errno = 0
                if errnos:
                    errno = errnos.get((vcpu.tgid, (vcpu.vcpu_id, first.pmc_type, first.pmc_idx)), 0)
                status = counter_status(
                    held, past, filtered=vcpu.has_filter, mediated=vcpu.mediated, errno=errno
                )
                if first.pmc_idx in forgotten:
                    del forgotten[first.pmc_idx]
                    status = orphaned_status(status)
                counter = Counter(
                    vcpu.vcpu_id,
                    pmc_name(first.pmc_type, first.pmc_idx),
                    status,
                    first.control,
                    first.config if first.event else None,
                    first.size,
                    held.events,
                    cpu,
                    running_ratio(enabled, running),
                    first.counted,
                    errno,
                    held.outlived_reset,
                    precise_ip_of(first.attr_flags),
                )
                found.append(counter)
            if now:
                self._before[vcpu.address] = now
            # Of counters that are off and have no events.
            found += [_without_events(vcpu, stray, CounterStatus.ORPHANED) for stray in forgotten.values()]
        counters = sum(vcpu.gp + vcpu.fixed for vcpu in vcpus)
        statuses = Tally(counter.status for counter in found)
        statuses[CounterStatus.IDLE] += counters - len(found)
        return VmCounters(
            found or (),
            statuses,
            len(vcpus),
            max(vcpu.pmu_version for vcpu in vcpus),
            max(vcpu.gp for vcpu in vcpus),
            max(vcpu.fixed for vcpu in vcpus),
            any(vcpu.has_filter for vcpu in vcpus),
            running_ratio(enabled_ns, running_ns),
            sum(counter.outlived_reset for counter in found),
            _pmus_of(tuple((vcpu.vcpu_id, vcpu.gp, vcpu.fixed) for vcpu in vcpus)),
            [_guest_lbr(vcpu, guest_lbr[vcpu.address]) for vcpu in vcpus if vcpu.address in guest_lbr] or (),
        )


@lru_cache(maxsize=64)
def _pmus_of(vcpus: tuple[tuple[int, int, int], ...]) -> Sequence[VcpuPmu]:
    """Return the vCPUs' numbers of counters: one object for the many VMs that have the same."""
    return [VcpuPmu(*vcpu) for vcpu in vcpus]


def _guest_lbr(vcpu: Vcpu, event: Stray) -> Counter:
    counter = _without_events(vcpu, event, guest_lbr_status(event.state))
    return counter._replace(config=event.config, events=[Event(event.id, event.state, 0, 0)])


def _without_events(vcpu: Vcpu, stray: Stray, status: CounterStatus) -> Counter:
    """Return the counter that a stray was made for, as one that holds nothing."""
    return Counter(
        vcpu=vcpu.vcpu_id,
        pmc=pmc_name(stray.pmc_type, stray.pmc_idx),
        status=status,
        control=0,
        config=None,
        size=1,
        events=[],
        cpu=vcpu.cpu if vcpu.cpu >= 0 else None,
        running=None,
        counted=0,
        errno=0,
        outlived_reset=False,
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
            sum(not event.excludes_guests for event in of_process),
        )
        for (tgid, comm), of_process in by_process.items()
    ]
    return sorted(found, key=lambda holder: (-holder.events, holder.tgid))


_vcpu_id = attrgetter("vcpu_id")
_event = attrgetter("event_id", "state", "enabled_ns", "running_ns", "thread_runs")  # the fields of Event
_place = attrgetter("pmc_idx", "event_index")  # fixed counters have higher indexes than all others


def _by_counter(pmcs: Iterable[Pmc]) -> list[list[Pmc]]:
    """Return the records of a vCPU's counters in order; those of one counter together."""
    found: list[list[Pmc]] = []
    last = -1
    for pmc in sorted(pmcs, key=_place):
        if pmc.pmc_idx == last:
            found[-1].append(pmc)
        else:
            last = pmc.pmc_idx
            found.append([pmc])
    return found


def _held(vcpu: Vcpu, pmcs: Sequence[Pmc], past: Held | None, *, was_reset: bool) -> Held:
    first = pmcs[0]
    is_fixed = first.pmc_type == _FIXED
    wanted = is_wanted(
        fixed=is_fixed,
        index=first.pmc_idx - FIXED_BASE_IDX if is_fixed else first.pmc_idx,
        control=first.control,
        global_ctrl=vcpu.global_ctrl,
        pmu_version=vcpu.pmu_version,
    )
    if len(pmcs) > 1:
        events = [Event(*_event(pmc)) for pmc in pmcs]
    else:
        events = [Event(*_event(first))] if first.event else []
    held = Held(first.control, wanted, first.size, events)
    if not (was_reset or vcpu.awaits_init or (past and past.outlived_reset)):
        return held
    outlived = outlived_reset(held, past, was_reset=was_reset, awaits_init=vcpu.awaits_init)
    return held._replace(outlived_reset=outlived)
