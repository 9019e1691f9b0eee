"""The counts of one VM, and of all VMs at one moment."""

from __future__ import annotations

from array import array
from collections import Counter as Tally
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, chain, islice
from operator import add, lt

from vpmu_agent.counts.counters import Counter
from vpmu_agent.counts.guests import Found
from vpmu_agent.model.counter_status import EventState
from vpmu_agent.model.rules import Kind, State
from vpmu_agent.probes.layout import CALLS, SIZES, UNCHECKED, pmc_name
from vpmu_agent.vms.names import VmInfo

_BUCKETS = SIZES["VPMU_BUCKETS"]
_WIDTHS = {
    "predicted": len(CALLS),
    "sizes": SIZES["VPMU_SIZES"],
    "sizes_sum": 1,
    "calls": len(CALLS),
    "reads": len(UNCHECKED),
    "verdicts": len(Kind),
    "duration_ns": len(CALLS),
    "read_ns": len(UNCHECKED),
    "duration_buckets": len(CALLS) * _BUCKETS,
    "read_buckets": len(UNCHECKED) * _BUCKETS,
    "starvations": 1,
    "pinned_siblings": 1,
    "groups": len(State),
    "events": 1,
    "orphans": 1,
    "refused": 1,
}
FIELDS = {
    name: slice(end - width, end)
    for (name, width), end in zip(_WIDTHS.items(), accumulate(_WIDTHS.values()), strict=True)
}
"""The place of each field among the numbers of a VM. All are counters but `groups`, `events` and `orphans`.

`calls`, `predicted` and `duration_ns` have a number for each of CALLS, `duration_buckets` a row of buckets;
`reads`, `read_ns` and `read_buckets` have the same of UNCHECKED, each behind its like; `verdicts` has one for
each Kind; `groups` for each State: so many pmcs hold events.
"""
DURATION_BUCKETS = [
    slice(start, start + _BUCKETS)
    for start in range(FIELDS["duration_buckets"].start, FIELDS["read_buckets"].stop, _BUCKETS)
]
"""The place of each call's buckets among the numbers of a VM, of CALLS and then of UNCHECKED."""
ALL_CALLS = slice(FIELDS["calls"].start, FIELDS["reads"].stop)
ALL_DURATIONS = slice(FIELDS["duration_ns"].start, FIELDS["read_ns"].stop)
"""The same for the numbers of calls, and for their durations in ns."""

DIVERGENCES = [kind for kind in Kind if kind.is_divergence]

_NUMBERS = sum(_WIDTHS.values())
_OF_GROUPS, _COUNTERS = slice(FIELDS["sizes_sum"].stop), slice(FIELDS["pinned_siblings"].stop)
_ENDS_WITH_PROCESS = [FIELDS[name] for name in ("groups", "events")]

Shown = tuple["array[int]", bool]

Pmc = tuple[int, int, int]
"""Which pmc of a VM it is: its vCPU, and type and index as in `struct vpmu_pmc`."""


@dataclass(slots=True)
class Counts:
    """The counts of one VM, or of one process."""

    numbers: array[int] = field(default_factory=lambda: array("q", bytes(8 * _NUMBERS)))
    """The sums over all vCPUs, laid out as FIELDS; in an array, which takes a quarter of a list's memory."""
    has_guest_lbr: bool = False
    errors: Tally[int] = field(default_factory=Tally)
    """Failed creations by errno."""
    pmcs: tuple[Pmc, ...] = ()
    """The pmcs, in order. Guest LBR has none."""
    calls: array[int] = field(default_factory=lambda: array("I"))
    """The calls of each of `pmcs` by name, those of one after those of another; of 32 or of 64 bits."""
    _divergences: Tally[tuple[int, ...]] = field(default_factory=Tally)  # by Pmc and that of DIVERGENCES

    def __add__(self, other: Counts) -> Counts:
        """Return the sum, and change neither."""
        pmcs, calls = added_calls(self.pmcs + other.pmcs, array("Q", self.calls) + array("Q", other.calls))
        return Counts(
            array("q", list(map(add, self.numbers, other.numbers))),
            self.has_guest_lbr or other.has_guest_lbr,
            self.errors + other.errors,
            pmcs,
            calls,
            self._divergences + other._divergences,
        )

    def add_divergences(self, pmc: Pmc, divergences: Sequence[int]) -> None:
        """Add the DIVERGENCES of a pmc."""
        for kind, count in enumerate(divergences):
            if count:
                self._divergences[*pmc, kind] += count

    def pmc_divergences(self) -> dict[tuple[int, str, Kind], int]:
        """Return the number of divergences by vCPU, pmc and kind."""
        return {
            (vcpu, pmc_name(pmc_type, pmc_idx), DIVERGENCES[kind]): count
            for (vcpu, pmc_type, pmc_idx, kind), count in self._divergences.items()
        }

    def add_held(self, counters: Iterable[Counter]) -> None:
        """Add what these hold, but for those of which there are counts: calls tell more, and sooner."""
        known = _names(self.pmcs)
        for counter in counters:
            if counter.events and (counter.vcpu, counter.pmc) not in known:
                self.numbers[_GROUPS_START + _STATES.index(_state(counter))] += 1
                self.numbers[FIELDS["events"].start] += len(counter.events)

    def raise_to(self, before: Shown) -> None:
        """Let no counter be lower than it was when `before` was shown.

        What is worked out from several entries can be too low for a moment, as calls go on while these are
        read: what there is about groups, and with guest LBR everything.
        """
        numbers, has_guest_lbr = before
        self.has_guest_lbr |= has_guest_lbr
        which = slice(len(numbers))
        self.numbers[which] = array("q", list(map(max, self.numbers[which], numbers)))

    def shown(self) -> Shown:
        """Return what raise_to() will have to know: no more, for it is kept from one scrape to the next."""
        return self.numbers[_COUNTERS if self.has_guest_lbr else _OF_GROUPS], self.has_guest_lbr

    def ended(self) -> Counts:
        """Return the counts after the process ended: it holds nothing any more, but what it left stays."""
        numbers = self.numbers[:]
        for held in _ENDS_WITH_PROCESS:
            numbers[held] = array("q", bytes(8 * (held.stop - held.start)))
        return Counts(numbers, self.has_guest_lbr, self.errors, self.pmcs, self.calls, self._divergences)


@lru_cache(maxsize=64)  # most VMs of a host use the same counters
def _names(pmcs: tuple[Pmc, ...]) -> frozenset[tuple[int, str]]:
    """Return the vCPU and the name of each pmc."""
    return frozenset((vcpu, pmc_name(pmc_type, pmc_idx)) for vcpu, pmc_type, pmc_idx in pmcs)


_STATES = list(State)
_GROUPS_START = FIELDS["groups"].start


def _state(counter: Counter) -> State:
    """Return the state that the model would have for what a counter holds."""
    if len(counter.events) < counter.size:
        return State.PARTIAL
    is_off = all(event.state == EventState.OFF for event in counter.events)
    return State.PAUSED if is_off else State.RUNNING


def added_calls(pmcs: Sequence[Pmc], calls: array[int]) -> tuple[tuple[Pmc, ...], array[int]]:
    """Return pmcs and their calls as Counts has them: one can have had several entries, in any order."""
    if all(map(lt, pmcs, islice(pmcs, 1, None))):
        return tuple(pmcs), calls
    sums: dict[Pmc, Sequence[int]] = {}
    for pmc, more in zip(pmcs, zip(*[iter(calls)] * len(CALLS), strict=True), strict=True):
        sums[pmc] = list(map(add, sums[pmc], more)) if pmc in sums else more
    pmcs = tuple(sorted(sums))
    return pmcs, array("Q", list(chain.from_iterable(map(sums.__getitem__, pmcs))))


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
    dropped_vms: int
    """VMs that are gone and whose counts were dropped before any scrape; see Watch."""
    sees: bool | None
    """Whether the probes were seen to run; None if that is not known."""
    per_counter: bool
    """Whether there are counts of each pmc."""
    durations: bool
    """Whether the durations of calls are measured; if not, their numbers are all 0."""
    reads: bool
    """Whether the calls that are not checked are counted; if not, their numbers are all 0."""
    guests: Found
    """What the census says of all VMs on the host, including those that made no call."""
