"""A scrape's time and size over the number of VMs."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from tests.bench.progress import say
from tests.bench.report import Figure, Goal

VMS = 1, 100, 1000
_MOST = VMS[-1]
_LINEAR = 1.2
"""A VM among 1,000 may cost so much of what one among 100 costs."""


def measure(_folder: Path) -> list[Figure]:
    """Times and sizes, and how they grow."""
    scrape = import_module("tests.bench.scrape")
    seconds: dict[int, float] = {}
    figures = []
    for vms in VMS:
        which = f"{vms:,} {'VM' if vms == 1 else 'VMs'} of 4 vCPUs"
        say(f"a scrape of {which}")
        told = scrape.measure(vms)
        seconds[vms] = told["seconds"]
        goal = Goal("<", 200) if vms == _MOST else None
        figures += [
            Figure(f"scrape.{vms}.ms", f"a scrape of {which}", 1000 * told["seconds"], "ms", goal),
            Figure(
                f"scrape.{vms}.cpu", f"a scrape of {which}, CPU time", 1000 * told["server_seconds"], "ms"
            ),
            Figure(f"scrape.{vms}.kb", f"size of a scrape of {which}", told["bytes"] / 1000, "kB"),
        ]
    growth = seconds[_MOST] / _MOST / (seconds[100] / 100)
    what = f"time for a VM among {_MOST:,}, by that among 100"
    return [*figures, Figure("scrape.growth", what, growth, goal=Goal("<=", _LINEAR))]
