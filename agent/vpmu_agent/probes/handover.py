"""What the loader hands over: one message over a Unix socket, with descriptors that outlive it."""

from __future__ import annotations

import json
import os
import socket
from array import array
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from vpmu_agent.kernel.errors import KernelError, KvmNotLoadedError, ProbeError

LOADER_TODO = (
    "see what it wrote to standard error; `vpmu-agent doctor` tries the same and says what came of it"
)

_MESSAGE_SIZE = 1 << 16
_MAX_DESCRIPTORS = 253  # SCM_MAX_FD (include/net/scm.h)
_ERRORS = {error.__name__: error for error in (KernelError, KvmNotLoadedError, ProbeError)}


@dataclass(slots=True)
class Handover:
    """Attached probes, as descriptors. `links` keep them attached: closing these takes them off."""

    mode: str
    maps: dict[str, int] = field(default_factory=dict)
    programs: list[int] = field(default_factory=list)
    links: list[int] = field(default_factory=list)
    census: int | None = None
    """The link of the iterator that is the census (probes/census.py), None if there is none."""
    no_census: str = ""
    """Why there is none."""

    def descriptors(self) -> list[int]:
        """All of them, in the order in which they are sent."""
        census = [] if self.census is None else [self.census]
        return [*self.maps.values(), *self.programs, *self.links, *census]


def channel() -> tuple[socket.socket, socket.socket]:
    """The two ends for one handover. Messages stay whole, and no end is inherited unless told to."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(end: socket.socket, handover: Handover) -> None:
    """Hands over. BrokenPipeError or ConnectionResetError if nobody is there to take it any more."""
    about = {
        "mode": handover.mode,
        "maps": list(handover.maps),
        "programs": len(handover.programs),
        "links": len(handover.links),
        "census": int(handover.census is not None),
        "no_census": handover.no_census,
    }
    socket.send_fds(end, [json.dumps(about).encode()], handover.descriptors())


def send_error(end: socket.socket, error: KernelError) -> None:
    """Says instead why there are no probes."""
    kind = type(error).__name__
    about = {
        "kind": kind if kind in _ERRORS else KernelError.__name__,
        "found": error.found,
        "todo": error.todo,
    }
    end.send(json.dumps({"error": about}).encode())


def receive(end: socket.socket) -> Handover:
    """Waits for what the loader sends. Raises the KernelError that it met, ProbeError if it sent nothing.

    The loader catches what it can; nothing is sent where bcc's C code ended the process.
    """
    descriptors = array("i")
    # Not socket.recv_fds(): before Python 3.13 it forgets its flags.
    message, ancillary, flags, _ = end.recvmsg(
        _MESSAGE_SIZE, socket.CMSG_SPACE(_MAX_DESCRIPTORS * descriptors.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    for _, _, data in ancillary:
        descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    if not message:
        raise ProbeError("the loader ended without a word", LOADER_TODO)
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
        no_census=about["no_census"],
    )


def close(descriptors: Iterable[int]) -> None:
    """Closes them all."""
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)
