"""KVM's calls of perf and what tells a group's members apart, from kprobe events: no BPF, no agent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from .. import tracefs
from ..tracefs import Trace

# The first four arguments are in di, si, dx and cx. In struct perf_event_attr config is at 8, and disabled is
# the lowest bit of the flags at 40.
_EVENTS = {
    "create": "p:{} perf_event_create_kernel_counter config=+8(%di):x64 flags=+40(%di):x64 leader=%cx:x64",
    "created": "r:{} perf_event_create_kernel_counter event=$retval:s64",
    "enable": "p:{} perf_event_enable event=%di:s64",
    "pause": "p:{} perf_event_pause event=%di:s64",
    "release": "p:{} perf_event_release_kernel event=%di:s64",
}


@dataclass(frozen=True, slots=True)
class Call:
    """One call. `event` is the event's address; of a creation that failed, the negative errno."""

    name: str
    event: int
    config: int = 0
    disabled: bool = False
    leader: int | None = None


def watch() -> AbstractContextManager[Trace]:
    """Records what of() needs while it is open."""
    return tracefs.watch(_EVENTS)


def of(trace: Trace, tgid: int) -> Iterator[Call]:
    """The calls of one VM, in order."""
    begun: dict[int, dict[str, int]] = {}
    for entry in trace.of(tgid):
        if entry.name == "create":
            begun[entry.tid] = dict(entry.fields)
        elif entry.name == "created":
            create = begun.pop(entry.tid)
            # As an address an event is positive in `leader` and negative in `event`.
            leader = create["leader"] - (1 << 64) if create["leader"] else None
            yield Call("create", entry.fields["event"], create["config"], bool(create["flags"] & 1), leader)
        else:
            yield Call(entry.name, entry.fields["event"])
