"""Sequences of calls through the BPF monitor and the Python check: same verdicts, registers and counts.

`python -m tests.bpf.fuzz` makes a million random ones, on all processors; it prints how far it is, and ends
with what it met. A sequence is the life of a random host's counters (tests/support/world.py), valid or with
the design's hazards, in three of four cases with faults put in. Its seed makes it again: `--seed S
--sequences 1`.

`--all DEPTH` makes no random ones, but all that guests can do with two counters in so many steps.

Most sequences are made as the daemon sees them, so that a usual call takes its own way through the monitor,
and what that does is held against the check's registers after every call. Every eighth one is made as a trace
sees it, call by call. At each call perf has room for the event or not.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from operator import itemgetter

from tests.bpf.twins import Twins
from tests.support.every import count, every_sequence
from tests.support.sequences import possible, sequence, without_groups
from vpmu_agent.model.call import Call, CallName
from vpmu_agent.model.check import Checker
from vpmu_agent.model.registers import Registers
from vpmu_agent.model.rules import Kind, State
from vpmu_agent.model.verdict import Verdict
from vpmu_agent.probes.layout import UNCHECKED

_CALLS, _STATES = tuple(CallName), tuple(State)
_KINDS = {kind: i for i, kind in enumerate(Kind)}
_PREDICTED = _KINDS[Kind.PREDICTED]
_REGISTERS = ("size", "members", "enabled", "orphans", "walk", "gone", "left", "paused", "faults")


class _Pmc:
    """What the check says of a pmc, as numbers that the monitor should have in its entry."""

    def __init__(self) -> None:
        self.calls = [0] * len(_CALLS)
        self.due = [0] * len(_CALLS)
        self.verdicts = [0] * len(_KINDS)
        self.starvations = 0
        self.error = 0

    def count(self, call: Call, said: Verdict, *, starved: bool) -> None:
        """Counts a call."""
        self.starvations += starved
        if call.name is CallName.CREATE:
            self.error = -call.result
        name = _CALLS.index(call.name)
        self.calls[name] += 1
        self.due[name] -= 1
        for i, predicted in enumerate(said.counts):
            self.due[i] += predicted
        kind = _KINDS[said.kind]
        if kind != _PREDICTED:
            self.verdicts[kind] += 1

    def numbers(self, pmc: Registers, twins: Twins) -> tuple[object, ...]:
        """All of them; `pmc` are the check's registers."""
        held = pmc.members | pmc.orphans
        events = [twins.address(event) for i, event in enumerate(pmc.events) if (held >> i) & 1]
        registers = tuple(getattr(pmc, name) for name in _REGISTERS)
        found_room = self.starvations, self.error
        return pmc.state, registers, events, self.calls, self.due, self.verdicts, found_room


class _Entry:
    """The same of the monitor's entry."""

    def __init__(self, twins: Twins) -> None:
        fields = twins.pmc_fields
        self._state = fields["state"].start
        self._registers = itemgetter(*(fields[name].start for name in _REGISTERS))
        self._held = itemgetter(fields["members"].start, fields["orphans"].start)
        self._event, self._events = fields["event"].start, fields["events"]
        self._calls, self._due, self._verdicts = (fields[name] for name in ("calls", "due", "verdicts"))
        self._found_room = itemgetter(*(fields[name].start for name in ("starvations", "error")))

    def numbers(self, entry: tuple[int, ...]) -> tuple[object, ...]:
        """All of them."""
        members, orphans = self._held(entry)
        events = [entry[self._event], *entry[self._events][1:]]
        return (
            _STATES[entry[self._state]],
            self._registers(entry),
            [event for i, event in enumerate(events) if ((members | orphans) >> i) & 1],
            list(entry[self._calls]),
            list(entry[self._due]),
            list(entry[self._verdicts]),
            self._found_room(entry),
        )


def differences(calls: list[Call], twins: Twins, *, traced: bool = False) -> Iterator[str]:
    """Where the two do not agree, in words; and nothing else is said where they do.

    Before some of the calls their event is read or gets a new period, which must change nothing else.
    """
    unchecked = [0, 0]  # by UncheckedCall
    twins.begin()
    twins.stream(on=traced)
    check = Checker()
    entry = _Entry(twins)
    counted: defaultdict[int, _Pmc] = defaultdict(_Pmc)
    room: defaultdict[int, bool] = defaultdict(lambda: True)  # by event: whether perf has it
    for i, call in enumerate(calls):
        said = check.observe(call)
        if call.event:
            room[call.event] = (i + call.event // 0x1000) % 3 != 0
            twins.place(call.event, has_room=room[call.event])
        which = (i * 7 + call.event // 0x1000) % 5
        if which < len(unchecked) and call.event and call.pmc:
            twins.count(UNCHECKED[which], call)
            unchecked[which] += 1
        twins.make(call)
        received = twins.received()
        registers = check.registers(call) if call.pmc else None
        whose = _placed_by(call, registers) if call.name in twins.returning else 0
        starved = not room[whose]
        what = f"call {i}, {call.name}: {said} in Python"
        if traced or said.kind.is_divergence or call.result:
            if len(received) != 1:
                yield f"{what}, {len(received)} records in BPF"
                return
            seen, kernel = received[0]
            if _essence(said) != _essence(kernel):
                yield f"{what}, {kernel} in BPF"
                return
            if seen.starved != starved:
                yield f"{what}, starved is {starved} in Python, {seen.starved} in BPF"
                return
            if _identity(seen) != _identity(call):
                yield f"call {i}: {call} was made, and {seen} seen"
        elif received:
            yield f"{what}, {received} in BPF"
            return
        if registers is None:
            continue  # guest LBR: its event's entry goes with the event
        pmc = counted[call.pmc]
        pmc.count(call, said, starved=starved)
        ours = pmc.numbers(registers, twins)
        if ours != (theirs := entry.numbers(twins.pmc(call.pmc))):
            yield f"{what}: {ours} in Python, {theirs} in BPF"
            return
    if twins.counted() != unchecked:
        yield f"{unchecked} reads and new periods were made, {twins.counted()} counted"


def _placed_by(call: Call, pmc: Registers | None) -> int:
    """The event whose state tells, at the return of this call, whether perf had room; 0 if none's does."""
    if call.name is CallName.CREATE:
        return 0 if call.result or call.attr.disabled else call.leader or call.event
    if pmc is None or call.name is not CallName.ENABLE or pmc.state is State.ENABLING:
        return 0
    leads = pmc.state is not State.UNKNOWN and pmc.members & 1
    return pmc.events[0] if leads else call.event


def _identity(call: Call) -> tuple[object, ...]:
    return call.name, call.result, call.vcpu, call.pmc_name


def _essence(verdict: Verdict) -> tuple[object, ...]:
    return verdict.kind, verdict.event, verdict.leader, verdict.expected


class Run:
    """What came of some sequences."""

    def __init__(self) -> None:
        self.sequences = 0
        self.calls = 0
        self.kinds = Counter[Kind]()
        self.different: list[str] = []

    def add(self, other: Run) -> None:
        """Adds what came of others."""
        self.sequences += other.sequences
        self.calls += other.calls
        self.kinds += other.kinds
        self.different += other.different


def run(sequences: Iterable[tuple[str, bool, bool, list[Call]]]) -> Run:
    """Tries sequences: (what it is, whether it has groups, whether it is traced, its calls)."""
    came = Run()
    with ExitStack() as stack:
        monitors = {
            groups: stack.enter_context(Twins(grouped=groups, vcpus=2, pmcs=3, events=8192))
            for groups in (True, False)
        }
        for what, groups, traced, calls in sequences:
            came.sequences += 1
            came.calls += len(calls)
            found = differences(calls, monitors[groups], traced=traced)
            came.different += [f"{what}: {difference}" for difference in found]
            check = Checker()
            came.kinds.update(check.observe(call).kind for call in calls)
        if lost := sum(sum(monitor.lost().values()) for monitor in monitors.values()):
            came.different.append(f"{lost} calls were lost")
    return came


def randomly(seeds: range) -> Run:
    """Tries the sequences of these seeds."""
    return run(map(_random, seeds))


def _random(seed: int) -> tuple[str, bool, bool, list[Call]]:
    groups = seed % 4 != 0
    calls = sequence(seed, grouped=groups)
    calls = possible(calls if groups else without_groups(calls))
    return f"seed {seed}", groups, seed % 8 == 1, calls


def exhaustively(part: tuple[int, int, int]) -> Run:
    """Tries all sequences of so many steps that begin with one of the first steps: (depth, from, to)."""
    depth, start, end = part
    return run(
        (f"steps {steps}", True, False, calls) for steps, calls in every_sequence(depth, range(start, end))
    )


_BATCH = 5000


def main() -> int:
    """Exits with 1 if anything differed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bpf.fuzz", description=__doc__)
    parser.add_argument("--sequences", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--all", type=int, metavar="DEPTH", help="every sequence of so many steps instead")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    total = Run()
    done = 0
    start = time.monotonic()
    # Processes of their own each: a monitor's maps know a process by its tgid.
    with multiprocessing.get_context("spawn").Pool(arguments.processes, maxtasksperchild=20) as pool:
        if arguments.all:
            # A process loads its monitors for each part, which takes as long as thousands of calls.
            size = -(-_BATCH * count(2) // count(arguments.all))
            parts = [(arguments.all, i, min(i + size, count(2))) for i in range(0, count(2), size)]
            batches, came = len(parts), pool.imap_unordered(exhaustively, parts)
        else:
            end = arguments.seed + arguments.sequences
            ranges = [range(a, min(a + _BATCH, end)) for a in range(arguments.seed, end, _BATCH)]
            batches, came = len(ranges), pool.imap_unordered(randomly, ranges)
        for batch in came:
            total.add(batch)
            done += 1
            for line in batch.different[:20]:
                print(line)
            rate = f"{total.calls / (time.monotonic() - start):,.0f} calls/s"
            failed = len(total.different)
            print(f"{done * 100 // batches:3} % {total.calls:12,} calls, {rate}, {failed} differ", flush=True)
    failed = len(total.different)
    print(f"{total.sequences:,} sequences, {total.calls:,} calls, {failed} differences")
    print(", ".join(f"{kind} {times:,}" for kind, times in total.kinds.most_common()))
    missing = set() if arguments.all else set(Kind) - set(total.kinds)
    if missing:
        print(f"never met: {', '.join(sorted(missing))}")
    return 1 if failed or missing else 0


if __name__ == "__main__":
    sys.exit(main())
