"""What was counted of one VM, and of all of them at one moment."""

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

_PMC = pmc_layout(1).fields  # the same for any number of slots: they come last
_PMC_TYPE = _PMC["pmc_type"].start
_PMC_CALLS, _PMC_VERDICTS = _PMC["calls"], _PMC["verdicts"]
_which_pmc = itemgetter(*(_PMC[name].start for name in ("vcpu_id", "pmc_type", "pmc_idx")))
_CALLS_ROW = 3 + _PMC_CALLS.stop - _PMC_CALLS.start
_KINDS = [kind for kind in Kind if kind.is_divergence]
_PMC_DIVERGENCES = slice(_PMC_VERDICTS.stop - len(_KINDS), _PMC_VERDICTS.stop)  # the last ones of Kind
_NUMBERS = VCPU.fields["event_count"].stop
_ENDS_WITH_PROCESS = [VCPU.fields[name] for name in ("groups", "events", "event_count")]


def _rows() -> array[int]:
    return array("q")


@dataclass(slots=True)
class Counts:
    """What was counted of one VM, or of one process.

    Arrays, because lists of numbers take four times the memory: 8 MB instead of 2 for 1,000 VMs.
    """

    numbers: array[int] = field(default_factory=lambda: array("q", bytes(8 * _NUMBERS)))
    """As `layout.VCPU.fields`, all vCPUs together."""
    errors: Counter[int] = field(default_factory=Counter)
    """Creations that failed, by errno."""
    _calls: array[int] = field(default_factory=_rows)  # rows: vCPU, type and index of the pmc, its calls
    _divergences: array[int] = field(default_factory=_rows)  # rows: vCPU, type and index, of _KINDS, count

    def __add__(self, other: Counts) -> Counts:
        """The sum; neither is changed."""
        return Counts(
            array("q", list(map(add, self.numbers, other.numbers))),
            self.errors + other.errors,
            self._calls + other._calls,
            self._divergences + other._divergences,
        )

    def add_pmc(self, numbers: tuple[int, ...]) -> None:
        """Takes the counts of one pmc. Guest LBR has none, and its entry goes with its event."""
        if numbers[_PMC_TYPE] == PMC_TYPE_LBR:
            return
        self._calls.extend(_which_pmc(numbers) + numbers[_PMC_CALLS])
        if any(numbers[_PMC_DIVERGENCES]):
            for kind, count in enumerate(numbers[_PMC_DIVERGENCES]):
                if count:
                    self._divergences.extend((*_which_pmc(numbers), kind, count))

    def pmc_calls(self) -> dict[tuple[int, str], list[int]]:
        """By vCPU and pmc, the number of calls of each name."""
        calls: dict[tuple[int, str], list[int]] = {}
        for i in range(0, len(self._calls), _CALLS_ROW):
            vcpu, pmc_type, pmc_idx, *counts = self._calls[i : i + _CALLS_ROW]
            key = vcpu, pmc_name(pmc_type, pmc_idx)
            calls[key] = list(map(add, calls[key], counts)) if key in calls else counts
        return calls

    def pmc_divergences(self) -> Counter[tuple[int, str, Kind]]:
        """By vCPU, pmc and kind."""
        divergences = Counter[tuple[int, str, Kind]]()
        for i in range(0, len(self._divergences), 5):
            vcpu, pmc_type, pmc_idx, kind, count = self._divergences[i : i + 5]
            divergences[vcpu, pmc_name(pmc_type, pmc_idx), _KINDS[kind]] += count
        return divergences

    def ended(self) -> Counts:
        """The same when the process is gone: it holds nothing any more. What it left behind stays."""
        numbers = self.numbers[:]
        for held in _ENDS_WITH_PROCESS:
            numbers[held] = array("q", bytes(8 * (held.stop - held.start)))
        return Counts(numbers, self.errors, self._calls, self._divergences)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that is known at one moment; the VMs are in the order of their names."""

    vms: Mapping[str, Counts]
    about: Mapping[str, VmInfo]
    """Who they are: of several processes that had a name, the one that is alive, or was the last."""
    mode: str
    functions: Sequence[str]
    lost: Mapping[str, int]
    occupancy: Mapping[str, tuple[int, int]]
    since_ns: int
    """When these probes came, or those before them went; nanoseconds since the epoch."""
    loads: int
    """How often probes were loaded, the first time included."""
    per_counter: bool
    """Whether the counts of each pmc are known."""
    pmus: Mapping[str, Sequence[Pmu]]
    """The PMUs of all VMs that the host has now, also of those that have made no call."""
