"""The parent: starts loaders, passes on signals, ends as the daemon does. Nothing here takes privileges."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil
import pytest

# What the parent is told to run for a loader: says a word and what is on its descriptors, and ends.
LOADER = """
import os, socket, sys
with socket.socket(fileno=int(sys.argv[1])) as end:
    end.send(b"from the loader")
"""
SLOW_LOADER = LOADER.replace("end.send", "import time; time.sleep(60); end.send")
START = """
import os, signal, socket, sys, time
from vpmu_agent.daemon.separation import separate
link = separate([sys.executable, "-I", "-S", "-c", {loader!r}])
def say(*words): print(*words, flush=True)
"""


@contextmanager
def started(daemon: str, *, loader: str = LOADER) -> Iterator[subprocess.Popen[str]]:
    code = START.format(loader=loader) + daemon
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read(stream: IO[str] | None) -> str:
    assert stream
    return stream.readline().strip()


def test_the_first_loader_and_those_that_are_asked_for() -> None:
    daemon = (
        "say(link.first.recv(99))\n"
        "for _ in range(3):\n"
        "    with link.load() as end: say(end.recv(99), end.recv(99))\n"
        "    time.sleep(0.3)\n"
    )
    with started(daemon) as process:
        assert process.stdout
        lines = process.stdout.read().splitlines()
        assert process.wait(10) == 0
    assert lines == ["b'from the loader'", *["b'from the loader' b''"] * 3]


def test_one_loader_at_a_time() -> None:
    daemon = "with link.load() as end: say(link.first.recv(99))\n"
    with started(daemon, loader=SLOW_LOADER) as process:
        assert read(process.stdout) == "b''"
        assert process.wait(10) == 0


def test_what_is_no_request_is_dropped() -> None:
    daemon = (
        "link.first.recv(99)\n"
        "from vpmu_agent.probes import handover\n"
        "ours, theirs = handover.channel()\n"
        "socket.send_fds(link.control, [b'X'], [theirs.fileno()])\n"
        "link.control.send(b'LLLL')\n"
        "theirs.close()\n"
        "say(ours.recv(99))\n"
        "with link.load() as end: say(end.recv(99))\n"
    )
    with started(daemon) as process:
        assert [read(process.stdout), read(process.stdout)] == ["b''", "b'from the loader'"]
        assert process.wait(10) == 0


def test_it_makes_the_call_that_tests_the_probes() -> None:
    daemon = (
        "for _ in range(2):\n"
        "    link.ask()\n"
        "    while (answer := link.answer()) is None: pass\n"
        "    say(repr(answer))\n"
        "say(link.tgid == os.getppid())\n"
    )
    with started(daemon) as process:
        assert [read(process.stdout) for _ in range(3)] == ["''", "''", "True"]
        assert process.wait(10) == 0


def test_a_supervisor_that_is_stopped_does_not_answer() -> None:
    daemon = (
        "link.ask()\n"
        "while link.answer() is None: pass\n"
        "os.kill(os.getppid(), signal.SIGSTOP)\n"
        "link.ask()\n"
        "say(link.answer())\n"
        "os.kill(os.getppid(), signal.SIGCONT)\n"
        "while (answer := link.answer()) is None: pass\n"
        "say(repr(answer))\n"
    )
    with started(daemon) as process:
        assert [read(process.stdout), read(process.stdout)] == ["None", "''"]
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("daemon", "status"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(3)", 3),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("link.control.close(); time.sleep(0.3); sys.exit(1)", 1),
    ],
)
def test_it_ends_as_the_daemon_did_and_leaves_nobody(daemon: str, status: int) -> None:
    with started(f"sys.stdin.readline()\n{daemon}", loader=SLOW_LOADER) as process:
        children = wait_for_children(process, 2)
        assert process.stdin
        process.stdin.close()
        assert process.wait(20) == status
        assert not any(child.is_running() for child in children)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGABRT])
def test_a_signal_reaches_the_daemon_once(number: signal.Signals) -> None:
    daemon = (
        "count = 0\n"
        "def seen(number, _):\n"
        "    global count; count += 1\n"
        f"signal.signal({int(number)}, seen)\n"
        "say('ready')\n"
        "while not count: time.sleep(0.01)\n"
        "time.sleep(0.2); say(count)\n"
    )
    with started(daemon) as process:
        assert read(process.stdout) == "ready"
        process.send_signal(number)
        assert read(process.stdout) == "1"
        assert process.wait(10) == 0


def test_it_is_small_and_runs_nothing_of_site_packages() -> None:
    with started("say('ready'); time.sleep(60)") as process:
        read(process.stdout)
        while not has_handlers(process.pid):
            time.sleep(0.01)
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert "libbpf" not in maps
        assert "site-packages" not in maps
        assert psutil.Process(process.pid).memory_full_info().uss < 8 << 20


def has_handlers(pid: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(caught >> (signal.SIGCHLD - 1) & 1)


def wait_for_children(process: subprocess.Popen[str], count: int) -> list[psutil.Process]:
    deadline = time.monotonic() + 10
    while len(children := psutil.Process(process.pid).children()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return children
