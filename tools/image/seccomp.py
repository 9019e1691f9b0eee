"""Writes packaging/seccomp.json: `python -m tools.image.seccomp`.

That is what the service may call, and a little more. podman's own profiles do not do: that of Debian 12
(podman 4.3) refuses bpf() to CAP_BPF, that of Debian 13 (5.4) still perf_event_open() to CAP_PERFMON,
which only container-libs #424 mended; and both let through more.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

_TREE = Path(__file__).parents[2]
UNIT = _TREE / "systemd" / "vpmu-agent.service"
PROFILE = _TREE / "packaging" / "seccomp.json"

# The service is started as its user; where a container's runtime cannot do that, the daemon becomes it.
BECOME_USER = ("setgroups", "setresgid", "setresuid")
# Not used by the daemon, but by whoever looks around with `podman exec ... sh`.
PIPES = ("pipe", "pipe2")


# The unit's RestrictNamespaces=yes, which is a filter too: no new namespaces, and none of others. What
# clone3() is asked for cannot be seen by a filter; where it is not there, libc takes clone().
NAMESPACES = {"clone", "clone3", "setns", "unshare"}
_CLONE_FLAGS = 0x7E02_0000  # CLONE_NEW* (include/uapi/linux/sched.h)
_EPERM, _ENOSYS = 1, 38


def profile() -> dict[str, Any]:
    """The profile, in the form that podman, Docker and Kubernetes read, with what systemd here knows."""
    no_namespace = {"index": 0, "value": _CLONE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _EPERM,  # as the unit's SystemCallErrorNumber=
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": sorted(names()), "action": "SCMP_ACT_ALLOW"},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [no_namespace]},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS},
        ],
    }


def names() -> set[str]:
    """The system calls that are let through whatever they are asked for."""
    return (allowed() | {*BECOME_USER, *PIPES}) - NAMESPACES


def allowed() -> set[str]:
    """The system calls that the unit's SystemCallFilter= lets through."""
    found = _group("@default")
    for line in re.findall(r"^SystemCallFilter=(.*)", UNIT.read_text(), re.MULTILINE):
        words = line.removeprefix("~").split()
        these = set().union(*(_group(word) if word.startswith("@") else {word} for word in words))
        found = found - these if line.startswith("~") else found | these
    return found


def _group(name: str) -> set[str]:
    """The system calls of one of systemd's groups, and of those in it."""
    text = subprocess.run(
        ["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True
    ).stdout
    words = {
        line.strip() for line in text.splitlines()[1:] if line.strip() and not line.strip().startswith("#")
    }
    groups = {word for word in words if word.startswith("@")}
    return (words - groups).union(*map(_group, groups))


if __name__ == "__main__":
    PROFILE.write_text(json.dumps(profile(), indent=2) + "\n")
    print(PROFILE)
