"""Read the files that the agent is told to read: regular ones, of a bounded size, without waiting."""

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


def _require_regular(found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        kind = _NOT_REGULAR.get(stat.S_IFMT(found.st_mode), "of another kind")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file")
