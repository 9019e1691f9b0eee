"""Why the kernel refuses a trial, and what to do about it: the one place that knows, for every command."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vpmu_agent.kernel import container, facts
from vpmu_agent.kernel.facts import ROOT
from vpmu_agent.kernel.trials import Trial

AS_ROOT = "run vpmu-agent as root"
MOUNT_SYS = "mount the host's /sys, read-only is enough"
ALLOW_CALLS = (
    "allow bpf and perf_event_open in the container's seccomp profile (podman, docker: --security-opt "
    "seccomp=FILE; Kubernetes: seccompProfile), or in the service's SystemCallFilter="
)


class Cause(NamedTuple):
    """What was found, and what to do about it ("" if that is not known)."""

    found: str
    todo: str


def missing_capabilities(*, root: Path = ROOT) -> list[str]:
    """Return the capabilities that tracing takes and this process lacks; none where that cannot be known.

    CAP_SYS_ADMIN stands for the two that were split from it (Linux 5.8), not for CAP_SYSLOG.
    """
    held = facts.capabilities(root=root)
    if held is None:
        return []
    if container.is_hosts_namespace("user", root=root) is False:
        held = frozenset()
    split = [] if "CAP_SYS_ADMIN" in held else ["CAP_BPF", "CAP_PERFMON"]
    return [name for name in (*split, "CAP_SYSLOG") if name not in held]


def lacking_privileges(*, root: Path = ROOT) -> Cause | None:
    """Return what this process is not permitted, None if nothing or if that cannot be known."""
    if container.is_hosts_namespace("user", root=root) is False:
        return Cause(
            "this process is in a user namespace of its own, where capabilities do not reach the kernel",
            "run it as the host's root, not in a rootless container or another user namespace",
        )
    if missing := missing_capabilities(root=root):
        added = " ".join(f"--cap-add={name}" for name in missing)
        return Cause(
            f"this process lacks {', '.join(missing)}",
            f"{AS_ROOT}; in a container, add them (podman, docker: {added}; Kubernetes: capabilities.add)",
        )
    return None


LOCKED_DOWN = Cause(
    "lockdown is in mode confidentiality: the kernel allows nobody to probe it or to read its memory",
    "boot with lockdown=integrity or without lockdown (it may come with Secure Boot)",
)


def cause_of(refused: Trial, *, root: Path = ROOT) -> Cause:
    """Return why a trial failed that does not work, as far as it can be found."""
    if refused.filtered:
        return Cause(refused.reason, ALLOW_CALLS)
    if refused.hidden:
        return Cause(refused.reason, MOUNT_SYS)
    if refused.locked_down or facts.lockdown(root=root) == "confidentiality":
        return Cause(f"{refused.reason}: {LOCKED_DOWN.found}", LOCKED_DOWN.todo)
    if not refused.denied:
        return Cause(refused.reason, "")
    if privileges := lacking_privileges(root=root):
        return Cause(f"{refused.reason}: {privileges.found}", privileges.todo)
    return Cause(
        f"{refused.reason}, although this process has the capabilities for it",
        "see in the audit and kernel logs whether a security module refuses it (SELinux, AppArmor)",
    )
