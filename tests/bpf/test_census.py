"""The census on this kernel, of real VMs that never run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bpf.conftest import ROOT, Lookalike, Start
from tests.support.commands import read_until
from vpmu_agent.counts.guests import Guests, guests_now
from vpmu_agent.counts.pmus import KvmPmu, kvm_pmu, pmus
from vpmu_agent.kernel.kvm import vpmu_enabled
from vpmu_agent.probes import Probes
from vpmu_agent.probes.census import Look, Vcpu
from vpmu_agent.vms.modes import Mode, Pmu, Why
from vpmu_agent.vms.names import Vms

pytestmark = pytest.mark.skipif(not Path("/dev/kvm").exists(), reason="there is no /dev/kvm here")


@pytest.fixture(scope="module")
def probes(stock: Lookalike) -> Iterator[Probes]:
    with stock.probes(census=True) as probes:
        assert probes.census.missing == ""
        yield probes


@contextmanager
def running(*vms: str, name: str = "") -> Iterator[int]:
    """The process that has these VMs; see tests.bpf.kvm."""
    arguments = [sys.executable, "-m", "tests.bpf.kvm", *vms]
    if name:  # a VMM by its name and its argument
        arguments = [
            "qemu-system-x86_64",
            "-c",
            f"{PRELUDE}main(*sys.argv[3:])",
            "-name",
            f"guest={name}",
            *vms,
        ]
    with subprocess.Popen(
        arguments, executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        read_until(process.stdout, b"made")
        yield process.pid


@contextmanager
def reset_on_demand(*vms: str) -> Iterator[tuple[int, Callable[[], None]]]:
    """The process that has these VMs, and what resets the last of them."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.bpf.kvm", *vms],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        read_until(process.stdout, b"made")

        def reset() -> None:
            assert process.stdin
            process.stdin.write(b"reset\n")
            process.stdin.flush()
            read_until(process.stdout, b"reset")

        yield process.pid, reset


NOBODY = 65534
PRELUDE = "import sys; sys.path.insert(0, '.'); from tests.bpf.kvm import main; "


def of(tgid: int, look: Look) -> list[Vcpu]:
    return [vcpu for vcpu in look.vcpus if vcpu.tgid == tgid]


def test_every_vcpu_is_found_with_its_vms_irqchip(probes: Probes) -> None:
    with running("3", "2i") as tgid:
        found = of(tgid, probes.census.pull())
        by_vm = {vcpu.vm: [each for each in found if each.vm == vcpu.vm] for vcpu in found}
        # The last vCPU of a VM has two files.
        assert [[vcpu.vcpu_id for vcpu in vcpus] for vcpus in by_vm.values()] == [[0, 1, 2], [0, 1]]
        assert [{vcpu.has_irqchip for vcpu in vcpus} for vcpus in by_vm.values()] == [{False}, {True}]
        assert not any(vcpu.has_cpuid or vcpu.mediated for vcpu in found)
        # This machine's KVM has no PMU to give; where it has one, so has the VM.
        assert {vcpu.vm_pmu for vcpu in found} == {vpmu_enabled()}
    assert of(tgid, probes.census.pull()) == []


def test_a_process_that_only_holds_the_file_has_no_vm(probes: Probes) -> None:
    with running("1") as tgid:
        child = int(Path(f"/proc/{tgid}/task/{tgid}/children").read_text().split()[0])
        assert any("kvm-vcpu" in str(fd.readlink()) for fd in Path(f"/proc/{child}/fd").iterdir())
        found = probes.census.pull()
        assert of(tgid, found)
        assert not of(child, found)


def test_a_vm_that_is_reset_can_be_told(probes: Probes) -> None:
    with running("2i") as vm, reset_on_demand("2i", "2i") as (other, reset):
        before = probes.census.pull()
        reset()
        after = probes.census.pull()
    assert of(vm, before) == of(vm, after)
    first, last = (by_vm(of(other, look)) for look in (before, after))
    assert all(first.values())  # KVM sets it for a vCPU that it makes
    kept, again = first
    assert last[kept] == first[kept]
    assert last[again] > first[again]
    # As KVM makes all vCPUs but the first.
    assert [vcpu.awaits_init for vcpu in of(other, after)] == [False, True, False, True]


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="there is no QEMU here")
def test_what_tells_qemus_reset_from_a_vm_that_goes_on(probes: Probes) -> None:
    """As it does after a restore, too."""

    def look(after: str) -> Vcpu:
        assert process.stdin
        for line in (after, "info status"):
            process.stdin.write(f"{line}\n".encode())
            process.stdin.flush()
        read_until(process.stdout, b"VM status")
        (vcpu,) = of(process.pid, probes.census.pull())
        return vcpu

    command = ["qemu-system-x86_64", "-accel", "kvm", "-m", "16", "-nodefaults", "-display", "none"]
    with subprocess.Popen(
        [*command, "-monitor", "stdio"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            first, reset, stopped, goes_on = map(look, ("info version", "system_reset", "stop", "cont"))
        finally:
            process.kill()
    times = [vcpu.tsc_set_ns or 0 for vcpu in (first, reset, stopped, goes_on)]
    assert 0 < times[0] < times[1] == times[2] == times[3]
    offsets = [vcpu.kvmclock_offset for vcpu in (first, reset, stopped, goes_on)]
    assert offsets[0] == offsets[1] == offsets[2] != offsets[3]


def by_vm(vcpus: list[Vcpu]) -> dict[int, int]:
    """When the TSC of each VM was last set."""
    return {vcpu.vm: vcpu.tsc_set_ns or 0 for vcpu in vcpus}


def test_many_vcpus_come_whole(probes: Probes) -> None:
    """They take several reads."""
    with running(*["8"] * 100, *["8i"] * 150) as tgid:
        found = of(tgid, probes.census.pull())
    assert len({vcpu.vm for vcpu in found}) == 250
    assert len(found) == 250 * 8
    assert sum(vcpu.has_irqchip for vcpu in found) == 150 * 8


def test_their_words(probes: Probes) -> None:
    with running("1", "1i") as tgid:
        found = of(tgid, probes.census.pull())
        enabled = kvm_pmu().enabled
        # Their CPUID was never set, so what is on is not known yet.
        assert pmus(found, kvm_pmu()).get(tgid, []) == ([] if enabled else [Pmu(Mode.OFF, Why.HOST)])
        if not enabled:
            mediated = pmus(found, KvmPmu(enabled=True, mediated=True))
            assert mediated[tgid] == [Pmu(Mode.OFF, Why.NO_IRQCHIP), Pmu(Mode.OFF, Why.TURNED_OFF)]


def test_the_census_alone_finds_the_same() -> None:
    with running("2i", name="web01"):
        assert guests_now(Vms()).pmus["web01"] == ([] if kvm_pmu().enabled else [Pmu(Mode.OFF, Why.HOST)])


def test_list_on_this_kernel() -> None:
    """With KVM's own vPMU or without; that counters are seen takes guests that run, which the lab has."""
    with running("2i", "1", name="listed") as tgid:
        child = int(Path(f"/proc/{tgid}/task/{tgid}/children").read_text().split()[0])
        done = listed("--output", "json")
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        vms = {line["tgid"]: line for line in lines if line["kind"] == "vm"}
        if kvm_pmu().enabled:
            assert tgid not in vms  # their CPUID was never set: what PMU they get is not known yet
        else:
            assert vms[tgid]["vm"].startswith("listed")
            assert vms[tgid]["pmus"] == [{"mode": "off", "reason": "host"}]
            assert vms[tgid]["vcpus"] == 3
            text = " ".join(listed("--vm", vms[tgid]["vm"]).stdout.split())
            assert f"{vms[tgid]['vm']} 3 vCPUs, off: KVM's parameter enable_pmu is N" in text
        assert child not in vms
        assert lines[-1]["vms"] == len(vms)
        assert lines[-1]["holders_unknown"] is None
        assert done.returncode == any(line.get("failing") for line in lines)
    assert listed("--vm", "listed").returncode == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_list_without_privileges_says_what_it_lacks() -> None:
    done = listed(user="nobody")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert "root" in done.stderr


def listed(*arguments: str, user: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vpmu_agent", "list", *arguments],
        capture_output=True,
        text=True,
        check=False,
        user=user,
        cwd=ROOT,
    )


def test_a_walk_finds_what_these_processes_have_without_privileges(probes: Probes) -> None:
    if not probes.census.can_walk:
        pytest.skip("this kernel's iterator cannot be narrowed to a process (Linux 6.1)")
    with running("3", "2i") as tgid, running("1") as other:
        pulled = probes.census.pull()
        os.seteuid(NOBODY)  # which takes the effective capabilities, too
        try:
            walked = probes.census.walk([tgid])
        finally:
            os.seteuid(0)
        assert walked is not None
        assert of(tgid, walked) == of(tgid, pulled)
        assert len(of(tgid, walked)) == 5
        assert of(other, walked) == []
        assert of(other, pulled) != []
    gone = probes.census.walk([tgid, other])
    assert gone is not None
    assert gone.vcpus == []
    assert probes.census.can_walk


def test_a_sweep_tells_of_a_vm_once(probes: Probes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vpmu_agent.counts.guests.PULL_S", 0)
    monkeypatch.setattr("vpmu_agent.counts.guests.CPU_SHARE", 1e9)
    guests = Guests(Vms(), lambda: KvmPmu(enabled=False, mediated=False))
    guests.sweep(probes.census)
    with running("1", name="db01"):
        assert ("db01", Pmu(Mode.OFF, Why.HOST)) in guests.sweep(probes.census)
        assert guests.sweep(probes.census) == []
        assert guests.found.pmus["db01"] == [Pmu(Mode.OFF, Why.HOST)]
    guests.sweep(probes.census)
    assert "db01" not in guests.found.pmus


def test_a_pull_of_many_files_is_cheap(probes: Probes) -> None:
    """0.2 µs each were measured; nothing here may make that ten times more."""

    def cheapest_s() -> float:
        """Of several: other processes have files of their own, and their caches."""
        costs = []
        for _ in range(20):
            before = time.thread_time()
            probes.census.pull()
            costs.append(time.thread_time() - before)
        return min(costs)

    without = cheapest_s()
    files = [os.open(os.devnull, os.O_RDONLY)]
    try:
        files += [os.dup(files[0]) for _ in range(900)]
        assert cheapest_s() - without < len(files) * 2e-6
    finally:
        for file in files:
            os.close(file)


@pytest.mark.skipif(vpmu_enabled() is not False, reason="KVM has a PMU here, and these VMs no CPUID")
def test_the_daemon_without_privileges_tells_of_vms_that_made_no_call(start: Start) -> None:
    with start(census=True) as daemon, running("2i", name="web01"):
        text = daemon.wait_for('vpmu_mode{mode="off",vm="web01"} 1')
        assert "\nvpmu_agent_census_up 1.0\n" in text
        assert 'vpmu_host_pmu_events{owner_comm="all other processes",pinned="true"} ' in text
        assert "\nvpmu_agent_census_pulls_total " in text
        assert "vpmu_pmcs{" not in text  # of VMs without a PMU
        said = read_until(daemon.process.stderr, b"web01").decode()
        assert said == (
            "web01 has no vPMU: KVM's parameter enable_pmu is N on this host, so there is nothing to trace\n"
        )
