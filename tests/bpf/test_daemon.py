"""The daemon over real maps: small, without privileges, and through a KVM that is loaded anew."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.bpf import loader
from tests.bpf.conftest import ROOT, Lookalike
from tests.unit.commands import daemon_of, read_until

VMS = 1000
MAX_PSS = 40 << 20  # of daemon and parent together


@dataclass(frozen=True)
class Running:
    """The agent, attached to the look-alike."""

    process: subprocess.Popen[bytes]
    address: str
    kvm: Path

    @property
    def daemon(self) -> int:
        return daemon_of(self.process)

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def wait_for(self, sample: str) -> str:
        deadline = time.monotonic() + 10
        while sample not in (text := self.metrics()):
            assert time.monotonic() < deadline, f"{sample} is not in\n{text}"
            time.sleep(0.05)
        return text


Start = Callable[..., AbstractContextManager[Running]]


@pytest.fixture
def start(stock: Lookalike, tmp_path: Path) -> Start:
    @contextmanager
    def start(**plan: object) -> Iterator[Running]:
        kvm = tmp_path / "kvm"
        kvm.write_text("1")
        for folder in tmp_path, *tmp_path.parents[:2]:  # for a user who is nobody
            folder.chmod(0o755)
        environment = {"LOADER_PLAN": stock.plan(**plan), "KVM_INSTANCE": str(kvm), "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            [sys.executable, "-m", "tests.bpf.host", "run", "--listen", "127.0.0.1:0"],
            stderr=subprocess.PIPE,
            env=os.environ | environment,
            cwd=ROOT,
        ) as process:
            try:
                address = read_until(process.stderr, b"serving http://").decode().split("/")[2]
                assert read_until(process.stderr, b"attached") == b"attached uprobe probes to 4 functions\n"
                yield Running(process, address, kvm)
            finally:
                process.terminate()

    return start


def enables(text: str, vm: str) -> str:
    return f'vpmu_calls_total{{call="enable",vm="{vm}"}} {text}\n'


def test_it_counts_with_no_privileges_at_all(start: Start, stock: Lookalike) -> None:
    with start() as running:
        status = Path(f"/proc/{running.daemon}/status").read_text()
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert f"{name}:\t{0:016x}\n" in status
        assert "NoNewPrivs:\t1\n" in status
        assert "Uid:\t0\t" not in status
        run(stock, "web01", rounds=50)
        text = running.wait_for(enables("50", "web01"))
        assert 'vpmu_divergences_total{kind="unexpected_call",vm="web01"} 0\n' in text
        # It was swept by then, or is: its entries are deleted with no privileges too.
        running.wait_for('vpmu_agent_map_entries{map="vcpus"} 0.0\n')
        running.process.terminate()
        assert running.process.wait(10) == 0


def test_kvm_is_loaded_anew(start: Start, stock: Lookalike) -> None:
    with start() as running:
        before = descriptors(running.daemon)
        run(stock, "web01", rounds=5)
        running.wait_for(enables("5", "web01"))
        running.kvm.unlink()
        assert read_until(running.process.stderr, b"KVM").startswith(b"KVM was unloaded")
        running.wait_for('vpmu_agent_attached_probes{mode="none"} 0.0\n')
        assert len(descriptors(running.daemon)) < len(before) - 20  # probes, programs and maps
        run(stock, "web02", rounds=5)
        running.kvm.write_text("2")
        read_until(running.process.stderr, b"attached uprobe")
        run(stock, "web03", rounds=7)
        text = running.wait_for(enables("7", "web03"))
        assert "web02" not in text
        assert len(descriptors(running.daemon)) == len(before)


def test_the_loader_does_not_stay(start: Start) -> None:
    with start() as running:
        deadline = time.monotonic() + 10
        while len(children := psutil.Process(running.process.pid).children()) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert [child.pid for child in children] == [running.daemon]


def test_two_small_processes_know_a_thousand_vms(start: Start) -> None:
    with threads(VMS) as tgids, start(tgids=tgids) as running:
        text = running.metrics()
        assert f"vpmu_agent_vms {VMS}.0\n" in text
        assert f'vpmu_agent_map_entries{{map="vcpus"}} {VMS * loader.VCPUS}.0\n' in text
        time.sleep(2.5)  # two sweeps
        assert f"vpmu_agent_vms {VMS}.0\n" in running.metrics()
        parent, daemon = (pss(pid) for pid in (running.process.pid, running.daemon))
        print(f"{VMS} VMs: the parent has {parent >> 10} KiB (PSS), the daemon {daemon >> 10} KiB")
        assert parent < 10 << 20
        assert parent + daemon < MAX_PSS
        assert "libbcc" not in Path(f"/proc/{running.daemon}/maps").read_text()


def run(program: Lookalike, name: str, **plan: int) -> None:
    words = [f"{key}={value}" for key, value in plan.items()]
    subprocess.run([program.path, "run", *words, f"--name=guest={name}"], input=b"\n", check=True)


def descriptors(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/fd").iterdir())


def pss(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


@contextmanager
def threads(count: int) -> Iterator[list[int]]:
    """The numbers of so many threads: /proc shows them as processes, which would take far more memory."""
    over, ready = threading.Event(), threading.Barrier(count + 1)
    found: list[int] = []

    def live() -> None:
        found.append(threading.get_native_id())
        ready.wait()
        over.wait()

    before = threading.stack_size(1 << 16)
    crowd = [threading.Thread(target=live) for _ in range(count)]
    for thread in crowd:
        thread.start()
    threading.stack_size(before)
    ready.wait()
    try:
        yield found
    finally:
        over.set()
        for thread in crowd:
            thread.join()
