"""The counts of each process, worked out from the entries of its pmcs and vCPUs.

The programs write as little as they can at each call (bpf/vpmu.h). What follows from that is worked out here,
when somebody asks: the sums, the calls that were predicted, and what is held.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Sequence
from operator import add, itemgetter

from vpmu_agent.counts.counts import DIVERGENCES, Counts, Pmc, added_calls
from vpmu_agent.model.rules import Kind, State
from vpmu_agent.probes.layout import CALLS, PMC_TYPE_LBR, SIZES, UNCHECKED, VCPU, Layout

Entries = Iterable[memoryview | bytes]
"""Entries of an array, in pieces of any length."""

_CREATE = 0  # enum vpmu_call_name
_PREDICTED = list(Kind).index(Kind.PREDICTED)
_NOT_COUNTED = len(Kind) - len(DIVERGENCES)  # Kind has the divergences last

# Arrays that are usually 0 are read as bytes, and unpacked only if they are not.
_calls_of = struct.Struct(f"={len(CALLS)}I").unpack
_high_of = struct.Struct(f"={len(CALLS)}H").unpack
_verdicts_of = struct.Struct(f"={len(Kind)}Q").unpack
_NO_HIGH, _NO_DUE, _NO_VERDICTS = bytes(2 * len(CALLS)), bytes(8 * len(CALLS)), bytes(8 * len(Kind))

# The durations in a pmc's entry are four lines, each of a sum (64 bits), buckets (32 bits each) and what they
# have carried (5 bits each). They are added up as one long integer, and the numbers of 32 bits at odd places
# as another one, where each sum has 64 bits; what the two differ by is the sums of those at even places. So
# there are two additions for all numbers. One for each would take more time than all the rest of a scrape.
_BUCKETS = SIZES["VPMU_BUCKETS"]
_LINE = 2 + _BUCKETS + 2  # numbers of 32 bits
_LINES = 4 * _LINE * len(CALLS)
_ODD = int.from_bytes(b"\0\0\0\0\xff\xff\xff\xff" * (_LINES // 8), "little")
_CARRIES = int.from_bytes((bytes(4 * _LINE - 8) + b"\xff" * 8) * len(CALLS), "little")
_CARRY_BITS = 5


def _carried(lines: int) -> list[int]:
    """Return what the buckets of all calls have carried, in the lines of a pmc's durations."""
    carries = [lines >> (32 * (_LINE * call + 2 + _BUCKETS)) for call in range(len(CALLS))]
    mask = (1 << _CARRY_BITS) - 1
    return [(of_call >> (_CARRY_BITS * bucket)) & mask for of_call in carries for bucket in range(_BUCKETS)]


# The sums are unpacked as all those at even places, and then all at odd ones.
_sums_of = struct.Struct(f"={2 * _LINES // 8}q").unpack
_in_order = itemgetter(*(place // 2 + place % 2 * (_LINES // 8) for place in range(_LINES // 4)))


def _durations(lines: int, odd: int) -> list[int]:
    """Return the sums of durations, and then all buckets, out of lines that were added up."""
    even = (lines - odd).to_bytes(_LINES, "little")
    sums = _in_order(_sums_of(even + (odd >> 32).to_bytes(_LINES, "little")))
    starts = range(0, len(sums), _LINE)
    durations = [sums[start] + (sums[start + 1] << 32) for start in starts]
    for start in starts:
        durations += sums[start + 2 : start + 2 + _BUCKETS]
    return durations


# In a vCPU's entry no sum ever reaches 64 bits, so that these are added up as one long integer each: what
# there is of groups, and the calls that are not checked (of each how many, their sum in ns, buckets, and what
# fills the line).
_GROUP_NUMBERS = ["siblings", "pinned_siblings", "sizes", "sizes_sum"]
_READ_NUMBERS = [
    name
    for calls, call in zip(("reads", "periods"), UNCHECKED, strict=True)
    for name in (calls, f"{call}_ns", f"{call}_buckets", f"unused_{call}")
]
_READ_LINE = 16  # numbers of each call
_unended = VCPU.reader("tgid", lines=[_GROUP_NUMBERS, _READ_NUMBERS])
_groups_of = struct.Struct(f"={3 + SIZES['VPMU_SIZES']}q")
_reads_of = struct.Struct(f"={_READ_LINE * len(UNCHECKED)}q")
_read_buckets = itemgetter(
    *(_READ_LINE * call + 2 + bucket for call in range(len(UNCHECKED)) for bucket in range(_BUCKETS))
)
_NO_GROUPS, _NO_READS = bytes(_groups_of.size), bytes(_reads_of.size)

_ended = VCPU.reader("tgid", "starvations", raw=("calls", "due", "verdicts", "durations_ns", "buckets"))
_ended_calls_of = struct.Struct(f"={len(CALLS)}Q").unpack
_ended_durations_of = struct.Struct(f"={len(CALLS)}Q{len(CALLS) * _BUCKETS}Q").unpack
_NO_CALLS, _NO_CARRIES = bytes(8 * len(CALLS)), [0] * (len(CALLS) * _BUCKETS)
_NO_DURATIONS = [0] * (len(CALLS) + len(CALLS) * _BUCKETS)


class _Process:
    """What has been added up of one process."""

    def __init__(self) -> None:
        self.has_guest_lbr = False
        self.divergences: list[tuple[Pmc, Sequence[int]]] = []
        self.pmcs: list[Pmc] = []
        self.calls_of_pmcs = bytearray()  # as they are in the entries
        self.high: dict[int, tuple[int, ...]] = {}  # what is above 32 bits, by index into `pmcs`
        self.lines = self.odd = 0  # of durations: all numbers, and those at odd places
        self.carries = _NO_CARRIES
        self.calls = [0] * len(CALLS)  # of guest LBR
        self.due = bytearray()  # as it is in the entries
        self.verdicts = [0] * len(Kind)
        self.starvations = 0
        self.groups = [0] * len(State)
        self.events = self.orphans = 0
        self.sizes = self.unchecked = 0  # numbers of vCPUs
        self.reads = self.periods = 0  # of pmcs, without durations
        self.durations = _NO_DURATIONS  # of events of guest LBR that have ended


class Sums:
    """Adds up entries, by process.

    They are read while the programs write, the arrays one after the other. So that no sum is ever too high,
    and would have to go down again, the order is that of the methods here: when an event of guest LBR ends,
    the programs move its counts from a pmc's entry to a vCPU's; and a creation must be known as that of a
    group's member before it is taken for one of a single event.
    """

    def __init__(self, pmc: Layout) -> None:
        """`pmc` is the layout of the entries of pmcs."""
        self._pmc = pmc.reader(
            "state",
            "members",
            "orphans",
            "tgid",
            "vcpu_id",
            "left",
            "pmc_type",
            "pmc_idx",
            "starvations",
            "reads",
            "periods",
            raw=("calls", "calls_high", "verdicts", "due"),
            lines=[[f"{call}_{what}" for call in CALLS for what in ("ns", "buckets", "carries")]],
        )
        self._processes: dict[int, _Process] = {}
        self._known: dict[Pmc, Pmc] = {}  # one object for the same pmc of all VMs

    def add_ended(self, vcpus: Entries) -> None:
        """Add what guest-LBR events counted that have ended."""
        for entries in vcpus:
            for tgid, starvations, calls, due, verdicts, durations_ns, buckets in _ended.iter_unpack(entries):
                if tgid and calls != _NO_CALLS:
                    process = self._of(tgid)
                    process.has_guest_lbr = True
                    process.calls = list(map(add, process.calls, _ended_calls_of(calls)))
                    process.starvations += starvations
                    process.due += due
                    process.verdicts = list(map(add, process.verdicts, _verdicts_of(verdicts)))
                    durations = _ended_durations_of(durations_ns + buckets)
                    process.durations = list(map(add, process.durations, durations))

    def add_pmcs(self, pmcs: Entries) -> None:
        """Add what was counted for each pmc, and for each live event of guest LBR."""
        # A loop with as few steps as possible in the usual case: it is run for each of thousands of pmcs.
        last, process, known = 0, _Process(), self._known
        for entries in pmcs:
            for (
                state,
                members,
                orphans,
                calls,
                high,
                tgid,
                vcpu,
                left,
                pmc_type,
                pmc_idx,
                packed,
                verdicts,
                due,
                starvations,
                reads,
                periods,
            ) in self._pmc.iter_unpack(entries):
                if not tgid:
                    continue
                if tgid != last:
                    last, process = tgid, self._of(tgid)
                pmc = vcpu, pmc_type, pmc_idx
                if pmc_type == PMC_TYPE_LBR:
                    process.has_guest_lbr = True
                    process.calls = list(map(add, process.calls, _calls_of(calls)))
                else:
                    process.pmcs.append(known.setdefault(pmc, pmc))
                    process.calls_of_pmcs += calls
                    if high != _NO_HIGH:
                        process.high[len(process.pmcs) - 1] = _high_of(high)
                lines = int.from_bytes(packed, "little")
                process.lines += lines
                process.odd += lines & _ODD
                if lines & _CARRIES:
                    process.carries = list(map(add, process.carries, _carried(lines)))
                if reads:
                    process.reads += reads
                if periods:
                    process.periods += periods
                if members:
                    process.groups[state] += 1
                    process.events += members.bit_count()
                if orphans or left:
                    process.orphans += orphans.bit_count() + left
                if starvations:
                    process.starvations += starvations
                if due != _NO_DUE:
                    process.due += due
                if verdicts != _NO_VERDICTS:
                    process.verdicts = list(map(add, process.verdicts, _verdicts_of(verdicts)))
                    if pmc_type != PMC_TYPE_LBR:
                        process.divergences.append((pmc, _verdicts_of(verdicts)[_NOT_COUNTED:]))

    def add_vcpus(self, vcpus: Entries) -> None:
        """Add what is known of groups, and the calls that are not checked."""
        for entries in vcpus:
            for tgid, sizes, reads in _unended.iter_unpack(entries):
                if tgid:
                    process = self._of(tgid)
                    if reads != _NO_READS:
                        process.unchecked += int.from_bytes(reads, "little")
                    if sizes != _NO_GROUPS:
                        process.sizes += int.from_bytes(sizes, "little")

    def counts(self) -> dict[int, Counts]:
        """Return the counts of each process, by tgid, and forget them."""
        counts = {}
        while self._processes:  # one after the other, for together they take megabytes
            tgid, process = self._processes.popitem()
            counts[tgid] = _counts(process)
        return counts

    def _of(self, tgid: int) -> _Process:
        process = self._processes.get(tgid)
        if process is None:
            process = self._processes[tgid] = _Process()
        return process


def _counts(process: _Process) -> Counts:
    of_pmcs = array("I", process.calls_of_pmcs)
    if process.high:
        of_pmcs = array("Q", of_pmcs)
        for i, of_pmc in process.high.items():
            for call, high in enumerate(of_pmc):
                of_pmcs[i * len(CALLS) + call] += high << 32
    pmcs, calls_of_pmcs = added_calls(process.pmcs, of_pmcs)
    calls = [more + sum(of_pmcs[call :: len(CALLS)]) for call, more in enumerate(process.calls)]
    due = array("q", process.due)
    predicted = [count + sum(due[call :: len(CALLS)]) for call, count in enumerate(calls)]
    process.verdicts[_PREDICTED] = sum(calls) - sum(process.verdicts)  # nothing counts these
    siblings, pinned_siblings, *sizes, sizes_sum = _groups_of.unpack(
        process.sizes.to_bytes(_groups_of.size, "little")
    )
    single = calls[_CREATE] - siblings - sum(sizes)
    sizes[0] += single
    durations = _durations(process.lines, process.odd)
    if process.carries is not _NO_CARRIES:
        for at, carried in enumerate(process.carries, start=len(CALLS)):
            durations[at] += carried << 32
    if process.durations is not _NO_DURATIONS:
        durations = list(map(add, durations, process.durations))
    reads = _reads_of.unpack(process.unchecked.to_bytes(_reads_of.size, "little"))
    counts = Counts(
        array(
            "q",
            [
                *predicted,
                *sizes,
                sizes_sum + single,
                *calls,
                *map(add, reads[::_READ_LINE], (process.reads, process.periods)),
                *process.verdicts,
                *durations[: len(CALLS)],
                *reads[1::_READ_LINE],
                *durations[len(CALLS) :],
                *_read_buckets(reads),
                process.starvations,
                pinned_siblings,
                *process.groups,
                process.events,
                process.orphans,
                0,  # refused
            ],
        ),
        process.has_guest_lbr,
        pmcs=pmcs,
        calls=calls_of_pmcs,
    )
    for pmc, divergences in process.divergences:
        counts.add_divergences(pmc, divergences)
    return counts
