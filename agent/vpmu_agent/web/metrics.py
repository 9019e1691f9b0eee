"""The metrics' text for Prometheus, made at each scrape from the counts of all VMs.

The families of VMs are written here and not by prometheus-client, which takes 7 µs for a sample and holds all
of them at once: a second for the 160,000 samples of 1,000 VMs, where a whole scrape may take 200 ms (`make
bench`). All lines of a VM in one family are made in one step: the VM's name joins the pieces of text around
it, and one `%` fills in the numbers. Both are done with bytes: the `%` of a string looks at each character,
and takes twice as long. prometheus-client writes the few families of the agent and its process.
"""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import version
from itertools import accumulate
from operator import itemgetter

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.openmetrics import exposition
from prometheus_client.registry import Collector

from vpmu_agent.counts.counters import Holder
from vpmu_agent.counts.counts import ALL_DURATIONS, DURATION_BUCKETS, FIELDS, Counts, Pmc, Snapshot
from vpmu_agent.counts.guests import Found
from vpmu_agent.counts.watch import Watch
from vpmu_agent.kernel.kvm import vpmu_enabled
from vpmu_agent.model.buckets import DURATION_BOUNDS_NS, SIZE_BOUNDS
from vpmu_agent.model.call import CallName, UncheckedCall
from vpmu_agent.model.counter_status import CounterStatus
from vpmu_agent.model.rules import Kind, State
from vpmu_agent.probes.layout import pmc_name
from vpmu_agent.system.journal import LOG
from vpmu_agent.system.notify import MANAGER
from vpmu_agent.text import errno_name
from vpmu_agent.vms.modes import Mode
from vpmu_agent.web.families import (
    BUILD,
    CALLS,
    CENSUS_CPU,
    CENSUS_PULLS,
    CENSUS_RECORDS,
    CENSUS_UP,
    DELAYED,
    DIVERGENCES,
    DROPPED_VMS,
    DURATION,
    DURATIONS,
    ERRORS,
    EVENTS,
    GROUP_SIZE,
    GROUPS,
    HOST,
    HOST_PMU_EVENTS,
    LEAKED,
    LOADS,
    LOST,
    MAP_ENTRIES,
    MAP_ROOM,
    MODE,
    ORPHANED,
    PINNED_SIBLINGS,
    PMC_CALLS,
    PMC_DIVERGENCES,
    PMCS,
    PREDICTED,
    PROBES,
    READS,
    REFUSED,
    RUNNING,
    SCRAPE,
    SELF_TEST,
    STARVATIONS,
    STARVED,
    UNKNOWN,
    VM_INFO,
    VMS,
    VPMU_ENABLED,
    Family,
)

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

CHUNK = 64 * 1024
"""About how many bytes are collected before they are sent."""

OWNERS = 10
"""How many names of processes with events on the host's PMU have series of their own."""

OTHERS = "all other processes"
"""The rest of them; the kernel has 15 bytes for a name, so no process can have this one."""


@dataclass(frozen=True, slots=True)
class _VmFamily:
    """A family that has the same lines for every VM."""

    family: Family
    pieces: list[bytes]  # the lines of one VM, to be joined by its name, with a place for each number
    numbers: Callable[[Sequence[int]], Iterable[float]]  # from those of a VM, laid out as FIELDS


_VM = "\0"


def _plain(
    family: Family, numbers: slice | Sequence[int], by: Iterable[str] | None = None, number: str = "%d"
) -> _VmFamily:
    values = [(_VM,)] if by is None else [(_VM, value) for value in by]
    get = itemgetter(numbers) if isinstance(numbers, slice) else itemgetter(*numbers)
    return _VmFamily(family, _pieces(family.lines(values, number)), get)


def _pieces(lines: str) -> list[bytes]:
    """Return lines in which _VM stands for a VM's name as what this is to join."""
    return lines.encode().split(_VM.encode())


def _add_histogram(to: list[float], counts: Iterable[int], total: float) -> None:
    """Add the numbers of one histogram: its cumulative buckets, count and sum."""
    to += accumulate(counts)
    to += to[-1], total


def _durations(numbers: Sequence[int], *, calls: int) -> list[float]:
    """Return the numbers of the histograms of the first `calls` calls."""
    of_calls: list[float] = []
    for buckets, nanoseconds in zip(DURATION_BUCKETS[:calls], numbers[ALL_DURATIONS], strict=False):
        _add_histogram(of_calls, numbers[buckets], nanoseconds / 1e9)
    return of_calls


def _host_seconds(numbers: Sequence[int]) -> list[float]:
    return [sum(numbers[ALL_DURATIONS]) / 1e9]


def _sizes(numbers: Sequence[int]) -> list[float]:
    of_groups: list[float] = []
    _add_histogram(of_groups, numbers[FIELDS["sizes"]], numbers[FIELDS["sizes_sum"].start])
    return of_groups


def _places(field: str, names: Sequence[str], wanted: Iterable[str]) -> list[int]:
    """Return where the numbers of the `wanted` names are, in a field that has one for each of `names`."""
    return [FIELDS[field].start + names.index(name) for name in wanted]


# All kinds from the start: increase() does not see a series begin at 1, and there may never be a 2.
_DIVERGENCES = [kind for kind in Kind if kind.is_divergence]
_STATES = [state for state in State if state is not State.EMPTY]  # an empty group holds no events
_UNKNOWN = FIELDS["verdicts"].start + list(Kind).index(Kind.UNKNOWN)


def _of_calls(calls: Sequence[str]) -> tuple[_VmFamily, ...]:
    """Return the families that have a series for each of `calls`, which are the first ones or all."""
    first = FIELDS["calls"].start
    bounds = [ns / 1e9 for ns in DURATION_BOUNDS_NS]
    return (
        _plain(CALLS, slice(first, first + len(calls)), calls),
        _VmFamily(
            DURATION,
            _pieces(DURATION.histogram([(_VM, call) for call in calls], bounds, "%r")),
            partial(_durations, calls=len(calls)),
        ),
    )


_VM_FAMILIES = (
    _plain(PREDICTED, FIELDS["predicted"], CallName),
    _plain(UNKNOWN, slice(_UNKNOWN, _UNKNOWN + 1)),
    _VmFamily(HOST, _pieces(HOST.lines([(_VM,)], "%r")), _host_seconds),
    _plain(DIVERGENCES, _places("verdicts", list(Kind), _DIVERGENCES), _DIVERGENCES),
    _plain(STARVATIONS, FIELDS["starvations"]),
    _plain(GROUPS, _places("groups", list(State), _STATES), _STATES),
    _plain(EVENTS, FIELDS["events"]),
    _plain(ORPHANED, FIELDS["orphans"]),
    _VmFamily(
        GROUP_SIZE, _pieces(GROUP_SIZE.histogram([(_VM,)], [float(size) for size in SIZE_BOUNDS])), _sizes
    ),
    _plain(PINNED_SIBLINGS, FIELDS["pinned_siblings"]),
    _plain(REFUSED, FIELDS["refused"]),
)

_OF_CALLS = {True: _of_calls([*CallName, *UncheckedCall]), False: _of_calls([*CallName])}
"""By whether the calls that are not checked are counted."""

VM_FAMILIES = (
    *(each.family for each in (*_OF_CALLS[True], *_VM_FAMILIES)),
    ERRORS,
    VM_INFO,
    MODE,
    STARVED,
    LEAKED,
    PMCS,
    RUNNING,
)
_TIME_FAMILIES = (DURATION, HOST)  # which need durations
PMC_FAMILIES = (PMC_CALLS, PMC_DIVERGENCES)
HOST_FAMILIES = (HOST_PMU_EVENTS, VPMU_ENABLED)
AGENT_FAMILIES = (
    BUILD,
    PROBES,
    SELF_TEST,
    DURATIONS,
    READS,
    LOADS,
    LOST,
    VMS,
    DROPPED_VMS,
    DELAYED,
    MAP_ENTRIES,
    MAP_ROOM,
    CENSUS_UP,
    CENSUS_PULLS,
    CENSUS_CPU,
    CENSUS_RECORDS,
    SCRAPE,
)
FAMILIES = (*VM_FAMILIES, *PMC_FAMILIES, *HOST_FAMILIES, *AGENT_FAMILIES)
"""All metrics but those of the process, which prometheus-client declares."""


class Exporter:
    """Writes the answer to a scrape."""

    def __init__(self, watch: Watch, vpmu_enabled: Callable[[], bool | None] = vpmu_enabled) -> None:
        """`vpmu_enabled` returns whether KVM can give guests a vPMU, None if that cannot be read."""
        self._watch = watch
        self._vpmu_enabled = vpmu_enabled
        self._version = version("vpmu-agent")

    def scrape(self, *, openmetrics: bool) -> Iterator[bytes]:
        """Return the current metrics in chunks of about CHUNK bytes, as OpenMetrics or as plain text.

        Whatever can fail does so before this returns, and not while the chunks are made.
        """
        start = time.perf_counter()
        snapshot = self._watch.scrape()
        return _chunks(self._text(snapshot, start, openmetrics=openmetrics))

    def _text(self, snapshot: Snapshot, start: float, *, openmetrics: bool) -> Iterator[bytes]:
        # The names become part of a format.
        vms = [
            (_escaped(name).encode().replace(b"%", b"%%"), counts) for name, counts in snapshot.vms.items()
        ]
        for each in (*_OF_CALLS[snapshot.reads], *_VM_FAMILIES):
            if each.family in _TIME_FAMILIES and not snapshot.durations:
                continue
            yield each.family.head(openmetrics=openmetrics).encode()
            pieces, numbers = each.pieces, each.numbers
            for name, counts in vms:
                yield name.join(pieces) % tuple(numbers(counts.numbers))
        for text in _other_text(snapshot, openmetrics=openmetrics):
            yield text.encode()
        if snapshot.per_counter:
            yield from _pmc_text(vms, openmetrics=openmetrics)
            for text in _pmc_divergences_text(snapshot.vms, openmetrics=openmetrics):
                yield text.encode()
        registry = CollectorRegistry()
        registry.register(_Agent(snapshot, self._vpmu_enabled(), self._version, start))
        ProcessCollector(registry=registry)
        write = exposition.generate_latest if openmetrics else generate_latest
        yield write(registry)  # with the end mark of OpenMetrics


@dataclass(frozen=True, slots=True, eq=False)
class _Agent(Collector):
    """The families of the agent itself, and of the host's PMU."""

    snapshot: Snapshot
    vpmu_enabled: bool | None
    version: str
    start: float

    def describe(self) -> list[Metric]:
        """Return nothing: the registry need not look for names that are there twice."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the families, with their current numbers."""
        snapshot = self.snapshot
        guests = snapshot.guests
        yield HOST_PMU_EVENTS.metric(
            _by_owner(guests.holders) if guests.is_known and not guests.no_holders else {}
        )
        yield VPMU_ENABLED.metric({} if self.vpmu_enabled is None else {(): int(self.vpmu_enabled)})
        yield BUILD.metric({(self.version,): 1})
        yield PROBES.metric({(snapshot.mode,): len(snapshot.functions)})
        yield SELF_TEST.metric({} if snapshot.sees is None else {(): int(snapshot.sees)})
        yield DURATIONS.metric({(): int(snapshot.durations)})
        yield READS.metric({(): int(snapshot.reads)})
        yield LOADS.metric({(): snapshot.loads})
        yield LOST.metric({(reason,): count for reason, count in snapshot.lost.items()})
        yield VMS.metric({(): len(snapshot.vms)})
        yield DROPPED_VMS.metric({(): snapshot.dropped_vms})
        yield DELAYED.metric({("log",): LOG.delayed, ("service_manager",): MANAGER.delayed})
        occupancy = snapshot.occupancy.items()
        yield MAP_ENTRIES.metric({(name,): entries for name, (entries, _) in occupancy})
        yield MAP_ROOM.metric({(name,): room for name, (_, room) in occupancy})
        yield CENSUS_UP.metric({(): int(guests.is_known)})
        yield CENSUS_PULLS.metric({(): guests.pulls})
        yield CENSUS_CPU.metric({(): guests.cpu_s})
        yield CENSUS_RECORDS.metric({(): guests.records} if guests.is_known else {})
        yield SCRAPE.metric({(): time.perf_counter() - self.start})


def _other_text(snapshot: Snapshot, *, openmetrics: bool) -> Iterator[str]:
    """Yield what has not the same lines for every VM."""
    yield ERRORS.head(openmetrics=openmetrics)
    for name, counts in snapshot.vms.items():
        # Only create can fail.
        for number, count in sorted(counts.errors.items()):
            yield ERRORS.lines([(_escaped(name), CallName.CREATE, errno_name(number))], str(count))
    yield VM_INFO.head(openmetrics=openmetrics)
    line = VM_INFO.lines([["%s"] * len(VM_INFO.labels)], "1")
    for name, about in snapshot.about.items():
        # In the order of labels in a line.
        yield line % (about.tgid, about.pod_uid, about.uuid, _escaped(name), about.vmm)
    yield MODE.head(openmetrics=openmetrics)
    line = MODE.lines([["%s"] * len(MODE.labels)], "1")
    for name, pmus in snapshot.guests.pmus.items():
        for mode in sorted({pmu.mode for pmu in pmus}):  # one process may have several VMs
            yield line % (mode, _escaped(name))
    yield from _census_text(snapshot.guests, openmetrics=openmetrics)


def _census_text(guests: Found, *, openmetrics: bool) -> Iterator[str]:
    """Yield what the census says of each VM; of one whose vPMU is off there is nothing to say."""
    known = {
        _escaped(name): (counters, {pmu.mode for pmu in guests.pmus[name]})
        for name, counters in guests.counters.items()
        if guests.is_known
    }
    yield STARVED.head(openmetrics=openmetrics)
    line = STARVED.lines([("%s",)])
    for name, (counters, modes) in known.items():
        if Mode.EMULATED in modes:
            yield line % (name, counters.statuses[CounterStatus.STARVED])
    yield LEAKED.head(openmetrics=openmetrics)
    line = LEAKED.lines([("%s",)])
    leaked = {_escaped(name): len(leaks) for name, leaks in guests.leaks.items()}
    for name, (_, modes) in known.items():
        if Mode.EMULATED in modes or name in leaked:
            yield line % (name, leaked.get(name, 0))
    yield PMCS.head(openmetrics=openmetrics)
    statuses = list(CounterStatus)
    pieces = PMCS.lines([(_VM, status) for status in statuses]).split(_VM)
    for name, (counters, modes) in known.items():
        if modes != {Mode.OFF}:
            # The name becomes part of a format string.
            lines = name.replace("%", "%%").join(pieces)
            yield lines % tuple([counters.statuses.get(status, 0) for status in statuses])
    yield RUNNING.head(openmetrics=openmetrics)
    line = RUNNING.lines([("%s",)], "%r")
    for name, (counters, _) in known.items():
        if counters.running is not None:
            yield line % (name, counters.running)


def _by_owner(holders: Iterable[Holder]) -> dict[tuple[str, ...], int]:
    """Return the number of events by owner and `pinned`: that of the OWNERS names with the most events.

    OTHERS are there even if they have none: 0 says that the census looked.
    """
    pinned, others = Tally[str](), Tally[str]()
    for holder in holders:
        pinned[holder.comm] += holder.pinned
        others[holder.comm] += holder.events - holder.pinned
    named = {comm for comm, _ in (pinned + others).most_common(OWNERS)}
    found = Tally[tuple[str, ...]]({(OTHERS, "true"): 0, (OTHERS, "false"): 0})
    for counts, is_pinned in ((pinned, "true"), (others, "false")):
        for comm, count in counts.items():
            found[comm if comm in named else OTHERS, is_pinned] += count
    return found


def _pmc_text(vms: Iterable[tuple[bytes, Counts]], *, openmetrics: bool) -> Iterator[bytes]:
    yield PMC_CALLS.head(openmetrics=openmetrics).encode()
    for name, counts in vms:
        yield name.join(_pmc_pieces(counts.pmcs)) % tuple(counts.calls)


def _pmc_divergences_text(vms: Mapping[str, Counts], *, openmetrics: bool) -> Iterator[str]:
    yield PMC_DIVERGENCES.head(openmetrics=openmetrics)
    for name, counts in vms.items():
        for (vcpu, pmc, kind), count in sorted(counts.pmc_divergences().items()):
            yield PMC_DIVERGENCES.lines([(_escaped(name), str(vcpu), pmc, kind)], str(count))


@lru_cache(maxsize=256)  # most VMs of a host use the same counters
def _pmc_pieces(pmcs: tuple[Pmc, ...]) -> list[bytes]:
    """Return the lines of a VM's counters, to be joined by its name, with a place for each number."""
    return _pieces("".join([_pmc_lines(*pmc) for pmc in pmcs]))


@lru_cache(maxsize=4096)
def _pmc_lines(vcpu: int, pmc_type: int, pmc_idx: int) -> str:
    """Return the lines of a counter: _VM stands for its VM, and there is a place for each number."""
    name = pmc_name(pmc_type, pmc_idx)
    return PMC_CALLS.lines([(_VM, str(vcpu), name, call) for call in CallName])


def _chunks(texts: Iterable[bytes]) -> Iterator[bytes]:
    chunk: list[bytes] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= CHUNK:
            yield b"".join(chunk)
            chunk.clear()
            size = 0
    if chunk:
        yield b"".join(chunk)


def _escaped(value: str) -> str:
    """Return a label's value, escaped as both formats require."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
