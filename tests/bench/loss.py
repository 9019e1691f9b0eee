"""What is lost at the highest rate that this machine can make: no count and no divergence may be."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench import lookalike, monitor
from tests.bench.lookalike import CALLS, Vm
from tests.bench.progress import say
from tests.bench.report import Figure, Goal
from tests.lab.scrape import Metrics, total

_THREADS = 2 * (os.cpu_count() or 1)
_ROUNDS = 60_000 // _THREADS * 4
"""Of each thread; 1.2 million calls in all, some ten seconds."""

_GROUP = 4
_GROUP_ROUNDS = 20_000 // _THREADS

_GP, _FIXED = 8, 4
"""The most general-purpose counters that KVM gives a vCPU (KVM_INTEL_PMC_MAX_GENERIC), and one fixed counter
more than it has: Topdown's is the fourth."""
_BURSTS = 1_200_000 // _THREADS // (2 * (_GP + _FIXED))
"""Of each thread: a write of global control that stops them all, and one that starts them."""

MISBEHAVIOUR = {
    "failing": ({"fail_at": 2}, ("partial_group",)),
    "reversed": ({"reverse": 1}, ("enabled_out_of_order", "released_out_of_order")),
}
"""By VM: what its look-alike does wrong, and the divergences of each of its rounds, one of each kind."""


def measure(folder: Path) -> list[Figure]:
    """Lost counts, lost divergences with a reader that keeps up, and with one that is stopped meanwhile."""
    return [
        *_counts(folder),
        *_burst(folder),
        *_divergences(folder, stopped=False),
        *_divergences(folder, stopped=True),
    ]


def _counts(folder: Path) -> Iterator[Figure]:
    path = lookalike.build(folder / "loss", "stock")
    say(f"calls at full speed from {_THREADS} threads")
    with (
        monitor.daemon(path) as daemon,
        lookalike.vm(path, "fast", threads=_THREADS, rounds=_ROUNDS) as vm,
    ):
        metrics = daemon.scrape_until(lambda m: not _missing_calls(m, vm), timeout_s=5)
    made = sum(vm.calls[name] for name in CALLS)
    yield Figure("loss.rate", "calls/s at full speed", vm.rate, "calls/s")
    yield Figure("loss.calls", "calls made at full speed", made, "calls")
    yield Figure("loss.counts", "counts lost of them", _missing_calls(metrics, vm), "calls", Goal("==", 0))


def _burst(folder: Path) -> Iterator[Figure]:
    path = lookalike.build(folder / "burst", "stock")
    counters = [f"gp{i}" for i in range(_GP)] + [f"fixed{i}" for i in range(_FIXED)]
    say(f"global control stops and starts {len(counters)} counters at once, on {_THREADS} threads")
    plan = {"threads": _THREADS, "pmcs": len(counters), "gp": _GP, "bursts": _BURSTS}

    def wrong(metrics: Metrics) -> int:
        """How many counters have a count that is not what was called."""
        called = {"create": 1, "enable": _BURSTS, "pause": _BURSTS, "release": 1}
        return sum(
            any(
                total(metrics, "vpmu_pmc_calls_total", vm="fast", vcpu=str(vcpu), pmc=pmc, call=name) != count
                for name, count in called.items()
            )
            for vcpu in range(_THREADS)
            for pmc in counters
        )

    with monitor.daemon(path) as daemon, lookalike.vm(path, "fast", **plan) as vm:
        metrics = daemon.scrape_until(lambda m: not _missing_calls(m, vm) and not wrong(m), timeout_s=5)
    made = sum(vm.calls[name] for name in CALLS)
    what = "global control, all counters"
    none = Goal("==", 0)
    yield Figure("loss.burst.rate", f"calls/s, {what}", vm.rate, "calls/s")
    yield Figure("loss.burst.calls", f"calls made, {what}", made, "calls")
    yield Figure("loss.burst.counts", "counts lost of them", _missing_calls(metrics, vm), "calls", none)
    yield Figure(
        "loss.burst.counters", "counters with another count than was called", wrong(metrics), goal=none
    )
    lost = total(metrics, "vpmu_agent_lost_records_total") + total(metrics, "vpmu_divergences_total")
    yield Figure("loss.burst.lost", "records lost, and calls that diverged", lost, goal=none)


def _missing_calls(metrics: Metrics, vm: Vm) -> int:
    """How far the counts are from what the look-alike made, in either direction."""
    return sum(
        abs(vm.calls[name] - int(total(metrics, "vpmu_calls_total", vm="fast", call=name))) for name in CALLS
    )


def _divergences(folder: Path, *, stopped: bool) -> Iterator[Figure]:
    path = lookalike.build(folder / "divergences", "grouped")
    how = "reader stopped" if stopped else "reader running"
    say(f"divergences at full speed from {_THREADS} threads, {how}")
    wanted = {
        (name, kind): _THREADS * _GROUP_ROUNDS for name, (_, kinds) in MISBEHAVIOUR.items() for kind in kinds
    }

    def missing(metrics: Metrics) -> int:
        seen: Counter[tuple[str, str]] = Counter()
        for (metric, labels), value in metrics.items():
            if metric == "vpmu_divergences_total":
                of = dict(labels)
                seen[of["vm"], of["kind"]] += int(value)
        return sum(abs(wanted.get(key, 0) - seen[key]) for key in wanted.keys() | seen.keys())

    with monitor.daemon(path) as daemon, ExitStack() as stack:
        began = time.monotonic()
        with _stopped(daemon) if stopped else ExitStack():
            plan = {"threads": _THREADS // 2 or 1, "rounds": 2 * _GROUP_ROUNDS, "size": _GROUP}
            working = [
                stack.enter_context(lookalike.started(path, name, **plan, **fault))
                for name, (fault, _) in MISBEHAVIOUR.items()
            ]
            rate = sum(lookalike.finished(process, began).rate for process in working)
        metrics = daemon.scrape_until(lambda m: not missing(m), timeout_s=5)
    key = f"loss.divergences.{'stopped' if stopped else 'running'}"
    yield Figure(f"{key}.rate", f"calls/s that go wrong, {how}", rate, "calls/s", row=False)
    yield Figure(f"{key}.made", f"divergences made, {how}", sum(wanted.values()))
    records = total(metrics, "vpmu_agent_lost_records_total")
    yield Figure(f"{key}.records", f"records lost, {how}", records)
    yield Figure(f"{key}.lost", f"divergences lost, {how}", missing(metrics), goal=Goal("==", 0))


@contextmanager
def _stopped(daemon: monitor.Daemon) -> Iterator[None]:
    """Nobody reads the ring, so that it must overflow."""
    pids = daemon.pids()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
