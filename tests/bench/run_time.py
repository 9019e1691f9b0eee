"""Run time per call: the monitor's programs beside an empty one and what bpftrace makes of a one-liner.

Each program is attached to a look-alike of its own, all to the same functions, and these run in turn, a
short while each: what disturbs the machine disturbs them all. A call costs several times as much when its
data has left the caches since the last one, so calls are timed both back to back and some milliseconds apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

from tests.bench import baselines, lookalike, monitor, stats
from tests.bench.errors import BenchError
from tests.bench.lookalike import CALLS, Kernel
from tests.bench.progress import say
from tests.bench.report import Figure, Goal

ROUNDS = 15


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast calls come, 0 for back to back, and how many make a round."""

    what: str
    rate: int
    calls: int


PACES = {"hot": Pace("back to back", 0, 10_000), "cold": Pace("200 calls/s", 200, 100)}
"""The second is the real thing: between two of KVM's calls a guest runs, and perf works for microseconds."""


@dataclass(frozen=True, slots=True)
class Counter:
    """What a look-alike programs again and again: so many events, in so many calls."""

    what: str
    size: int
    calls: int


COUNTERS: Mapping[Kernel, Counter] = {
    "stock": Counter("", 1, 5),
    # A group is never paused, so there are no pauses to time.
    "grouped": Counter(", group of 4", 4, 12),
}

NAMES = {
    "monitor": "the monitor",
    "empty": "(a) an empty program",
    "count": "(b) bpftrace @[pid] = count()",
    "histogram": "(c) bpftrace's latency histogram",
}


@dataclass(frozen=True, slots=True)
class _Subject:
    name: str
    lookalike: Path
    pids: Callable[[], list[int]]

    def run(self, counter: Counter, pace: Pace) -> dict[str, list[float]]:
        """Nanoseconds a run of each of its programs, by call."""
        before = stats.read(self.pids())
        plan = {"rounds": max(1, pace.calls // counter.calls), "size": counter.size, "rate": pace.rate}
        with lookalike.vm(self.lookalike, self.name, **plan):
            after = stats.read(self.pids())
        took: dict[str, list[float]] = {}
        for program, ran in after.items():
            was = before.get(program, ran)  # bpftrace may have loaded it meanwhile
            if runs := ran.runs - was.runs:
                took.setdefault(ran.call, []).append((ran.time_ns - was.time_ns) / runs)
        return took

    def wait(self, counter: Counter) -> None:
        """Until all its probes are seen to run."""
        wanted = {call for call in CALLS if call != "pause" or counter.size == 1}
        programs = 1 if self.name == "count" else 2
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self.pids():
                took = self.run(counter, Pace("", 0, 100))
                if all(len(took.get(call, ())) == programs for call in wanted):
                    return
            time.sleep(0.1)
        raise BenchError(f"{NAMES[self.name]} does not run on each of {', '.join(sorted(wanted))}")


_Round = Mapping[str, Mapping[str, Sequence[float]]]  # subject, call, a time for each program


def measure(folder: Path) -> list[Figure]:
    """The run times on both kernels' functions and at both paces."""
    return [figure for kernel in COUNTERS for figure in _measure(folder, kernel)]


def _measure(folder: Path, kernel: Kernel) -> Iterator[Figure]:
    counter = COUNTERS[kernel]
    with ExitStack() as stack:
        stack.enter_context(stats.enabled())
        paths = {name: lookalike.build(folder / f"{kernel}_{name}", kernel) for name in NAMES}
        daemon = stack.enter_context(monitor.daemon(paths["monitor"]))
        subjects = [_Subject("monitor", paths["monitor"], daemon.pids)]
        for name in baselines.SCRIPTS:
            pid = stack.enter_context(baselines.bpftrace(baselines.script(name, paths[name])))
            subjects.append(_Subject(name, paths[name], partial(list, [pid])))
        for subject in subjects:
            subject.wait(counter)
        for pace_name, pace in PACES.items():
            say(f"run time on the {kernel} functions, {pace.what}: {ROUNDS} rounds")
            rounds = [{s.name: s.run(counter, pace) for s in subjects} for _ in range(ROUNDS)]
            for call in (call for call in CALLS if call in rounds[0]["empty"]):
                what = f"{call}{counter.what}, {pace.what}"
                yield from _figures(f"run_time.{kernel}.{pace_name}.{call}", what, call, rounds)


def _figures(key: str, what: str, call: str, rounds: Sequence[_Round]) -> Iterator[Figure]:
    # Of each subject the sum of its programs at entry and return; an empty program costs the same at either.
    took = {name: median(sum(r[name][call]) for r in rounds) for name in NAMES}
    programs = {name: len(rounds[0][name][call]) for name in NAMES}
    goal = Goal("<=", took["count"], "(b)")
    if call == "create":
        goal = Goal("<=", took["histogram"] / 2, "(c)/2")
    for name, who in NAMES.items():
        empty = took["empty"] / programs["empty"] * programs[name]
        whole = Figure(f"{key}.{name}", f"{what}: {who}", took[name], "ns", row=False)
        yield replace(whole, goal=goal, row=True) if name == "monitor" else whole
        less = f"{what}: {who}, less empty programs"
        yield Figure(f"{key}.{name}.net", less, took[name] - empty, "ns", row=False)


def table(figures: Iterable[Figure]) -> Iterator[str]:
    """All run times side by side; in brackets less those of empty programs in the same places."""
    times = {figure.key: figure.value for figure in figures if figure.key.startswith("run_time.")}
    if not times:
        return
    yield f"{'RUN TIME PER CALL, ns (NET)':<36}" + "".join(
        f"{head:>16}" for head in ("MONITOR", "(a) EMPTY", "(b) COUNT", "(c) HISTOGRAM")
    )
    for kernel, counter in COUNTERS.items():
        for pace_name, pace in PACES.items():
            for call in CALLS:
                key = f"run_time.{kernel}.{pace_name}.{call}"
                if f"{key}.empty" in times:
                    cells = (f"{times[f'{key}.{n}']:.0f} ({times[f'{key}.{n}.net']:.0f})" for n in NAMES)
                    what = f"{call}{counter.what}, {pace.what}"
                    yield f"{what:<36}" + "".join(f"{cell:>16}" for cell in cells)
