"""Whether the running kernel accepts a probe, found out by trying one.

Configuration, version and capabilities can all say yes on a kernel that then refuses.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vpmu_agent.kernel import btf
from vpmu_agent.kernel.arch import current_arch
from vpmu_agent.kernel.config import kernel_config
from vpmu_agent.kernel.facts import ROOT, can_see_pmus, capabilities, has_seccomp_filter, read
from vpmu_agent.kernel.libbpf import ProgLoadOpts, libbpf, quiet, strerror


@dataclass(frozen=True, slots=True)
class Trial:
    """The result of trying something in the kernel: whether it works and, if not, the reason.

    `denied` means "not permitted" rather than "not possible": with more privileges it may work. `filtered`
    means that a seccomp filter kept the system call from the kernel, `locked_down` that lockdown is in mode
    confidentiality, and `hidden` that /sys, which the trial needs, is not there.
    """

    works: bool
    reason: str = ""
    denied: bool = False
    filtered: bool = False
    locked_down: bool = False
    hidden: bool = False


_BPF_PROG_TYPE_KPROBE = 2
_BPF_PROG_TYPE_TRACING = 26
_BPF_TRACE_FEXIT = 25
_BPF_MAP_TYPE_RINGBUF = 27
_RING_BYTES = 1 << 16  # a power of two, and a whole number of pages of any size
_FUNC_PROBE_READ_KERNEL = 113
_FUNC_GET_FUNC_ARG = 183
_FUNC_GET_FUNC_RET = 184
_FUNC_GET_FUNC_ARG_CNT = 185


def _insn(code: int, dst: int = 0, src: int = 0, imm: int = 0) -> bytes:
    """Return a `struct bpf_insn` with no jump or memory offset."""
    return struct.pack("=BBhi", code, (src << 4) | dst, 0, imm)


_MOV_IMM, _MOV_REG, _ADD_IMM, _CALL, _EXIT = 0xB7, 0xBF, 0x07, 0x85, 0x95
_RETURN_0 = _insn(_MOV_IMM) + _insn(_EXIT)
# bpf_probe_read_kernel(fp - 8, 8, 0); return 0
_READ_KERNEL = b"".join(
    (
        _insn(_MOV_REG, 1, 10),
        _insn(_ADD_IMM, 1, imm=-8),
        _insn(_MOV_IMM, 2, imm=8),
        _insn(_MOV_IMM, 3),
        _insn(_CALL, imm=_FUNC_PROBE_READ_KERNEL),
        _RETURN_0,
    )
)
# bpf_get_func_arg_cnt(ctx); bpf_get_func_arg(ctx, 0, fp - 8); bpf_get_func_ret(ctx, fp - 8); return 0
_READ_ARGS = b"".join(
    (
        _insn(_MOV_REG, 6, 1),
        _insn(_CALL, imm=_FUNC_GET_FUNC_ARG_CNT),
        _insn(_MOV_REG, 1, 6),
        _insn(_MOV_IMM, 2),
        _insn(_MOV_REG, 3, 10),
        _insn(_ADD_IMM, 3, imm=-8),
        _insn(_CALL, imm=_FUNC_GET_FUNC_ARG),
        _insn(_MOV_REG, 1, 6),
        _insn(_MOV_REG, 2, 10),
        _insn(_ADD_IMM, 2, imm=-8),
        _insn(_CALL, imm=_FUNC_GET_FUNC_RET),
        _RETURN_0,
    )
)


def try_bpf() -> Trial:
    """Load a kprobe program that reads kernel memory, and create a ring buffer.

    Raise KernelError if libbpf is not installed.
    """
    fd = _load(_READ_KERNEL, kind=_BPF_PROG_TYPE_KPROBE)
    if fd < 0:
        bare = _load(_RETURN_0, kind=_BPF_PROG_TYPE_KPROBE)
        if bare >= 0:
            os.close(bare)
            return Trial(False, "BPF programs may not read kernel memory", locked_down=True)
        return _refused("the kernel refuses to load a BPF program", -fd)
    os.close(fd)
    with quiet():
        fd = libbpf().bpf_map_create(_BPF_MAP_TYPE_RINGBUF, b"vpmu_trial", 0, 0, _RING_BYTES, None)
    if fd < 0:
        return _refused("the kernel refuses to create a BPF ring buffer", -fd)
    os.close(fd)
    return Trial(True)


def try_fexit(functions: Sequence[str]) -> Trial:
    """Attach to the return of each function a program that only calls bpf_get_func_arg() and its like.

    Raise KernelError if BTF or libbpf is missing.
    """
    types = btf.vmlinux()
    for function in functions:
        btf_id = types.func_id(function)
        fd = _load(_READ_ARGS, kind=_BPF_PROG_TYPE_TRACING, attach=_BPF_TRACE_FEXIT, btf_id=btf_id)
        if fd < 0:
            bare = _load(_RETURN_0, kind=_BPF_PROG_TYPE_TRACING, attach=_BPF_TRACE_FEXIT, btf_id=btf_id)
            if bare >= 0:
                os.close(bare)
                return Trial(False, "the kernel has no bpf_get_func_arg(), which came with Linux 5.17")
            return _refused(f"the kernel refuses to load an fexit program for {function}()", -fd)
        with quiet():
            link = libbpf().bpf_raw_tracepoint_open(None, fd)
        os.close(fd)
        if link < 0:
            return _refused(f"the kernel refuses to attach an fexit program to {function}()", -link)
        os.close(link)
    return Trial(True)


def try_kprobe(functions: Sequence[str], *, root: Path = ROOT) -> Trial:
    """Open a kprobe on each function as a perf event, as bcc does, and remove it again."""
    kind = probe_device("kprobe", root=root)
    if kind is None:
        if not can_see_pmus(root=root):
            found = f"there is no {root / 'sys/bus/event_source/devices'}: /sys is not mounted here"
            return Trial(False, found, hidden=True)
        reasons = {
            "n": "the kernel was built without CONFIG_KPROBES",
            "y": "the kernel was built with CONFIG_KPROBES but without CONFIG_KPROBE_EVENTS",
        }
        option = kernel_config("KPROBES", root=root) or ""
        return Trial(False, reasons.get(option, "perf has no kprobe device (no CONFIG_KPROBE_EVENTS)"))
    for function in functions:
        for is_return in (False, True):
            fd = open_probe(function.encode(), kind=kind, is_return=is_return)
            if fd < 0:
                probe = "kretprobe" if is_return else "kprobe"
                return _refused(f"the kernel refuses a {probe} on {function}()", -fd, call="perf_event_open")
            os.close(fd)
    return Trial(True)


def probe_device(name: str, *, root: Path = ROOT) -> int | None:
    """Return the type of perf's device for "kprobe" or "uprobe", None if there is none."""
    kind = read(root / f"sys/bus/event_source/devices/{name}/type")
    return int(kind) if kind is not None and kind.isdecimal() else None


def _refused(what: str, code: int, *, call: str = "bpf") -> Trial:
    reason = f"{what}: {strerror(code)}"
    if is_filtered(call):
        return Trial(False, f"{reason}, because a seccomp filter refuses {call}(2)", filtered=True)
    return Trial(False, reason, denied=code in (errno.EPERM, errno.EACCES))


def is_filtered(call: str) -> bool:
    """Return whether a seccomp filter refuses this process a system call, "bpf" or "perf_event_open".

    The call is made with arguments that the kernel, given CAP_BPF, rejects as invalid before anything else
    (kernel/bpf/syscall.c, kernel/events/core.c): any other answer comes from the filter.
    """
    held = capabilities() or frozenset()
    if not has_seccomp_filter() or held.isdisjoint({"CAP_BPF", "CAP_SYS_ADMIN"}):
        return False
    arch = current_arch()
    nowhere = ctypes.c_void_p(None)
    no_such_command, no_such_flags = ctypes.c_int(-1), ctypes.c_ulong(1 << 31)
    everywhere = ctypes.c_int(-1)
    libc = ctypes.CDLL(None, use_errno=True)
    ctypes.set_errno(0)
    if call == "bpf":
        libc.syscall(arch.bpf, no_such_command, nowhere, ctypes.c_uint(0))
    else:
        libc.syscall(arch.perf_event_open, nowhere, everywhere, everywhere, everywhere, no_such_flags)
    return ctypes.get_errno() != errno.EINVAL


def _load(code: bytes, *, kind: int, attach: int = 0, btf_id: int = 0) -> int:
    """Return a file descriptor, or a negative errno."""
    options = ProgLoadOpts(
        sz=ctypes.sizeof(ProgLoadOpts), attempts=1, expected_attach_type=attach, attach_btf_id=btf_id
    )
    with quiet():
        ctypes.set_errno(0)
        fd = libbpf().bpf_prog_load(kind, b"vpmu_trial", b"GPL", code, len(code) // 8, ctypes.byref(options))
        return int(fd) if fd >= 0 else -ctypes.get_errno()


def open_probe(target: bytes, *, kind: int, offset: int = 0, is_return: bool) -> int:
    """Return the descriptor of a probe on a function, or a negative errno; it lasts as long as that.

    `kind` is the type of perf's kprobe device, and `target` the function; or that of its uprobe device, and
    `target` the path of a program, with the function's `offset` in it, in bytes.
    """
    name = ctypes.create_string_buffer(target)
    # struct perf_event_attr up to config2 (PERF_ATTR_SIZE_VER1): type, size, config, 4 unused, flags
    # (`disabled`), 2 unused, config1 = kprobe_func or uprobe_path, config2 = probe_offset.
    attr = struct.pack("=IIQ24xQ8xQQ", kind, 72, int(is_return), 1, ctypes.addressof(name), offset)
    pid, cpu, group, close_on_exec = -1, 0, -1, 8
    libc = ctypes.CDLL(None, use_errno=True)
    number = current_arch().perf_event_open
    fd = libc.syscall(number, attr, pid, cpu, group, close_on_exec)
    return int(fd) if fd >= 0 else -ctypes.get_errno()
