"""Whether this process sees the host as it is: what namespaces and mount options hide, in a container or not.

As in facts.py, what cannot be read is None, not a guess.
"""

from __future__ import annotations

import os
from pathlib import Path

from vpmu_agent.kernel.errors import KernelError

ROOT = Path("/")

# The inode numbers of the host's own namespaces: PROC_PID_INIT_INO, PROC_USER_INIT_INO in
# include/linux/proc_ns.h (from Linux 6.18 on PID_NS_INIT_INO, USER_NS_INIT_INO in include/uapi/linux/nsfs.h).
_HOSTS = {"pid": 0xEFFFFFFC, "user": 0xEFFFFFFD}

HOST_PIDS_TODO = (
    "run it in the host's PID namespace (podman, docker: --pid=host; Quadlet: PodmanArgs=--pid=host; "
    "Kubernetes: hostPID: true)"
)

_OWN_PIDS = (
    "this process is in a PID namespace of its own, where it cannot tell which VM a process is or whether it "
    "still runs"
)


def is_hosts_namespace(kind: str, *, root: Path = ROOT) -> bool | None:
    """Return whether this process is in the host's own namespace of a kind, "pid" or "user"."""
    try:
        # Such as pid:[4026531836]. Not stat(): it would follow the link into a process that is not there.
        return str((root / "proc/self/ns" / kind).readlink()) == f"{kind}:[{_HOSTS[kind]}]"
    except OSError:
        return None


def require_host_pids(*, root: Path = ROOT) -> None:
    """Raise KernelError if this process, or /proc, is in a PID namespace other than the host's.

    The probes send the host's PIDs (bpf_get_current_pid_tgid()): here VMs would get the names of other
    processes, or be taken for dead.
    """
    if is_hosts_namespace("pid", root=root) is False:
        raise KernelError(_OWN_PIDS, HOST_PIDS_TODO)
    if is_hosts_namespace("pid", root=root) is None and _is_strangers_proc(root):
        raise KernelError(
            "/proc is that of another PID namespace, where it cannot tell which VM a process is",
            f"mount /proc again (`mount -t proc proc /proc`), or {HOST_PIDS_TODO}",
        )


def require_children_here(*, root: Path = ROOT) -> None:
    """Raise KernelError if the children of this process start in another PID namespace than its own.

    As after `unshare -p` without `--fork`: a child cannot see its parent, and once the first child has ended,
    nothing can be started any more (pid_namespaces(7)).
    """
    links = [root / "proc/self/ns" / name for name in ("pid", "pid_for_children")]
    if not all(link.is_symlink() for link in links):
        return  # no /proc, or a kernel before 4.12
    try:
        is_here = links[0].readlink() == links[1].readlink()
    except FileNotFoundError:  # no process was started in that namespace yet
        is_here = False
    if not is_here:
        raise KernelError(_OWN_PIDS, HOST_PIDS_TODO)


def _is_strangers_proc(root: Path) -> bool:
    """Return whether /proc is mounted, but does not have this process."""
    proc = root / "proc"
    return (proc / "version").exists() and (proc / "self").is_symlink() and not (proc / "self/ns").exists()


def hidepid(*, root: Path = ROOT) -> str | None:
    """Return the mount option hidepid of /proc, "" if it hides no process (proc(5))."""
    try:
        lines = (root / "proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return None
    value = ""
    for line in lines:
        # 23 29 0:21 / /proc rw,nosuid shared:13 - proc proc rw,hidepid=invisible (proc(5))
        # If there are several, the last one is on top.
        before, _, after = line.partition(" - ")
        if before.split()[4:5] == ["/proc"]:
            options = after.split()[-1].split(",")
            value = next((o.removeprefix("hidepid=") for o in options if o.startswith("hidepid=")), "")
    return "" if value in ("0", "off") else value


def hidden_processes(*, root: Path = ROOT) -> str:
    """Return the mount option hidepid of /proc if it hides other users' processes from this one, else ""."""
    return "" if os.access(root / "proc/1/cmdline", os.R_OK) else hidepid(root=root) or ""


def has_sysfs(*, root: Path = ROOT) -> bool:
    """Return whether /sys is the kernel's, and not an empty folder as in a bare chroot."""
    return (root / "sys/kernel").is_dir() and (root / "sys/module").is_dir()
