"""Standard output: with colours or without, and where it takes no more, as on a full disk."""

from __future__ import annotations

import os
import sys
from typing import TextIO

import click


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


def print_line(text: str) -> None:
    """Print a line at once. Raise OutputError if stdout takes no more, BrokenPipeError if nobody reads it."""
    try:
        click.echo(text)
    except BrokenPipeError:  # which click knows to be no error
        raise
    except OSError as error:
        raise OutputError(f"cannot write the output: {error.strerror}") from error


def settle_stdout() -> None:
    """Write what can be written before an exit, and drop the rest, of which Python would complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
