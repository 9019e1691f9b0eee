"""Facts from files of a small /proc and /sys."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tree import plant
from vpmu_agent.kernel import facts, kvm
from vpmu_agent.kernel.arch import X86_64
from vpmu_agent.kernel.config import kernel_config, kernel_release

RELEASE = "proc/sys/kernel/osrelease"


@pytest.mark.parametrize(
    ("files", "option", "value"),
    [
        ({"proc/config.gz": "CONFIG_KPROBES=y\n"}, "KPROBES", "y"),
        ({"proc/config.gz": "# CONFIG_KPROBES is not set\n"}, "KPROBES", "n"),
        ({"proc/config.gz": "CONFIG_KPROBES_ON_FTRACE=y\n"}, "KPROBES", "n"),
        ({RELEASE: "6.1.0-9\n", "boot/config-6.1.0-9": "CONFIG_KVM=m\n"}, "KVM", "m"),
        ({RELEASE: "6.1.0-9\n", "boot/config-6.1.0-8": "CONFIG_KVM=m\n"}, "KVM", None),
        ({}, "KVM", None),
    ],
)
def test_kernel_config(tmp_path: Path, files: dict[str, str], option: str, value: str | None) -> None:
    assert kernel_config(option, root=plant(tmp_path, files)) == value


@pytest.mark.parametrize(
    ("look", "path", "values"),
    [
        (kernel_release, RELEASE, {"6.1.0-9-amd64\n": "6.1.0-9-amd64"}),
        (kvm.vpmu_enabled, "sys/module/kvm/parameters/enable_pmu", {"Y\n": True, "N\n": False, "?\n": None}),
        (facts.nmi_watchdog, "proc/sys/kernel/nmi_watchdog", {"1\n": True, "0\n": False}),
        (facts.kptr_restrict, "proc/sys/kernel/kptr_restrict", {"0\n": 0, "2\n": 2, "\n": None}),
        (
            facts.lockdown,
            "sys/kernel/security/lockdown",
            {
                "[none] integrity confidentiality\n": "none",
                "none [integrity] confidentiality\n": "integrity",
                "none integrity [confidentiality]\n": "confidentiality",
                "none\n": None,
            },
        ),
        (
            facts.capabilities,
            "proc/self/status",
            {
                "CapPrm:\t000001ffffffffff\nCapEff:\t0000000000000000\n": frozenset(),
                "CapEff:\t000000c400200000\n": frozenset(
                    {"CAP_SYS_ADMIN", "CAP_SYSLOG", "CAP_PERFMON", "CAP_BPF"}
                ),
                "CapEff:\t0000004000000000\n": frozenset({"CAP_PERFMON"}),
                "Name:\tpython3\n": None,
            },
        ),
    ],
)
def test_a_fact_of_one_file(
    tmp_path: Path, look: Callable[..., object], path: str, values: dict[str, object]
) -> None:
    assert look(root=tmp_path) is None, "without the file"
    found = {text: look(root=plant(tmp_path, {path: text})) for text in values}
    assert found == values


def test_pmu_devices(tmp_path: Path) -> None:
    devices = "sys/bus/event_source/devices"
    plant(tmp_path, {f"{devices}/{name}/": "" for name in ("software", "kprobe", "breakpoint")})
    assert facts.pmu_devices(root=tmp_path, arch=X86_64) == ()
    plant(tmp_path, {f"{devices}/cpu_core/": "", f"{devices}/cpu_atom/": ""})
    assert facts.pmu_devices(root=tmp_path, arch=X86_64) == ("cpu_core", "cpu_atom")


def test_what_a_pmu_has_beside_counters(tmp_path: Path) -> None:
    caps = "sys/bus/event_source/devices/cpu/caps"
    assert facts.pmu_caps("cpu", root=tmp_path) == facts.PmuCaps("", 0, 0)
    plant(
        tmp_path, {f"{caps}/branches": "32\n", f"{caps}/max_precise": "3\n", f"{caps}/pmu_name": "skylake\n"}
    )
    assert facts.pmu_caps("cpu", root=tmp_path) == facts.PmuCaps("skylake", 32, 3)
    plant(tmp_path, {f"{caps}/branches": "?\n", f"{caps}/max_precise": "\n"})
    assert facts.pmu_caps("cpu", root=tmp_path) == facts.PmuCaps("skylake", 0, 0)


def test_this_process_capabilities() -> None:
    held = facts.capabilities()
    assert held is not None
    is_root = os.geteuid() == 0
    assert ("CAP_SYS_ADMIN" in held) is is_root


DYNAMIC = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.170-1\n"


@pytest.mark.parametrize(
    ("files", "model"),
    [
        ({"sys/kernel/debug/sched/preempt": "none voluntary (full) lazy\n"}, "full"),
        (
            {
                "sys/kernel/debug/sched/preempt": "none (voluntary) full\n",
                "proc/cmdline": "quiet preempt=full\n",
            },
            "voluntary",
        ),
        ({"proc/sys/kernel/version": DYNAMIC, "proc/cmdline": "preempt=none quiet preempt=full\n"}, "full"),
        ({"proc/sys/kernel/version": DYNAMIC, "proc/config.gz": "CONFIG_PREEMPT_VOLUNTARY=y\n"}, "voluntary"),
        (
            {
                "proc/sys/kernel/version": DYNAMIC,
                "proc/cmdline": "preempt=none\n",
                "proc/config.gz": "CONFIG_PREEMPT_LAZY=y\n",
            },
            "lazy",
        ),
        ({"proc/sys/kernel/version": DYNAMIC, "proc/cmdline": "preempt=none\n"}, None),
        ({"proc/sys/kernel/version": DYNAMIC, "proc/config.gz": "CONFIG_PREEMPT_LAZY=y\n"}, "lazy"),
        ({"proc/sys/kernel/version": DYNAMIC, "proc/config.gz": "CONFIG_PREEMPT=y\n"}, "full"),
        (
            {
                "proc/config.gz": "CONFIG_PREEMPT_RT=y\nCONFIG_PREEMPT_LAZY=y\n",
                "sys/kernel/debug/sched/preempt": "full (lazy)\n",
            },
            "rt",
        ),
        ({"proc/sys/kernel/version": "#1 SMP Tue Jun 2 2026\n", "proc/cmdline": "quiet\n"}, "none"),
        ({"proc/sys/kernel/version": DYNAMIC, "proc/cmdline": "quiet\n"}, None),
        ({}, None),
    ],
)
def test_preemption(tmp_path: Path, files: dict[str, str], model: str | None) -> None:
    assert facts.preemption(root=plant(tmp_path, files)) == model


@pytest.mark.parametrize(
    ("cpuinfo", "vendor"),
    [
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\n", "AuthenticAMD"),
        ("processor\t: 0\nBogoMIPS\t: 50.00\n", ""),
        ("", ""),
    ],
)
def test_the_vendor_of_the_cpu(tmp_path: Path, cpuinfo: str, vendor: str) -> None:
    assert facts.cpu_vendor(root=plant(tmp_path, {"proc/cpuinfo": cpuinfo})) == vendor


def test_a_cpu_that_cannot_be_read(tmp_path: Path) -> None:
    assert facts.cpu_vendor(root=tmp_path) == ""
