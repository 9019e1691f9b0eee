"""Single facts about this host and this process. A fact that cannot be read is None, not a guess."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vpmu_agent.kernel.arch import Arch, current_arch
from vpmu_agent.kernel.config import kernel_config

ROOT = Path("/")

# include/uapi/linux/capability.h
CAPABILITIES = {
    "CAP_SYS_ADMIN": 21,
    "CAP_SYSLOG": 34,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}


def can_see_pmus(*, root: Path = ROOT) -> bool:
    """Return whether perf's devices are visible; every kernel with perf has some."""
    return (root / "sys/bus/event_source/devices").is_dir()


def pmu_devices(*, root: Path = ROOT, arch: Arch | None = None) -> tuple[str, ...]:
    """Return the core PMUs that perf has: none in most VMs, two on hybrid processors."""
    devices = root / "sys/bus/event_source/devices"
    return tuple(name for name in (arch or current_arch()).pmu_devices if (devices / name).exists())


HYBRID = frozenset({"cpu_core", "cpu_atom"})
"""The core PMUs of a processor of Intel's with two kinds of cores."""


@dataclass(frozen=True, slots=True)
class PmuCaps:
    """What perf says of a core PMU (below its folder `caps`), as far as guests can have it too."""

    name: str
    """Intel's PMUs have one: "skylake"; "" if there is none."""
    branches: int
    """How many branches it records (LBR); 0 if it records none, or if that is not known."""
    max_precise: int
    """The highest `precise_ip` that it takes, of which PEBS is made; 0 as with `branches`."""


def pmu_caps(device: str, *, root: Path = ROOT) -> PmuCaps:
    """Return what perf says of one of pmu_devices()."""
    caps = root / "sys/bus/event_source/devices" / device / "caps"
    branches, precise = (read(caps / name) or "" for name in ("branches", "max_precise"))
    return PmuCaps(
        read(caps / "pmu_name") or "",
        int(branches) if branches.isdecimal() else 0,
        int(precise) if precise.isdecimal() else 0,
    )


def cpu_vendor(*, root: Path = ROOT) -> str:
    """Return `vendor_id` of the first CPU ("AuthenticAMD", "GenuineIntel"), "" if it cannot be read."""
    for line in (read(root / "proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "vendor_id":
            return value.strip()
    return ""


def nmi_watchdog(*, root: Path = ROOT) -> bool | None:
    """Return whether the NMI watchdog runs: it pins one hardware counter of each CPU."""
    return flag(root / "proc/sys/kernel/nmi_watchdog")


def capabilities(*, root: Path = ROOT) -> frozenset[str] | None:
    """Return which of CAPABILITIES are effective in this process, by name."""
    for line in (read(root / "proc/self/status") or "").splitlines():
        if line.startswith("CapEff:"):
            mask = int(line.split()[1], 16)
            return frozenset(name for name, bit in CAPABILITIES.items() if (mask >> bit) & 1)
    return None


def has_seccomp_filter(*, root: Path = ROOT) -> bool:
    """Return whether a seccomp filter is on this process: a container's profile, or a service's."""
    lines = (read(root / "proc/self/status") or "").splitlines()
    return any(line.split() == ["Seccomp:", "2"] for line in lines)  # SECCOMP_MODE_FILTER


def lockdown(*, root: Path = ROOT) -> str | None:
    """Return the lockdown mode, "none", "integrity" or "confidentiality"; None if it cannot be read."""
    modes = read(root / "sys/kernel/security/lockdown") or ""
    return next((mode.strip("[]") for mode in modes.split() if mode.startswith("[")), None)


def kptr_restrict(*, root: Path = ROOT) -> int | None:
    """Return kernel.kptr_restrict: 2 hides addresses from everybody, 1 from all without CAP_SYSLOG."""
    value = read(root / "proc/sys/kernel/kptr_restrict")
    return int(value) if value and value.isdecimal() else None


PREEMPTING = frozenset({"lazy", "full", "rt"})
"""The models of preemption in which the kernel takes the CPU away from its own code."""

_PREEMPTION_OPTIONS = {
    "PREEMPT_RT": "rt",
    "PREEMPT": "full",
    "PREEMPT_LAZY": "lazy",
    "PREEMPT_VOLUNTARY": "voluntary",
    "PREEMPT_NONE": "none",
}


def preemption(*, root: Path = ROOT) -> str | None:
    """Return how this kernel preempts itself: "none", "voluntary", "lazy", "full" or "rt"; None if unknown.

    It can be changed while the kernel runs (debugfs, sched/preempt; kernel/sched/debug.c,
    sched_dynamic_show()). Where debugfs cannot be read, it is what the kernel was booted or built with.
    """
    if kernel_config("PREEMPT_RT", root=root) == "y":
        return "rt"
    models = read(root / "sys/kernel/debug/sched/preempt") or ""
    if now := next((model.strip("()") for model in models.split() if model.startswith("(")), ""):
        return now
    built = read(root / "proc/sys/kernel/version") or ""  # uname -v; init/Makefile writes the model into it
    if built and "PREEMPT" not in built:
        return "none"
    arguments = (read(root / "proc/cmdline") or "").split()
    chosen = [word.removeprefix("preempt=") for word in arguments if word.startswith("preempt=")]
    # "none" and "voluntary" prove nothing: Linux 7.0 and later do not have them, and ignore the argument.
    if chosen and chosen[-1] in PREEMPTING:
        return chosen[-1]
    for option, model in _PREEMPTION_OPTIONS.items():
        if kernel_config(option, root=root) == "y":
            return model
    return None


def read(path: Path) -> str | None:
    """Return the text of a file of sysfs or procfs, stripped; None if it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def flag(path: Path) -> bool | None:
    """Return what a file that holds Y or N, or a number (above 0: True) says; None if it holds neither."""
    value = read(path)
    if value in ("Y", "y"):
        return True
    if value in ("N", "n"):
        return False
    return int(value) > 0 if value and value.lstrip("-").isdecimal() else None
