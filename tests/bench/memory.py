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

VMS, VCPUS, PMCS = 1000, 4, 4
_SCRAPES = 10
_MB = 1e6


def measure(folder: Path) -> list[Figure]:
    """Of the daemon and its parent together, with so many VMs, each a process that lives."""
    return list(_measure(lookalike.build(folder / "memory", "stock")))


def _measure(path: Path) -> Iterator[Figure]:
    say(f"memory, and scrapes, with {VMS:,} VMs of {VCPUS} vCPUs with {PMCS} counters")
    with monitor.daemon(path) as daemon, ExitStack() as stack:
        alone = daemon.memory()
        plan = {"threads": VCPUS, "pmcs": PMCS, "rounds": 1}
        for number in range(VMS):
            stack.enter_context(lookalike.vm(path, f"vm{number:04}", **plan))
        metrics = daemon.scrape_until(lambda m: _vms(m) == VMS)
        if (known := _vms(metrics)) != VMS:
            raise BenchError(f"the daemon knows {known} of {VMS} VMs")
        took, cpu = [], daemon.cpu_s()
        for _ in range(_SCRAPES):
            began = time.monotonic()
            daemon.read()
            took.append(time.monotonic() - began)
        cpu = (daemon.cpu_s() - cpu) / _SCRAPES
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
    yield Figure("memory.scrape_cpu", f"{what}, CPU time", 1000 * cpu, "ms", Goal("<=", 100))


def _vms(metrics: Metrics) -> int:
    return len({dict(labels)["vm"] for name, labels in metrics if name == "vpmu_calls_total"})
