"""How long a scrape over HTTP takes, of maps with made-up counts: `python -m tests.bench.scrape 1000`."""

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
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

from tests.support.arrays import Arrays
from tests.support.guests import amd, found
from tests.support.looks import pmc
from vpmu_agent.counts.guests import Found
from vpmu_agent.counts.recent import Recent
from vpmu_agent.counts.watch import Watch
from vpmu_agent.loader.program import MAX_ENTRIES
from vpmu_agent.model.rules import State
from vpmu_agent.probes.layout import ARRAYS, CALLS, SIZES
from vpmu_agent.vms.command_line import Vmm
from vpmu_agent.vms.names import VmInfo
from vpmu_agent.web.address import Address
from vpmu_agent.web.app import application
from vpmu_agent.web.metrics import OPENMETRICS, Exporter
from vpmu_agent.web.server import Server
from vpmu_agent.web.state import Overview

VCPUS, PMCS = 4, 4
"""Of each VM, and of each vCPU."""
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


def fill(arrays: Arrays, vms: int) -> None:
    """Add entries as of busy VMs: hundreds of thousands of calls, minutes of host time."""
    rng = random.Random(vms)

    def some(length: int, below: int) -> list[int]:
        return [rng.randrange(below) for _ in range(length)]

    for tgid in range(1, vms + 1):
        for vcpu in range(VCPUS):
            sizes = [0, 0, *some(SIZES["VPMU_SIZES"] - 2, 10**5)]
            slot = arrays.take_vcpu(tgid, vcpu, siblings=3 * 10**5, sizes=sizes, sizes_sum=10**6)
            for idx in range(PMCS):
                entry: dict[str, int | Sequence[int]] = {
                    "vcpu_id": vcpu,
                    "pmc_idx": idx,
                    "state": list(State).index(State.RUNNING),
                    "members": 0b1111,
                    "calls": some(len(CALLS), 10**6),
                    "due": [0, 1, 0, 0],
                }
                for call in CALLS:
                    entry[f"{call}_ns"] = rng.randrange(10**11)
                    entry[f"{call}_buckets"] = some(SIZES["VPMU_BUCKETS"], 10**5)
                arrays.take_pmc(tgid, tgid << 32 | vcpu << 16 | idx, slot, **entry)
        if tgid % 10 == 0:
            arrays.fail(tgid, 28, rng.randrange(1, 1000))


class _Names:
    def about(self, tgid: int) -> VmInfo:
        return VmInfo(f"instance-{tgid:08x}", str(UUID(int=tgid)), Vmm.LIBVIRT, tgid, pod_uid="")

    def is_alive(self, _tgid: int) -> bool:
        return True

    def alive(self, tgids: Iterable[int]) -> set[int]:
        return {*tgids}

    def settled(self, known: Mapping[int, VmInfo]) -> set[int]:
        return {*known}

    def forget(self, tgid: int) -> None:
        raise AssertionError(f"{tgid} is not gone")


def _guests(vms: int) -> Found:
    """Return what the census finds of these VMs."""
    names = {tgid: _Names().about(tgid).name for tgid in range(1, vms + 1)}
    vcpus = [
        amd(tgid=tgid, address=tgid << 8 | vcpu, vm=tgid, vcpu_id=vcpu)
        for tgid in names
        for vcpu in range(VCPUS)
    ]
    pmcs = [pmc(index, tgid=vcpu.tgid, vcpu=vcpu.address) for vcpu in vcpus for index in range(PMCS)]
    return found(names, *vcpus, *pmcs)


def _serve(vms: int, *, per_counter: bool) -> None:
    arrays = Arrays(**{name: MAX_ENTRIES[name] for name in ARRAYS})
    fill(arrays, vms)
    with closing(Server(Address("127.0.0.1", 0))) as server, arrays.probes() as probes:
        watch = Watch(probes, _Names(), per_counter=per_counter)
        watch.show_guests(_guests(vms))
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
