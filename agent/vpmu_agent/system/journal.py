"""The log: lines on standard error, or entries with fields where standard error is systemd's journal.

Fields are what `journalctl -u vpmu-agent VPMU_VM=web01` searches by.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Mapping
from enum import IntEnum
from typing import TextIO

SOCKET = "/run/systemd/journal/socket"

_LENGTH = struct.Struct("<Q")
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class Level(IntEnum):
    """The syslog priorities in use here."""

    ERROR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6


def tell(text: str, level: Level = Level.INFO, /, *, journal: str = SOCKET, **fields: object) -> None:
    """Write one entry to the log. Names of fields are in capitals; a field that is None is left out.

    `journal` is the address of the journal's socket.
    """
    if is_journal(sys.stderr):
        known = {name: str(value) for name, value in fields.items() if value is not None}
        entry = {"MESSAGE": text, "PRIORITY": str(int(level)), "SYSLOG_IDENTIFIER": "vpmu-agent", **known}
        try:
            send(entry, journal)
            return
        except OSError:  # the journal is restarting: what is written to standard error waits for it
            pass
    print(text, file=sys.stderr, flush=True)


def is_journal(stream: TextIO) -> bool:
    """Return whether this stream goes to the journal: JOURNAL_STREAM names its device and inode."""
    try:
        found = os.fstat(stream.fileno())
    except OSError:  # such as a StringIO's, which has no descriptor
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def send(entry: Mapping[str, str], address: str = SOCKET) -> None:
    """Send one entry to the journal at `address`, in its native protocol. Raise OSError where it takes none.

    https://systemd.io/JOURNAL_NATIVE_PROTOCOL/
    """
    data = b"".join(_field(name, value) for name, value in entry.items())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.connect(address)
        try:
            journal.send(data)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            _send_as_file(journal, data)


def _field(name: str, value: str) -> bytes:
    """Return NAME=value, or where the value has more than one line, its length before it."""
    data = value.encode(errors="backslashreplace")
    if b"\n" not in data:
        return name.encode() + b"=" + data + b"\n"
    return name.encode() + b"\n" + _LENGTH.pack(len(data)) + data + b"\n"


def _send_as_file(journal: socket.socket, data: bytes) -> None:
    """Send what is too long for a datagram, as a file in memory that is sealed against any change."""
    descriptor = os.memfd_create("journal-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        file.write(data)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
        socket.send_fds(journal, [b""], [file.fileno()])
