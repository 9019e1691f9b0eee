"""A process of the host that takes a counter of its PMU before the guests come."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

NAME = "otel-profiler"

_PROGRAM = f"""
import ctypes, os, pathlib, struct, sys
pathlib.Path("/proc/self/comm").write_text({NAME!r})
attr = struct.pack("=IIQ", 4, 64, 0xC0).ljust(40, b"\\0") + struct.pack("=Q", 1 << 2)  # raw, pinned
event = ctypes.CDLL(None).syscall(298, attr.ljust(64, b"\\0"), -1, 0, -1, 0)  # perf_event_open, on CPU 0
assert event >= 0
if not os.fork():  # a child has the descriptor too
    sys.stdin.read()
    os._exit(0)
print("holds", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder() -> Iterator[int]:
    """A process with a pinned event on CPU 0, and a child that inherited it: the process's id."""
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"holds\n"
        yield process.pid
