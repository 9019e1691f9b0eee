"""Arguments that make no sense: a sentence and the right status, never a traceback."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.faults.conftest import Attack
from tests.support.places import ROOT

HOSTS = (
    "a..b",
    "..",
    ".",
    "-",
    "%",
    "a b",
    " ",
    "[]",
    "[::g]",
    "[fe80::1%no]",
    "999.1.1.1",
    "192.0.2.1",
    "x" * 64,
    ("x" * 63 + ".") * 5 + "x",
    "x" * 100_000,
    "a\udcff",
    "a\x01b",
    "a\nb",
    "é" * 64,
    "\u200b",
    "xn--",
    "host.invalid",
)
USERS = ("root", "", "0", "no such", "a\udcff", "x" * 100_000, "-")
NUMBERS = ("nan", "inf", "1e999", "-1", "0", "", "x", "1" * 5000, "9" * 20)


def run(*words: str) -> None:
    """Run a command; it may take its arguments or refuse them, in a sentence."""
    command = [sys.executable, "-m", "tests.support.fake_host", *words]
    done = subprocess.run(command, capture_output=True, timeout=30, cwd=ROOT, check=False)
    assert b"Traceback" not in done.stderr, done.stderr[-500:]
    assert done.returncode in (0, 2, 3), done
    assert (done.returncode == 0) == (b"Error: " not in done.stderr), done


def test_impossible_users_and_hosts(attack: Attack) -> None:
    """Hosts and users that cannot be"""
    for words in (("--listen", "a..b:80"), ("--user", "root")):
        with attack.once(words[1]):
            run("run", "--duration", "0.1", *words)


@pytest.mark.slow
def test_all_impossible_users_hosts_and_numbers(attack: Attack) -> None:
    """Hosts, ports, users and numbers that cannot be"""
    for host in HOSTS:
        with attack.once(f"host {host[:40]!r}"):
            run("run", "--duration", "0.1", "--listen", f"{host}:0")
    for user in USERS:
        with attack.once(f"user {user[:40]!r}"):
            run("run", "--duration", "0.1", "--listen", "127.0.0.1:0", "--user", user)
    for number in NUMBERS:
        with attack.once(f"port {number[:40]!r}"):
            run("run", "--duration", "0.1", "--listen", f"127.0.0.1:{number}")
        for words in (
            ("trace", "--duration=0.1", f"--vcpu={number}"),
            ("predict", f"--events={number}"),
            ("predict", f"--fail-at={number}"),
            ("top", "--once", f"--interval={number}", "--url", "http://127.0.0.1:9"),
        ):
            with attack.once(f"{' '.join(words)[:60]}"):
                run(*words)
    for number in ("nan", "0", "-1", "", "x", "1e-300"):  # the others are for ever
        for command in ("trace", "run"):
            with attack.once(f"{command} --duration {number}"):
                listen = ("--listen", "127.0.0.1:0") if command == "run" else ()
                run(command, f"--duration={number}", *listen)
