"""The kernel's own account of the calls that the agent watches: kprobe events, without BPF and without us."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

TRACEFS = Path("/sys/kernel/tracing")
GROUP = "vpmu_lab"
FUNCTIONS = {
    "create": "perf_event_create_kernel_counter",
    "enable": "perf_event_enable",
    "pause": "perf_event_pause",
    "release": "perf_event_release_kernel",
}


@dataclass(slots=True)
class KernelCalls:
    """The calls' names in order; complete once watch() is left."""

    names: list[str] = field(default_factory=list)


@contextlib.contextmanager
def watch(comm: str) -> Iterator[KernelCalls]:
    """Records the calls made by tasks called `comm` while it is open."""
    calls = KernelCalls()
    # An instance of its own: nobody else's trace is touched.
    instance = TRACEFS / "instances" / GROUP
    for name, function in FUNCTIONS.items():
        _define(f"p:{GROUP}/call_{name} {function}")
    instance.mkdir()
    enable = instance / "events" / GROUP / "enable"
    try:
        enable.write_text("1\n")
        yield calls
        enable.write_text("0\n")
        calls.names += _names((instance / "trace").read_text(), comm)
    finally:
        instance.rmdir()
        for name in FUNCTIONS:
            _define(f"-:{GROUP}/call_{name}")


def _define(event: str) -> None:
    # Python's own append mode seeks, which this file refuses; and to open it for writing empties it.
    file = os.open(TRACEFS / "kprobe_events", os.O_WRONLY | os.O_APPEND)
    try:
        os.write(file, event.encode())
    finally:
        os.close(file)


def _names(trace: str, comm: str) -> Iterator[str]:
    """From lines such as ` guest_a-158 [001] ..... 13.761187: call_create: (perf_event_...)`."""
    for line in trace.splitlines():
        if line.lstrip().startswith(f"{comm}-"):
            yield line.split(": ")[1].removeprefix("call_")
