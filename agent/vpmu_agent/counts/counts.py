"""The counts of one VM, and of all VMs at one moment."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import add, itemgetter

from vpmu_agent.model.rules import Kind
from vpmu_agent.probes.layout import PMC_TYPE_LBR, VCPU, pmc_layout, pmc_name
from vpmu_agent.vms.modes import Pmu
from vpmu_agent.vms.names import VmInfo

_PMC = pmc_layout(1).fields  # these fields are the same for any number of slots, which come last
_PMC_TYPE = _PMC["pmc_type"].start
_PMC_CALLS, _PMC_VERDICTS = _PMC["calls"], _PMC["verdicts"]
_which_pmc = itemgetter(*(_PMC[name].start for name in ("vcpu_id", "pmc_type", "pmc_idx")))
_CALLS_ROW = 3 + _PMC_CALLS.stop - _PMC_CALLS.start
_KINDS = [kind for kind in Kind if kind.is_divergence]
_PMC_DIVERGENCES = slice(_PMC_VERDICTS.stop - len(_KINDS), _PMC_VERDICTS.stop)  # Kind has them last
_NUMBERS = VCPU.fields["event_count"].stop
_ENDS_WITH_PROCESS = [VCPU.fields[name] for name in ("groups", "events", "event_count")]


def _rows() -> array[int]:
    return array("q")


@dataclass(slots=True)
class Counts:
    """The counts of one VM, or of one process.

    In arrays, because lists of numbers take four times the memory: 8 MB instead of 2 for 1,000 VMs.
    """

    numbers: array[int] = field(default_factory=lambda: array("q", bytes(8 * _NUMBERS)))
    """The sums over all vCPUs, laid out as `layout.VCPU.fields`."""
    errors: Counter[int] = field(default_factory=Counter)
    """Failed creations by errno."""
    _calls: array[int] = field(default_factory=_rows)  # rows: vCPU, type and index of the pmc, its calls
    _divergences: array[int] = field(default_factory=_rows)  # rows: vCPU, type and index, of _KINDS, count

    def __add__(self, other: Counts) -> Counts:
        """Return the sum, and change neither."""
        return Counts(
            array("q", list(map(add, self.numbers, other.numbers))),
            self.errors + other.errors,
            self._calls + other._calls,
            self._divergences + other._divergences,
        )

    def add_pmc(self, numbers: tuple[int, ...]) -> None:
        """Add the counts of one pmc. Guest LBR has none, and its entry goes with its event: skip it."""
        if numbers[_PMC_TYPE] == PMC_TYPE_LBR:
            return
        self._calls.extend(_which_pmc(numbers) + numbers[_PMC_CALLS])
        if any(numbers[_PMC_DIVERGENCES]):
            for kind, count in enumerate(numbers[_PMC_DIVERGENCES]):
                if count:
                    self._divergences.extend((*_which_pmc(numbers), kind, count))

    def pmc_calls(self) -> dict[tuple[int, str], list[int]]:
        """Return the number of calls of each name, by vCPU and pmc."""
        calls: dict[tuple[int, str], list[int]] = {}
        for i in range(0, len(self._calls), _CALLS_ROW):
            vcpu, pmc_type, pmc_idx, *counts = self._calls[i : i + _CALLS_ROW]
            key = vcpu, pmc_name(pmc_type, pmc_idx)
            calls[key] = list(map(add, calls[key], counts)) if key in calls else counts
        return calls

    def pmc_divergences(self) -> Counter[tuple[int, str, Kind]]:
        """Return the number of divergences by vCPU, pmc and kind."""
        divergences = Counter[tuple[int, str, Kind]]()
        for i in range(0, len(self._divergences), 5):
            vcpu, pmc_type, pmc_idx, kind, count = self._divergences[i : i + 5]
            divergences[vcpu, pmc_name(pmc_type, pmc_idx), _KINDS[kind]] += count
        return divergences

    def ended(self) -> Counts:
        """Return the counts after the process ended: it holds nothing any more, but what it left stays."""
        numbers = self.numbers[:]
        for held in _ENDS_WITH_PROCESS:
            numbers[held] = array("q", bytes(8 * (held.stop - held.start)))
        return Counts(numbers, self.errors, self._calls, self._divergences)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that is known at one moment; the VMs are sorted by name."""

    vms: Mapping[str, Counts]
    about: Mapping[str, VmInfo]
    """The identity of each VM; of several processes with one name, that of the live one or the last."""
    mode: str
    functions: Sequence[str]
    lost: Mapping[str, int]
    occupancy: Mapping[str, tuple[int, int]]
    since_ns: int
    """When these probes were loaded, or those before them went away; nanoseconds since the epoch."""
    loads: int
    """How often probes were loaded, including the first time."""
    per_counter: bool
    """Whether there are counts of each pmc."""
    pmus: Mapping[str, Sequence[Pmu]]
    """The PMUs of all VMs on the host, including those that made no call."""
