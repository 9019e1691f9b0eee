"""What the daemon holds, and how long a scrape of its maps takes, with many VMs known."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from tests.bench import lookalike, monitor
from tests.bench.errors import BenchError
from tests.bench.progress import say
from tests.bench.report import Figure, Goal
from tests.lab.scrape import Metrics

VMS, VCPUS = 1000, 4
_SCRAPES = 5
_MB = 1e6


def measure(folder: Path) -> list[Figure]:
    """Of the daemon and its parent together, after scrapes with so many VMs, each a process that lives."""
    return list(_measure(lookalike.build(folder / "memory", "stock")))


def _measure(path: Path) -> Iterator[Figure]:
    say(f"memory with {VMS:,} VMs of {VCPUS} vCPUs")
    with monitor.daemon(path) as daemon, ExitStack() as stack:
        alone = daemon.memory()
        for number in range(VMS):
            stack.enter_context(lookalike.vm(path, f"vm{number:04}", threads=VCPUS, rounds=1))
        metrics = daemon.scrape_until(lambda m: _vms(m) == VMS)
        if (known := _vms(metrics)) != VMS:
            raise BenchError(f"the daemon knows {known} of {VMS} VMs")
        took = []
        for _ in range(_SCRAPES):
            began = time.monotonic()
            daemon.read()
            took.append(time.monotonic() - began)
        full = daemon.memory()
        processes = len(daemon.pids())
    yield Figure("memory.pss_alone", "PSS of daemon and parent, no VM", alone.pss / _MB, "MB")
    what = f"daemon and parent, {VMS:,} VMs"
    yield Figure("memory.pss", f"PSS of {what}", full.pss / _MB, "MB", Goal("<=", 40))
    # Pages that other Pythons on this machine map as well weigh less in the first.
    yield Figure("memory.rss", f"RSS of {what}", full.rss / _MB, "MB")
    yield Figure("memory.processes", "processes of the daemon", processes, row=False)
    what = f"a scrape of {VMS:,} VMs from the kernel's maps"
    yield Figure("memory.scrape", what, 1000 * median(took), "ms", Goal("<", 200))


def _vms(metrics: Metrics) -> int:
    return len({dict(labels)["vm"] for name, labels in metrics if name == "vpmu_calls_total"})
