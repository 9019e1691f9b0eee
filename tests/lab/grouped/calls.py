"""KVM's calls of perf and what tells a group's members apart, from kprobe events: no BPF, no agent."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TRACEFS = Path("/sys/kernel/tracing")
GROUP = "vpmu_grouped"

# The first four arguments are in di, si, dx and cx. In struct perf_event_attr config is at 8, and disabled is
# the lowest bit of the flags at 40.
EVENTS = {
    "create": "p:{} perf_event_create_kernel_counter config=+8(%di):x64 flags=+40(%di):x64 leader=%cx:x64",
    "created": "r:{} perf_event_create_kernel_counter event=$retval:s64",
    "enable": "p:{} perf_event_enable event=%di:s64",
    "pause": "p:{} perf_event_pause event=%di:s64",
    "release": "p:{} perf_event_release_kernel event=%di:s64",
}
LINE = re.compile(r"^\s*(?P<comm>.+)-(?P<tid>\d+)\s+\[.*?: (?P<name>\w+): \(.*?\)(?P<fields>.*)$")


@dataclass(frozen=True, slots=True)
class Call:
    """One call. `event` is the event's address; of a creation that failed, the negative errno."""

    name: str
    event: int
    config: int = 0
    disabled: bool = False
    leader: int | None = None


@contextlib.contextmanager
def watch(comm: str) -> Iterator[list[Call]]:
    """The calls made by tasks called `comm` while it is open; complete once it is left."""
    calls: list[Call] = []
    instance = TRACEFS / "instances" / GROUP
    for name, definition in EVENTS.items():
        _define(definition.format(f"{GROUP}/{name}"))
    instance.mkdir()
    enable = instance / "events" / GROUP / "enable"
    try:
        enable.write_text("1\n")
        yield calls
        enable.write_text("0\n")
        calls += _calls((instance / "trace").read_text(), comm)
    finally:
        instance.rmdir()
        for name in EVENTS:
            _define(f"-:{GROUP}/{name}")


def _define(event: str) -> None:
    # Python's own append mode seeks, which this file refuses; and to open it for writing empties it.
    file = os.open(TRACEFS / "kprobe_events", os.O_WRONLY | os.O_APPEND)
    try:
        os.write(file, event.encode())
    finally:
        os.close(file)


def _calls(trace: str, comm: str) -> Iterator[Call]:
    begun: dict[str, dict[str, int]] = {}
    for match in map(LINE.match, trace.splitlines()):
        if not match or match["comm"] != comm:
            continue
        fields = {key: int(value, 0) for key, value in re.findall(r"(\w+)=(-?\w+)", match["fields"])}
        if match["name"] == "create":
            begun[match["tid"]] = fields
        elif match["name"] == "created":
            create = begun.pop(match["tid"])
            # As an address an event is positive in `leader` and negative in `event`.
            leader = create["leader"] - (1 << 64) if create["leader"] else None
            yield Call("create", fields["event"], create["config"], bool(create["flags"] & 1), leader)
        else:
            yield Call(match["name"], fields["event"])
