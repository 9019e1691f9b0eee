"""Facts from files of a small /proc and /sys, and trials on this very kernel."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tree import plant
from vpmu_agent.kernel import btf, features
from vpmu_agent.kernel.arch import X86_64
from vpmu_agent.kernel.config import kernel_config, kernel_release
from vpmu_agent.kernel.errors import BtfError

MODULE = "sys/module/kvm"
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
        (features.vpmu_enabled, f"{MODULE}/parameters/enable_pmu", {"Y\n": True, "N\n": False, "?\n": None}),
        (features.nmi_watchdog, "proc/sys/kernel/nmi_watchdog", {"1\n": True, "0\n": False}),
        (features.kptr_restrict, "proc/sys/kernel/kptr_restrict", {"0\n": 0, "2\n": 2, "\n": None}),
        (
            features.lockdown,
            "sys/kernel/security/lockdown",
            {
                "[none] integrity confidentiality\n": "none",
                "none [integrity] confidentiality\n": "integrity",
                "none integrity [confidentiality]\n": "confidentiality",
                "none\n": None,
            },
        ),
        (
            features.capabilities,
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


def test_kvm(tmp_path: Path) -> None:
    assert features.kvm_vendor_modules(root=tmp_path) == ()
    plant(tmp_path, {f"{MODULE}/parameters/enable_pmu": "Y\n"})
    assert not features.kvm_is_module(root=tmp_path)
    plant(tmp_path, {f"{MODULE}/initstate": "live\n", "sys/module/kvm_amd/": "", "sys/module/kvmgt/": ""})
    assert features.kvm_is_module(root=tmp_path)
    assert features.kvm_vendor_modules(root=tmp_path) == ("kvm_amd",)


def test_mediated_vpmu(tmp_path: Path) -> None:
    plant(tmp_path, {"sys/module/kvm_intel/parameters/nested": "Y\n"})
    assert features.mediated_vpmu(root=tmp_path) == {}
    plant(tmp_path, {"sys/module/kvm_intel/parameters/enable_mediated_pmu": "N\n"})
    assert features.mediated_vpmu(root=tmp_path) == {"kvm_intel": False}
    plant(tmp_path, {"sys/module/kvm_intel/parameters/enable_mediated_pmu": "Y\n"})
    assert features.mediated_vpmu(root=tmp_path) == {"kvm_intel": True}


def test_pmu_devices(tmp_path: Path) -> None:
    devices = "sys/bus/event_source/devices"
    plant(tmp_path, {f"{devices}/{name}/": "" for name in ("software", "kprobe", "breakpoint")})
    assert features.pmu_devices(root=tmp_path, arch=X86_64) == ()
    plant(tmp_path, {f"{devices}/cpu_core/": "", f"{devices}/cpu_atom/": ""})
    assert features.pmu_devices(root=tmp_path, arch=X86_64) == ("cpu_core", "cpu_atom")


def test_this_process_capabilities() -> None:
    held = features.capabilities()
    assert held is not None
    is_root = os.geteuid() == 0
    assert ("CAP_SYS_ADMIN" in held) is is_root


# Trials


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"proc/config.gz": "# CONFIG_KPROBES is not set\n"}, "without CONFIG_KPROBES"),
        ({"proc/config.gz": "CONFIG_KPROBES=y\n"}, "but without CONFIG_KPROBE_EVENTS"),
        ({}, "perf has no kprobe device"),
    ],
)
def test_no_kprobe_device(tmp_path: Path, files: dict[str, str], reason: str) -> None:
    plant(tmp_path, {"sys/bus/event_source/devices/software/": ""})
    trial = features.try_kprobe(["perf_event_enable"], root=plant(tmp_path, files))
    assert not trial.works
    assert not trial.denied, "no privilege would help"
    assert reason in trial.reason


def test_no_sysfs_says_nothing_about_kprobes(tmp_path: Path) -> None:
    trial = features.try_kprobe(["perf_event_enable"], root=plant(tmp_path, {}))
    assert "/sys is not mounted here" in trial.reason


def test_a_kprobe_that_the_kernel_refuses(tmp_path: Path) -> None:
    """A type that perf has no device for: the real perf_event_open() says no."""
    plant(tmp_path, {"sys/bus/event_source/devices/kprobe/type": "12345\n"})
    trial = features.try_kprobe(["perf_event_enable"], root=tmp_path)
    assert not trial.works
    assert "perf_event_enable(): " in trial.reason


class _Instruction(ctypes.Structure):
    """`struct sock_filter`."""

    _fields_ = (
        ("code", ctypes.c_ushort),
        ("jt", ctypes.c_ubyte),
        ("jf", ctypes.c_ubyte),
        ("k", ctypes.c_uint),
    )


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.POINTER(_Instruction)))


def refuse(call: int) -> None:
    """Puts a seccomp filter on this process that answers one system call with EPERM."""
    instructions = (_Instruction * 4)(
        _Instruction(0x20, 0, 0, 0),  # load the call's number
        _Instruction(0x15, 0, 1, call),  # is it that one?
        _Instruction(0x06, 0, 0, 0x00050000 | errno.EPERM),  # SECCOMP_RET_ERRNO
        _Instruction(0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
    )
    libc = ctypes.CDLL(None, use_errno=True)
    assert (
        libc.prctl(22, 2, ctypes.byref(_Program(4, instructions)), 0, 0) == 0
    )  # PR_SET_SECCOMP, by a filter


@pytest.mark.skipif(os.geteuid() != 0, reason="what a filter refuses, others are refused anyway")
@pytest.mark.parametrize("call", ["bpf", "perf_event_open"])
def test_a_seccomp_filter_is_told_from_the_kernels_own_refusal(call: str) -> None:
    """Really: in a child, for a filter stays."""
    child = os.fork()
    if not child:
        status = 1
        try:
            assert not features.is_filtered(call)
            refuse(getattr(X86_64, call))
            assert features.is_filtered(call)
            assert not features.is_filtered({"bpf": "perf_event_open"}.get(call, "bpf"))
            trial = features.try_bpf()
            if call == "bpf":
                assert trial.filtered
                assert trial.reason.endswith("Operation not permitted, for a seccomp filter refuses bpf(2)")
            else:
                assert trial.works
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_bpf_on_this_kernel() -> None:
    """The verifier takes the program as it is if this process may load any; and nothing stays behind."""
    before = open_files()
    trial = features.try_bpf()
    assert open_files() == before
    if features.capabilities() == frozenset(features.CAPABILITIES):
        assert trial == features.Trial(True)
    else:
        assert trial.works or trial.denied


@pytest.mark.skipif(not (Path("/") / btf.VMLINUX).exists(), reason="this kernel has no BTF")
def test_fexit_on_this_kernel() -> None:
    features.try_fexit(["perf_event_enable"])  # loads the library
    before = open_files()
    trial = features.try_fexit(["perf_event_enable"])
    assert open_files() == before
    assert trial.works == (trial.reason == "")
    with pytest.raises(BtfError, match=r"no_such_function\(\)"):
        features.try_fexit(["no_such_function"])


def test_kprobe_on_this_kernel() -> None:
    before = open_files()
    trial = features.try_kprobe(["perf_event_enable"])
    assert open_files() == before
    if trial.works:
        assert not features.try_kprobe(["no_such_function"]).works
        assert Path("/sys/bus/event_source/devices/kprobe").exists()
    else:
        assert trial.denied or kernel_config("KPROBES") in ("n", None)


def test_kvm_is_another_one_after_every_load(tmp_path: Path) -> None:
    assert features.kvm_instance(root=tmp_path) is None
    plant(tmp_path, {f"{MODULE}/initstate": "coming\n"})
    assert features.kvm_instance(root=tmp_path) is None
    plant(tmp_path, {f"{MODULE}/initstate": "live\n"})
    first = features.kvm_instance(root=tmp_path)
    assert first is not None
    assert features.kvm_instance(root=tmp_path) == first
    # Beside the old one and then in its place: a file system may give the number of a deleted folder again.
    plant(tmp_path, {"next/initstate": "live\n", f"{MODULE}/initstate": None})
    (tmp_path / MODULE).rmdir()
    (tmp_path / "next").rename(tmp_path / MODULE)
    assert features.kvm_instance(root=tmp_path) not in (None, first)
    plant(tmp_path, {f"{MODULE}/initstate": None})  # as where KVM is built in
    assert features.kvm_instance(root=tmp_path) not in (None, first)
