"""What the monitor is held against: the programs that a person would write to watch the same functions."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bench.lookalike import CALLS

# bpftrace's own tutorial counts and times a function like this, by process as here or by its name.
SCRIPTS = {
    "empty": "uprobe:{place} {{ }} uretprobe:{place} {{ }}",
    "count": "uprobe:{place} {{ @[pid] = count(); }}",
    "histogram": (
        "uprobe:{place} {{ @start[tid] = nsecs; }} "
        "uretprobe:{place} /@start[tid]/ {{ @ns[pid] = hist(nsecs - @start[tid]); delete(@start[tid]); }}"
    ),
}
"""bpftrace programs by name, for one function."""


def script(name: str, lookalike: Path) -> str:
    """One bpftrace program for all functions of a look-alike."""
    return "\n".join(SCRIPTS[name].format(place=f"{lookalike}:{function}") for function in CALLS.values())


def bpftrace(name: str, lookalike: Path) -> list[str]:
    """The command that watches a look-alike by one of these programs."""
    return ["bpftrace", "-e", script(name, lookalike)]


def floor(lookalike: Path) -> list[str]:
    """The command that watches it by floor.py."""
    return [sys.executable, "-m", "tests.bench.floor", str(lookalike)]


@contextmanager
def watching(command: Sequence[str]) -> Iterator[int]:
    """A process that watches a look-alike; yields its pid. When its probes are live it does not say."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        try:
            yield process.pid
        finally:
            # bpftrace would only print its maps, and complain where tracefs is not mounted.
            process.kill()
            process.wait()
