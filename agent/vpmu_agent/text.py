"""How an event, a duration, an errno and a list of CPUs are written."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from vpmu_agent.model.call import Attr, Call, PmcType
from vpmu_agent.model.event_names import (
    GUEST_LBR,
    INTEL,
    TYPE_HARDWARE,
    TYPE_RAW,
    event_name,
    hardware_name,
    raw_name,
)


def attr_text(attr: Attr) -> str:
    """Return an event in perf's notation: `r076:uGD` is raw event 0x76, user mode, guest only, pinned.

    The modifiers are those of perf-list(1), without the ones that mean nothing on x86: `I`, and `h` unless
    neither user nor kernel mode is counted.
    """
    name = f"pmu{attr.type}/{attr.config:#x}/"
    if attr.type == TYPE_RAW:
        name = f"r{attr.config:03x}"
    elif attr.type == TYPE_HARDWARE:
        name = hardware_name(attr) or name
    levels = ("" if attr.exclude_user else "u") + ("" if attr.exclude_kernel else "k")
    modifiers = (
        ("" if levels == "uk" else (levels or "h"))
        + "p" * attr.precise_ip
        + ("" if attr.exclude_host else "H")
        + ("" if attr.exclude_guest else "G")
        + ("D" if attr.pinned else "")
    )
    return f"{name}:{modifiers}".rstrip(":")


def event_text(call: Call, vendor: str = "") -> str:
    """Return what a guest asked for, in words: `instructions (r0c0:GD), in the guest`.

    That an event is precise, for a guest's PEBS, or for its LBR, is said in words, too. `vendor` is as in
    `event_name()`; an event without a name is in perf's notation alone.
    """
    name, code = event_name(call, vendor), attr_text(call.attr)
    what = f"{name} ({code})" if name else code
    if call.pmc_type is PmcType.LBR:
        return f"{what}, guest LBR"
    if call.attr.precise_ip:
        what += f", {precise_text(call.attr.precise_ip)}"
    return f"{what}, {_where_counted(call.attr)}"


def precise_text(level: int) -> str:
    """Return that an event is precise: KVM's are so for a guest's PEBS. `level` is its `precise_ip`."""
    return f"precise (level {level})"


def _where_counted(attr: Attr) -> str:
    if attr.exclude_host:
        where = "in the guest"
    elif attr.exclude_guest:
        where = "on the host"
    else:
        where = "in the guest and on the host"
    if attr.exclude_user and attr.exclude_kernel:
        return f"{where}, neither user nor kernel mode"
    if attr.exclude_user:
        return f"{where}, kernel mode only"
    return f"{where}, user mode only" if attr.exclude_kernel else where


# What of an event select makes a raw event: AMD64_RAW_EVENT_MASK, X86_RAW_EVENT_MASK, HSW_IN_TX and
# HSW_IN_TX_CHECKPOINTED (arch/x86/include/asm/perf_event.h).
_RAW_EVENT = 0xF_FF84_FFFF
_SELECT_USR, _SELECT_OS = 1 << 16, 1 << 17  # ARCH_PERFMON_EVENTSEL_USR, _OS
_FIXED_OS, _FIXED_USR = 1 << 0, 1 << 1  # INTEL_FIXED_0_KERNEL, _USER
# By index, from the configs that KVM gives their events (fixed_pmc_events in
# arch/x86/kvm/vmx/pmu_intel.c), and perf's pseudo event of the fourth.
_FIXED_EVENTS = tuple(INTEL[config] for config in (0xC0, 0x3C, 0x300, 0x400))


def selected_text(pmc: str, control: int, precise_ip: int = 0) -> str:
    """Return what a guest set a counter to count, as attr_text() does: `r0c0:u` is event 0xc0 in user mode.

    `control` is a gp counter's event select, or a fixed counter's four bits of IA32_FIXED_CTR_CTRL;
    `precise_ip` is that of its event. Return "-" if `control` is 0, as if it was never set.
    """
    if pmc == PmcType.LBR:
        return f"r{GUEST_LBR:03x}"
    if not control:
        return "-"
    if pmc.startswith(PmcType.FIXED):
        name = selected_name(pmc, control) or pmc
        in_user, in_kernel = bool(control & _FIXED_USR), bool(control & _FIXED_OS)
    else:
        name = f"r{control & _RAW_EVENT:03x}"
        in_user, in_kernel = bool(control & _SELECT_USR), bool(control & _SELECT_OS)
    levels = ("u" if in_user else "") + ("k" if in_kernel else "")
    modifiers = ("" if levels == "uk" else (levels or "h")) + "p" * precise_ip
    return f"{name}:{modifiers}".rstrip(":")


def selected_name(pmc: str, control: int, vendor: str = "") -> str | None:
    """Return the name of the event that a guest set a counter to count, None if it has none.

    `control` is as in selected_text(), `vendor` as in event_name().
    """
    if pmc == PmcType.LBR:
        return INTEL[GUEST_LBR]
    if not control:
        return None
    if pmc.startswith(PmcType.FIXED):
        index = int(pmc.removeprefix(PmcType.FIXED))
        return _FIXED_EVENTS[index] if index < len(_FIXED_EVENTS) else None
    return raw_name(control & _RAW_EVENT, vendor)


def named_text(name: str | None, code: str) -> str:
    """Return an event in perf's notation with its name in place of its code: `instructions:u`."""
    _, colon, modifiers = code.partition(":")
    return f"{name}{colon}{modifiers}" if name else code


def measured_text(ns: int) -> str:
    """Return `duration_text()` of a call's or a VM's duration, and `-` for 0: it was not measured."""
    return duration_text(ns) if ns else "-"


def duration_text(ns: int) -> str:
    """Return a duration with three digits and its unit: `870 ns`, `12.3 µs`, `4.56 ms`."""
    if ns < 1000:
        return f"{ns} ns"
    if ns < 999.5e3:
        value, unit = ns / 1e3, "µs"
    elif ns < 999.5e6:
        value, unit = ns / 1e6, "ms"
    else:
        value, unit = ns / 1e9, "s"
    if value < 9.995:
        digits = 2
    elif value < 99.95:
        digits = 1
    else:
        digits = 0
    return f"{value:.{digits}f} {unit}"


def errno_name(number: int) -> str:
    """Return `ENOSPC` for 28; the number itself for those internal to the kernel (524, ENOTSUPP).

    Where a number has two names, it is the kernel's: EOPNOTSUPP, EDEADLK.
    """
    return _KERNELS_NAMES.get(number) or errno.errorcode.get(number, str(number))


# Python knows them as ENOTSUP and EDEADLOCK.
_KERNELS_NAMES = {errno.EOPNOTSUPP: "EOPNOTSUPP", errno.EDEADLK: "EDEADLK"}


def ranges(numbers: Sequence[int]) -> str:
    """Return numbers that are in order as `0-3,8`, `-` if there are none."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else f"{part[0]}" for part in parts) or "-"
