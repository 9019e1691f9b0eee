"""Standard output that may take no more: a full disk, or a reader that has gone."""

from __future__ import annotations

import os
import sys

import click


class OutputError(Exception):
    """What is written to takes no more; the message is for the user."""


def print_line(text: str) -> None:
    """Prints a line at once. OutputError if stdout takes no more; BrokenPipeError if nobody reads it."""
    try:
        click.echo(text)
    except BrokenPipeError:  # which click knows to be no error
        raise
    except OSError as error:
        raise OutputError(f"cannot write the output: {error.strerror}") from error


def settle_stdout() -> None:
    """Before an exit: writes what can be written and lets go of the rest, or Python would complain of it."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
