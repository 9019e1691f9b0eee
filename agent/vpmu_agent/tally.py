"""What was seen so far, per VM: the one count behind a trace's summary, a replay's and the metrics."""

from __future__ import annotations

import errno
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field

from vpmu_agent.model.automaton import Kind
from vpmu_agent.model.call import Call, CallName
from vpmu_agent.model.check import Verdict

DURATION_BOUNDS_NS = (
    *(100, 500, 1_000, 5_000, 10_000, 50_000, 100_000, 500_000),
    *(1_000_000, 5_000_000, 10_000_000),
)
"""Upper bounds, inclusive, of the buckets that a call's duration falls into; one more bucket takes the rest.

From an enable that has nothing to do (hundreds of nanoseconds) to a create that waits for a grace period
(milliseconds); two bounds a decade, because every bound is a series for each VM and call."""

SIZE_BOUNDS = (1, 2, 4, 8, 16)
"""The same for the size of a group in events. `max_nr_events` is a u8, hardware fields will not be many."""


@dataclass(slots=True)
class Histogram:
    """Counts by bucket (not cumulative; the last one has no upper bound) and the sum of what was counted."""

    bounds: tuple[int, ...]
    counts: list[int] = field(default_factory=list)
    total: int = 0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def add(self, value: int) -> None:
        """Counts one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def copy(self) -> Histogram:
        """The same, and no longer changed by `add()`."""
        return Histogram(self.bounds, self.counts.copy(), self.total)


@dataclass(slots=True)
class VmTally:
    """What was seen of one VM. Only what happened has a key, except that every call name is in `calls`."""

    tgids: set[int] = field(default_factory=set)
    calls: dict[CallName, int] = field(default_factory=lambda: dict.fromkeys(CallName, 0))
    predicted: dict[CallName, int] = field(default_factory=lambda: dict.fromkeys(CallName, 0))
    errors: dict[tuple[CallName, int], int] = field(default_factory=lambda: defaultdict(int))
    """By call and errno, as a positive number."""
    divergences: dict[Kind, int] = field(default_factory=lambda: defaultdict(int))
    durations: dict[CallName, Histogram] = field(
        default_factory=lambda: {name: Histogram(DURATION_BOUNDS_NS) for name in CallName}
    )
    """In nanoseconds."""
    group_sizes: Histogram = field(default_factory=lambda: Histogram(SIZE_BOUNDS))
    """Of every group, at the creation of its first event."""
    unknown: int = 0
    """Calls that the model could say nothing of."""
    pinned_siblings: int = 0
    """Members with a leader that were created pinned, which perf_event_open() would refuse."""
    pmc_calls: dict[tuple[int, str, CallName], int] = field(default_factory=lambda: defaultdict(int))
    """By vCPU, pmc and call."""
    pmc_divergences: dict[tuple[int, str, Kind], int] = field(default_factory=lambda: defaultdict(int))

    @property
    def host_ns(self) -> int:
        """Host time that went into the VM's vPMU calls."""
        return sum(histogram.total for histogram in self.durations.values())

    def copy(self) -> VmTally:
        """The same, and no longer changed by `Tally.add()`."""
        return VmTally(
            tgids=self.tgids.copy(),
            calls=self.calls.copy(),
            predicted=self.predicted.copy(),
            errors=self.errors.copy(),
            divergences=self.divergences.copy(),
            durations={name: histogram.copy() for name, histogram in self.durations.items()},
            group_sizes=self.group_sizes.copy(),
            unknown=self.unknown,
            pinned_siblings=self.pinned_siblings,
            pmc_calls=self.pmc_calls.copy(),
            pmc_divergences=self.pmc_divergences.copy(),
        )


class Tally:
    """The tallies of all VMs, by name."""

    def __init__(self) -> None:
        self.vms: dict[str, VmTally] = {}
        self.divergences = 0
        """Of all VMs, those that were dropped too."""

    def add(self, call: Call, verdict: Verdict) -> None:
        """Counts one call."""
        vm = self.vms.get(call.vm)
        if vm is None:
            vm = self.vms[call.vm] = VmTally()
        vm.tgids.add(call.tgid)
        name = call.name
        vm.calls[name] += 1
        vm.durations[name].add(call.duration_ns)
        vm.pmc_calls[call.vcpu, call.pmc_name, name] += 1
        for predicted in verdict.predicted:
            vm.predicted[predicted] += 1
        if call.result:
            vm.errors[name, -call.result] += 1
        if name is CallName.CREATE:
            if call.leader:
                vm.pinned_siblings += call.attr.pinned
            else:
                vm.group_sizes.add(call.max_nr_events)
        kind = verdict.kind
        # Not is_divergence: nearly all calls are as predicted, and a property is dear here.
        if kind is Kind.UNKNOWN:
            vm.unknown += 1
        elif kind is not Kind.PREDICTED:
            self.divergences += 1
            vm.divergences[kind] += 1
            vm.pmc_divergences[call.vcpu, call.pmc_name, kind] += 1

    def drop(self, vm: str) -> None:
        """Drops what was counted of a VM that is gone."""
        self.vms.pop(vm, None)


def errno_name(number: int) -> str:
    """`ENOSPC` for 28; the number itself for those that the kernel keeps to itself (524, ENOTSUPP)."""
    return errno.errorcode.get(number, str(number))
