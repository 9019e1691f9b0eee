"""The handover from the loader: one message over a Unix socket, with descriptors that outlive the loader."""

from __future__ import annotations

import json
import os
import socket
from array import array
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from vpmu_agent.kernel.errors import KernelError, KvmNotLoadedError, ProbeError
from vpmu_agent.system.ready import is_readable

LOADER_TODO = "see what it wrote to standard error; `vpmu-agent doctor` tries the same steps and reports each"

PATIENCE_S = 180.0
"""How long a loader may send nothing before it is taken to hang, in seconds.

It takes about one, and in an emulated VM a minute of its processor, of which it may get less than half.
"""

SLOW_S = 30.0
"""After how long it is said that a loader takes its time, again and again, in seconds."""

_MESSAGE_SIZE = 1 << 16
_MAX_DESCRIPTORS = 253  # SCM_MAX_FD (include/net/scm.h)
_ERRORS = {error.__name__: error for error in (KernelError, KvmNotLoadedError, ProbeError)}


@dataclass(slots=True)
class Handover:
    """Attached probes, as descriptors. `links` keep them attached: to close these is to detach them."""

    mode: str
    maps: dict[str, int] = field(default_factory=dict)
    programs: list[int] = field(default_factory=list)
    links: list[int] = field(default_factory=list)
    census: int | None = None
    """The link of the census's iterator (probes/census.py), None if there is no census."""
    census_program: int | None = None
    """Its program, to walk single processes with; None if the kernel cannot do that."""
    no_census: str = ""
    """Why there is no census."""
    no_host_events: str = ""
    """Why the census finds no events of the host; empty if it does."""
    reads: bool = True
    """Whether there are probes for the calls that are only counted (model/call.py, UncheckedCall)."""

    def descriptors(self) -> list[int]:
        """Return all of them, in the order in which they are sent."""
        census = [each for each in (self.census, self.census_program) if each is not None]
        return [*self.maps.values(), *self.programs, *self.links, *census]


def channel() -> tuple[socket.socket, socket.socket]:
    """Return the two ends for one handover. Messages stay whole; neither end is inheritable."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(end: socket.socket, handover: Handover) -> None:
    """Hand over. Raise BrokenPipeError or ConnectionResetError if the receiver is gone."""
    about = {
        "mode": handover.mode,
        "maps": list(handover.maps),
        "programs": len(handover.programs),
        "links": len(handover.links),
        "census": sum(each is not None for each in (handover.census, handover.census_program)),
        "no_census": handover.no_census,
        "no_host_events": handover.no_host_events,
        "reads": handover.reads,
    }
    socket.send_fds(end, [json.dumps(about).encode()], handover.descriptors())


def send_error(end: socket.socket, error: KernelError) -> None:
    """Send the reason why there are no probes."""
    kind = type(error).__name__
    about = {
        "kind": kind if kind in _ERRORS else KernelError.__name__,
        "found": error.found,
        "todo": error.todo,
    }
    end.send(json.dumps({"error": about}).encode())


def wait(end: socket.socket, slow: Callable[[float], None]) -> None:
    """Wait until the loader has sent something, or ended; call `slow` with the seconds every SLOW_S.

    Raise ProbeError if it has done neither in PATIENCE_S.
    """
    waited_s = 0.0
    while not is_readable(end, SLOW_S):
        waited_s += SLOW_S
        if waited_s >= PATIENCE_S:
            raise ProbeError(f"the loader has sent nothing in {waited_s:.0f} s, and was ended", LOADER_TODO)
        slow(waited_s)


def receive(end: socket.socket) -> Handover:
    """Wait for what the loader sends. Raise the KernelError that it met, ProbeError if it sent nothing.

    The loader catches what it can; it sends nothing if bcc's C code ended the process.
    """
    descriptors = array("i")
    # Not socket.recv_fds(): before Python 3.13 it ignores its flags.
    message, ancillary, flags, _ = end.recvmsg(
        _MESSAGE_SIZE, socket.CMSG_SPACE(_MAX_DESCRIPTORS * descriptors.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    for _, _, data in ancillary:
        descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    if not message:
        raise ProbeError("the loader ended without sending anything", LOADER_TODO)
    about = json.loads(message)
    if error := about.get("error"):
        raise _ERRORS[error["kind"]](error["found"], error["todo"])
    names, programs, links, census = (about[what] for what in ("maps", "programs", "links", "census"))
    sent = len(names) + programs + links + census
    if flags & socket.MSG_CTRUNC or len(descriptors) != sent:
        close(descriptors)
        raise ProbeError(
            f"the loader sent {sent} descriptors and only {len(descriptors)} arrived",
            "raise the limit of open files (ulimit -n)",
        )
    found = iter(descriptors)
    return Handover(
        about["mode"],
        maps={name: next(found) for name in names},
        programs=list(islice(found, programs)),
        links=list(islice(found, links)),
        census=next(found, None),
        census_program=next(found, None),
        no_census=about["no_census"],
        no_host_events=about["no_host_events"],
        reads=about["reads"],
    )


def close(descriptors: Iterable[int]) -> None:
    """Close descriptors, ignoring those that are closed already."""
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)
