"""The monitor at work on a look-alike, seen from outside: as a daemon, its processes and its metrics.

This is `vpmu-agent run` with all its processes; only what its loader attaches to is the look-alike
(tests/bpf/host.py), since this kernel takes no probes.
"""

from __future__ import annotations

import json
import os
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
from vpmu_agent.kernel import btf

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
        # Once it has handed over, the loader is no part of it, but may not be gone yet.
        children = (child for child in process.children(recursive=True) if not _is_loader(child))
        return [self.pid, *(child.pid for child in children)]

    def cpu_s(self) -> float:
        """CPU time of all its processes since they began (/proc/PID/stat)."""
        times = [psutil.Process(pid).cpu_times() for pid in self.pids()]
        return sum(time.user + time.system for time in times)

    def memory(self) -> Memory:
        """What its processes hold now (/proc/PID/smaps_rollup)."""
        fields = Counter[str]()
        for pid in self.pids():
            try:
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue  # a loader that has handed over, gone between the two looks
            for line in text.splitlines()[1:]:
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


def _is_loader(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE or "tests.bpf.loader" in process.cmdline()
    except psutil.NoSuchProcess:
        return True


def constants(lookalike: Path) -> dict[str, int]:
    """The VPMU_* that bpf/vpmu.bpf.c asks for, of a look-alike on this kernel."""
    told = subprocess.run([lookalike, "layout"], check=True, capture_output=True).stdout
    layout: dict[str, int] = json.loads(told)
    types = btf.vmlinux()
    return layout | {
        "VPMU_TASK_MM": types.member("task_struct", "mm").offset,
        "VPMU_TASK_GROUP_LEADER": types.member("task_struct", "group_leader").offset,
        "VPMU_TASK_START_BOOTTIME": types.member("task_struct", "start_boottime").offset,
        "VPMU_MM_ARG_START": types.member("mm_struct", "arg_start").offset,
        "VPMU_MM_ARG_END": types.member("mm_struct", "arg_end").offset,
    }


@contextmanager
def daemon(
    lookalike: Path, *options: str, census: bool = False, cache: Path | None = None
) -> Iterator[Daemon]:
    """`vpmu-agent run` with its probes on a look-alike, from its line "attached" on.

    With `census` it also pulls that of this machine; in `cache` it keeps its compiled programs.
    """
    command = [sys.executable, "-m", "tests.bpf.host", "run", "--listen", "127.0.0.1:0"]
    instance = lookalike.with_name("kvm_instance")
    instance.write_text("1")
    for folder in (instance.parent, instance.parent.parent):  # the daemon is nobody
        folder.chmod(0o755)
    kept = {"cache": str(cache)} if cache else {}
    plan = json.dumps({"path": str(lookalike), "constants": constants(lookalike), "census": census, **kept})
    # The loader is started with -P: the current directory is not searched for modules.
    here = {"PYTHONPATH": str(REPO), "LOADER_PLAN": plan, "KVM_INSTANCE": str(instance)}
    env = {**os.environ, **here}
    began = time.monotonic()
    process = subprocess.Popen([*command, *options], cwd=REPO, env=env, stderr=subprocess.PIPE, text=True)
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
