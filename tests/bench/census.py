"""What the census costs on a host with many VMs and many open files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import median

from tests.bench import lookalike, monitor
from tests.bench.crowd import VCPUS, crowd
from tests.bench.errors import BenchError
from tests.bench.progress import say
from tests.bench.report import Figure, Goal
from tests.lab.scrape import Metrics
from tests.support.looks import ENABLED, PMC, VCPU
from vpmu_agent.counts.guests import CPU_SHARE, Guests
from vpmu_agent.counts.pmus import KvmPmu
from vpmu_agent.probes import attach_census
from vpmu_agent.probes.census import Census, Look, decode
from vpmu_agent.vms.names import Vms

VMS, FILES, PMCS = 1000, 300_000, 4
_PULLS = 10
_WINDOW_S = 60.0
_SWEEP_S = 1.0  # as often as the daemon looks whether it is time
_MB = 1e6


def measure(folder: Path) -> list[Figure]:
    """Pulls by the daemon and by this process, on this machine's kernel, and the reader alone."""
    return [*_measure(lookalike.build(folder / "census", "stock")), *_reader()]


def _measure(path: Path) -> Iterator[Figure]:
    say(f"the census of {VMS:,} VMs of {VCPUS} vCPUs among {FILES:,} open files")
    with monitor.daemon(path, census=True) as daemon, closing(attach_census()) as census:
        daemon.scrape()  # the first one loads code
        alone = _percent(daemon)
        with crowd(VMS, FILES // VMS):
            files = _open_files()
            walked = [_pull(census) for _ in range(_PULLS)]
            guests = Guests(Vms())
            guests.look(census)  # the first one asks each process for its VM's name
            if (found := len(guests.found.pmus)) != VMS or census.missing:
                raise BenchError(f"the census found {found} of {VMS} VMs ({census.missing or 'no error'})")
            pulls, took_s, cpu_s = _at_default_pace(guests, census)
            known = daemon.scrape_until(lambda metrics: _vms(metrics) == VMS, timeout_s=60)
            if _vms(known) != VMS:
                raise BenchError(f"the daemon knows {_vms(known)} of {VMS} VMs")
            busy = _percent(daemon)
            memory = daemon.memory()
    yield Figure("census.files", "open files of all processes", files)
    yield Figure(
        "census.pull", f"a pull of {VMS:,} VMs, read and decoded, CPU time", 1e3 * median(walked), "ms"
    )
    yield Figure("census.per_file", "the same, for each open file", 1e6 * median(walked) / files, "µs")
    yield Figure("census.look", "the same, and told by VM, CPU time", 1e3 * cpu_s / pulls, "ms")
    yield Figure("census.every", "from one pull to the next, by default", took_s / pulls, "s")
    share = Goal("<=", 100 * CPU_SHARE)
    yield Figure("census.share", "CPU of all pulls, of one core", 100 * cpu_s / took_s, "%", share)
    yield Figure("census.daemon_alone", "daemon's CPU without these VMs and files", alone, "%")
    yield Figure("census.daemon", "daemon's CPU with them", busy, "%")
    yield Figure("census.pss", "PSS of daemon and parent with them", memory.pss / _MB, "MB", Goal("<=", 40))
    yield Figure("census.rss", "RSS of daemon and parent with them", memory.rss / _MB, "MB")


def _pull(census: Census) -> float:
    before = time.thread_time()
    census.pull()
    return time.thread_time() - before


def _at_default_pace(guests: Guests, census: Census) -> tuple[int, float, float]:
    """Return how many pulls there were in some _WINDOW_S, how long that was, and their CPU time."""
    pulls, cpu_s, began = guests.found.pulls, guests.found.cpu_s, time.monotonic()
    while True:
        time.sleep(_SWEEP_S)
        before = guests.found.pulls
        guests.sweep(census)
        took = time.monotonic() - began
        if took >= _WINDOW_S and guests.found.pulls > before:
            return guests.found.pulls - pulls, took, guests.found.cpu_s - cpu_s
        if took >= 2 * _WINDOW_S:
            raise BenchError(f"there was no pull in {_WINDOW_S:.0f} s")


def _percent(daemon: monitor.Daemon) -> float:
    """Return the CPU that the daemon and its parent take, in percent of a core."""
    cpu, start = daemon.cpu_s(), time.monotonic()
    time.sleep(_WINDOW_S)
    return 100 * (daemon.cpu_s() - cpu) / (time.monotonic() - start)


def _open_files() -> int:
    count = 0
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                count += sum(1 for _ in (process / "fd").iterdir())
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended
    return count


def _vms(metrics: Metrics) -> int:
    return len({dict(labels)["vm"] for name, labels in metrics if name == "vpmu_mode"})


class _MadeUp(Census):
    """Finds what is made up, and never the same twice."""

    def __init__(self) -> None:
        super().__init__(None)
        self._pulls = [made_up(seconds) for seconds in range(_PULLS, 0, -1)]

    def pull(self) -> Look:
        return decode(self._pulls.pop())


class _Names:
    def name(self, tgid: int) -> str:
        return f"vm{tgid}"

    def forget(self, tgid: int) -> None:
        raise AssertionError(f"{tgid} is not gone")


def _reader() -> Iterator[Figure]:
    """Of made-up data: VMs that are made here have no PMU, because this kernel has none."""
    guests, census, took = Guests(_Names(), lambda: KvmPmu(enabled=True, mediated=False)), _MadeUp(), []
    for _ in range(_PULLS):
        before = guests.found.cpu_s
        guests.look(census)
        took.append(guests.found.cpu_s - before)
    if guests.found.records != VMS * VCPUS * (1 + PMCS):
        raise BenchError(f"{guests.found.records} records were found of those that were made up")
    what = f"reading {VMS * VCPUS * PMCS:,} counters with an event each, CPU time"
    yield Figure("census.reader", what, 1e3 * median(took), "ms", Goal("<", 100))


def made_up(seconds: int) -> bytes:
    """The data of a pull: all counters count, half of the vCPUs run, and all times are new in each pull."""
    data = []
    for number in range(VMS * VCPUS):
        address = 0xFFFF_8880_0000_0000 + (number << 14)
        vm, vcpu = divmod(number, VCPUS)
        runs = number % 2
        data.append(
            VCPU.pack(
                {
                    "tgid": 1000 + vm,
                    "kvm_vcpu": address,
                    "kvm": vm + 1,
                    "global_ctrl": 0x3F,
                    "vcpu_id": vcpu,
                    "nr_gp": 6,
                    "enable_pmu": 1,
                    "pmu_version": 2,
                    "cpuid_nent": 30,
                }
            )
        )
        data += [
            PMC.pack(
                {
                    "kind": 1,
                    "tgid": 1000 + vm,
                    "kvm_vcpu": address,
                    "control": ENABLED | 0x76,
                    "event": address + 1 + index,
                    "event_id": (address + 1 + index) & 0xFFFFFFFF,
                    "enabled_ns": seconds * 10**9,
                    "running_ns": seconds * 10**9,
                    "count": seconds * 10**9,
                    "config": 0x76,
                    "vcpu_id": vcpu,
                    "state": runs,
                    "oncpu": 3 if runs else -1,
                    "on_cpu": runs,
                    "pmc_idx": index,
                    "max_nr_events": 1,
                }
            )
            for index in range(PMCS)
        ]
    return b"".join(data)
