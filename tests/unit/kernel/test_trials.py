"""Trials on this very kernel."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest

from tests.support.tree import plant
from vpmu_agent.kernel import btf, facts, trials
from vpmu_agent.kernel.arch import X86_64
from vpmu_agent.kernel.config import kernel_config
from vpmu_agent.kernel.errors import BtfError


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
    trial = trials.try_kprobe(["perf_event_enable"], root=plant(tmp_path, files))
    assert not trial.works
    assert not trial.denied, "no privilege would help"
    assert reason in trial.reason


def test_no_sysfs_says_nothing_about_kprobes(tmp_path: Path) -> None:
    trial = trials.try_kprobe(["perf_event_enable"], root=plant(tmp_path, {}))
    assert "/sys is not mounted here" in trial.reason


def test_a_kprobe_that_the_kernel_refuses(tmp_path: Path) -> None:
    """A type that perf has no device for: the real perf_event_open() says no."""
    plant(tmp_path, {"sys/bus/event_source/devices/kprobe/type": "12345\n"})
    trial = trials.try_kprobe(["perf_event_enable"], root=tmp_path)
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
            assert not trials.is_filtered(call)
            refuse(getattr(X86_64, call))
            assert trials.is_filtered(call)
            assert not trials.is_filtered({"bpf": "perf_event_open"}.get(call, "bpf"))
            trial = trials.try_bpf()
            if call == "bpf":
                assert trial.filtered
                assert trial.reason.endswith(
                    "Operation not permitted, because a seccomp filter refuses bpf(2)"
                )
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
    trial = trials.try_bpf()
    assert open_files() == before
    if facts.capabilities() == frozenset(facts.CAPABILITIES):
        assert trial == trials.Trial(True)
    else:
        assert trial.works or trial.denied


@pytest.mark.skipif(not (Path("/") / btf.VMLINUX).exists(), reason="this kernel has no BTF")
def test_fexit_on_this_kernel() -> None:
    trials.try_fexit(["perf_event_enable"])  # loads the library
    before = open_files()
    trial = trials.try_fexit(["perf_event_enable"])
    assert open_files() == before
    assert trial.works == (trial.reason == "")
    with pytest.raises(BtfError, match=r"no_such_function\(\)"):
        trials.try_fexit(["no_such_function"])


def test_kprobe_on_this_kernel() -> None:
    before = open_files()
    trial = trials.try_kprobe(["perf_event_enable"])
    assert open_files() == before
    if trial.works:
        assert not trials.try_kprobe(["no_such_function"]).works
        assert Path("/sys/bus/event_source/devices/kprobe").exists()
    else:
        assert trial.denied or kernel_config("KPROBES") in ("n", None)
