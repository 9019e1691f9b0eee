"""Loaders that hang, and whoever waits for them is killed or interrupted. The loader is the real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.faults.conftest import Attack
from vpmu_agent import probes
from vpmu_agent.kernel.errors import ProbeError
from vpmu_agent.probes import handover
from vpmu_agent.vms.names import Vms

COMMANDS = (("trace",), ("run", "--listen", "127.0.0.1:0"))
HANGING = "import os, signal, sys; os.kill(os.getpid(), signal.SIGSTOP)"


@contextmanager
def loading(*words: str) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A command, and its loader, which is about to compile by then and is stopped."""
    command = [sys.executable, "-m", "vpmu_agent", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        loader = wait_for_loader(process)
        loader.suspend()
        try:
            yield process, loader
        finally:
            process.kill()
            for each in (loader, *children(process.pid)):
                if each.is_running():
                    each.kill()


def wait_for_loader(process: subprocess.Popen[str]) -> psutil.Process:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for child in children(process.pid):
            if "libbcc" in Path(f"/proc/{child.pid}/maps").read_text():
                return child
        time.sleep(0.002)
    raise AssertionError("there was no loader")


def children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def is_gone(process: psutil.Process, within_s: float) -> bool:
    end = time.monotonic() + within_s
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def end(words: tuple[str, ...], number: signal.Signals) -> None:
    """Send a signal to a command whose loader hangs; nobody may outlive it."""
    with loading(*words) as (process, loader):
        others = children(process.pid)
        if number == signal.SIGINT:  # as Ctrl-C does: to all that are in the foreground
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        said = process.communicate(timeout=10)[1]
        assert "Traceback" not in said, said
        assert process.returncode == -number
        assert all(is_gone(each, 2) for each in (loader, *others)), loader


def test_the_daemon_is_killed_while_its_loader_hangs(attack: Attack) -> None:
    """The daemon's parent is killed while the loader hangs"""
    with attack.once():
        end(COMMANDS[1], signal.SIGKILL)


@pytest.mark.slow
def test_a_command_ends_while_its_loader_hangs(attack: Attack) -> None:
    """A command is killed, interrupted or ended while its loader hangs"""
    for words in COMMANDS:
        for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
            with attack.once(f"{words[0]}, {number.name}"):
                end(words, number)


def test_a_loader_that_hangs(attack: Attack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader is stopped for good"""
    monkeypatch.setattr(handover, "SLOW_S", 0.1)
    monkeypatch.setattr(handover, "PATIENCE_S", 0.3)
    monkeypatch.setattr(probes, "loader_command", lambda *_, **__: [sys.executable, "-c", HANGING])
    with attack.once(), pytest.raises(ProbeError, match="the loader has sent nothing in"):
        probes.attach(vms=Vms())
    assert not children(os.getpid())


@pytest.mark.slow
def test_signals_at_any_moment(attack: Attack) -> None:
    """Ctrl-C and SIGTERM at any moment of a command"""
    commands = (
        *COMMANDS,
        ("list",),
        ("doctor",),
        ("top", "--once"),
        ("predict",),
        ("replay", "tests/data/partial_groups.jsonl"),
        ("config", "check", "systemd/vpmu-agent.toml"),
    )
    for words in commands:
        for number in (signal.SIGINT, signal.SIGTERM):
            for step in range(8):
                with attack.once(f"{' '.join(words)}, {number.name} after {step * 0.15:.2f} s"):
                    interrupt(words, number, step * 0.15)


def interrupt(words: tuple[str, ...], number: signal.Signals, after_s: float) -> None:
    command = [sys.executable, "-m", "vpmu_agent", *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        wait_for_main(process.pid)
        time.sleep(after_s)
        if process.poll() is None:
            os.killpg(process.pid, number)
        said = process.communicate(timeout=20)[1]
    assert "Traceback" not in said, said
    assert process.returncode in (-number, 0, 1, 3), said


def wait_for_main(pid: int) -> None:
    """Wait until Python has started: it has a handler for Ctrl-C from then on, until the program has not."""
    was_caught = False
    while True:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return
        if "SigCgt" not in status or "State:\tZ" in status:
            return
        caught = int(status.partition("SigCgt:")[2].split()[0], 16) >> (signal.SIGINT - 1) & 1
        if was_caught and not caught:
            return
        was_caught = was_caught or bool(caught)
        time.sleep(0.0005)
