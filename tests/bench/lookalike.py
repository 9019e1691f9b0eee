"""The look-alike of tests/bpf/lookalike.c: built, and run as a VM whose calls are known beforehand."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.bench.errors import BenchError

SOURCE = Path(__file__).resolve().parents[1] / "bpf" / "lookalike.c"
CALLS = {
    "enable": "perf_event_enable",
    "pause": "perf_event_pause",
    "release": "perf_event_release_kernel",
    "create": "perf_event_create_kernel_counter",
    "read": "perf_event_read_value",
    "period": "perf_event_period",
}
"""The functions that are probed, by the names of the calls."""

Kernel = Literal["stock", "grouped"]
"""Which kernel's functions it has: those of mainline, or those of the grouped-events series."""


def build(path: Path, kernel: Kernel) -> Path:
    """Compiles it. Programs of different paths have their probes apart from each other."""
    flags = ["-DGROUPED"] if kernel == "grouped" else []
    # As tests/bpf/conftest.py: not position-independent, for its handler's address is then a constant.
    command = ["gcc", "-O2", "-no-pie", "-pthread", *flags, "-o", str(path), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"cannot compile {SOURCE}: {done.stderr.strip()}")
    return path


@dataclass(frozen=True, slots=True)
class Vm:
    """A look-alike that has made its calls and stays, as a VM that goes on running."""

    calls: Counter[str]
    seconds: float

    @property
    def rate(self) -> float:
        """Calls a second that it really made."""
        return sum(self.calls[name] for name in CALLS) / self.seconds


@contextmanager
def started(path: Path, name: str, **plan: int) -> Iterator[subprocess.Popen[str]]:
    """A look-alike at work. It is there, and a VM that lives, until the end of the block."""
    words = [f"{key}={value}" for key, value in plan.items()]
    process = subprocess.Popen(
        [path, "run", *words, "hold=1", "-name", f"guest={name}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdin is not None
        print(file=process.stdin, flush=True)
        yield process
    finally:
        process.kill()
        process.communicate()


def steps(process: subprocess.Popen[str]) -> Iterator[str]:
    """The calls of one that is started with `step=1`, by name; each is made when the next is asked for."""
    assert process.stdin is not None
    assert process.stdout is not None
    while (call := process.stdout.readline().strip()) in CALLS:
        yield call
        print(file=process.stdin, flush=True)


def go_on(process: subprocess.Popen[str]) -> None:
    """Lets one that is started with `warm` make the rest of its rounds; see warmed()."""
    assert process.stdin is not None
    print(file=process.stdin, flush=True)


def warmed(process: subprocess.Popen[str]) -> None:
    """Waits until one that is started with `warm` has made so many rounds. It goes on with go_on()."""
    assert process.stdout is not None
    if process.stdout.readline() != "warm\n":
        raise BenchError(f"the look-alike ended early, with status {process.wait()}: {process.args!r}")


def finished(process: subprocess.Popen[str], began: float) -> Vm:
    """Waits until it has made its calls; `began` is when, in terms of time.monotonic()."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise BenchError(f"the look-alike ended early, with status {process.wait()}: {process.args!r}")
    return Vm(Counter(json.loads(line)), time.monotonic() - began)


@contextmanager
def vm(path: Path, name: str, **plan: int) -> Iterator[Vm]:
    """A VM that has made all its calls and lives until the end of the block."""
    began = time.monotonic()
    with started(path, name, **plan) as process:
        yield finished(process, began)
