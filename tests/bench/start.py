"""From the start of the process to live probes, beside a bcc tool with the same probes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from tests.bench import bcc_tool, lookalike, monitor
from tests.bench.errors import BenchError
from tests.bench.progress import say
from tests.bench.report import Figure, Goal

STARTS = 5
HEADERS = monitor.REPO / "bpf" / "headers"
"""What the bcc tool is compiled against: the kernel's own headers cannot be had for every kernel."""


def measure(folder: Path) -> list[Figure]:
    """Medians of some starts, one of each in turn."""
    path = lookalike.build(folder / "start", "stock")
    say(f"start to attached: {STARTS} starts of the daemon, cold and warm, and of a bcc tool")
    cold, warm, theirs = [], [], []
    cache = folder / "cache"
    with monitor.daemon(path, cache=cache):
        pass
    for _ in range(STARTS):
        with monitor.daemon(path) as daemon:
            cold.append(daemon.start_s)
        with monitor.daemon(path, cache=cache) as daemon:
            warm.append(daemon.start_s)
        theirs.append(_bcc_tool(path))
    return [
        Figure("start.daemon", "start to attached", median(cold), "s", Goal("<", 1.5)),
        Figure("start.cached", "the same, its programs compiled before", median(warm), "s", Goal("<", 0.5)),
        Figure("start.bcc_tool", "a bcc tool, compiled against our few headers", median(theirs), "s"),
    ]


def _bcc_tool(path: Path) -> float:
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, bcc_tool.__file__, str(path)],
        env={**os.environ, "BCC_KERNEL_SOURCE": str(HEADERS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said: list[str] = []
    try:
        for line in process.stdout:
            said.append(line)
            if line == "attached\n":
                return time.monotonic() - began
    finally:
        process.kill()
        process.communicate()
    raise BenchError(f"the bcc tool did not start: {''.join(said[-5:]).strip()}")
