"""What was seen so far, per VM: the one count behind a trace's summary, a replay's and the metrics."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from vpmu_agent.model.call import Call, CallName
from vpmu_agent.model.rules import Kind
from vpmu_agent.model.verdict import Verdict


@dataclass(slots=True)
class VmTally:
    """What was seen of one VM. Only what happened has a key, except that every call name is in `calls`."""

    calls: dict[CallName, int] = field(default_factory=lambda: dict.fromkeys(CallName, 0))
    host_ns: int = 0
    """Host time that went into the VM's vPMU calls."""
    errors: dict[tuple[CallName, int], int] = field(default_factory=lambda: defaultdict(int))
    """By call and errno, as a positive number."""
    pinned_siblings: int = 0
    """Members with a leader that were created pinned, which perf_event_open() would refuse."""
    divergences: dict[tuple[int, str, Kind], int] = field(default_factory=lambda: defaultdict(int))
    """By vCPU, pmc and kind."""


class Tally:
    """The tallies of all VMs, by name."""

    def __init__(self) -> None:
        self.vms: dict[str, VmTally] = {}

    @property
    def divergences(self) -> int:
        """Of all VMs."""
        return sum(sum(vm.divergences.values()) for vm in self.vms.values())

    def add(self, call: Call, verdict: Verdict) -> None:
        """Counts one call."""
        name = call.name
        try:
            vm = self.vms[call.vm]
        except KeyError:
            vm = self.vms[call.vm] = VmTally()
        vm.calls[name] += 1
        vm.host_ns += call.duration_ns
        if call.result:
            vm.errors[name, -call.result] += 1
        if call.leader and name is _CREATE:
            vm.pinned_siblings += call.attr.pinned
        # Not is_divergence: nearly all calls are as predicted, and a property is dear here.
        kind = verdict.kind
        if kind is not _PREDICTED and kind is not _UNKNOWN:
            vm.divergences[call.vcpu, call.pmc_name, kind] += 1


# An enum's member is five times as dear as a name of the module.
_CREATE, _PREDICTED, _UNKNOWN = CallName.CREATE, Kind.PREDICTED, Kind.UNKNOWN
