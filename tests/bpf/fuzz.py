"""Random sequences of calls through the BPF monitor and the Python check: same verdicts, same counts.

`python -m tests.bpf.fuzz` makes a million of them, on all processors; it prints how far it is, and ends with
what it met. A sequence is the life of a random host's counters (tests/support/world.py), valid or with the
design's hazards, in three of four cases with faults put in. Its seed makes it again: `--seed S
--sequences 1`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator

from tests.bpf.twins import Twins
from tests.support.sequences import sequence, without_groups
from vpmu_agent.model.call import Call, CallName
from vpmu_agent.model.check import Checker
from vpmu_agent.model.rules import Kind, State
from vpmu_agent.model.verdict import Verdict

Numbers = dict[str, tuple[int, ...]]


def differences(calls: list[Call], twins: Twins) -> Iterator[str]:
    """Where the two do not agree, in words; and nothing else is said where they do."""
    twins.begin()
    monitor = Checker()
    counted: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for i, call in enumerate(calls):
        python = monitor.observe(call)
        seen, kernel = twins.observe(call)
        if _essence(python) != _essence(kernel):
            yield f"call {i}, {call.name}: {python} in Python, {kernel} in BPF"
            return
        if _identity(seen) != _identity(call):
            yield f"call {i}: {call} was made, and {seen} seen"
        _count(counted[call.vcpu], call, python)
    for group in monitor.groups():
        numbers = counted[group.vcpu]
        if group.events:
            numbers[f"groups {tuple(State).index(group.state)}"] += 1
        numbers["events 0"] += group.events
        numbers["orphans 0"] += group.orphans
    for vcpu, numbers in counted.items():
        there = twins.vcpu(vcpu)
        kernels = {
            f"{field} {i}": n
            for field in ("calls", "predicted", "verdicts", "sizes_sum", "groups", "events", "orphans")
            for i, n in enumerate(there[field])
        }
        if +Counter(kernels) != +numbers or min(kernels.values()) < 0:
            yield f"vCPU {vcpu}: {dict(+numbers)} in Python, {dict(+Counter(kernels))} in BPF"


def _identity(call: Call) -> tuple[object, ...]:
    return call.name, call.result, call.vcpu, call.pmc_name


def _essence(verdict: Verdict) -> tuple[object, ...]:
    return verdict.kind, verdict.event, verdict.leader, verdict.expected


def _count(numbers: Counter[str], call: Call, said: Verdict) -> None:
    names = tuple(CallName)
    numbers[f"calls {names.index(call.name)}"] += 1
    numbers[f"verdicts {tuple(Kind).index(said.kind)}"] += 1
    numbers.update({f"predicted {i}": n for i, n in enumerate(said.counts)})
    if call.name is CallName.CREATE and not call.leader:
        numbers["sizes_sum 0"] += max(1, call.max_nr_events)


def run(seeds: range) -> tuple[int, Counter[Kind], list[str]]:
    """Tries these sequences; returns how many calls they had, what the verdicts were, and what differed."""
    grouped, stock = (Twins(grouped=grouped, vcpus=2, pmcs=3, events=8192) for grouped in (True, False))
    kinds: Counter[Kind] = Counter()
    calls = 0
    different: list[str] = []
    for seed in seeds:
        with_groups = seed % 4 != 0
        made = sequence(seed, grouped=with_groups)
        if not with_groups:
            made = without_groups(made)
        calls += len(made)
        twins = grouped if with_groups else stock
        different += [f"seed {seed}: {what}" for what in differences(made, twins)]
        monitor = Checker()
        kinds.update(monitor.observe(call).kind for call in made)
    lost = sum(grouped.lost().values()) + sum(stock.lost().values())
    if lost:
        different.append(f"seeds {seeds}: {lost} calls were lost")
    return calls, kinds, different


_BATCH = 2000


def main() -> int:
    """Exits with 1 if anything differed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bpf.fuzz", description=__doc__)
    parser.add_argument("--sequences", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    end = arguments.seed + arguments.sequences
    batches = [range(a, min(a + _BATCH, end)) for a in range(arguments.seed, end, _BATCH)]
    calls, done, failed = 0, 0, 0
    kinds: Counter[Kind] = Counter()
    start = time.monotonic()
    # Processes of their own each: a monitor's maps know a process by its tgid.
    with multiprocessing.get_context("spawn").Pool(arguments.processes, maxtasksperchild=20) as pool:
        for batch_calls, batch_kinds, different in pool.imap_unordered(run, batches):
            calls += batch_calls
            kinds += batch_kinds
            done += 1
            failed += len(different)
            for line in different[:20]:
                print(line)
            took = time.monotonic() - start
            rate = f"{calls / took:,.0f} calls/s"
            print(f"{done * 100 // len(batches):3} % {calls:12,} calls, {rate}, {failed} differ", flush=True)
    print(f"{arguments.sequences:,} sequences, {calls:,} calls, {failed} differences")
    print(", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common()))
    missing = set(Kind) - set(kinds)
    if missing:
        print(f"never met: {', '.join(sorted(missing))}")
    return 1 if failed or missing else 0


if __name__ == "__main__":
    sys.exit(main())
