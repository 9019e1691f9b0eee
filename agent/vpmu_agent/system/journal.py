"""The log: lines on standard error, or entries with fields where standard error is systemd's journal.

Fields are what `journalctl -u vpmu-agent VPMU_VM=web01` searches by.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from enum import IntEnum
from typing import TextIO

from vpmu_agent.system.ready import is_writable

SOCKET = "/run/systemd/journal/socket"

KEPT = 100
"""How many entries are kept until they can be written; of later ones, only how many."""

_LENGTH = struct.Struct("<Q")
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class Level(IntEnum):
    """The syslog priorities in use here."""

    ERROR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6


class Log:
    """Writes entries, and keeps those that cannot be written until they can be; it never raises or blocks.

    A full disk, a closed pipe, a reader that has stopped: none of them may end or delay what writes the log.
    Threads may share it.
    """

    def __init__(self, journal: str = SOCKET) -> None:
        """`journal` is the address of the journal's socket."""
        self._journal = journal
        self._lock = threading.Lock()
        self._kept: deque[tuple[str, Level, dict[str, str]]] = deque()
        self._rest = b""  # of a line of which standard error took only a part
        self._dropped = 0  # since the last entry was written
        self.delayed = 0
        """How many entries could not be written when they were due."""

    def tell(self, text: str, level: Level = Level.INFO, /, **fields: object) -> None:
        """Write one entry. Names of fields are in capitals; a field that is None is left out."""
        known = {name: str(value) for name, value in fields.items() if value is not None}
        with self._lock:
            self._tell_kept()
            if not self._kept and self._written(text, level, known):
                return
            self.delayed += 1
            if len(self._kept) < KEPT:
                self._kept.append((text, level, known))
            else:  # the first ones tell how it began
                self._dropped += 1

    def retry(self) -> None:
        """Write what could not be written before; to be called about once a second."""
        with self._lock:
            self._tell_kept()

    def _tell_kept(self) -> None:
        if self._rest:
            self._rest = self._rest[_write(self._rest) :]
        while self._kept and self._written(*self._kept[0]):
            self._kept.popleft()
        if self._dropped and not self._kept:
            lost = f"{self._dropped} more entries could not be written to the log, and are lost"
            if self._written(lost, Level.WARNING, {}):
                self._dropped = 0

    def _written(self, text: str, level: Level, fields: Mapping[str, str]) -> bool:
        if is_journal(sys.stderr):
            entry = {
                "MESSAGE": text,
                "PRIORITY": str(int(level)),
                "SYSLOG_IDENTIFIER": "vpmu-agent",
                **fields,
            }
            # OSError: the journal is restarting. What is written to standard error waits for it.
            with suppress(OSError):
                send(entry, self._journal)
                return True
        return self._line_written(text)

    def _line_written(self, text: str) -> bool:
        """Write a line to standard error; return False if it took nothing of it."""
        if self._rest:
            return False
        line = f"{text}\n".encode(errors="backslashreplace")
        written = _write(line)
        self._rest = line[written:] if written else b""
        return written > 0


LOG = Log()
"""The log of this process."""

tell = LOG.tell


def _write(data: bytes) -> int:
    """Write to standard error what it takes without waiting; return how many bytes that were."""
    written = 0
    if sys.stderr.closed:
        return written
    try:
        descriptor = sys.stderr.fileno()
    except OSError:  # a StringIO, which has none, and takes all
        print(data.decode(), file=sys.stderr, end="", flush=True)
        return len(data)
    with suppress(OSError):  # full or closed
        while written < len(data) and is_writable(descriptor):
            written += os.write(descriptor, data[written : written + select.PIPE_BUF])
    return written


def is_journal(stream: TextIO) -> bool:
    """Return whether this stream goes to the journal: JOURNAL_STREAM names its device and inode."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):  # closed, or a StringIO's, which has no descriptor
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def send(entry: Mapping[str, str], address: str = SOCKET) -> None:
    """Send one entry to the journal at `address`, in its native protocol.

    Raise OSError where it takes none, or where that would mean to wait.

    https://systemd.io/JOURNAL_NATIVE_PROTOCOL/
    """
    data = b"".join(_field(name, value) for name, value in entry.items())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.setblocking(False)
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
