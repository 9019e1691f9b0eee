"""Run time per call: the monitor's programs beside an empty one and what bpftrace makes of a one-liner.

Each program is attached to a look-alike of its own, all to the same functions, and these run in turn, a
short while each: what disturbs the machine disturbs them all. A call costs several times as much when its
data has left the caches since the last one, so calls are timed both back to back and some milliseconds apart.
The first create of a counter, for which everybody has to make entries, is told apart from all others.

It also matters where a program's maps and code lie in memory, which stays the same until it is loaded again.
So there are several runs, each with all programs loaded again, and the goals apply to the medians of these.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from tests.bench import baselines, lookalike, monitor, stats
from tests.bench.errors import BenchError
from tests.bench.lookalike import CALLS, Kernel
from tests.bench.progress import say
from tests.bench.report import Figure, Goal

RUNS, ROUNDS = 3, 5


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
    reads: int
    """And as many new periods; none are timed of a group."""

    @property
    def plan(self) -> Mapping[str, int]:
        """What the look-alike is told of it."""
        return {"size": self.size, "reads": self.reads}


COUNTERS: Mapping[Kernel, Counter] = {
    "stock": Counter("", 1, 7, 1),
    # A group is never paused, so there are no pauses to time.
    "grouped": Counter(", group of 4", 4, 12, 0),
}

FIRST_CREATE = "first create"
"""Of a counter: of a group, the mean of its members' creates."""

NAMES = {
    "monitor": "the monitor",
    "counts_only": "the monitor with --no-durations",
    "empty": "(a) an empty program",
    "count": "(b) bpftrace @[pid] = count()",
    "histogram": "(c) bpftrace's latency histogram",
    "floor": "(d) the least that counts and times a call",
}
_OPTIONS: Mapping[str, tuple[str, ...]] = {"monitor": (), "counts_only": ("--no-durations",)}

GOALS: Mapping[tuple[str, str], Mapping[str, float]] = {
    ("hot", "monitor"): {"count": 1.6, "histogram": 0.5},
    ("cold", "monitor"): {"count": 1.25, "histogram": 0.6},
    ("hot", "counts_only"): {"count": 0.7},
    ("cold", "counts_only"): {"count": 0.7},
}
"""By pace and subject: any call but a create may take so many times what (b) and (c) take."""
CREATE_GOALS: Mapping[tuple[str, str], Mapping[str, float]] = {
    ("hot", "monitor"): {"histogram": 1.35},
    ("cold", "monitor"): {"histogram": 1.1},
}
"""The same of a create, of which there is one for many other calls, and whose arguments have to be read."""
GROUP_RELEASE_GOAL = 1.8
"""Of (b), back to back: the release of a group is checked from its first member to its last."""


@dataclass(frozen=True, slots=True)
class _Subject:
    name: str
    lookalike: Path
    pids: Callable[[], list[int]]

    def run(self, counter: Counter, pace: Pace) -> dict[str, list[float]]:
        """Nanoseconds a run of each of its programs, by call; of a counter's first create as FIRST_CREATE."""
        rounds = 1 + max(1, pace.calls // counter.calls)
        plan = {"warm": 1, "rounds": rounds, **counter.plan, "rate": pace.rate}
        began, start = time.monotonic(), stats.read(self.pids())
        with lookalike.started(self.lookalike, self.name, **plan) as process:
            lookalike.warmed(process)
            warm = stats.read(self.pids())
            lookalike.go_on(process)
            lookalike.finished(process, began)
            took = _took(warm, stats.read(self.pids()))
        if first := _took(start, warm).get("create"):
            took[FIRST_CREATE] = first
        return took

    def programs(self, call: str) -> int:
        """How many programs run at a call: one at its entry, and mostly one at its return."""
        creates = "create", FIRST_CREATE
        only_entry = self.name == "count" or (self.name == "counts_only" and call not in creates)
        return 1 if only_entry else 2

    def wait(self, counter: Counter) -> None:
        """Until all its probes are seen to run."""
        wanted = set(CALLS) if counter.reads else {"create", "enable", "release"}
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self.pids():
                took = self.run(counter, Pace("", 0, 100))
                if all(len(took.get(call, ())) == self.programs(call) for call in wanted):
                    return
            time.sleep(0.1)
        raise BenchError(f"{NAMES[self.name]} does not run on each of {', '.join(sorted(wanted))}")


def _took(before: Mapping[int, stats.Ran], after: Mapping[int, stats.Ran]) -> dict[str, list[float]]:
    took: dict[str, list[float]] = {}
    for program, ran in after.items():
        was = before.get(program, ran)  # bpftrace may have loaded it meanwhile
        if runs := ran.runs - was.runs:
            took.setdefault(ran.call, []).append((ran.time_ns - was.time_ns) / runs)
    return took


@dataclass(frozen=True, slots=True)
class Times:
    """Of one call at one pace in one run, by subject: nanoseconds, and how many programs they are of."""

    whole: Mapping[str, float]
    programs: Mapping[str, int]

    def net(self, name: str) -> float:
        """Less empty programs in the same places; one costs the same at entry and at return."""
        return self.whole[name] - self.whole["empty"] / self.programs["empty"] * self.programs[name]

    def ratio(self, name: str, to: str) -> float:
        """How many times what one takes the other takes, in this run."""
        return self.whole[name] / self.whole[to]


_Run = Mapping[tuple[str, str], Times]  # by pace and call


def measure(folder: Path) -> list[Figure]:
    """The run times on both kernels' functions and at both paces, and what they are of (b) and (c)."""
    return [figure for kernel in COUNTERS for figure in _measure(folder, kernel)]


def _measure(folder: Path, kernel: Kernel) -> Iterator[Figure]:
    paths = {name: lookalike.build(folder / f"{kernel}_{name}", kernel) for name in NAMES}
    runs = [_run(paths, kernel, number) for number in range(1, RUNS + 1)]
    for pace, call in runs[0]:
        yield from figures(kernel, pace, call, [run[pace, call] for run in runs])


def _run(paths: Mapping[str, Path], kernel: Kernel, number: int) -> _Run:
    counter = COUNTERS[kernel]
    run: dict[tuple[str, str], Times] = {}
    with ExitStack() as stack:
        stack.enter_context(stats.enabled())
        subjects = []
        for name, options in _OPTIONS.items():
            daemon = stack.enter_context(monitor.daemon(paths[name], *options))
            subjects.append(_Subject(name, paths[name], daemon.pids))
        others = {name: baselines.bpftrace(name, paths[name]) for name in baselines.SCRIPTS}
        for name, command in (others | {"floor": baselines.floor(paths["floor"])}).items():
            pid = stack.enter_context(baselines.watching(command))
            subjects.append(_Subject(name, paths[name], partial(list, [pid])))
        for subject in subjects:
            subject.wait(counter)
        for pace_name, pace in PACES.items():
            say(f"run time on the {kernel} functions, {pace.what}: run {number} of {RUNS}")
            rounds = [{s.name: s.run(counter, pace) for s in subjects} for _ in range(ROUNDS)]
            for call in (call for call in (*CALLS, FIRST_CREATE) if call in rounds[0]["empty"]):
                # Of each subject the sum of its programs at entry and return.
                whole = {name: median(sum(r[name][call]) for r in rounds) for name in NAMES}
                run[pace_name, call] = Times(whole, {s.name: s.programs(call) for s in subjects})
    return run


_SUFFIXES = {"counts_only": ", counts only", "floor": ", at least (d)"}


def figures(kernel: Kernel, pace: str, call: str, runs: Sequence[Times]) -> Iterator[Figure]:
    """The medians of several runs: times, and the ratios that the goals are for."""
    key = f"run_time.{kernel}.{pace}.{call.replace(' ', '_')}"
    what = f"{call}{COUNTERS[kernel].what}, {PACES[pace].what}"
    for name, who in NAMES.items():
        took = median(times.whole[name] for times in runs)
        yield Figure(f"{key}.{name}", f"{what}: {who}", took, "ns", row=False)
        net = median(times.net(name) for times in runs)
        yield Figure(f"{key}.{name}.net", f"{what}: {who}, less empty programs", net, "ns", row=False)
    shown = [("monitor", "count"), ("monitor", "histogram")]
    if call not in ("create", FIRST_CREATE):  # of which nothing can be left out
        shown += [("counts_only", "count"), ("floor", "count")]
    for name, baseline in shown:
        ratio = median(times.ratio(name, baseline) for times in runs)
        subject = f"{what}{_SUFFIXES.get(name, '')}"
        letter = NAMES[baseline].partition(" ")[0]
        goal = _goal(kernel, pace, call, name, baseline)
        yield Figure(f"{key}.{name}.by_{baseline}", f"{subject}, by {letter}", ratio, goal=goal)


def _goal(kernel: Kernel, pace: str, call: str, name: str, baseline: str) -> Goal | None:
    goals = {"create": CREATE_GOALS, FIRST_CREATE: {}}.get(call, GOALS)
    limit = goals.get((pace, name), {}).get(baseline)
    if (kernel, pace, call, name, baseline) == ("grouped", "hot", "release", "monitor", "count"):
        limit = GROUP_RELEASE_GOAL
    return Goal("<=", limit) if limit else None


def table(measured: Iterable[Figure]) -> Iterator[str]:
    """All run times side by side; in brackets less those of empty programs in the same places."""
    times = {figure.key: figure.value for figure in measured if figure.key.startswith("run_time.")}
    if not times:
        return
    heads = "MONITOR", "COUNTS ONLY", "(a) EMPTY", "(b) COUNT", "(c) HIST", "(d) LEAST"
    yield f"{'RUN TIME PER CALL, ns (NET)':<33}" + "".join(f"{head:>13}" for head in heads)
    for kernel, counter in COUNTERS.items():
        for pace_name, pace in PACES.items():
            for call in (*CALLS, FIRST_CREATE):
                key = f"run_time.{kernel}.{pace_name}.{call.replace(' ', '_')}"
                if f"{key}.empty" in times:
                    cells = (f"{times[f'{key}.{n}']:.0f} ({times[f'{key}.{n}.net']:.0f})" for n in NAMES)
                    what = f"{call}{counter.what}, {pace.what}"
                    yield f"{what:<33}" + "".join(f"{cell:>13}" for cell in cells)
