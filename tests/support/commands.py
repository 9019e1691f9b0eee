"""Runs commands for the tests: in this process, or in another one on a host whose probes are scripted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from inspect import signature
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
from click.testing import CliRunner, Result

from tests.support.places import ROOT
from tests.support.scenes import checked
from vpmu_agent.cli.main import StandIns, cli
from vpmu_agent.model.call import Call
from vpmu_agent.trace.printers import JsonPrinter
from vpmu_agent.trace.recording import Header, Recorder
from vpmu_agent.trace.session import Filters, Session

# click before 8.2 (Debian 12 has 8.1) mixes stderr into stdout unless told not to; later ones never do.
SEPARATE: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in signature(CliRunner).parameters else {}


def invoke(*arguments: str, stdin: bytes | None = None, stand_ins: StandIns | None = None) -> Result:
    runner = CliRunner(**SEPARATE)
    return runner.invoke(cli, arguments, input=stdin, prog_name="vpmu-agent", obj=stand_ins)


def record(path: Path, calls: list[Call], *, lost: int = 0) -> Path:
    recorder = Recorder(path, Header("0.1.0", "6.1.0-27-amd64", "fexit", {}))
    with Path(os.devnull).open("w") as nowhere:
        session = Session(Filters(), JsonPrinter(), nowhere, recorder=recorder)
        session.feed(checked(calls))
        session.end(lost)
    return path


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@contextmanager
def started(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.fake_host", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, **environment},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(stream: IO[bytes] | None, start: bytes) -> bytes:
    assert stream
    for line in stream:
        if line.startswith(start):
            return line
    pytest.fail(f"no line began with {start!r}")


@contextmanager
def daemon(arguments: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The daemon's parent, which is what was started, and the address where there are metrics by then."""
    with started(*arguments) as process:
        line = read_until(process.stderr, b"serving http://").decode()
        read_until(process.stderr, b"attached ")
        yield process, line.split("/")[2]


def daemon_of(process: subprocess.Popen[bytes]) -> int:
    """The daemon, of which `process` is the parent."""
    for child in psutil.Process(process.pid).children():
        with suppress(psutil.Error):  # a loader that is on its way out
            if "run" in child.cmdline():
                return child.pid
    pytest.fail("the daemon is gone")
