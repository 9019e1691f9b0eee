"""The kernel's own account of the calls that the agent watches: kprobe events, without BPF and without us."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .errors import LabError

TRACEFS = Path("/sys/kernel/tracing")
GROUP = "vpmu_lab"
CALLS = {
    "create": "p:{} perf_event_create_kernel_counter",
    "enable": "p:{} perf_event_enable",
    "pause": "p:{} perf_event_pause",
    "release": "p:{} perf_event_release_kernel",
}
READS = {"read": "p:{} perf_event_read_value", "period": "p:{} perf_event_period"}
"""Kprobe events by name, as in Documentation/trace/kprobetrace.rst; the name goes where {} is."""

# Such as ` guest_a-158     (    157) [001] .....    13.761187: enable: (perf_event_enable+0x0/0x2b0)`: a
# thread, and in parentheses its process, which option record-tgid adds.
_LINE = re.compile(
    r"^\s*.+-(?P<tid>\d+)\s+\(\s*(?P<tgid>[\d-]+)\) \[.*?: (?P<name>\w+): \(.*?\)(?P<fields>.*)$"
)
_PREFIX = "call_"  # a group of events has a file `enable`, so none of them can have that name
_FIELD = re.compile(r"(\w+)=(-?\w+)")


@dataclass(frozen=True, slots=True)
class Entry:
    """One event, with the fields that its definition has."""

    name: str
    tid: int
    tgid: int
    fields: Mapping[str, int]


@dataclass(slots=True)
class Trace:
    """All events, of all processes, in order; complete once watch() is left."""

    entries: list[Entry] = field(default_factory=list)

    def of(self, tgid: int) -> list[Entry]:
        """Those of one process, whatever its threads are called: KVM has threads of its own in there."""
        return [entry for entry in self.entries if entry.tgid == tgid]

    def names(self, tgid: int) -> list[str]:
        """The names of the events of one process."""
        return [entry.name for entry in self.of(tgid)]


@contextlib.contextmanager
def watch(definitions: Mapping[str, str] = CALLS) -> Iterator[Trace]:
    """Records these kprobe events while it is open. Raises LabError where it cannot say whose one was."""
    trace = Trace()
    # An instance of its own: nobody else's trace is touched.
    instance = TRACEFS / "instances" / GROUP
    for name, definition in definitions.items():
        _define(definition.format(f"{GROUP}/{_PREFIX}{name}"))
    instance.mkdir()
    enable = instance / "events" / GROUP / "enable"
    try:
        (instance / "options" / "record-tgid").write_text("1\n")
        enable.write_text("1\n")
        yield trace
        enable.write_text("0\n")
        trace.entries += map(_entry, filter(None, map(_LINE.match, (instance / "trace").open())))
    finally:
        instance.rmdir()
        for name in definitions:
            _define(f"-:{GROUP}/{_PREFIX}{name}")


def _entry(match: re.Match[str]) -> Entry:
    if not match["tgid"].isdecimal():
        raise LabError(f"the kernel forgot which process this was: {match[0]}")
    fields = {key: int(value, 0) for key, value in _FIELD.findall(match["fields"])}
    return Entry(match["name"].removeprefix(_PREFIX), int(match["tid"]), int(match["tgid"]), fields)


def _define(event: str) -> None:
    # Python's own append mode seeks, which this file refuses; and to open it for writing empties it.
    file = os.open(TRACEFS / "kprobe_events", os.O_WRONLY | os.O_APPEND)
    try:
        os.write(file, event.encode())
    finally:
        os.close(file)
