"""A command on a terminal of its own, as a person sees it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyte

from tests.support.places import ROOT
from vpmu_agent.system.ready import is_readable

PATIENCE_S = 15.0

KEYS = {"up": "\x1b[A", "down": "\x1b[B", "right": "\x1b[C", "left": "\x1b[D", "enter": "\r", "esc": "\x1b"}
CTRL_C, CTRL_Z = "\x03", "\x1a"


class Terminal:
    """A pseudo-terminal, what is on its screen, and the process that it is for."""

    def __init__(self, command: list[str], columns: int, rows: int, environment: Mapping[str, str]) -> None:
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self.written = b""
        self._ours, self._theirs = pty.openpty()
        self._set_size(columns, rows)
        self.modes = termios.tcgetattr(self._theirs)
        """Its modes before the command began."""
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **environment},
        )

    @property
    def lines(self) -> list[str]:
        """What it shows, without the spaces at the ends of lines."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def line(self, start: str) -> str:
        """The line that begins so."""
        (found,) = (line for line in self.lines if line.startswith(start))
        return found

    def looks(self, row: int) -> list[Any]:
        """The characters of a line, each with its colours."""
        return [self._screen.buffer[row][column] for column in range(self._screen.columns)]

    def press(self, *keys: str) -> None:
        for key in keys:
            os.write(self._ours, KEYS.get(key, key).encode())

    def resize(self, columns: int, rows: int) -> None:
        self._screen.resize(rows, columns)
        self._set_size(columns, rows)

    def wait_for(self, *texts: str, without: str = "\0") -> None:
        """Wait until all of these are on the screen, and the other is not."""
        end = time.monotonic() + PATIENCE_S
        while not all(text in self.text for text in texts) or without in self.text:
            left = end - time.monotonic()
            assert left > 0, f"{texts} did not come, or {without!r} did not go; there is:\n{self.text}"
            if not self._take(left) and self.process.poll() is not None:
                raise AssertionError(f"it ended with {self.process.returncode}:\n{self.text}")

    def settle(self, seconds: float = 0.5) -> None:
        """Take what is written in this time."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._take(left)

    def end(self) -> int:
        """Wait for the end of the command; return its status."""
        end = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            assert time.monotonic() < end, f"it does not end:\n{self.text}"
            self._take(0.05)
        while self._take(0.05):
            pass
        return self.process.returncode

    def is_stopped(self) -> bool:
        """Whether the process is stopped, as by Ctrl-Z."""
        pid, status = os.waitpid(self.process.pid, os.WUNTRACED | os.WNOHANG)
        return bool(pid) and os.WIFSTOPPED(status)

    def go_on(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def is_restored(self) -> bool:
        """Whether the terminal is as it was: its modes, its screen, its cursor."""
        screens = re.findall(rb"\x1b\[\?(?:47|1049)([hl])", self.written)
        cursors = re.findall(rb"\x1b\[\?25([hl])", self.written)
        return (
            termios.tcgetattr(self._theirs) == self.modes
            and screens[-1:] == [b"l"]
            and cursors[-1:] == [b"h"]
        )

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)

    def _take(self, timeout_s: float) -> bool:
        if not is_readable(self._ours, timeout_s):
            return False
        data = os.read(self._ours, 1 << 16)
        self.written += data
        self._stream.feed(data)
        return True

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@contextmanager
def on_terminal(*arguments: str, columns: int = 80, rows: int = 24, **environment: str) -> Iterator[Terminal]:
    """Run vpmu-agent on the host of fake_host.py, on a terminal."""
    command = [sys.executable, "-m", "tests.support.fake_host", *arguments]
    terminal = Terminal(command, columns, rows, environment)
    try:
        yield terminal
    finally:
        terminal.close()
