"""The daemon over real maps: small, without privileges, and through a reload of KVM."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from tests.bpf.conftest import Lookalike, Start
from tests.support.commands import read_until

VMS, VCPUS, PMCS = 1000, 4, 4
MAX_PSS = 40 << 20  # of daemon and parent together


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


def test_without_durations_all_else_is_counted(start: Start, stock: Lookalike) -> None:
    with start("--no-durations") as running:
        run(stock, "web01", rounds=50)
        text = running.wait_for(enables("50", "web01"))
        for call in ("create", "enable", "pause", "release"):
            (calls,) = re.findall(f'^vpmu_calls_total{{call="{call}",vm="web01"}} (.+)', text, re.MULTILINE)
            assert f'vpmu_predicted_calls_total{{call="{call}",vm="web01"}} {calls}\n' in text
        assert "vpmu_agent_durations_enabled 0.0\n" in text
        assert "vpmu_call_duration_seconds" not in text
        assert "vpmu_host_seconds" not in text


def test_a_vm_that_has_too_many_counters_is_named_once(start: Start, stock: Lookalike) -> None:
    # One process may have a quarter of the entries.
    with start(options={"max_entries": {"pmcs": 64}}) as running:
        run(stock, "greedy", pmcs=20, rounds=2)
        said = read_until(running.process.stderr, b"greedy: calls are refused (40 so far)").decode()
        assert "has more counters than it may have" in said
        text = running.wait_for('vpmu_refused_calls_total{vm="greedy"} 40\n')
        assert enables("32", "greedy") in text
        run(stock, "modest", pmcs=10, rounds=2)
        text = running.wait_for(enables("20", "modest"))
        assert 'vpmu_refused_calls_total{vm="modest"} 0\n' in text
        assert 'vpmu_agent_lost_records_total{reason="over_share"} 40.0\n' in text


def test_kvm_is_loaded_anew(start: Start, stock: Lookalike) -> None:
    with start() as running:
        before = fewest_descriptors(running.daemon)
        run(stock, "web01", rounds=5)
        running.wait_for(enables("5", "web01"))
        running.kvm.unlink()
        assert read_until(running.process.stderr, b"KVM").startswith(b"KVM was unloaded")
        running.wait_for('vpmu_agent_attached_probes{mode="none"} 0.0\n')
        assert fewest_descriptors(running.daemon) < before - 20  # probes, programs and maps
        run(stock, "web02", rounds=5)
        running.kvm.write_text("2")
        read_until(running.process.stderr, b"attached uprobe")
        run(stock, "web03", rounds=7)
        text = running.wait_for(enables("7", "web03"))
        assert "web02" not in text
        deadline = time.monotonic() + 10
        while fewest_descriptors(running.daemon) > before:  # the last scrape's connection may be open yet
            assert time.monotonic() < deadline
        assert fewest_descriptors(running.daemon) == before


def test_the_loader_does_not_stay(start: Start) -> None:
    with start() as running:
        deadline = time.monotonic() + 10
        while len(children := psutil.Process(running.process.pid).children()) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert [child.pid for child in children] == [running.daemon]


def test_two_small_processes_know_a_thousand_vms(start: Start, stock: Lookalike) -> None:
    with start() as running, vms(stock, VMS):
        running.wait_for(f'vpmu_agent_map_entries{{map="pmcs"}} {VMS * VCPUS * PMCS}.0\n')
        time.sleep(2.5)  # two sweeps
        assert f"vpmu_agent_vms {VMS}.0\n" in running.metrics()
        parent, daemon = (pss(pid) for pid in (running.process.pid, running.daemon))
        print(f"{VMS} VMs: the parent has {parent >> 10} KiB (PSS), the daemon {daemon >> 10} KiB")
        assert parent < 10 << 20
        assert parent + daemon < MAX_PSS
        assert "libbcc" not in Path(f"/proc/{running.daemon}/maps").read_text()


def run(program: Lookalike, name: str, **plan: int) -> None:
    words = [f"{key}={value}" for key, value in plan.items()]
    subprocess.run([program.path, "run", *words, "-name", f"guest={name}"], input=b"\n", check=True)


def descriptors(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/fd").iterdir())


def fewest_descriptors(pid: int) -> int:
    """How many it has, but for those of its own requests, one of which it makes a second."""
    fewest = len(descriptors(pid))
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        time.sleep(0.02)
        fewest = min(fewest, len(descriptors(pid)))
    return fewest


def pss(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


@contextmanager
def vms(program: Lookalike, count: int) -> Iterator[None]:
    """So many VMs that have made their calls, or are about to, and stay."""
    words = [f"threads={VCPUS}", f"pmcs={PMCS}", "rounds=1", "hold=1"]
    with Path("/dev/zero").open() as go, ExitStack() as stack:
        for number in range(count):
            process = subprocess.Popen(
                [program.path, "run", *words, "-name", f"guest=vm{number:04}"],
                stdin=go,
                stdout=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield
