"""The switches that take all probes out of a running kernel, which says nothing to those who have some."""

from __future__ import annotations

from pathlib import Path

from vpmu_agent.kernel.facts import ROOT, flag

FTRACE = Path("proc/sys/kernel/ftrace_enabled")
KPROBES = Path("sys/kernel/debug/kprobes/enabled")


def ftrace_enabled(*, root: Path = ROOT) -> bool | None:
    """Return kernel.ftrace_enabled. Off, no fexit program runs, and no kprobe at a function's entry.

    Where ftrace cannot be switched off it is None, as where it cannot be read.
    """
    return flag(root / FTRACE)


def kprobes_enabled(*, root: Path = ROOT) -> bool | None:
    """Return whether kprobes are armed (kernel/kprobes.c, write_enabled_file_bool()); root can read it."""
    return flag(root / KPROBES)


def why_no_probe_runs(way: str, *, root: Path = ROOT) -> tuple[str, str]:
    """Return what keeps attached probes from running, as far as it can be read, and what to do about it.

    `way` is "fexit" or "kprobe".
    """
    if ftrace_enabled(root=root) is False:
        return "kernel.ftrace_enabled is 0", "sysctl kernel.ftrace_enabled=1"
    if way != "kprobe":
        return "the cause is unknown", "see whether the kernel log has a warning of ftrace"
    switch = f"/{KPROBES}"
    on = f"as root, echo 1 > {switch}"
    match kprobes_enabled(root=root):
        case False:
            return f"kprobes are switched off ({switch} is 0)", on
        case None:
            return f"kprobes may be switched off, which only root can see ({switch})", on
    return "the cause is unknown", "see whether the kernel log has a warning of kprobes or ftrace"
