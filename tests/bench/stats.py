"""What the kernel knows of the run time of BPF programs: bpf_prog_info, while its statistics are on."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.errors import BenchError
from tests.bench.lookalike import CALLS
from vpmu_agent.kernel.libbpf import libbpf

_RUN_TIME = 0  # enum bpf_stats_type (include/uapi/linux/bpf.h)


@dataclass(frozen=True, slots=True)
class Ran:
    """All runs of one program since it was loaded, while statistics were on."""

    call: str
    time_ns: int
    runs: int


@contextmanager
def enabled() -> Iterator[None]:
    """Lets the kernel time every run of every BPF program, which is in the times of each.

    As kernel.bpf_stats_enabled=1 does, but until a descriptor is closed: nobody else can switch it off.
    """
    if (descriptor := libbpf().bpf_enable_stats(_RUN_TIME)) < 0:
        raise BenchError("the kernel times no BPF programs (BPF_ENABLE_STATS, Linux 5.8): run it as root")
    try:
        yield
    finally:
        os.close(descriptor)


def read(pids: Iterable[int]) -> dict[int, Ran]:
    """The programs that these processes hold, by program id."""
    return {
        program["id"]: Ran(call, program.get("run_time_ns", 0), program.get("run_cnt", 0))
        for program in programs(pids)
        if (call := call_of(program.get("name", "")))
    }


def programs(pids: Iterable[int]) -> list[dict[str, Any]]:
    """What bpftool says of the programs that these processes hold (bpftool-prog(8))."""
    held = {program for pid in pids for program in _held(pid)}
    return [program for program in bpftool("prog", "show") if program["id"] in held]


def bpftool(*arguments: str) -> list[dict[str, Any]]:
    """The answer of `bpftool -j`."""
    answer = subprocess.run(["bpftool", "-j", *arguments], check=True, capture_output=True).stdout
    found: list[dict[str, Any]] = json.loads(answer)
    return found


def of(descriptor: int) -> tuple[int, int]:
    """The nanoseconds and the runs of a program of this process (/proc/self/fdinfo)."""
    text = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    time_ns, runs = (
        re.search(rf"^{name}:\t(\d+)$", text, re.MULTILINE) for name in ("run_time_ns", "run_cnt")
    )
    assert time_ns
    assert runs
    return int(time_ns[1]), int(runs[1])


def _held(pid: int) -> Iterator[int]:
    try:
        for file in Path(f"/proc/{pid}/fdinfo").iterdir():
            try:
                text = file.read_text()
            except FileNotFoundError:
                continue  # closed meanwhile
            if match := re.search(r"^prog_id:\t(\d+)$", text, re.MULTILINE):
                yield int(match[1])
    except FileNotFoundError:
        return  # a process that has ended holds nothing: the loader, after the daemon's start


def call_of(name: str) -> str | None:
    """The call that a program of this name is for. The kernel keeps 15 characters: perf_event_crea."""
    return next((call for call in CALLS if call[:4] in name), None)
