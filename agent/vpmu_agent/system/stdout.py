"""The standard streams: there even where they were closed, and told apart by what becomes of an error.

Output that cannot be written ends a command, with a sentence. An error that cannot be told changes nothing.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Style:
    """Colours for what is written to a stream; none where it is no terminal, or is not to have them.

    That is where NO_COLOR is set, or TERM is dumb.
    """

    def __init__(self, stream: TextIO) -> None:
        self._is_on = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def __call__(self, text: str, *, fg: str | None = None, bold: bool = False) -> str:
        """Return the text in this colour, or as it is."""
        return click.style(text, fg=fg, bold=bold or None) if self._is_on else text


class OutputError(Exception):
    """The output takes no more; the message is for the user."""


class UnreadError(OutputError):
    """Nobody reads the output any more, as after `| head`: a reason to stop, but no error."""


class _Output(io.FileIO):
    """Standard output, whose errors are OutputErrors, wherever it is written to: in click's code, too."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError as error:
            raise UnreadError("nobody reads the output any more") from error
        except OSError as error:
            why = "it is closed" if error.errno == errno.EBADF else error.strerror
            raise OutputError(f"cannot write the output: {why}") from error


class _Errors(io.FileIO):
    """Standard error, which drops what it cannot write."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def prepare_streams() -> None:
    """Make standard output and standard error what this module says; call it first in a process.

    A descriptor that is closed would be that of the next file or socket that is opened, and get what is meant
    for the stream. It becomes one that refuses to be read or written, as a closed one does. `sys.stdin` stays
    None where it was closed.
    """
    for descriptor, refusing in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_RDONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, refusing)  # it gets the lowest number that is free, and so this one
    sys.stdout = output(1)
    encoding = sys.stderr.encoding if sys.stderr else None
    sys.stderr = _text(_Errors(2, "w", closefd=False), encoding, line_buffering=True)


def output(descriptor: int) -> TextIO:
    """Return a stream for this descriptor that raises OutputError where it takes no more.

    Characters that its encoding lacks are escaped: a terminal without UTF-8 has no µ.
    """
    raw = _Output(descriptor, "w", closefd=False)
    return _text(raw, sys.stdout.encoding if sys.stdout else None, line_buffering=raw.isatty())


def _text(raw: io.FileIO, encoding: str | None, *, line_buffering: bool) -> TextIO:
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=line_buffering
    )


def print_line(text: str) -> bool:
    """Print a line at once; return False if nobody reads it. Raise OutputError if stdout takes no more."""
    try:
        click.echo(text)
    except UnreadError:
        return False
    return True


def settle_stdout() -> None:
    """Write what can be written before an exit, and drop the rest, of which Python would complain."""
    try:
        sys.stdout.flush()
    except OutputError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
