"""Runs the program that is the machine, to its end or to a time limit, and leaves nothing of it behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import NamedTuple

Sink = Callable[[bytes], None]


class Channel(NamedTuple):
    """What a program writes to the one descriptor is read from the other, a line at a time."""

    read: int
    write: int
    sink: Sink

    @property
    def path(self) -> str:
        """The file that the program opens to write to it."""
        return f"/proc/self/fd/{self.write}"


def pipe(sink: Sink) -> Channel:
    """A pipe."""
    return Channel(*os.pipe(), sink)


def terminal(sink: Sink) -> Channel:
    """A pseudo-terminal, for a program that wants one."""
    return Channel(*os.openpty(), sink)


def run(
    arguments: Sequence[str],
    *,
    timeout_s: float,
    env: Mapping[str, str],
    stdout: Channel,
    stderr: Channel,
    stdin: int = subprocess.DEVNULL,
    others: Sequence[Channel] = (),
) -> None:
    """Runs a program that writes to these channels, to its end or to `timeout_s`.

    Whatever happens, Ctrl-C and SIGTERM too, all its processes are gone afterwards and the channels closed.
    """
    channels = list(dict.fromkeys([stdout, stderr, *others]))
    try:
        # timeout(1) holds even if this process is killed without a chance to clean up.
        process = subprocess.Popen(
            ["timeout", "--kill-after=5", str(timeout_s), *arguments],
            stdin=stdin,
            stdout=stdout.write,
            stderr=stderr.write,
            env=env,
            pass_fds=[channel.write for channel in others],
            start_new_session=True,  # its process group is all of it
        )
    finally:
        for channel in channels:
            os.close(channel.write)
    readers = [threading.Thread(target=_copy_lines, args=[channel]) for channel in channels]
    for reader in readers:
        reader.start()
    try:
        with _terminate_as_interrupt():
            process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for reader in readers:
            reader.join()


def to_stdout(line: bytes) -> None:
    """A sink: this process's own stdout."""
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def to_stderr(line: bytes) -> None:
    """A sink: this process's own stderr."""
    sys.stderr.buffer.write(line)
    sys.stderr.buffer.flush()


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM unwinds the stack, as Ctrl-C does, so that the VM is stopped."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _copy_lines(channel: Channel) -> None:
    # EIO is how the reading end of a terminal learns that nobody writes any more.
    with os.fdopen(channel.read, "rb") as source, contextlib.suppress(OSError):
        for line in source:
            channel.sink(line)
