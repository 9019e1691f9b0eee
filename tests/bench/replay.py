"""How fast `vpmu-agent replay --quiet` is, and how much memory it takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import cycle, islice
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "data"
_STARTS = 3

# Of its own, and small: a process begins with the peak of the one that started it (ru_maxrss, getrusage(2)).
_LAUNCHER = """
import json, os, sys
pid = os.posix_spawn(sys.executable, [sys.executable, "-m", "vpmu_agent", *sys.argv[1:]], os.environ)
_, status, usage = os.wait4(pid, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
"""


def measure(calls: int, folder: Path) -> dict[str, Any]:
    """Replays a recording of that many calls, which it writes to `folder` and removes again.

    `calls_per_s` is by the CPU time of the process, without that of one with an empty recording. `peak_kib`
    is its largest resident set. Raises RuntimeError if the replay did not count every call.
    """
    path = folder / "replay.jsonl"
    try:
        write(0, path)
        start_s = min(_replay(path, 0)[0] for _ in range(_STARTS))
        write(calls, path)
        cpu_s, peak_kib = _replay(path, calls)
    finally:
        path.unlink(missing_ok=True)
    return {"calls": calls, "calls_per_s": round(calls / (cpu_s - start_s)), "peak_kib": peak_kib}


def write(calls: int, path: Path) -> None:
    """Makes a recording of the lab's recordings, one after the other as often as it takes.

    They end with every event released, so that their VMs can go on where they began.
    """
    header, *_ = _lines("guest_a")
    lines = [
        line for name in ("guest_a", "guest_b", "grouped") for line in _lines(name) if '"kind":"call"' in line
    ]
    time = re.compile(r'(?<="time_ns":)\d+')
    now = 1_766_000_000_000_000_000
    parts = [time.split(line) for line in lines]
    with path.open("w") as file:
        file.write(header)
        for before, after in islice(cycle(parts), calls):
            now += 1_000_003
            file.write(f"{before}{now}{after}")
        file.write(json.dumps({"schema": 1, "kind": "end", "calls": calls, "lost": 0}) + "\n")


def _lines(name: str) -> list[str]:
    return (DATA / f"{name}.jsonl").read_text().splitlines(keepends=True)


def _replay(path: Path, calls: int) -> tuple[float, int]:
    """CPU seconds and peak KiB of one replay."""
    command = [sys.executable, "-c", _LAUNCHER, "replay", "--quiet", "--output", "json", str(path)]
    *summaries, usage = map(json.loads, subprocess.check_output(command).splitlines())
    status, cpu_s, peak_kib = usage
    counted = sum(sum(summary["calls"].values()) for summary in summaries)
    if status != 0 or counted != calls:
        raise RuntimeError(f"replay exited with {status} after {counted} of {calls} calls")
    return cpu_s, peak_kib


if __name__ == "__main__":
    for size in sys.argv[2:]:
        print(json.dumps(measure(int(size), Path(sys.argv[1]))))
