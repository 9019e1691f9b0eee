"""A process: whether it still runs, whether it holds a VM, and what /proc says of it."""

from __future__ import annotations

import errno
import os
import resource
import select
from contextlib import suppress
from pathlib import Path

import psutil

_READ_SIZE = 64 * 1024
"""Bytes that are read of a file in /proc: a QEMU with many disks has a command line of some ten thousand."""


def running() -> list[int]:
    """The processes that hold a VM now; only those that this user may look into."""
    return [tgid for tgid in psutil.pids() if _holds_vm(Path(f"/proc/{tgid}/fd"))]


class Process:
    """One process, told from any later one with its number.

    By a pidfd: whether it is there takes one system call then, also where /proc hides it. Without one by the
    time when it started, or if /proc hides that, by its number alone.
    """

    __slots__ = ("_fd", "_poll", "_process", "_tgid")

    @classmethod
    def find(cls, tgid: int) -> Process | None:
        """The process that has this number now, if any; it may be a zombie."""
        try:
            fd = _pidfd(tgid)
        except ProcessLookupError:
            return None
        if fd < 0 and not _exists(tgid):
            return None
        return cls(tgid, fd)

    def __init__(self, tgid: int, fd: int) -> None:
        self._tgid = tgid
        self._fd = fd
        self._process: psutil.Process | None = None
        if fd >= 0:
            self._poll = select.poll()
            self._poll.register(fd, select.POLLIN)
            return
        with suppress(psutil.Error):  # if /proc hides it
            self._process = psutil.Process(tgid)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def is_surely_alive(self) -> bool:
        """Whether it is known to be alive, and to be no other process."""
        return self._fd >= 0 and self.is_alive()

    def is_alive(self) -> bool:
        """Whether it runs; not as a zombie, of which nothing remains but its exit status."""
        if self._fd >= 0:
            return not self._poll.poll(0)  # readable once all its threads have ended
        if self._process is None:
            return _exists(self._tgid)
        try:
            return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


def _pidfd(tgid: int) -> int:
    """A descriptor for a process, -1 if none can be had.

    Raises ProcessLookupError if there is no such process.
    """
    try:
        fd = os.pidfd_open(tgid)
    except OSError as error:
        # The number is now a thread's, of another process (EINVAL before Linux 6.9).
        if error.errno in (errno.EINVAL, errno.ENOENT):
            raise ProcessLookupError from error
        if error.errno == errno.ESRCH:
            raise
        return -1  # the limit of open files, or a seccomp filter that does not know the call
    # The kernel takes the lowest free number: half of them are left for whoever comes to read the metrics.
    if fd >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2:
        os.close(fd)
        return -1
    return fd


def _exists(tgid: int) -> bool:
    """Whether there is such a process, also one that /proc hides."""
    try:
        os.kill(tgid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def read_text(file: str, size: int = _READ_SIZE) -> str:
    """The text of a small file, "" if it cannot be read; pathlib would take three times as long."""
    try:
        with open(file, "rb", buffering=0) as opened:  # noqa: PTH123
            return (opened.read(size) or b"").decode(errors="replace")
    except (OSError, ValueError):  # ValueError: a name with a 0 in it
        return ""


def _holds_vm(fds: Path) -> bool:
    """Whether a process has a VM open: KVM_CREATE_VM returns a file of this name."""
    try:
        return any(_target(fd) == "anon_inode:kvm-vm" for fd in fds.iterdir())
    except OSError:
        return False


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # closed since
        return ""
