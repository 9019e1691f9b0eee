"""Counts per VM, for the summaries of a trace and a replay."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field

from vpmu_agent.counts.failures import Failures
from vpmu_agent.model.call import Call, CallName, PmcType
from vpmu_agent.model.rules import Kind
from vpmu_agent.model.verdict import Verdict

MAX_VMS = 10_000
"""How many VMs have counts of their own; those that come later have them together, as OTHER_VMS."""

MAX_DIVERGING = 10_000
"""How many counters, of all VMs and by kind, have divergences of their own; later ones are OTHER_COUNTERS."""

OTHER_VMS = "all other VMs"
OTHER_COUNTERS = "all other counters"


def counted_as(vm: str, known: Collection[str]) -> str:
    """Return the name that a VM is counted under, given those that have counts already."""
    return vm if vm in known or len(known) < MAX_VMS else OTHER_VMS


@dataclass(slots=True)
class Unchecked:
    """The calls of a VM of which the model says nothing; they are counted and not shown one by one."""

    read: int = 0
    period: int = 0
    host_ns: int = 0

    def __add__(self, other: Unchecked) -> Unchecked:
        """Return the sum."""
        return Unchecked(self.read + other.read, self.period + other.period, self.host_ns + other.host_ns)


@dataclass(slots=True)
class Part:
    """Some of a VM's calls, and the host time that they took; 0 if it was not measured."""

    calls: int = 0
    host_ns: int = 0

    def add(self, call: Call) -> None:
        """Count a call."""
        self.calls += 1
        self.host_ns += call.duration_ns


@dataclass(slots=True)
class VmTally:
    """The counts of one VM. Only what happened has a key, except that `calls` has every call name."""

    calls: dict[CallName, int] = field(default_factory=lambda: dict.fromkeys(CallName, 0))
    host_ns: int = 0
    """Host time spent in the VM's vPMU calls; 0 if it was not measured."""
    errors: dict[tuple[CallName, int], int] = field(default_factory=lambda: defaultdict(int))
    """By call and (positive) errno."""
    starvations: int = 0
    """Calls after which the host's PMU had no room for the counter's events."""
    pinned_siblings: int = 0
    """Members created pinned and with a leader, which perf_event_open() would refuse."""
    divergences: dict[tuple[int, str, Kind], int] = field(default_factory=lambda: defaultdict(int))
    """By vCPU (-1 for OTHER_COUNTERS and guest LBR), pmc and kind."""
    precise: Part = field(default_factory=Part)
    """The calls for precise events, which KVM makes for a guest's PEBS."""
    guest_lbr: Part = field(default_factory=Part)
    unchecked: Unchecked | None = None
    """None where nobody counted them, as in a replay."""


class Tally:
    """The tallies of all VMs, by name. It takes only so much memory, and counts every call all the same."""

    def __init__(self) -> None:
        self.vms: dict[str, VmTally] = {}
        self.failures = Failures()
        self._diverging = 0

    @property
    def divergences(self) -> int:
        """The total of all VMs."""
        return sum(sum(vm.divergences.values()) for vm in self.vms.values())

    def add_unchecked(self, name: str, unchecked: Unchecked) -> None:
        """Add what was counted of a VM."""
        vm = self._of(name)
        vm.unchecked = (vm.unchecked or Unchecked()) + unchecked

    def add(self, call: Call, verdict: Verdict) -> None:
        """Count one call."""
        name = call.name
        try:
            vm = self.vms[call.vm]
        except KeyError:
            vm = self._of(call.vm)
        vm.calls[name] += 1
        vm.host_ns += call.duration_ns
        if call.result:
            vm.errors[name, -call.result] += 1
            self.failures.add(call)
        if call.starved:
            vm.starvations += 1
        if call.attr.precise_ip:
            vm.precise.add(call)
        if call.pmc_type is _LBR:
            vm.guest_lbr.add(call)
        if call.leader and name is _CREATE and call.attr.pinned:
            vm.pinned_siblings += 1
        # Not is_divergence: nearly all calls are as predicted, and a property is slow on this path.
        kind = verdict.kind
        if kind is not _PREDICTED and kind is not _UNKNOWN:
            self._diverged(vm, (call.vcpu, call.pmc_name, kind))

    def _of(self, name: str) -> VmTally:
        return self.vms.setdefault(counted_as(name, self.vms), VmTally())

    def _diverged(self, vm: VmTally, what: tuple[int, str, Kind]) -> None:
        if what not in vm.divergences:
            if self._diverging >= MAX_DIVERGING:
                what = -1, OTHER_COUNTERS, what[2]
            self._diverging += 1
        vm.divergences[what] += 1


# Reading a member of an enum takes five times as long as reading a global.
_CREATE, _LBR = CallName.CREATE, PmcType.LBR
_PREDICTED, _UNKNOWN = Kind.PREDICTED, Kind.UNKNOWN
