"""Streams that are closed, full, or that nobody reads, for every command; the probes are scripted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Attack
from tests.support.places import ROOT

RECORDING = "tests/data/partial_groups.jsonl"
SLIM = (("predict",), ("run", "--listen", "127.0.0.1:0", "--duration", "0.3"))
REST = (
    ("--help",),
    ("--version",),
    *((command, "--help") for command in ("trace", "replay", "run", "predict", "list", "top", "doctor")),
    ("config", "check", "--help"),
    ("config", "check", "systemd/vpmu-agent.toml"),
    ("config", "check", "no/such.toml"),
    ("predict", "--events", "32", "--output", "json"),
    ("predict", "--events", "0"),
    ("replay", "-"),
    ("replay", "no/such.jsonl"),
    ("replay", RECORDING),
    ("replay", RECORDING, "--quiet", "--output", "json"),
    ("trace", "--duration", "0.3"),
    ("trace", "--duration", "0.3", "--output", "json"),
    ("list",),
    ("top", "--once"),
    ("top",),
    ("doctor",),
    ("no-such-command",),
)

CANNOT_RUN = 3


def opened(descriptor: int, path: str, flags: int) -> Callable[[], None]:
    def in_child() -> None:
        os.dup2(os.open(path, flags), descriptor)

    return in_child


def closed(*descriptors: int) -> Callable[[], None]:
    def in_child() -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    return in_child


def unread(descriptor: int) -> Callable[[], None]:
    def in_child() -> None:
        read, write = os.pipe()
        os.dup2(write, descriptor)
        os.close(read)

    return in_child


FULL = "/dev/full"
FAULTS: dict[str, Callable[[], None]] = {
    "stdin closed": closed(0),
    "stdin for writing": opened(0, os.devnull, os.O_WRONLY),
    "stdout closed": closed(1),
    "stdout full": opened(1, FULL, os.O_WRONLY),
    "stdout for reading": opened(1, os.devnull, os.O_RDONLY),
    "stdout unread": unread(1),
    "stderr closed": closed(2),
    "stderr full": opened(2, FULL, os.O_WRONLY),
    "stderr unread": unread(2),
    "stdin and stderr closed": closed(0, 2),
    "all closed": closed(0, 1, 2),
}


def run(words: tuple[str, ...], fault: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.support.fake_host", *words]
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        preexec_fn=fault,
        check=False,
        text=True,
        timeout=60,
        cwd=ROOT,
    )


def expected(words: tuple[str, ...], fault: str, whole: subprocess.CompletedProcess[str]) -> set[int]:
    """The statuses that are right with this fault, given a run without any."""
    if "-" in words and fault.startswith(("stdin", "all")):
        return {2, CANNOT_RUN}
    if fault.startswith(("stdin", "stderr")) or not whole.stdout:
        return {whole.returncode}
    # Help and version stop where nobody reads them, and have found no problem by then.
    return {whole.returncode, 0} if fault == "stdout unread" else {CANNOT_RUN}


def attack_all(attack: Attack, commands: tuple[tuple[str, ...], ...]) -> None:
    for words in commands:
        whole = run(words)
        for name, fault in FAULTS.items():
            with attack.once(f"{' '.join(words)}: {name}"):
                done = run(words, fault)
                assert "Traceback" not in done.stderr, done.stderr
                assert "Exception ignored" not in done.stderr, done.stderr
                assert done.returncode in expected(words, name, whole), done


def test_streams_of_some_commands(attack: Attack) -> None:
    """Standard streams that are closed, full or unread, for some commands"""
    attack_all(attack, SLIM)


@pytest.mark.slow
def test_streams_of_the_other_commands(attack: Attack) -> None:
    """Standard streams that are closed, full or unread, for all other commands"""
    attack_all(attack, REST)


@pytest.mark.slow
def test_a_closed_stream_is_not_the_next_file(attack: Attack, tmp_path: Path) -> None:
    """A recording that is made with all streams closed gets nothing but the recording"""
    for name in ("stdout closed", "stderr closed", "all closed"):
        with attack.once(name):
            file = tmp_path / f"{name}.jsonl"
            run(("trace", "--duration", "0.3", "--record", str(file)), FAULTS[name])
            lines = file.read_text().splitlines()
            assert all(line.startswith("{") for line in lines)
            assert '"kind":"recording"' in lines[0]
