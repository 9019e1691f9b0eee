"""The monitor at work on a look-alike, seen from outside: as a daemon, its processes and its metrics.

What must change with the daemon's way of loading its probes is in daemon.py alone.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.bench.errors import BenchError
from tests.lab.scrape import Metrics, parse, read

REPO = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Memory:
    """Of all processes together, in bytes; what several of them map counts in `rss` each time."""

    pss: int
    rss: int


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon whose probes are live."""

    pid: int
    listen: str
    start_s: float

    def pids(self) -> list[int]:
        """The daemon and whatever it needs running beside itself."""
        process = psutil.Process(self.pid)
        return [self.pid, *(child.pid for child in process.children(recursive=True))]

    def cpu_s(self) -> float:
        """CPU time of all its processes since they began (/proc/PID/stat)."""
        times = [psutil.Process(pid).cpu_times() for pid in self.pids()]
        return sum(time.user + time.system for time in times)

    def memory(self) -> Memory:
        """What its processes hold now (/proc/PID/smaps_rollup)."""
        fields = Counter[str]()
        for pid in self.pids():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
                name, kilobytes, _ = line.split()
                fields[name] += int(kilobytes) * 1024
        return Memory(pss=fields["Pss:"], rss=fields["Rss:"])

    def read(self) -> str:
        """One scrape, as the text that it is."""
        return read(self.listen)

    def scrape(self) -> Metrics:
        """Its metrics now."""
        return parse(self.read())

    def scrape_until(self, condition: Callable[[Metrics], bool], *, timeout_s: float = 30.0) -> Metrics:
        """Scrapes until the metrics are as wanted; the last ones if they never are."""
        deadline = time.monotonic() + timeout_s
        while not condition(metrics := self.scrape()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return metrics


@contextmanager
def daemon(lookalike: Path, *options: str) -> Iterator[Daemon]:
    """`vpmu-agent run` with its probes on a look-alike, from its line "attached" on."""
    command = [sys.executable, "-m", "tests.bench.daemon", str(lookalike), "run", "--listen", "127.0.0.1:0"]
    began = time.monotonic()
    process = subprocess.Popen([*command, *options], cwd=REPO, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said: list[str] = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("attached"):
                break
        else:
            raise BenchError(f"the daemon did not start: {''.join(said[-5:]).strip()}")
        start_s = time.monotonic() - began
        address = next(line.split()[1] for line in said if line.startswith("serving "))
        yield Daemon(process.pid, address.removeprefix("http://").removesuffix("/metrics"), start_s)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
