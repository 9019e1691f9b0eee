"""How an event, a duration and an errno are written."""

from __future__ import annotations

import errno

from vpmu_agent.model.call import Attr

_HARDWARE = (  # enum perf_hw_id, by the names that perf list has for them
    "cycles",
    "instructions",
    "cache-references",
    "cache-misses",
    "branches",
    "branch-misses",
    "bus-cycles",
    "stalled-cycles-frontend",
    "stalled-cycles-backend",
    "ref-cycles",
)
_TYPE_HARDWARE, _TYPE_RAW = 0, 4  # enum perf_type_id


def attr_text(attr: Attr) -> str:
    """Return an event in perf's notation: `r076:uGD` is raw event 0x76, user mode, guest only, pinned.

    The modifiers are those of perf-list(1), without the ones that mean nothing on x86: `I`, and `h` unless
    neither user nor kernel mode is counted.
    """
    if attr.type == _TYPE_RAW:
        name = f"r{attr.config:03x}"
    elif attr.type == _TYPE_HARDWARE and attr.config < len(_HARDWARE):
        name = _HARDWARE[attr.config]
    else:
        name = f"pmu{attr.type}/{attr.config:#x}/"
    levels = ("" if attr.exclude_user else "u") + ("" if attr.exclude_kernel else "k")
    modifiers = (
        ("" if levels == "uk" else (levels or "h"))
        + "p" * attr.precise_ip
        + ("" if attr.exclude_host else "H")
        + ("" if attr.exclude_guest else "G")
        + ("D" if attr.pinned else "")
    )
    return f"{name}:{modifiers}".rstrip(":")


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
    """Return `ENOSPC` for 28; the number itself for those internal to the kernel (524, ENOTSUPP)."""
    return errno.errorcode.get(number, str(number))
