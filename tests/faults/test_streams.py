"""Streams that are closed or full."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.faults.conftest import Attack

COMMANDS = (("predict",), ("predict", "--events", "32", "--output", "json"))


def test_output_to_a_full_disk(attack: Attack) -> None:
    """A command writes to a full disk"""
    for words in COMMANDS:
        command = [sys.executable, "-m", "vpmu_agent", *words]
        with attack.once(" ".join(words)), Path("/dev/full").open("w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
            assert done.returncode == 3
            assert "Traceback" not in done.stderr
