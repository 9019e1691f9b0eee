"""The metrics: families built at each scrape from what was counted, for Prometheus."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import accumulate
from typing import Literal

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from vpmu_agent.model.automaton import Kind, State
from vpmu_agent.model.call import Call, CallName
from vpmu_agent.model.check import Monitor, Verdict
from vpmu_agent.tally import DURATION_BOUNDS_NS, SIZE_BOUNDS, errno_name

GONE_S = 15 * 60.0
"""How long a VM that is gone waits for the scrape that shows its last counts."""


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


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name as exported (for a histogram without `_bucket`), type, labels and help text."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str

    def metric(self, samples: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
        """The family with samples, each the labels' values and the number."""
        if self.type == "histogram":
            return self.histogram((), unit=1)
        made = CounterMetricFamily if self.type == "counter" else GaugeMetricFamily
        family = made(self.name, self.help, labels=self.labels)
        for labels, value in samples:
            family.add_metric(labels, value)
        return family

    def histogram(self, samples: Iterable[tuple[tuple[str, ...], Histogram]], *, unit: float) -> Metric:
        """The same for histograms, whose bounds and sum are divided by `unit`."""
        family = HistogramMetricFamily(self.name, self.help, labels=self.labels)
        for labels, histogram in samples:
            bounds = [*(repr(bound / unit) for bound in histogram.bounds), "+Inf"]
            buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
            family.add_metric(labels, buckets, histogram.total / unit)
        return family


CALLS = Family("vpmu_calls_total", "counter", ("vm", "call"), "Calls that KVM made for the VM's counters.")
PREDICTED = Family(
    *("vpmu_predicted_calls_total", "counter", ("vm", "call")),
    "Calls that the model predicted; equal to vpmu_calls_total for as long as KVM does as predicted.",
)
UNKNOWN = Family(
    *("vpmu_unknown_calls_total", "counter", ("vm",)),
    "Calls of which the model could say nothing: their counters were set up before the agent came, records "
    "were lost, or they can be consequences of a divergence.",
)
PINNED_SIBLINGS = Family(
    *("vpmu_pinned_siblings_total", "counter", ("vm",)),
    "Group members created pinned beside their leader, which perf_event_open() would refuse.",
)
ERRORS = Family("vpmu_call_errors_total", "counter", ("vm", "call", "errno"), "Calls that failed, by errno.")
DURATION = Family(
    "vpmu_call_duration_seconds", "histogram", ("vm", "call"), "Time from a call's entry to its return."
)
HOST = Family("vpmu_host_seconds_total", "counter", ("vm",), "Host time spent in the VM's vPMU calls.")
DIVERGENCES = Family(
    *("vpmu_divergences_total", "counter", ("vm", "kind")),
    "Calls that were not as the model predicted, by kind.",
)
GROUPS = Family(
    "vpmu_groups", "gauge", ("vm", "state"), "Counters that hold events now, by state of their group."
)
EVENTS = Family("vpmu_events", "gauge", ("vm",), "Host perf events that the VM's counters hold now.")
ORPHANED = Family(
    *("vpmu_orphaned_events", "gauge", ("vm",)),
    "Host perf events that the VM's counters left behind: nobody will release them any more.",
)
GROUP_SIZE = Family(
    *("vpmu_group_size_events", "histogram", ("vm",)), "Size of the groups that were programmed, in events."
)
PMC_CALLS = Family(
    *("vpmu_pmc_calls_total", "counter", ("vm", "vcpu", "pmc", "call")),
    "Calls by counter. Off with --no-per-counter.",
)
PMC_DIVERGENCES = Family(
    *("vpmu_pmc_divergences_total", "counter", ("vm", "vcpu", "pmc", "kind")),
    "Divergences by counter; only counters that diverged have a series. Off with --no-per-counter.",
)
BUILD = Family("vpmu_agent_build_info", "gauge", ("version",), "Always 1; which agent this is.")
PROBES = Family("vpmu_agent_attached_probes", "gauge", ("mode",), "Kernel functions being watched, by how.")
LOST = Family(
    *("vpmu_agent_lost_records_total", "counter", ("reason",)),
    "Calls that happened and were not counted, by reason. None of the counts above is complete then.",
)
VMS = Family("vpmu_agent_vms", "gauge", (), "VMs known: those alive, and those gone since the last scrape.")
SCRAPE = Family("vpmu_agent_scrape_duration_seconds", "gauge", (), "Time that collecting this scrape took.")

VM_FAMILIES = (
    CALLS,
    PREDICTED,
    UNKNOWN,
    ERRORS,
    DURATION,
    HOST,
    DIVERGENCES,
    GROUPS,
    EVENTS,
    ORPHANED,
    GROUP_SIZE,
    PINNED_SIBLINGS,
)
PMC_FAMILIES = (PMC_CALLS, PMC_DIVERGENCES)
AGENT_FAMILIES = (BUILD, PROBES, LOST, VMS, SCRAPE)
FAMILIES = (*VM_FAMILIES, *PMC_FAMILIES, *AGENT_FAMILIES)
"""Every metric there is."""


@dataclass(slots=True)
class _Gone:
    since: float  # time.monotonic()
    exported: bool = False


class Watch:
    """What the daemon knows of all VMs, for the loop that feeds it and the threads that scrape it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._monitor = Monitor()
        self._tally = Tally()
        self._gone: dict[str, _Gone] = {}

    def feed(self, calls: Iterable[Call]) -> None:
        """Takes the next calls."""
        with self._lock:
            observe, add = self._monitor.observe, self._tally.add
            for call in calls:
                add(call, observe(call))

    def sweep(self, is_alive: Callable[[int], bool]) -> list[int]:
        """Drops the VMs that are gone and were shown so by a scrape; returns the tgids that were dropped.

        Without a scrape they are kept for GONE_S: whoever scrapes next shall see how it ended. A VM that was
        restarted under its name goes on counting; only its former process is dropped.
        """
        with self._lock:
            tgids = {tgid for vm in self._tally.vms.values() for tgid in vm.tgids}
        # Looking into /proc for each of them takes its time; a scrape need not wait for it.
        dead = {tgid for tgid in tgids if not is_alive(tgid)}
        now = time.monotonic()
        dropped: set[int] = set()
        with self._lock:
            for name, vm in list(self._tally.vms.items()):
                if vm.tgids <= dead:
                    gone = self._gone.setdefault(name, _Gone(now))
                    if not gone.exported and now - gone.since < GONE_S:
                        continue
                    self._tally.drop(name)
                self._gone.pop(name, None)
                dropped |= vm.tgids & dead
                vm.tgids -= dead
            for tgid in dropped:
                self._monitor.forget(tgid)
        return sorted(dropped)

    def families(self, *, per_counter: bool) -> list[Metric]:
        """All that is known of the VMs now, as one scrape shows it."""
        with self._lock:
            for gone in self._gone.values():
                gone.exported = True
            vms = {name: vm.copy() for name, vm in sorted(self._tally.vms.items())}
            states = Counter[tuple[str, State]]()
            events = Counter[str]()
            orphans = Counter[str]()
            for group in self._monitor.groups():
                states[group.vm, group.state] += group.events > 0
                events[group.vm] += group.events
                orphans[group.vm] += group.orphans
        # From here on without the lock: putting thousands of samples together takes longer than copying.
        return [
            *_vm_families(vms),
            GROUPS.metric(((name, state), states[name, state]) for name in vms for state in _STATES),
            EVENTS.metric(((name,), events[name]) for name in vms),
            ORPHANED.metric(((name,), orphans[name]) for name in vms),
            *(_pmc_families(vms) if per_counter else ()),
        ]


_STATES = tuple(state for state in State if state is not State.EMPTY)
_DIVERGENCES = tuple(kind for kind in Kind if kind.is_divergence)


def _vm_families(vms: Mapping[str, VmTally]) -> Iterator[Metric]:
    yield CALLS.metric(((name, call), n) for name, vm in vms.items() for call, n in vm.calls.items())
    yield PREDICTED.metric(((name, call), n) for name, vm in vms.items() for call, n in vm.predicted.items())
    yield UNKNOWN.metric(((name,), vm.unknown) for name, vm in vms.items())
    yield PINNED_SIBLINGS.metric(((name,), vm.pinned_siblings) for name, vm in vms.items())
    yield ERRORS.metric(
        ((name, call, errno_name(number)), n)
        for name, vm in vms.items()
        for (call, number), n in vm.errors.items()
    )
    yield DURATION.histogram(
        (((name, call), histogram) for name, vm in vms.items() for call, histogram in vm.durations.items()),
        unit=1e9,
    )
    yield HOST.metric(((name,), vm.host_ns / 1e9) for name, vm in vms.items())
    # Every kind from the start: increase() does not see a series begin at 1, and there may be no second.
    yield DIVERGENCES.metric(
        ((name, kind), vm.divergences.get(kind, 0)) for name, vm in vms.items() for kind in _DIVERGENCES
    )
    yield GROUP_SIZE.histogram((((name,), vm.group_sizes) for name, vm in vms.items()), unit=1)


def _pmc_families(vms: Mapping[str, VmTally]) -> Iterator[Metric]:
    yield PMC_CALLS.metric(
        ((name, str(vcpu), pmc, call), n)
        for name, vm in vms.items()
        for (vcpu, pmc, call), n in vm.pmc_calls.items()
    )
    yield PMC_DIVERGENCES.metric(
        ((name, str(vcpu), pmc, kind), n)
        for name, vm in vms.items()
        for (vcpu, pmc, kind), n in vm.pmc_divergences.items()
    )


class VpmuCollector(Collector):
    """Gives prometheus-client the families at each scrape.

    `lost` returns totals by reason, `attached` counts the kernel functions that are watched.
    """

    def __init__(
        self,
        watch: Watch,
        *,
        mode: str,
        attached: int,
        lost: Callable[[], Mapping[str, int]],
        per_counter: bool = True,
    ) -> None:
        self._watch = watch
        self._mode = mode
        self._attached = attached
        self._lost = lost
        self._per_counter = per_counter
        self._version = version("vpmu-agent")

    def describe(self) -> Iterable[Metric]:
        """What there is to collect. Without it, registering would collect, and count as a scrape."""
        return [family.metric(()) for family in FAMILIES]

    def collect(self) -> Iterable[Metric]:
        """See Collector."""
        start = time.perf_counter()
        families = self._watch.families(per_counter=self._per_counter)
        yield from families
        yield BUILD.metric([((self._version,), 1)])
        yield PROBES.metric([((self._mode,), self._attached)])
        yield LOST.metric(((reason,), n) for reason, n in self._lost().items())
        yield VMS.metric([((), len({s.labels["vm"] for s in families[0].samples}))])
        yield SCRAPE.metric([((), time.perf_counter() - start)])
