"""The doctor on hosts that are well, on hosts that are not, and on this one."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from wsgiref.types import StartResponse, WSGIEnvironment

import click
import pytest

from tests.support.compiled import object_file
from tests.support.kernel_types import (
    FLEXIBLE_ARRAY,
    GROUPED_ARGUMENTS,
    GROUPED_FIELDS,
    SIZED_ARRAY,
    source,
)
from tests.support.looks import WEB, host_event, look, pmc, starved, vcpu
from tests.support.places import ROOT
from tests.support.states import Daemon, answering, state
from tests.support.states import vm as a_vm
from tests.support.tree import plant
from vpmu_agent.cli.doctor.examination import CHECKS, examine, run
from vpmu_agent.cli.doctor.finding import Finding, Status, exit_status
from vpmu_agent.cli.doctor.host import Host
from vpmu_agent.cli.doctor.report import WIDTH, finding_json, finding_text, summary_json, summary_text
from vpmu_agent.counts.counters import Counters, holders
from vpmu_agent.counts.guests import Found
from vpmu_agent.kernel.errors import BtfError
from vpmu_agent.kernel.trials import Trial
from vpmu_agent.loader.program import BCC_TODO
from vpmu_agent.loader.rehearsal import Outcome, Step
from vpmu_agent.probes.census import EXCLUDE_GUEST, HostEvent, Pmc, Vcpu
from vpmu_agent.system.stdout import Style
from vpmu_agent.vms.modes import Mode, Pmu, Why

PLAIN = Style(io.StringIO())
ALL_CAPABILITIES = "CapEff:\t000001ffffffffff\n"
NO_CAPABILITIES = "CapEff:\t0000000000000000\n"
PARAMETERS = "sys/module/kvm/parameters"
KPTR = "proc/sys/kernel/kptr_restrict"
MOUNTS = "proc/self/mountinfo"
LOCKDOWN = "sys/kernel/security/lockdown"
HANDLER = "ffffffffc08b1d50 t kvm_perf_overflow\t[kvm]\n"
PERF_READ = "ffffffff812a0010 t perf_read\n"
KALLSYMS = HANDLER + PERF_READ

WELL: dict[str, str | None] = {
    "proc/sys/kernel/osrelease": "6.1.0-9-amd64\n",
    "proc/sys/kernel/nmi_watchdog": "0\n",
    KPTR: "1\n",
    "proc/self/status": ALL_CAPABILITIES,
    "proc/kallsyms": KALLSYMS,
    MOUNTS: "23 29 0:21 / /proc rw,nosuid shared:13 - proc proc rw\n",
    LOCKDOWN: "[none] integrity confidentiality\n",
    "sys/bus/event_source/devices/cpu/": "",
    "sys/module/kvm/initstate": "live\n",
    f"{PARAMETERS}/enable_pmu": "Y\n",
    "sys/module/kvm_amd/": "",
}


def works(_functions: Sequence[str] = ()) -> Trial:
    return Trial(True)


def refused(
    reason: str = "the kernel refuses", *, denied: bool = False, hidden: bool = False
) -> Callable[..., Trial]:
    return lambda _functions=(): Trial(False, reason, denied=denied, hidden=hidden)


BCC = Step("bcc", Outcome.WORKS, "bcc 0.26.0 and LLVM 14")
FEXIT, KPROBE = (Step(way, Outcome.WORKS, "attached and taken off") for way in ("fexit", "kprobe"))


def rehearsed(*steps: Step) -> Callable[[], Sequence[Step]]:
    return lambda: steps


def enter(root: Path, **namespaces: int) -> None:
    """Puts the process into these namespaces, by kind."""
    folder = root / "proc/self/ns"
    folder.mkdir(parents=True, exist_ok=True)
    for kind, inode in namespaces.items():
        (folder / kind).unlink(missing_ok=True)
        (folder / kind).symlink_to(f"{kind}:[{inode}]")


@pytest.fixture(scope="module")
def types(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return object_file(source(), tmp_path_factory.mktemp("types"))


@pytest.fixture
def well(tmp_path: Path, types: Path) -> Host:
    """A host where everything is as it should be."""
    plant(tmp_path, {**WELL, "sys/kernel/btf/": ""})
    shutil.copy(types, tmp_path / "sys/kernel/btf/vmlinux")
    enter(tmp_path, pid=4026531836, user=4026531837)
    return Host(
        root=tmp_path,
        try_bpf=works,
        try_fexit=works,
        try_kprobe=works,
        try_map_access=works,
        rehearse=rehearsed(BCC, FEXIT, KPROBE),
        guests=lambda: Found(pmus={"web01": [Pmu(Mode.EMULATED)]}),
    )


def by_check(host: Host) -> dict[str, Finding]:
    return {finding.check: finding for finding in examine(host)}


def test_a_host_that_is_well(well: Host) -> None:
    findings = list(examine(well))
    assert [finding for finding in findings if finding.status is not Status.OK] == []
    assert not any(finding.todo for finding in findings)
    assert exit_status(findings) == 0
    assert summary_json(findings)["can_trace"] is True
    assert "Live tracing can work here." in summary_text(findings, PLAIN)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "environment", "is_coloured"),
    [
        (Terminal, {}, True),
        (Terminal, {"NO_COLOR": "1"}, False),
        (Terminal, {"NO_COLOR": ""}, True),
        (Terminal, {"TERM": "dumb"}, False),
        (io.StringIO, {}, False),
    ],
)
def test_colours_are_for_terminals_that_want_them(
    well: Host,
    stream: type[io.StringIO],
    environment: dict[str, str],
    is_coloured: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with redirect_stdout(stream()) as output:
        assert run(well, as_json=False) == 0
    assert ("\x1b[32mok" in output.getvalue()) == is_coloured
    assert click.unstyle(output.getvalue()).startswith("kernel         ok    6.1.0-9-amd64, ")


@pytest.mark.parametrize(
    ("change", "check", "status", "code", "says"),
    [
        ({"proc/self/status": NO_CAPABILITIES}, "capabilities", "fail", 3, "lacks CAP_BPF, CAP_PERFMON"),
        ({"proc/self/status": "CapEff:\t0000000000200000\n"}, "capabilities", "fail", 3, "lacks CAP_SYSLOG"),
        ({"proc/self/status": "CapEff:\t000000c400000000\n"}, "capabilities", "ok", 0, "CAP_BPF"),
        ({LOCKDOWN: "none integrity [confidentiality]"}, "lockdown", "fail", 3, "confidentiality"),
        ({LOCKDOWN: "none [integrity] confidentiality"}, "lockdown", "ok", 0, "integrity"),
        ({LOCKDOWN: None}, "lockdown", "warn", 0, "cannot be checked"),
        (
            {LOCKDOWN: None, "proc/config.gz": "# CONFIG_SECURITY_LOCKDOWN_LSM is not set\n"},
            "lockdown",
            "ok",
            0,
            "has none",
        ),
        ({KPTR: "2\n"}, "kptr_restrict", "fail", 1, "2: the kernel hides"),
        ({KPTR: None}, "kptr_restrict", "warn", 0, "cannot be read"),
        ({"proc/kallsyms": HANDLER.replace("ffffffffc08b1d50", "0" * 16)}, "handlers", "fail", 3, "hidden"),
        (
            {"proc/kallsyms": "ffffffff81000000 T _text\n"},
            "handlers",
            "fail",
            3,
            "no function kvm_perf_overflow",
        ),
        ({"proc/kallsyms": ""}, "handlers", "fail", 3, "is empty: it is masked"),
        ({"proc/kallsyms": None}, "handlers", "fail", 3, "cannot read"),
        ({"sys/kernel/btf/vmlinux": None}, "btf", "fail", 3, "vmlinux is masked: the kernel has it"),
        (
            {"sys/kernel/btf/vmlinux": None, "proc/config.gz": "CONFIG_DEBUG_INFO_BTF=y\n"},
            "btf",
            "fail",
            3,
            "so it is hidden from this process",
        ),
        (
            {"sys/kernel/btf/vmlinux": None, "proc/config.gz": "# CONFIG_DEBUG_INFO_BTF is not set\n"},
            "btf",
            "fail",
            3,
            "vmlinux is missing: the kernel was built without CONFIG_DEBUG_INFO_BTF=y",
        ),
        (
            {MOUNTS: "23 29 0:21 / /proc rw - proc proc rw,hidepid=2\n"},
            "hidepid",
            "warn",
            0,
            "2: /proc hides",
        ),
        (
            {MOUNTS: "23 29 0:21 / /proc rw - proc proc rw,hidepid=invisible,gid=4\n"},
            "hidepid",
            "warn",
            0,
            "invisible: /proc hides",
        ),
        ({MOUNTS: "23 29 0:21 / /proc rw - proc proc rw,hidepid=off\n"}, "hidepid", "ok", 0, "off"),
        (
            # What is mounted over another shows, and only at /proc itself.
            {
                MOUNTS: "23 29 0:21 / /proc rw - proc proc rw,hidepid=2\n"
                "24 29 0:22 / /proc rw - proc proc rw\n25 29 0:23 / /proc/x rw - proc proc rw,hidepid=2\n"
            },
            "hidepid",
            "ok",
            0,
            "off",
        ),
        ({MOUNTS: None}, "hidepid", "warn", 0, "cannot be checked"),
        ({"sys/kernel/btf/vmlinux": "rubbish"}, "btf", "fail", 3, "cannot read BTF"),
        ({f"{PARAMETERS}/enable_pmu": "N\n"}, "vpmu", "fail", 3, "nothing to trace"),
        ({f"{PARAMETERS}/enable_pmu": None}, "vpmu", "warn", 0, "cannot be checked"),
        (
            {"sys/module/kvm_amd/parameters/enable_mediated_pmu": "N\n"},
            "mediated_vpmu",
            "ok",
            0,
            "off",
        ),
        (
            {"sys/module/kvm_amd/parameters/enable_mediated_pmu": "Y\n"},
            "mediated_vpmu",
            "warn",
            0,
            "on in kvm_amd",
        ),
        ({"proc/sys/kernel/nmi_watchdog": "1\n"}, "nmi_watchdog", "warn", 0, "one hardware counter"),
        ({"proc/sys/kernel/nmi_watchdog": None}, "nmi_watchdog", "ok", 0, "none"),
        ({"proc/sys/kernel/osrelease": None}, "kernel", "warn", 0, "cannot be read"),
    ],
)
def test_one_thing_is_different(
    well: Host, change: dict[str, str | None], check: str, status: str, code: int, says: str
) -> None:
    plant(well.root, change)
    findings = by_check(well)
    assert findings[check].status == status
    assert says in findings[check].found
    assert (status == "ok") or findings[check].todo or check == "vpmu"
    assert exit_status(findings.values()) == code


UNUSED = "http://127.0.0.1:9"  # the discard service, which nothing runs
AMD_HAS_IT = {"sys/module/kvm_amd/parameters/enable_mediated_pmu": "N\n"}


def mediated_vpmu(well: Host, url: str = UNUSED) -> Finding:
    plant(well.root, AMD_HAS_IT)
    return by_check(replace(well, daemon_url=url))["mediated_vpmu"]


def test_without_a_daemon_the_tax_is_unknown(well: Host) -> None:
    finding = mediated_vpmu(well)
    assert finding.status is Status.OK
    assert "unknown" in finding.found
    assert f"{UNUSED} cannot be reached: Connection refused" in finding.found


def test_a_kernel_without_a_mediated_vpmu_is_asked_for_no_tax(well: Host) -> None:
    assert by_check(replace(well, daemon_url=UNUSED))["mediated_vpmu"].found == "this kernel has none"


class Taxed(Daemon):
    """VMs that cost the host so many milliseconds each second."""

    def __init__(self, **spent: int | None) -> None:
        super().__init__(state())
        self.steps = False
        self._spent = spent
        self._passed = 0

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self._passed += 1
        vms = [
            a_vm(name, host_ns=None if ms is None else ms * 10**6 * self._passed)
            for name, ms in self._spent.items()
        ]
        self.state = state(*vms, time_ns=self._passed * 10**9)
        return super().__call__(environ, start_response)


def test_a_high_tax_names_the_vms_and_what_switching_would_change(well: Host) -> None:
    with answering(Taxed(web01=120, db01=480, idle01=0, c=200, d=300)) as url:
        finding = mediated_vpmu(well, url)
    assert finding.status is Status.WARN
    assert "db01 48.0 % of a CPU, d 30.0 % of a CPU, c 20.0 % of a CPU, 1 more" in finding.found
    for word in ("no counter is starved", "leaving a guest", "profile guests", "all VMs of", "bf2c3138ae36"):
        assert word in finding.found
    assert "load kvm_amd with enable_mediated_pmu=1" in finding.todo
    assert "docs/mediated.md" in finding.todo
    assert (ROOT / "docs/mediated.md").exists()


@pytest.mark.parametrize(
    ("spent", "says"),
    [
        ({"web01": 99}, "off; the VM with the highest tax, web01 9.9 % of a CPU, would gain little by it"),
        ({"web01": None}, "off; what it would spare the host is unknown: the daemon has not measured it"),
        ({}, "off; and KVM makes no calls for any VM"),
    ],
)
def test_a_low_tax_or_none_known(well: Host, spent: dict[str, int | None], says: str) -> None:
    with answering(Taxed(**spent)) as url:
        finding = mediated_vpmu(well, url)
    assert finding.status is Status.OK
    assert finding.found.startswith(says)


def test_an_answer_that_is_no_state_is_no_tax(well: Host) -> None:
    other = Daemon(state())
    other.body = b"[]"
    with answering(other) as url:
        assert "unknown" in mediated_vpmu(well, url).found


def test_vms_of_which_there_is_nothing_to_trace(well: Host) -> None:
    """Each kind once, however many VMs: with what it has, and what to do."""
    has = {
        "db02": [Pmu(Mode.MEDIATED)],
        "db01": [Pmu(Mode.MEDIATED)],
        "old": [Pmu(Mode.OFF, Why.NO_IRQCHIP)],
        "web01": [Pmu(Mode.EMULATED)],
    }
    findings = [
        finding
        for finding in examine(replace(well, guests=lambda: Found(pmus=has)))
        if finding.check == "vms"
    ]
    assert [(finding.status, finding.found.split(":")[0]) for finding in findings] == [
        ("ok", "web01 has an emulated vPMU"),
        ("warn", "db01 and db02 have a mediated vPMU"),
        ("warn", "old has lost the vPMU"),
    ]
    assert findings[1].todo == "see mediated_vpmu"
    assert "kernel_irqchip=on" in findings[2].todo
    assert by_check(replace(well, guests=Found))["vms"].found == "no VM is running"


@pytest.mark.parametrize("why", Why)
def test_a_vm_without_a_pmu_is_told_why(well: Host, why: Why) -> None:
    finding = by_check(replace(well, guests=lambda: Found(pmus={"web01": [Pmu(Mode.OFF, why)]})))["vms"]
    assert finding.status is Status.WARN
    assert finding.todo


def test_a_census_that_is_refused_keeps_nobody_from_tracing(well: Host) -> None:
    def refused() -> Found:
        raise BtfError("no field enable_pmu in struct kvm_arch", "report it")

    findings = by_check(replace(well, guests=refused))
    assert findings["vms"].status is Status.WARN
    assert findings["vms"].found.endswith(": no field enable_pmu in struct kvm_arch")
    assert findings["vms"].todo == "report it"
    assert (findings["host_pmu"].status, findings["host_pmu"].todo) == (Status.WARN, "see vms")
    assert exit_status(findings.values()) == 0


def test_vms_cannot_be_seen_without_privileges(well: Host) -> None:
    plant(well.root, {"proc/self/status": NO_CAPABILITIES})
    for check in ("vms", "host_pmu"):
        assert by_check(well)[check].found == "cannot be tried without privileges"


def found_of(*records: Vcpu | Pmc | HostEvent, vms: Mapping[str, Pmu] | None = None) -> Found:
    """What a census finds that sees these records twice; the VM's process is named web01."""
    counters = Counters()
    for _ in range(2):
        taken = counters.take(look(*records))
    named = {"web01": taken[WEB]} if WEB in taken else {}
    emulated = {"web01": Pmu(Mode.EMULATED)} if vms is None else vms
    return Found(
        pmus={vm: [pmu] for vm, pmu in emulated.items()},
        counters=named,
        holders=holders([each for each in records if isinstance(each, HostEvent)]),
    )


def findings_of(host: Host, check: str, found: Found) -> list[Finding]:
    return [finding for finding in examine(replace(host, guests=lambda: found)) if finding.check == check]


def test_one_census_is_enough_for_all_that_it_says(well: Host) -> None:
    pulled: list[Found] = []

    def guests() -> Found:
        pulled.append(found_of(vcpu(), host_event()))
        return pulled[-1]

    findings = by_check(replace(well, guests=guests))
    assert {"vms", "host_pmu"} <= findings.keys()
    assert len(pulled) == 1


def test_nobody_uses_the_hosts_pmu(well: Host) -> None:
    (finding,) = findings_of(well, "host_pmu", Found())
    assert (finding.status, finding.found, finding.todo) == (
        Status.OK,
        "no process of the host has events on it",
        "",
    )


def test_who_uses_the_hosts_pmu(well: Host) -> None:
    plant(well.root, {"proc/sys/kernel/nmi_watchdog": "1\n"})
    found = found_of(
        vcpu(pmu_version=1),
        pmc(0),
        pmc(1),
        host_event(1, cpu=0, oncpu=0),
        host_event(2, cpu=3),
        host_event(3, cpu=3, state=-2),
        host_event(4, tgid=5, comm="perf", cpu=-1, oncpu=-1, attr_flags=0),
    )
    (finding,) = findings_of(well, "host_pmu", found)
    assert finding.status is Status.WARN
    assert finding.found == (
        "otel-profiler (pid 99) has 3 events, pinned, on CPU 0, 3 (1 found no room); "
        "perf (pid 5) has 1 event; VMs have 2 events; the NMI watchdog has 1 event on each CPU, pinned"
    )
    assert "not pinned" in finding.todo


@pytest.mark.parametrize(
    ("records", "vms"),
    [
        # Events that are not pinned wait for those of KVM, which are.
        ([host_event(attr_flags=0)], {"web01": Pmu(Mode.EMULATED)}),
        ([host_event(state=-2)], {"web01": Pmu(Mode.EMULATED)}),
        # There is nobody to take counters from.
        ([host_event()], {}),
        ([host_event()], {"web01": Pmu(Mode.OFF, Why.HOST)}),
    ],
)
def test_holders_that_take_nothing_from_vms(
    well: Host, records: list[HostEvent], vms: dict[str, Pmu]
) -> None:
    (finding,) = findings_of(well, "host_pmu", found_of(*records, vms=vms))
    assert finding.status is Status.OK
    assert "otel-profiler (pid 99) has 1 event" in finding.found


def test_few_of_many_holders_and_cpus_are_named(well: Host) -> None:
    records = [host_event(number, tgid=number, cpu=number, oncpu=-1) for number in range(1, 21)]
    records += [host_event(100 + cpu, tgid=1, cpu=cpu, oncpu=cpu) for cpu in range(64)]
    (finding,) = findings_of(well, "host_pmu", found_of(*records))
    first, *_, last = finding.found.split("; ")
    assert first == "otel-profiler (pid 1) has 65 events, pinned, on CPU 0, 1, 2, 3, 4, 59 more"
    assert finding.found.count("otel-profiler") == 5
    assert last == "15 more"


def test_starved_counters_are_told_with_their_vm(well: Host) -> None:
    found = found_of(vcpu(pmu_version=1), pmc(0), starved(1), starved(2), host_event())
    vms = findings_of(well, "vms", found)
    assert [finding.status for finding in vms] == ["ok", "warn"]
    assert vms[1].found.startswith("web01: 2 of 3 counters starved; on CPU 3 ")
    assert "otel-profiler (pid 99)" in vms[1].found
    assert vms[1].todo == "see host_pmu"
    assert exit_status(list(examine(replace(well, guests=lambda: found)))) == 0


def test_many_vms_with_starved_counters_are_not_all_named(well: Host) -> None:
    one = found_of(vcpu(pmu_version=1), starved(0))
    vms = [f"vm{number}" for number in range(8)]
    found = Found(
        pmus={vm: [Pmu(Mode.EMULATED)] for vm in vms}, counters=dict.fromkeys(vms, one.counters["web01"])
    )
    told = findings_of(well, "vms", found)[1:]
    assert [finding.found.split(":")[0] for finding in told] == [*vms[:5], "3 more VMs have starved counters"]


MEDIATED = {"web01": Pmu(Mode.MEDIATED)}
MEDIATING = {"sys/module/kvm_amd/parameters/enable_mediated_pmu": "Y\n"}


def test_events_that_a_mediated_vpmu_does_not_go_together_with(well: Host) -> None:
    plant(well.root, MEDIATING)
    excluding = {"tgid": 7, "comm": "careful", "attr_flags": EXCLUDE_GUEST}
    found = found_of(host_event(1), host_event(2, **excluding), vms={})
    holds, refuses = findings_of(well, "host_pmu", found)
    assert holds.status is Status.OK
    assert "careful" in holds.found
    assert refuses.status is Status.WARN
    assert refuses.found.startswith("otel-profiler (pid 99) has 1 event without exclude_guest, so KVM starts")
    assert "EBUSY" in refuses.found
    assert "EOPNOTSUPP" in refuses.found
    assert "careful" not in refuses.found
    assert "H" in refuses.todo


def test_mediated_vms_and_nobody_in_their_way(well: Host) -> None:
    holds, refuses = findings_of(well, "host_pmu", found_of(vms=MEDIATED))
    assert (holds.status, refuses.status) == (Status.OK, Status.OK)
    assert "EOPNOTSUPP" in refuses.found
    # Without such VMs, KVM's parameter alone refuses nobody anything.
    plant(well.root, MEDIATING)
    assert len(findings_of(well, "host_pmu", found_of(vms={}))) == 1
    # Where none can start, it does not matter whom events exclude.
    plant(well.root, dict.fromkeys(MEDIATING))
    assert len(findings_of(well, "host_pmu", found_of(host_event(1)))) == 1


def test_a_kernel_that_does_not_tell_events_of_processes(well: Host) -> None:
    plant(well.root, {"proc/kallsyms": HANDLER})
    (finding,) = findings_of(well, "host_pmu", Found())
    assert finding.status is Status.WARN
    assert "cannot be determined" in finding.found
    assert "perf_read" in finding.found


def test_the_nmi_watchdog_keeps_vms_with_a_mediated_vpmu_from_starting(well: Host) -> None:
    parameter = "sys/module/kvm_amd/parameters/enable_mediated_pmu"
    plant(well.root, {parameter: "Y\n", "proc/sys/kernel/nmi_watchdog": "1\n"})
    mediated = [finding.found for finding in examine(well) if finding.check == "mediated_vpmu"]
    assert len(mediated) == 2
    assert "EBUSY" in mediated[1]


def test_no_kvm(well: Host) -> None:
    """One reason, not one for each thing that comes with the module."""
    shutil.rmtree(well.root / "sys/module/kvm")
    findings = list(examine(well))
    summary = summary_json(findings)
    assert exit_status(findings) == 3
    assert summary["reasons"] == [f"kvm: KVM is not loaded: there is no {well.root}/sys/module/kvm"]
    assert by_check(well)["kvm"].todo == "load it (modprobe kvm_amd or modprobe kvm_intel)"
    assert by_check(well)["types"].status is Status.WARN


def test_kvm_without_its_vendor_module(well: Host) -> None:
    (well.root / "sys/module/kvm_amd").rmdir()
    found = by_check(well)["kvm"]
    assert found.status is Status.WARN
    assert "no guest can run" in found.found
    assert "modprobe kvm_amd" in found.todo


CAPS = "sys/bus/event_source/devices/cpu/caps"
AN_INTEL_HOST = {
    f"{CAPS}/branches": "32\n",
    f"{CAPS}/max_precise": "3\n",
    f"{CAPS}/pmu_name": "skylake\n",
    "sys/module/kvm_intel/parameters/enable_mediated_pmu": "N\n",
}


def test_an_intel_host(well: Host) -> None:
    """What it names is Intel's: the module, the parameter, what the PMU has beside counters."""
    (well.root / "sys/module/kvm_amd").rmdir()
    plant(well.root, AN_INTEL_HOST)
    found = {check: finding.found for check, finding in by_check(replace(well, daemon_url=UNUSED)).items()}
    assert found["kvm"] == "a module, with kvm_intel"
    assert found["pmu"] == "cpu (skylake, records 32 branches, precise up to level 3)"
    plant(well.root, {"sys/module/kvm_intel/parameters/enable_mediated_pmu": "Y\n"})
    assert by_check(well)["mediated_vpmu"].found.startswith("on in kvm_intel: ")
    assert not any("kvm_amd" in finding.found + finding.todo for finding in examine(well))


def test_no_pmu(well: Host) -> None:
    """As in most VMs: KVM turns its vPMU off by itself, and loading it otherwise would not help."""
    (well.root / "sys/bus/event_source/devices/cpu").rmdir()
    plant(well.root, {f"{PARAMETERS}/enable_pmu": "N\n"})
    findings = by_check(well)
    assert findings["pmu"].status is Status.FAIL
    assert findings["vpmu"].todo.startswith("run vpmu-agent on the physical host")
    assert exit_status(findings.values()) == 3
    assert "Live tracing cannot work here" in summary_text(list(findings.values()), PLAIN)


def test_grouped_events(well: Host, tmp_path: Path) -> None:
    text = source(fields=GROUPED_FIELDS, last=SIZED_ARRAY, arguments=GROUPED_ARGUMENTS)
    shutil.copy(object_file(text, tmp_path), well.root / "sys/kernel/btf/vmlinux")
    findings = by_check(well)
    assert findings["types"].found.endswith("6 arguments")
    assert findings["groups"].status is Status.OK
    assert findings["groups"].found == "grouped events, up to 4 per counter"


def test_an_event_array_that_overlaps_the_next_counter(well: Host, tmp_path: Path) -> None:
    text = source(fields=GROUPED_FIELDS, last=FLEXIBLE_ARRAY, arguments=GROUPED_ARGUMENTS)
    shutil.copy(object_file(text, tmp_path), well.root / "sys/kernel/btf/vmlinux")
    findings = by_check(well)
    assert findings["groups"].status is Status.FAIL
    assert "room for 1" in findings["groups"].found
    assert exit_status(findings.values()) == 1


def test_a_kernel_of_another_shape(well: Host, tmp_path: Path) -> None:
    text = source(gone="vcpu_id")
    shutil.copy(object_file(text, tmp_path), well.root / "sys/kernel/btf/vmlinux")
    finding = by_check(well)["types"]
    assert finding.status is Status.FAIL
    assert finding.blocks
    assert "no field vcpu_id in struct kvm_vcpu" in finding.found
    assert "report the kernel release" in finding.todo


@pytest.mark.parametrize(
    ("kprobe", "fexit", "expected", "code"),
    [
        (works, works, ("ok", "ok"), 0),
        (works, refused(), ("ok", "warn"), 0),
        (refused(), works, ("warn", "ok"), 0),
        (refused(), refused(), ("fail", "fail"), 3),
        (refused(denied=True), refused(denied=True), ("fail", "fail"), 3),
    ],
)
def test_one_kind_of_probe_is_enough(
    well: Host,
    kprobe: Callable[..., Trial],
    fexit: Callable[..., Trial],
    expected: tuple[str, str],
    code: int,
) -> None:
    findings = by_check(replace(well, try_kprobe=kprobe, try_fexit=fexit))
    assert (findings["kprobes"].status, findings["fentry"].status) == expected
    assert exit_status(findings.values()) == code


def test_a_refusal_in_spite_of_all_capabilities_says_so(well: Host) -> None:
    no = refused("refused: Operation not permitted", denied=True)
    finding = by_check(replace(well, try_kprobe=no, try_fexit=no))["fentry"]
    assert (
        finding.found == "refused: Operation not permitted, although this process has the capabilities for it"
    )


def test_without_privileges_it_says_what_it_could_not_see(well: Host) -> None:
    """A refusal says nothing of the kernel then; that there is no kprobe device still does."""
    plant(
        well.root, {"proc/self/status": NO_CAPABILITIES, "proc/kallsyms": f"{'0' * 16} t kvm_perf_overflow\n"}
    )
    no = refused(denied=True)
    unread = Step("host", Outcome.REFUSED, "hidden")
    host = replace(
        well,
        try_bpf=no,
        try_kprobe=refused("no kprobe device"),
        try_fexit=no,
        rehearse=rehearsed(BCC, unread),
    )
    findings = by_check(host)
    for check in ("bpf", "fentry"):
        assert findings[check].status is Status.WARN
        assert "cannot be tried" in findings[check].found
        assert "as root" in findings[check].todo
    assert findings["kprobes"].found == "no kprobe device"
    assert findings["handlers"].status is Status.WARN
    assert findings["program"].found == "cannot be tried without privileges"
    reasons = summary_json(list(findings.values()))["reasons"]
    assert reasons == ["capabilities: this process lacks CAP_BPF, CAP_PERFMON, CAP_SYSLOG"]
    assert "--cap-add=CAP_BPF --cap-add=CAP_PERFMON --cap-add=CAP_SYSLOG" in findings["capabilities"].todo
    assert exit_status(findings.values()) == 3


@pytest.mark.parametrize(
    ("trial", "capabilities", "status", "says"),
    [
        (works, ALL_CAPABILITIES, "ok", "keeps none"),
        (refused("no look-up"), ALL_CAPABILITIES, "warn", "no look-up, so the daemon keeps CAP_BPF"),
        (refused("no map", denied=True), ALL_CAPABILITIES, "warn", "no map"),
        (refused("no map", denied=True), NO_CAPABILITIES, "warn", "cannot be tried without privileges"),
    ],
)
def test_what_the_daemon_keeps(
    well: Host, trial: Callable[..., Trial], capabilities: str, status: str, says: str
) -> None:
    plant(well.root, {"proc/self/status": capabilities})
    finding = by_check(replace(well, try_map_access=trial))["privileges"]
    assert finding.status == status
    assert says in finding.found
    assert finding.todo or status == "ok"


def test_fexit_without_btf_leaves_kprobes(well: Host) -> None:
    def no_btf(_functions: Sequence[str]) -> Trial:
        raise BtfError("vmlinux is missing")

    findings = by_check(replace(well, try_fexit=no_btf))
    assert findings["kprobes"].status is Status.OK
    assert (findings["fentry"].status, findings["fentry"].found) == (Status.WARN, "vmlinux is missing")


def test_bpf_is_refused(well: Host) -> None:
    findings = by_check(replace(well, try_bpf=refused("no ring buffer")))
    assert findings["bpf"].found == "no ring buffer"
    assert exit_status(findings.values()) == 3


def test_no_bcc(well: Host) -> None:
    missing = Step("bcc", Outcome.REFUSED, "cannot load bcc", BCC_TODO)
    findings = by_check(replace(well, rehearse=rehearsed(missing)))
    assert findings["bcc"] == Finding("bcc", Status.FAIL, "cannot load bcc", BCC_TODO, blocks=True)
    assert findings["program"].status is Status.WARN
    assert summary_json(list(findings.values()))["reasons"] == ["bcc: cannot load bcc"]
    assert exit_status(findings.values()) == 3


# The real program


REFUSED = [
    Step("fexit", Outcome.REFUSED, "the verifier refuses kretfunc__x: R2 invalid mem access", "report this"),
    Step("kprobe", Outcome.REFUSED, "the verifier refuses vpmu_x: R2 invalid mem access", "report this"),
]
NO_WAY = [Step(way, Outcome.NO_WAY, f"no {way}") for way in ("fexit", "kprobe")]


@pytest.mark.parametrize(
    ("steps", "status", "can_trace", "says", "todo"),
    [
        ([FEXIT, KPROBE], "ok", True, "attached by fexit and by kprobe, and detached", ""),
        ([FEXIT, NO_WAY[1]], "ok", True, "compiled, attached by fexit, and detached", ""),
        (
            [FEXIT, REFUSED[1]],
            "warn",
            True,
            "by fexit, and detached; kprobe: the verifier refuses vpmu_x: R2 invalid mem access",
            "nothing, unless you want --attach kprobe: then report this",
        ),
        (
            REFUSED,
            "fail",
            False,
            "bcc 0.26.0 and LLVM 14: fexit: the verifier refuses kretfunc__x: R2 invalid mem access; kprobe: "
            "the verifier refuses vpmu_x: R2 invalid mem access",
            "report this",
        ),
        (
            [*NO_WAY, Step("verifier", Outcome.REFUSED, "the verifier refuses vpmu_x: R0 !read_ok", "tell")],
            "fail",
            False,
            "bcc 0.26.0 and LLVM 14: the verifier refuses vpmu_x: R0 !read_ok",
            "tell",
        ),
        (
            [*NO_WAY, Step("verifier", Outcome.WORKS, "loaded, but not attached")],
            "fail",
            False,
            "compiled and accepted by the verifier, but this kernel lets no program attach",
            "see kprobes and fentry",
        ),
        (
            [Step("fexit", Outcome.UNKNOWN, "nothing came of it in 300 s")],
            "warn",
            None,
            "fexit: nothing came of it in 300 s",
            "try again",
        ),
        (
            [Step("host", Outcome.REFUSED, "no field x", "report it")],
            "warn",
            None,
            "cannot be tried: no field x",
            "report it",
        ),
    ],
)
def test_the_real_program(
    well: Host, steps: list[Step], status: str, can_trace: bool | None, says: str, todo: str
) -> None:
    """That everything else is well proves nothing."""
    findings = by_check(replace(well, rehearse=rehearsed(BCC, *steps)))
    found = findings["program"]
    assert found.status == status
    assert says in found.found
    assert todo in found.todo if todo else not found.todo
    everything = list(findings.values())
    assert summary_json(everything)["can_trace"] is can_trace
    assert exit_status(everything) == {True: 0, None: 1, False: 3}[can_trace]
    verdict = {
        True: "Live tracing can work here.",
        None: "Whether live tracing can work here is unknown:",
        False: "Live tracing cannot work here:",
    }
    assert verdict[can_trace] in summary_text(everything, PLAIN)
    assert can_trace or found.found[:50] in summary_text(everything, PLAIN)


def test_what_could_not_be_tried_is_not_promised(well: Host) -> None:
    def broken() -> Sequence[Step]:
        raise RuntimeError("boom")

    findings = list(examine(replace(well, rehearse=broken)))
    assert summary_json(findings)["can_trace"] is None
    assert summary_json(findings)["reasons"] == ["program: could not be checked: RuntimeError: boom"]


# In a container


def test_a_pid_namespace_of_its_own(well: Host) -> None:
    enter(well.root, pid=4026532345)
    finding = by_check(well)["pid_namespace"]
    assert (finding.status, finding.blocks) == (Status.FAIL, True)
    assert "--pid=host" in finding.todo
    assert "hostPID: true" in finding.todo


def test_a_user_namespace_of_its_own(well: Host) -> None:
    """As in a rootless container: capabilities look complete there, and the kernel refuses everything."""
    enter(well.root, user=4026532344)
    no = refused("Operation not permitted", denied=True)
    findings = by_check(replace(well, try_bpf=no, try_fexit=no, rehearse=rehearsed(BCC, *REFUSED)))
    assert "user namespace of its own" in findings["capabilities"].found
    assert "rootless" in findings["capabilities"].todo
    assert {findings[name].found for name in ("bpf", "fentry", "program")} == {
        "cannot be tried without privileges"
    }
    reasons = summary_json(list(findings.values()))["reasons"]
    assert reasons == [f"capabilities: {findings['capabilities'].found}"]


def test_no_sysfs(well: Host) -> None:
    """What cannot be seen is not said to be missing from the kernel."""
    shutil.rmtree(well.root / "sys")
    findings = by_check(well)
    for check in ("btf", "kvm"):
        assert findings[check].found.endswith(f"{well.root}/sys is not the kernel's sysfs")
        assert "mount the host's /sys" in findings[check].todo
    assert findings["pmu"].status is Status.WARN
    assert findings["types"].todo == "see kvm"


def test_no_sysfs_and_probes_that_fail(well: Host) -> None:
    def no_btf(_functions: Sequence[str]) -> Trial:
        raise BtfError("vmlinux is missing", "mount it")

    shutil.rmtree(well.root / "sys")
    findings = by_check(replace(well, try_kprobe=refused("no devices", hidden=True), try_fexit=no_btf))
    assert findings["kprobes"].todo == "mount the host's /sys, read-only is enough"
    assert findings["fentry"].todo == "mount it"


def test_no_procfs(well: Host) -> None:
    shutil.rmtree(well.root / "proc")
    findings = by_check(well)
    for check in ("kernel", "capabilities", "pid_namespace", "hidepid", "kptr_restrict", "nmi_watchdog"):
        assert (findings[check].status, findings[check].todo) == (Status.WARN, "mount /proc"), check


def test_a_seccomp_filter(well: Host) -> None:
    def filtered(_functions: Sequence[str] = ()) -> Trial:
        return Trial(
            False, "refused: Operation not permitted, for a seccomp filter refuses bpf(2)", filtered=True
        )

    findings = by_check(replace(well, try_bpf=filtered, try_fexit=filtered, try_kprobe=filtered))
    for check in ("bpf", "fentry", "kprobes"):
        assert findings[check].status is Status.FAIL
        assert findings[check].found.endswith("a seccomp filter refuses bpf(2)")
        assert "seccomp profile" in findings[check].todo


def test_a_check_that_fails_itself_is_a_finding(well: Host) -> None:
    def broken() -> Trial:
        raise RuntimeError("boom")

    findings = by_check(replace(well, try_bpf=broken))
    assert findings["bpf"].found == "could not be checked: RuntimeError: boom"
    assert findings["nmi_watchdog"].status is Status.OK, "the checks after it are made"


def test_an_empty_root_is_no_traceback(tmp_path: Path) -> None:
    host = Host(
        root=tmp_path,
        try_bpf=works,
        try_fexit=works,
        try_kprobe=works,
        try_map_access=works,
        rehearse=rehearsed(BCC, FEXIT, KPROBE),
    )
    findings = list(examine(host))
    assert {finding.check for finding in findings} >= set(CHECKS)
    assert not any("could not be checked" in finding.found for finding in findings)
    assert exit_status(findings) == 3


# Output


def test_text_is_aligned_and_not_wider_than_its_width() -> None:
    long = Finding("kptr_restrict", Status.FAIL, "found " * 40, "do this " * 30)
    lines = finding_text(long, PLAIN).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert lines[0].startswith("kptr_restrict  fail  found")
    assert {line[:21] for line in lines[1:]} == {" " * 21}
    assert [line for line in lines if "-> do this" in line]
    assert "\n" not in finding_text(Finding("bpf", Status.OK, "fine"), PLAIN)


def test_every_check_name_fits_its_column(well: Host) -> None:
    for finding in examine(well):
        assert finding_text(finding, PLAIN).startswith(f"{finding.check:<15}ok    ")


def test_json(well: Host) -> None:
    plant(well.root, {KPTR: "2\n", LOCKDOWN: None})
    findings = list(examine(replace(well, try_bpf=refused("no ring buffer"))))
    lines = [finding_json(finding) for finding in findings]
    assert lines[0] == {
        "schema": 1,
        "kind": "check",
        "check": "kernel",
        "status": "ok",
        "found": f"6.1.0-9-amd64, {os.uname().machine}",
        "todo": "",
    }
    assert summary_json(findings) == {
        "schema": 1,
        "kind": "doctor",
        "ok": len(findings) - 3,
        "warn": 1,
        "fail": 2,
        "can_trace": False,
        "reasons": ["bpf: no ring buffer"],
    }


# This host


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vpmu_agent", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_here_as_json() -> None:
    done = doctor("--output", "json")
    *checks, summary = [json.loads(line) for line in done.stdout.splitlines()]
    statuses = [check["status"] for check in checks]
    assert done.stderr == ""
    assert {check["kind"] for check in checks} == {"check"}
    assert {check["check"] for check in checks} == {*CHECKS, "fentry", "groups", "host_pmu", "bcc"}
    assert {name: summary[name] for name in ("ok", "warn", "fail")} == {
        name: statuses.count(name) for name in ("ok", "warn", "fail")
    }
    assert bool(summary["can_trace"]) == (not summary["reasons"])
    status = {False: 3, None: 1, True: 1 if "fail" in statuses else 0}
    assert done.returncode == status[summary["can_trace"]]
    assert not any("could not be checked" in check["found"] for check in checks)


def test_here_as_text() -> None:
    done = doctor()
    assert done.stderr == ""
    assert "\033" not in done.stdout, "colours go to a terminal only"
    assert max(map(len, done.stdout.splitlines())) <= WIDTH
    assert done.stdout.startswith("kernel         ok    ")


def test_an_output_that_takes_no_more() -> None:
    command = [sys.executable, "-m", "vpmu_agent", "doctor"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr == "Error: cannot write the output: No space left on device\n"
    assert done.returncode == 3


def test_here_without_kprobes_and_fentry_it_says_that_tracing_cannot_work() -> None:
    """The truth of this host's kernel, from its configuration and not from the doctor's own trial."""
    if Path("/sys/bus/event_source/devices/kprobe").exists():
        pytest.skip("this kernel has kprobes")
    done = doctor("--output", "json")
    checks = {check.get("check"): check for check in map(json.loads, done.stdout.splitlines())}
    assert checks["kprobes"]["status"] in ("fail", "warn")
    assert "KPROBE" in checks["kprobes"]["found"]
    if checks["fentry"]["status"] != "ok":
        assert done.returncode == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_here_as_nobody(tmp_path: Path) -> None:
    """In a child that gives up root once all is imported: the tree need not be readable for everybody."""
    output = tmp_path / "findings"
    with output.open("w") as file:
        child = os.fork()
        if not child:
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                for finding in examine(Host()):
                    print(json.dumps(finding_json(finding)), file=file, flush=True)
                os._exit(0)
            finally:
                os._exit(1)  # whatever happens, there must not be two of pytest
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    checks = {check["check"]: check for check in map(json.loads, output.read_text().splitlines())}
    assert set(checks) == {*CHECKS, "fentry", "groups", "host_pmu", "bcc"}
    assert checks["program"]["found"] == "cannot be tried without privileges"
    assert checks["capabilities"]["status"] == "fail"
    assert checks["bpf"]["found"] == "cannot be tried without privileges"
    assert checks["handlers"]["status"] == "warn"
    assert not any("could not be checked" in check["found"] for check in checks.values())
