"""The agent under test, as a process in the lab VM; used only as a person uses it, by its command line."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .errors import LabError

COMMAND = (sys.executable, "-m", "vpmu_agent")
"""By the host's own Python, from the source tree. Its package is what the tests of the service run."""
# Importing bcc and compiling take a minute where every instruction is emulated, several on a busy machine.
START_S = 300.0
STOP_S = 60.0

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a stopped agent had printed."""

    status: int
    lines: list[Line]
    stderr: str

    def calls(self, vm: str | None = None, call: str | None = None) -> list[Line]:
        """The calls in the order they were printed; of one VM, of one name."""
        return [
            line
            for line in self.lines
            if line["kind"] == "call" and vm in (None, line["vm"]) and call in (None, line["call"])
        ]

    def count(self, vm: str) -> Counter[str]:
        """How many calls of each name succeeded for one VM."""
        return Counter(line["call"] for line in self.calls(vm) if line["result"] == 0)

    def summary(self, vm: str) -> Line:
        """The one summary line of a VM."""
        (line,) = (line for line in self.lines if line["kind"] == "summary" and line["vm"] == vm)
        return line


class Agent:
    """A `vpmu-agent` that has attached; a context manager that leaves nothing behind."""

    def __init__(self, *arguments: str, terminal: bool = False) -> None:
        """With `terminal` its stdout is this process's own, for a person; stop() has nothing to read then."""
        # Files and not pipes: nobody has to read along while a test does something else.
        self._scratch = tempfile.TemporaryDirectory()
        self._stdout = Path(self._scratch.name) / "stdout"
        self._stderr = Path(self._scratch.name) / "stderr"
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*COMMAND, *arguments], stdout=None if terminal else stdout, stderr=stderr
            )
        try:
            self._wait_attached()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def stdout(self) -> str:
        """What it has printed so far, unless to a terminal."""
        return self._stdout.read_text()

    def stderr(self) -> str:
        """What it has told so far."""
        return self._stderr.read_text()

    @property
    def mode(self) -> str:
        """How it attached its probes: fexit or kprobe."""
        match = re.search(r"^attached (\w+) probes", self.stderr(), re.MULTILINE)
        assert match
        return match[1]

    def interrupt(self) -> int:
        """Ctrl-C; returns the exit status. Raises LabError if the agent does not end."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired as error:
            raise LabError(f"the agent did not end within {STOP_S:.0f} s of SIGINT") from error

    def stop(self) -> Seen:
        """Ctrl-C, and all that the agent printed. Raises LabError if it does not end."""
        status = self.interrupt()
        lines = self._stdout.read_text().splitlines()
        return Seen(
            status,
            [json.loads(line) for line in lines],
            self._stderr.read_text(),
        )

    def _wait_attached(self) -> None:
        deadline = time.monotonic() + START_S
        while not re.search(r"^attached.*\n", self._stderr.read_text(), re.MULTILINE):
            if self.process.poll() is not None:
                raise LabError(
                    f"the agent ended with status {self.process.returncode}:\n{self._stderr.read_text()}"
                )
            if time.monotonic() > deadline:
                raise LabError(
                    f"the agent had not attached after {START_S:.0f} s:\n{self._stderr.read_text()}"
                )
            time.sleep(0.1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._scratch.cleanup()


def trace(*options: str) -> Agent:
    """`vpmu-agent trace --output json`, attached."""
    return Agent("trace", "--output", "json", *options)


def run(listen: str, *options: str) -> Agent:
    """`vpmu-agent run --listen HOST:PORT`, attached."""
    return Agent("run", "--listen", listen, *options)
