"""How fast a recording is replayed, and whether its length matters to the memory it takes."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from tests.bench.progress import say
from tests.bench.report import Figure, Goal

SHORT, LONG = 100_000, 1_000_000
_SAME = 1.05


def measure(folder: Path) -> list[Figure]:
    """The speed over the long recording, and its memory held against the short one's."""
    replay = import_module("tests.bench.replay")
    say(f"replays of {SHORT:,} and {LONG:,} calls")
    short, long = replay.measure(SHORT, folder), replay.measure(LONG, folder)
    what = f"memory for {LONG:,} calls, by that for {SHORT:,}"
    growth = long["peak_kib"] / short["peak_kib"]
    return [
        Figure("replay.rate", "replay on one core", long["calls_per_s"], "calls/s", Goal(">=", 200_000)),
        Figure("replay.peak", "replay's memory", long["peak_kib"] * 1024 / 1e6, "MB"),
        Figure("replay.growth", what, growth, goal=Goal("<=", _SAME)),
    ]
