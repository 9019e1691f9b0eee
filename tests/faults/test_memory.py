"""Memory that must not grow with what an agent has met."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.conftest import Attack
from tests.support.scenes import Guest, checked
from vpmu_agent.trace.call_json import call_json

# Of its own, and small: a process begins with the peak of the one that started it (ru_maxrss, getrusage(2)).
LAUNCHER = """
import os, sys
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
command = [sys.executable, "-m", "vpmu_agent", *sys.argv[1:]]
_, status, usage = os.wait4(os.posix_spawn(sys.executable, command, os.environ, file_actions=quiet), 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss)
"""


def recording(path: Path, vms: int) -> Path:
    """Make a recording of so many VMs, each with one life of one counter."""
    lines = [call_json(call, verdict) for call, verdict in checked(Guest("web01", 77).life())]
    header = {"schema": 1, "kind": "recording", "agent": "0", "kernel": "0", "attach": "fexit", "filters": {}}
    with path.open("w") as file:
        print(json.dumps(header), file=file)
        for number in range(vms):
            for line in lines:
                named = line.replace('"web01"', f'"vm{number}"')
                print(named.replace('"tgid":77', f'"tgid":{1000 + number}'), file=file)
        print(json.dumps({"schema": 1, "kind": "end", "calls": vms * len(lines), "lost": 0}), file=file)
    return path


def peak_mb(path: Path) -> float:
    """Replay, and return the largest resident set of that."""
    command = [sys.executable, "-c", LAUNCHER, "replay", "--quiet", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    status, peak_kib = map(int, done.stdout.split())
    assert status == 0
    return peak_kib / 1024


@pytest.mark.slow
def test_a_replay_of_ever_more_vms(attack: Attack, tmp_path: Path) -> None:
    """A recording has ever more VMs and counters"""
    before = peak_mb(recording(tmp_path / "many.jsonl", 80_000))
    with attack.once("twice as many VMs"):
        after = peak_mb(recording(tmp_path / "more.jsonl", 160_000))
        print(f"80,000 VMs: {before:.0f} MB, 160,000: {after:.0f} MB")
        assert after < before + 10
