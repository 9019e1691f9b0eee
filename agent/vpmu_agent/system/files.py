"""The files that the agent is told to read or to write.

It reads regular ones, of a bounded size; it writes what other users neither chose nor can read. It waits for
nobody who would have to open the other end.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_NOT_REGULAR = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}

_WRITE = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
_PRIVATE = 0o600
_ROOT = 0


def read_file(path: Path, max_size: int) -> bytes:
    """Return the contents of a regular file of at most `max_size` bytes.

    Raise OSError as open_file() does, and if the file is longer; `strerror` then says so.
    """
    descriptor = open_file(path)
    try:
        return read_opened(descriptor, max_size)
    finally:
        os.close(descriptor)


def open_file(path: Path) -> int:
    """Open a regular file for reading; return its descriptor.

    Raise OSError if there is none or it cannot be read. That includes a FIFO, which could keep this process
    waiting, and a device, which could have no end; `strerror` then says so.
    """
    try:
        _require_regular(path.stat())  # before it is opened, for that alone does something to some devices
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except ValueError as error:  # a NUL, or what the file system's encoding does not have
        raise OSError(errno.EINVAL, "its name has a character that no file name can have") from error
    try:
        _require_regular(os.fstat(descriptor))  # it may have been replaced meanwhile
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_opened(descriptor: int, max_size: int) -> bytes:
    """Return what is left of a file, of `max_size` bytes at most. Raise OSError."""
    data = bytearray()
    # The size that fstat() says is not asked: that of a file in /proc is 0, and any file may grow.
    while chunk := os.read(descriptor, max_size + 1 - len(data)):
        data += chunk
        if len(data) > max_size:
            raise OSError(errno.EFBIG, f"longer than {max_size // 1024} KiB")
    return bytes(data)


def create_private_file(path: Path) -> int:
    """Open a file for writing that only this user can read; return its descriptor.

    It is a new one, or one of this user's, which is emptied and no longer open to others. A FIFO or a
    character device serves too, if it is this user's or root's. A symbolic link of theirs is followed, and
    what it leads to keeps its owner and its mode: so /dev/stdout works. A write to a pipe or a device does
    not wait for room (O_NONBLOCK).

    Raise OSError for what another user made, who could read what is written or have it written to where it
    does harm; for a FIFO without a reader, which could keep this process waiting; and if the file cannot be
    written. `strerror` then says so.
    """
    try:
        return os.open(path, _WRITE | os.O_CREAT | os.O_EXCL, _PRIVATE)
    except FileExistsError:
        is_followed = _is_trusted_link(path)
    try:
        descriptor = os.open(path, _WRITE if is_followed else _WRITE | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in _NOT_WRITABLE:
            raise OSError(error.errno, _NOT_WRITABLE[error.errno]) from error
        raise
    try:
        found = os.fstat(descriptor)
        if stat.S_ISBLK(found.st_mode):
            raise OSError(errno.EINVAL, "it is a block device")
        if not is_followed:
            _make_private(descriptor, found)
        if stat.S_ISREG(found.st_mode):
            os.ftruncate(descriptor, 0)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


_NOT_WRITABLE = {
    errno.ELOOP: "it is another user's symbolic link",
    errno.ENXIO: "it is a FIFO that nobody reads, or a socket",
}


def _is_trusted_link(path: Path) -> bool:
    """Return whether this user or root made what is a symbolic link. Raise OSError."""
    found = path.lstat()
    return stat.S_ISLNK(found.st_mode) and found.st_uid in (_ROOT, os.geteuid())


def _make_private(descriptor: int, found: os.stat_result) -> None:
    if found.st_uid not in (_ROOT, os.geteuid()):
        raise OSError(errno.EPERM, f"it belongs to another user (uid {found.st_uid}); remove it first")
    if stat.S_ISREG(found.st_mode):
        os.fchmod(descriptor, _PRIVATE)


def _require_regular(found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        kind = _NOT_REGULAR.get(stat.S_IFMT(found.st_mode), "of another kind")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file")
