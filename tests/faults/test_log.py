"""A log that cannot be written, a service manager that cannot be reached: the daemon tells them later."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.faults.conftest import Attack
from tests.support.places import ROOT


@contextmanager
def daemon(stderr: int, notify: str = "", before: Callable[[], None] | None = None) -> Iterator[Running]:
    """A daemon on a host with a divergence, which it has to tell."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    environment = {**os.environ, "DIVERGING": "1"}
    if notify:
        environment["NOTIFY_SOCKET"] = notify
    command = [sys.executable, "-m", "tests.support.fake_host", "run", "--listen", f"127.0.0.1:{port}"]
    with subprocess.Popen(command, stderr=stderr, cwd=ROOT, env=environment, preexec_fn=before) as process:
        try:
            yield Running(process, port)
        finally:
            process.kill()


class Running:
    """A daemon's parent, and where the daemon serves."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self._url = f"http://127.0.0.1:{port}/metrics"

    def delayed(self, to: str) -> float:
        """Return how many messages could not be written when they were due."""
        with urllib.request.urlopen(self._url, timeout=10) as answer:
            text = answer.read().decode()
        found = re.search(rf'^vpmu_agent_delayed_messages_total{{to="{to}"}} (.+)', text, re.MULTILINE)
        assert found
        return float(found[1])

    def wait_until_delayed(self, to: str, at_least: int) -> None:
        end = time.monotonic() + 40
        while True:
            try:
                if self.delayed(to) >= at_least:
                    return
            except OSError:
                pass
            assert self.process.poll() is None, f"it ended with status {self.process.returncode}"
            assert time.monotonic() < end, "nothing was delayed"
            time.sleep(0.1)

    def ends_well(self) -> None:
        """A signal while it cannot tell anybody is no reason to end otherwise."""
        self.process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may use: the daemon is nobody, and pytest's folders are for their user only."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


def test_a_log_whose_reader_has_stopped(attack: Attack) -> None:
    """Nobody reads the log for a while, and the pipe is full"""
    with attack.once():
        read, write = os.pipe()
        room = fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
        os.write(write, b"x" * (room - 1) + b"\n")
        with daemon(write) as running, os.fdopen(read, "rb", buffering=0) as reader:
            os.close(write)
            running.wait_until_delayed("log", 2)
            said = b""
            while said.count(b"\n") < 4:
                said += reader.read(1 << 16) or b""
            lines = said.decode().splitlines()[1:]
            assert lines[0].startswith("serving ")
            assert lines[1].startswith("attached ")
            assert "unexpected_call" in lines[2]
            running.ends_well()


def test_a_service_manager_that_is_not_there(attack: Attack, folder: Path) -> None:
    """The service manager's socket is missing, and is there later"""
    place = folder / "notify"
    with (
        attack.once(),
        Path(os.devnull).open("w") as log,
        daemon(log.fileno(), notify=str(place)) as running,
    ):
        running.wait_until_delayed("service_manager", 2)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(place))
            place.chmod(0o777)
            manager.settimeout(20)
            assert b"READY=1" in manager.recv(999)
        running.ends_well()


@pytest.mark.slow
def test_logs_that_cannot_be_written(attack: Attack) -> None:
    """The log is on a full disk, closed, or nobody reads it any more"""
    unread, write = os.pipe()
    os.close(unread)
    with Path("/dev/full").open("w") as full:
        for name, stderr, before in (
            ("full", full.fileno(), None),
            ("unread", write, None),
            ("closed", full.fileno(), lambda: os.close(2)),
        ):
            with attack.once(name), daemon(stderr, before=before) as running:
                running.wait_until_delayed("log", 3)
                running.ends_well()
    os.close(write)


@pytest.mark.slow
def test_service_managers_that_cannot_be_reached(attack: Attack, folder: Path) -> None:
    """NOTIFY_SOCKET names nothing, a file, nobody, or nonsense"""
    file = folder / "file"
    file.write_text("")
    for address in (str(folder / "none"), str(file), "@nobody", "relative", "/" + "x" * 300, "@", "/"):
        with (
            attack.once(address),
            Path(os.devnull).open("w") as log,
            daemon(log.fileno(), notify=address) as running,
        ):
            running.wait_until_delayed("service_manager", 2)
            running.ends_well()


@pytest.mark.slow
def test_a_service_manager_that_dies(attack: Attack, folder: Path) -> None:
    """The service manager goes away, or reads no more"""
    for is_open in (False, True):
        place = folder / f"notify{is_open}"
        with attack.once(f"its socket is {'open' if is_open else 'closed'}"):
            manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            manager.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            with closing(manager), Path(os.devnull).open("w") as log:
                manager.bind(str(place))
                place.chmod(0o777)
                with daemon(log.fileno(), notify=str(place)) as running:
                    manager.recv(999)
                    if not is_open:
                        manager.close()
                    running.wait_until_delayed("service_manager", 2)
                    running.ends_well()
