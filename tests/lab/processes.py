"""What /proc says of a process in the lab."""

from __future__ import annotations

from pathlib import Path

import psutil


def status(process: psutil.Process) -> dict[str, str]:
    """Return the lines of /proc/PID/status, by their names."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
