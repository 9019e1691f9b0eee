"""How long a scrape takes over HTTP, of maps full of made-up counts: `python -m tests.bench.scrape 1000`."""

from __future__ import annotations

import gzip
import json
import os
import random
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

from vpmu_agent.counts.recent import Recent
from vpmu_agent.counts.watch import Watch
from vpmu_agent.model.rules import SLOTS
from vpmu_agent.probes.layout import LOST_REASONS, VCPU, Layout, pmc_layout
from vpmu_agent.vms.command_line import Vmm
from vpmu_agent.vms.names import VmInfo
from vpmu_agent.web.address import Address
from vpmu_agent.web.app import application
from vpmu_agent.web.metrics import OPENMETRICS, Exporter
from vpmu_agent.web.server import Server
from vpmu_agent.web.state import Overview

VCPUS, PMCS = 4, 4
"""Of each VM, and of each vCPU."""

_PMC = pmc_layout(SLOTS)
_SCRAPES = 7


def measure(vms: int, *, per_counter: bool = True, compressed: bool = True) -> dict[str, Any]:
    """Scrapes a server in another process, as Prometheus would.

    `seconds` is the median of some scrapes after the first, from connecting to the last byte read; `bytes`
    are those of the text, `sent_bytes` those that went over the wire; `server_seconds` is the CPU time that a
    scrape costs the server, `rss_growth_bytes` how much more memory it has at the peak than before the first.
    """
    command = [sys.executable, "-m", "tests.bench.scrape", "serve", str(vms), str(int(per_counter))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        address = server.stdout.readline().strip()
        request = urllib.request.Request(f"http://{address}/metrics", headers={"Accept": OPENMETRICS})
        if compressed:
            request.add_header("Accept-Encoding", "gzip")
        before = _status(server.pid, "VmRSS")
        sent = _scrape(request)
        cpu, times = _cpu_seconds(server.pid), []
        for _ in range(_SCRAPES):
            start = time.perf_counter()
            sent = _scrape(request)
            times.append(time.perf_counter() - start)
        cpu = _cpu_seconds(server.pid) - cpu
        peak = _status(server.pid, "VmHWM")
        server.communicate()  # closes its standard input, which ends it
    text = gzip.decompress(sent) if compressed else sent
    return {
        "vms": vms,
        "vcpus": VCPUS,
        "pmcs": PMCS,
        "per_counter": per_counter,
        "compressed": compressed,
        "seconds": round(statistics.median(times), 4),
        "server_seconds": round(cpu / _SCRAPES, 4),
        "bytes": len(text),
        "sent_bytes": len(sent),
        "series": sum(not line.startswith(b"#") for line in text.splitlines()),
        "rss_growth_bytes": peak - before,
    }


def _scrape(request: urllib.request.Request) -> bytes:
    with urllib.request.urlopen(request, timeout=60) as answer:
        body = answer.read()
    assert isinstance(body, bytes)
    return body


def _status(pid: int, name: str) -> int:
    """A memory figure of a process, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _cpu_seconds(pid: int) -> float:
    """Of all threads, those too that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Maps:
    """Maps as full as so many busy VMs fill them, in the bytes that the kernel gives."""

    mode = "fexit"
    functions = ("create", "enable", "pause", "release")

    def __init__(self, vms: int) -> None:
        rng = random.Random(vms)
        self._vcpus = [
            (tgid, vcpu, _packed(VCPU, _vcpu_counts, rng)) for tgid in range(vms) for vcpu in range(VCPUS)
        ]
        self._pmcs = [
            (tgid, _packed(_PMC, _pmc_counts(vcpu, idx), rng))
            for tgid in range(vms)
            for vcpu in range(VCPUS)
            for idx in range(PMCS)
        ]
        self._errors = [(tgid, 28, rng.randrange(1, 1000)) for tgid in range(0, vms, 10)]
        # A hash map gives its entries in no order.
        rng.shuffle(self._vcpus)
        rng.shuffle(self._pmcs)

    def vcpus(self) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """See watch.Probes, as the others."""
        unpack = VCPU.struct.unpack
        for tgid, vcpu, packed in self._vcpus:
            yield tgid, vcpu, unpack(packed)

    def pmcs(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        unpack = _PMC.struct.unpack
        for tgid, packed in self._pmcs:
            yield tgid, unpack(packed)

    def errors(self) -> Iterator[tuple[int, int, int]]:
        return iter(self._errors)

    def lost(self) -> Mapping[str, int]:
        return dict.fromkeys(LOST_REASONS, 0)

    def forget(self, tgids: Set[int]) -> None:
        raise AssertionError(f"{tgids} are not gone")

    def occupancy(self) -> Mapping[str, tuple[int, int]]:
        return {"vcpus": (len(self._vcpus), 8192), "pmcs": (len(self._pmcs), 65536)}


class _Names:
    def about(self, tgid: int) -> VmInfo:
        return VmInfo(f"instance-{tgid:08x}", str(UUID(int=tgid)), Vmm.LIBVIRT, tgid, pod_uid="")

    def is_alive(self, _tgid: int) -> bool:
        return True

    def forget(self, tgid: int) -> None:
        raise AssertionError(f"{tgid} is not gone")


_Numbers = Callable[[str, random.Random], int]


def _packed(layout: Layout, number: _Numbers, rng: random.Random) -> bytes:
    numbers = [
        number(field, rng) for field, where in layout.fields.items() for _ in range(where.start, where.stop)
    ]
    return layout.struct.pack(*numbers)


def _vcpu_counts(field: str, rng: random.Random) -> int:
    """Of a vCPU whose guest profiles: hundreds of thousands of calls, minutes of host time."""
    if field in ("groups", "events", "orphans", "event_count"):
        return rng.randrange(PMCS)
    return rng.randrange(10**11) if field == "duration_ns" else rng.randrange(10**5)


def _pmc_counts(vcpu: int, idx: int) -> _Numbers:
    known = {"vcpu_id": vcpu, "pmc_idx": idx, "pmc_type": 0, "verdicts": 0}
    return lambda field, rng: rng.randrange(10**5) if field == "calls" else known.get(field, 1)


def _serve(vms: int, *, per_counter: bool) -> None:
    with closing(Server(Address("127.0.0.1", 0))) as server:
        watch = Watch(Maps(vms), _Names(), per_counter=per_counter)
        server.start(application(Exporter(watch), Overview(watch, Recent(), str)))
        print(server.address, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        _serve(int(sys.argv[2]), per_counter=bool(int(sys.argv[3])))
    else:
        for argument in sys.argv[1:]:
            for per_counter in (False, True):
                for compressed in (False, True):
                    print(json.dumps(measure(int(argument), per_counter=per_counter, compressed=compressed)))
