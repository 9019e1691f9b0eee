"""Writes packaging/seccomp.json: `python -m tools.image.seccomp`. The system calls of the service, and a few more.

A profile of our own because podman's own has allowed bpf() for CAP_BPF only since 4.5 or so, and
perf_event_open() for CAP_PERFMON only since containers/common of November 2025; and because it lets through
half as many calls as they do.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

_TREE = Path(__file__).parents[2]
UNIT = _TREE / "systemd" / "vpmu-agent.service"
PROFILE = _TREE / "packaging" / "seccomp.json"

# The service is started as its user; where a container's runtime cannot do that, the daemon becomes it.
BECOME_USER = ("setgroups", "setresgid", "setresuid")
# Not used by the daemon, but by whoever looks around with `podman exec ... sh`.
PIPES = ("pipe", "pipe2")


def profile() -> dict[str, object]:
    """The profile, in the form that podman, Docker and Kubernetes read, with what systemd here knows."""
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,  # EPERM, as the unit's SystemCallErrorNumber=
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": sorted(allowed() | {*BECOME_USER, *PIPES}), "action": "SCMP_ACT_ALLOW"},
        ],
    }


def allowed() -> set[str]:
    """The system calls that the unit's SystemCallFilter= lets through."""
    names = _group("@default")
    for line in re.findall(r"^SystemCallFilter=(.*)", UNIT.read_text(), re.MULTILINE):
        words = line.removeprefix("~").split()
        these = set().union(*(_group(word) if word.startswith("@") else {word} for word in words))
        names = names - these if line.startswith("~") else names | these
    return names


def _group(name: str) -> set[str]:
    """The system calls of one of systemd's groups, and of those in it."""
    text = subprocess.run(
        ["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True
    ).stdout
    words = {line.strip() for line in text.splitlines()[1:] if line.strip() and not line.strip().startswith("#")}
    groups = {word for word in words if word.startswith("@")}
    return (words - groups).union(*map(_group, groups))


if __name__ == "__main__":
    PROFILE.write_text(json.dumps(profile(), indent=2) + "\n")
    print(PROFILE)
