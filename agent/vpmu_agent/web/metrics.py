"""The metrics: families, and their text for Prometheus, made at each scrape from what is known of the VMs.

What is of VMs is written here and not by prometheus-client, which takes 7 µs a sample and holds all at once:
a second for the 160,000 of 1,000 VMs, where a whole scrape has 200 ms (`make bench`). All lines of a VM in
one family are made in one go: its name joins the pieces of text between the places where it stands, and one
`%` fills in numbers. The few families of the agent itself, and of its process, are prometheus-client's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import accumulate
from operator import itemgetter
from typing import Literal

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.openmetrics import exposition
from prometheus_client.registry import Collector

from vpmu_agent.counts.counts import Counts, Snapshot
from vpmu_agent.counts.watch import Watch
from vpmu_agent.model.buckets import DURATION_BOUNDS_NS, SIZE_BOUNDS
from vpmu_agent.model.call import CallName
from vpmu_agent.model.rules import Kind, State
from vpmu_agent.probes.layout import VCPU
from vpmu_agent.text import errno_name

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

CHUNK = 64 * 1024
"""Characters, roughly, that are put together before they go out."""


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name as exported (for a histogram without `_bucket`), type, labels and help text.

    A help text has no character that one of the formats escapes.
    """

    name: str
    type: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str

    def head(self, *, openmetrics: bool) -> str:
        """The lines before the samples."""
        # In OpenMetrics the suffix belongs to a counter's sample, not to its name.
        name = self.name.removesuffix("_total") if openmetrics else self.name
        return f"# HELP {name} {self.help}\n# TYPE {name} {self.type}\n"

    def lines(self, values: Iterable[Sequence[str]], number: str = "%d") -> str:
        """A line for each of the labels' (escaped) values, all with the same number or place for one."""
        return "".join(
            self._line(self.name, zip(self.labels, labels, strict=True), number) for labels in values
        )

    def histogram(self, values: Iterable[Sequence[str]], bounds: Sequence[float], total: str = "%d") -> str:
        """The lines of a histogram for each of the labels' values, with places: buckets, count and sum."""
        text = ""
        for labels in values:
            known = list(zip(self.labels, labels, strict=True))
            for bound in (*map(repr, bounds), "+Inf"):
                text += self._line(f"{self.name}_bucket", [*known, ("le", bound)], "%d")
            text += self._line(f"{self.name}_count", known, "%d") + self._line(
                f"{self.name}_sum", known, total
            )
        return text

    def metric(self, samples: Mapping[tuple[str, ...], float]) -> Metric:
        """The family for prometheus-client, with a number for each of the labels' values."""
        made = CounterMetricFamily if self.type == "counter" else GaugeMetricFamily
        metric = made(self.name, self.help, labels=self.labels)
        for labels, number in samples.items():
            metric.add_metric(labels, number)
        return metric

    def _line(self, name: str, labels: Iterable[tuple[str, str]], number: str) -> str:
        text = ",".join(f'{label}="{value}"' for label, value in sorted(labels))
        return f"{name}{{{text}}} {number}\n" if text else f"{name} {number}\n"


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
VM_INFO = Family(
    *("vpmu_vm_info", "gauge", ("vm", "uuid", "vmm", "pid", "pod_uid")),
    "Always 1; who the VM is: its UUID, what runs it, its process, and the Kubernetes pod that it runs in.",
)
MODE = Family(
    *("vpmu_mode", "gauge", ("vm", "mode")),
    "Always 1; how KVM gives the VM its PMU: emulated with perf events, which are what is counted here; "
    "mediated, where the guest has the host's counters themselves and there are no events; or off. Also of "
    "VMs that made no call; no series where it cannot be known.",
)
PMC_CALLS = Family(
    *("vpmu_pmc_calls_total", "counter", ("vm", "vcpu", "pmc", "call")),
    "Calls by counter, but for guest LBR, which has none. Off with --no-per-counter.",
)
PMC_DIVERGENCES = Family(
    *("vpmu_pmc_divergences_total", "counter", ("vm", "vcpu", "pmc", "kind")),
    "Divergences by counter; only counters that diverged have a series. Off with --no-per-counter.",
)
BUILD = Family("vpmu_agent_build_info", "gauge", ("version",), "Always 1; which agent this is.")
PROBES = Family("vpmu_agent_attached_probes", "gauge", ("mode",), "Kernel functions being watched, by how.")
LOADS = Family(
    *("vpmu_agent_loads_total", "counter", ()),
    "How often the probes were loaded: at the start, and whenever the kvm module had been loaded anew.",
)
LOST = Family(
    *("vpmu_agent_lost_records_total", "counter", ("reason",)),
    "What was lost, by reason. ring_full is a record, and errors_full an errno, of a call that is counted "
    "all the same; any other is a call that is not, and none of the counts above is complete then.",
)
VMS = Family("vpmu_agent_vms", "gauge", (), "VMs known: those alive, and those gone since the last scrape.")
MAP_ENTRIES = Family("vpmu_agent_map_entries", "gauge", ("map",), "Entries that a BPF map has now.")
MAP_ROOM = Family("vpmu_agent_map_max_entries", "gauge", ("map",), "Entries that a BPF map has room for.")
SCRAPE = Family(
    *("vpmu_agent_scrape_duration_seconds", "gauge", ()),
    "Time from the beginning of this scrape to this line, its reader's part included.",
)


@dataclass(frozen=True, slots=True)
class _VmFamily:
    """A family that has the same lines for every VM."""

    family: Family
    text: str  # of one VM: _VM where its name stands, and a place for each number
    numbers: Callable[[Sequence[int]], Iterable[float]]  # from those of `layout.VCPU.fields`


_VM = "\0"
_FIELDS = VCPU.fields
_BUCKETS = [_FIELDS[f"{call}_buckets"] for call in CallName]


def _plain(
    family: Family, numbers: slice | Sequence[int], by: Iterable[str] | None = None, number: str = "%d"
) -> _VmFamily:
    values = [(_VM,)] if by is None else [(_VM, value) for value in by]
    get = itemgetter(numbers) if isinstance(numbers, slice) else itemgetter(*numbers)
    return _VmFamily(family, family.lines(values, number), get)


def _cumulative(counts: Sequence[int], total: float) -> list[float]:
    """The numbers of one histogram."""
    buckets = list(accumulate(counts))
    return [*buckets, buckets[-1], total]


def _durations(numbers: Sequence[int]) -> list[float]:
    all_calls: list[float] = []
    for buckets, nanoseconds in zip(_BUCKETS, numbers[_FIELDS["duration_ns"]], strict=True):
        all_calls += _cumulative(numbers[buckets], nanoseconds / 1e9)
    return all_calls


def _host_seconds(numbers: Sequence[int]) -> list[float]:
    return [sum(numbers[_FIELDS["duration_ns"]]) / 1e9]


def _sizes(numbers: Sequence[int]) -> list[float]:
    return _cumulative(numbers[_FIELDS["sizes"]], numbers[_FIELDS["sizes_sum"].start])


def _places(field: str, names: Sequence[str], wanted: Iterable[str]) -> list[int]:
    """Where the numbers of some names are in a field that has one for each of `names`."""
    return [_FIELDS[field].start + names.index(name) for name in wanted]


# Every kind from the start: increase() does not see a series begin at 1, and there may be no second.
_DIVERGENCES = [kind for kind in Kind if kind.is_divergence]
_STATES = [state for state in State if state is not State.EMPTY]  # which holds nothing
_UNKNOWN = _FIELDS["verdicts"].start + list(Kind).index(Kind.UNKNOWN)

_VM_FAMILIES = (
    _plain(CALLS, _FIELDS["calls"], CallName),
    _plain(PREDICTED, _FIELDS["predicted"], CallName),
    _plain(UNKNOWN, slice(_UNKNOWN, _UNKNOWN + 1)),
    _VmFamily(
        DURATION,
        DURATION.histogram([(_VM, call) for call in CallName], [ns / 1e9 for ns in DURATION_BOUNDS_NS], "%r"),
        _durations,
    ),
    _VmFamily(HOST, HOST.lines([(_VM,)], "%r"), _host_seconds),
    _plain(DIVERGENCES, _places("verdicts", list(Kind), _DIVERGENCES), _DIVERGENCES),
    _plain(GROUPS, _places("groups", list(State), _STATES), _STATES),
    _plain(EVENTS, _FIELDS["events"]),
    _plain(ORPHANED, _FIELDS["orphans"]),
    _VmFamily(GROUP_SIZE, GROUP_SIZE.histogram([(_VM,)], [float(size) for size in SIZE_BOUNDS]), _sizes),
    _plain(PINNED_SIBLINGS, _FIELDS["pinned_siblings"]),
)

VM_FAMILIES = (*(each.family for each in _VM_FAMILIES), ERRORS, VM_INFO, MODE)
PMC_FAMILIES = (PMC_CALLS, PMC_DIVERGENCES)
AGENT_FAMILIES = (BUILD, PROBES, LOADS, LOST, VMS, MAP_ENTRIES, MAP_ROOM, SCRAPE)
FAMILIES = (*VM_FAMILIES, *PMC_FAMILIES, *AGENT_FAMILIES)
"""Every metric there is."""


class Exporter:
    """Makes what a scrape gets."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._version = version("vpmu-agent")

    def scrape(self, *, openmetrics: bool) -> Iterator[bytes]:
        """The metrics as they are now, in chunks of about CHUNK bytes; as OpenMetrics or as plain text.

        What can fail has been done when this returns.
        """
        start = time.perf_counter()
        snapshot = self._watch.snapshot()
        return _chunks(self._text(snapshot, start, openmetrics=openmetrics))

    def _text(self, snapshot: Snapshot, start: float, *, openmetrics: bool) -> Iterator[str]:
        vms = {_escaped(name): counts for name, counts in snapshot.vms.items()}
        for each in _VM_FAMILIES:
            yield each.family.head(openmetrics=openmetrics)
            pieces, numbers = each.text.split(_VM), each.numbers
            for name, counts in vms.items():
                # The name will be part of what `%` reads.
                yield name.replace("%", "%%").join(pieces) % tuple(numbers(counts.numbers))
        yield ERRORS.head(openmetrics=openmetrics)
        for name, counts in vms.items():
            # Only a creation can fail.
            for number, count in sorted(counts.errors.items()):
                yield ERRORS.lines([(name, CallName.CREATE, errno_name(number))], str(count))
        yield VM_INFO.head(openmetrics=openmetrics)
        for name, about in snapshot.about.items():
            labels = _escaped(name), about.uuid, about.vmm, str(about.tgid), about.pod_uid
            yield VM_INFO.lines([labels], "1")
        yield MODE.head(openmetrics=openmetrics)
        for name, pmus in snapshot.pmus.items():
            for mode in sorted({pmu.mode for pmu in pmus}):  # one process may have several VMs
                yield MODE.lines([(_escaped(name), mode)], "1")
        if snapshot.per_counter:
            yield from _pmc_text(vms, openmetrics=openmetrics)
        registry = CollectorRegistry()
        registry.register(_Agent(snapshot, self._version, start))
        ProcessCollector(registry=registry)
        write = exposition.generate_latest if openmetrics else generate_latest
        yield write(registry).decode()  # in OpenMetrics the end of it all, too


@dataclass(frozen=True, slots=True, eq=False)
class _Agent(Collector):
    """What there is to say of the agent itself."""

    snapshot: Snapshot
    version: str
    start: float

    def describe(self) -> list[Metric]:
        """Nothing: nobody else's families are in the registry, but for the process's."""
        return []

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        snapshot = self.snapshot
        yield BUILD.metric({(self.version,): 1})
        yield PROBES.metric({(snapshot.mode,): len(snapshot.functions)})
        yield LOADS.metric({(): snapshot.loads})
        yield LOST.metric({(reason,): count for reason, count in snapshot.lost.items()})
        yield VMS.metric({(): len(snapshot.vms)})
        occupancy = snapshot.occupancy.items()
        yield MAP_ENTRIES.metric({(name,): entries for name, (entries, _) in occupancy})
        yield MAP_ROOM.metric({(name,): room for name, (_, room) in occupancy})
        yield SCRAPE.metric({(): time.perf_counter() - self.start})


def _pmc_text(vms: Mapping[str, Counts], *, openmetrics: bool) -> Iterator[str]:
    yield PMC_CALLS.head(openmetrics=openmetrics)
    # All lines of a counter differ only in the label `call`: the others are one text that joins them.
    lines = PMC_CALLS.lines([(_VM, _VM, _VM, call) for call in CallName])
    pieces = lines.split(f'pmc="{_VM}",vcpu="{_VM}",vm="{_VM}"')
    for name, counts in vms.items():
        vm = name.replace("%", "%%")
        for (vcpu, pmc), calls in sorted(counts.pmc_calls().items()):
            yield f'pmc="{pmc}",vcpu="{vcpu}",vm="{vm}"'.join(pieces) % tuple(calls)
    yield PMC_DIVERGENCES.head(openmetrics=openmetrics)
    for name, counts in vms.items():
        for (vcpu, pmc, kind), count in sorted(counts.pmc_divergences().items()):
            yield PMC_DIVERGENCES.lines([(name, str(vcpu), pmc, kind)], str(count))


def _chunks(texts: Iterable[str]) -> Iterator[bytes]:
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= CHUNK:
            yield "".join(chunk).encode()
            chunk.clear()
            size = 0
    if chunk:
        yield "".join(chunk).encode()


def _escaped(value: str) -> str:
    """A label's value, as both formats want it."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
