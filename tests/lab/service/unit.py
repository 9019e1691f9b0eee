"""The agent's service where PID 1 is systemd: the Debian package, and what systemctl and the journal say."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from .. import places
from ..errors import LabError

UNIT = "vpmu-agent.service"
USER = "vpmu-agent"
CONFIG = Path("/etc/vpmu-agent/vpmu-agent.toml")
LISTEN = "127.0.0.1:9775"  # the default
START_S = 180.0  # every instruction is emulated, and a loader is a compiler

Entry = dict[str, Any]


def runs_under_systemd() -> bool:
    """Whether PID 1 is systemd (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def install() -> None:
    """Installs the package that `make deb` built; its scripts enable and start the service."""
    (package,) = (places.REPO / "dist").glob("vpmu-agent_*_all.deb")
    done = subprocess.run(["dpkg", "--install", str(package)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{package} cannot be installed:\n{done.stdout}{done.stderr}")


def systemctl(*arguments: str) -> None:
    """Raises LabError with the service's log where it fails."""
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"systemctl {' '.join(arguments)}: {done.stderr}{log()}")


def show(name: str) -> str:
    """A property of the unit."""
    done = subprocess.run(
        ["systemctl", "show", UNIT, "--property", name, "--value"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def main_process() -> psutil.Process:
    """The one that systemd started: the parent."""
    return psutil.Process(int(show("MainPID")))


def daemon() -> psutil.Process:
    """Its child that reads the counts and serves HTTP."""
    (child,) = (each for each in main_process().children() if "run" in each.cmdline())
    return child


def journal(*matches: str) -> list[Entry]:
    """The entries with these fields, of the service itself unless they say otherwise, oldest first."""
    fields = matches or (f"_SYSTEMD_UNIT={UNIT}",)
    done = subprocess.run(
        ["journalctl", "--boot", "--output=json", *fields], capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def log() -> str:
    """The service's log as a person reads it, systemd's own lines on it too."""
    done = subprocess.run(
        ["journalctl", "--boot", "--unit", UNIT], capture_output=True, text=True, check=True
    )
    return done.stdout


def wait_for(what: str, condition: Callable[[], object], *, timeout_s: float = START_S) -> None:
    """Raises LabError with the service's log if it does not come true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"no {what} within {timeout_s:.0f} s:\n{log()}")
        time.sleep(0.5)
