"""A process: whether it still runs, whether it has a VM, and what /proc says about it."""

from __future__ import annotations

import errno
import os
import resource
import select
from pathlib import Path

import psutil

_READ_SIZE = 64 * 1024
"""Bytes to read of a file in /proc: the command line of a QEMU with many disks has about ten thousand."""

_STATE, _START = 3, 22  # fields of /proc/PID/stat, counted from 1 as in proc(5)
_ENDED = ("Z", "X")  # a zombie, or one that is about to be none


def running() -> list[int]:
    """Return the tgids of processes that have a VM now, among those that this user may look into."""
    return [tgid for tgid in psutil.pids() if _holds_vm(Path(f"/proc/{tgid}/fd"))]


class Process:
    """One process, told apart from any later one with its PID.

    By a pidfd: one system call then says whether it is there, even if /proc hides it. Without one, by its
    start time, or if /proc hides that, by its PID alone.
    """

    __slots__ = ("_start", "pidfd", "tgid")

    @classmethod
    def find(cls, tgid: int) -> Process | None:
        """Return the process that has this PID now, if any; it may be a zombie."""
        try:
            fd = _pidfd(tgid)
        except ProcessLookupError:
            return None
        if fd < 0 and not _exists(tgid):
            return None
        return cls(tgid, fd)

    def __init__(self, tgid: int, fd: int) -> None:
        self.tgid = tgid
        self.pidfd = fd
        if fd < 0:
            self._start = _state_and_start(tgid)[1]  # "" if /proc hides it

    def __del__(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)

    def is_surely_alive(self) -> bool:
        """Return whether it is known to be alive and to be the same process."""
        return self.pidfd >= 0 and self.is_alive()

    def is_alive(self) -> bool:
        """Return whether it runs; a zombie, of which only the exit status is left, does not."""
        if self.pidfd >= 0:
            poll = select.poll()  # a kept one takes 300 bytes, of which a host may have thousands
            poll.register(self.pidfd, select.POLLIN)
            return not poll.poll(0)  # readable once all its threads have ended
        if not self._start:
            return _exists(self.tgid)
        state, start = _state_and_start(self.tgid)
        return start == self._start and state not in _ENDED


class Ends:
    """Says which of many processes have ended, by one system call for all: an epoll of their pidfds."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._tgids: dict[int, int] = {}  # by pidfd; the kernel forgets those that were closed

    def watch(self, process: Process) -> bool:
        """Tell of the end of this process too, until it is deleted; return False if that cannot be."""
        if process.pidfd < 0:
            return False
        try:
            self._epoll.register(process.pidfd, select.EPOLLIN)
        except OSError:  # fs.epoll.max_user_watches
            return False
        self._tgids[process.pidfd] = process.tgid
        return True

    def take(self) -> set[int]:
        """Return the tgids of processes that have ended; each once."""
        ended = [fd for fd, _ in self._epoll.poll(0, max(1, len(self._tgids)))]
        for fd in ended:
            self._epoll.unregister(fd)
        return {self._tgids.pop(fd) for fd in ended}


def _pidfd(tgid: int) -> int:
    """Return a pidfd for a process, -1 if none can be had.

    Raise ProcessLookupError if there is no such process.
    """
    try:
        fd = os.pidfd_open(tgid)
    except OSError as error:
        # The PID is now that of a thread of another process (EINVAL before Linux 6.9).
        if error.errno in (errno.EINVAL, errno.ENOENT):
            raise ProcessLookupError from error
        if error.errno == errno.ESRCH:
            raise
        return -1  # the limit on open files, or a seccomp filter that does not know the call
    # The kernel takes the lowest free number: leave half of them for connections to the HTTP server.
    if fd >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2:
        os.close(fd)
        return -1
    return fd


def _state_and_start(tgid: int) -> tuple[str, str]:
    """Return the state of a process, a letter, and when it began, in ticks; both are "" if /proc hides it."""
    # proc(5), /proc/pid/stat: the state is the first field after the name, which may hold anything.
    after_name = read_text(f"/proc/{tgid}/stat").rpartition(")")[2].split()
    return (after_name[0], after_name[_START - _STATE]) if after_name else ("", "")


def _exists(tgid: int) -> bool:
    """Return whether there is such a process, even if /proc hides it."""
    try:
        os.kill(tgid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def read_text(file: str, size: int = _READ_SIZE) -> str:
    """Return the text of a small file, "" if it cannot be read. pathlib takes three times as long."""
    try:
        with open(file, "rb", buffering=0) as opened:  # noqa: PTH123
            return (opened.read(size) or b"").decode(errors="replace")
    except (OSError, ValueError):  # ValueError: a name with a 0 in it
        return ""


def _holds_vm(fds: Path) -> bool:
    """Return whether a process has a VM open: KVM_CREATE_VM returns a file of this name."""
    try:
        return any(_target(fd) == "anon_inode:kvm-vm" for fd in fds.iterdir())
    except OSError:
        return False


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # closed since
        return ""
