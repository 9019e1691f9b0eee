"""The daemon's CPU time while calls come that are as predicted: it should be the same at any rate."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.bench import lookalike, monitor
from tests.bench.progress import say
from tests.bench.report import Figure, Goal

RATES = 0, 10_000, 100_000
WINDOW_S = 15.0
"""Prometheus scrapes as often by default; so once in each window, in its middle."""

_THREADS = 2
_CALLS = 5  # in a round of the look-alike


def measure(folder: Path) -> list[Figure]:
    """Percent of a core, of the daemon and of what it needs running beside itself."""
    path = lookalike.build(folder / "cpu", "stock")
    with monitor.daemon(path) as daemon:
        daemon.scrape()  # the first one loads code
        return [figure for rate in RATES for figure in _at(daemon, path, rate)]


def _at(daemon: monitor.Daemon, path: Path, rate: int) -> Iterator[Figure]:
    say(f"the daemon's CPU at {rate:,} calls/s: {WINDOW_S:.0f} s")
    with ExitStack() as stack:
        began = time.monotonic()
        if rate:
            rounds = int(rate * (WINDOW_S + 2) / _CALLS / _THREADS)
            plan = {"threads": _THREADS, "rounds": rounds, "rate": rate}
            process = stack.enter_context(lookalike.started(path, f"rate{rate}", **plan))
            time.sleep(0.5)
        cpu, start = daemon.cpu_s(), time.monotonic()
        time.sleep(WINDOW_S / 2)
        daemon.scrape()
        time.sleep(WINDOW_S / 2)
        percent = 100 * (daemon.cpu_s() - cpu) / (time.monotonic() - start)
        if rate:
            made = lookalike.finished(process, began).rate
            what = f"calls/s that were made where {rate:,} were wanted"
            yield Figure(f"daemon_cpu.{rate}.rate", what, made, goal=Goal(">=", 0.95 * rate))
    yield Figure(f"daemon_cpu.{rate}", f"daemon's CPU at {rate:,} calls/s", percent, "%", Goal("<", 1))
