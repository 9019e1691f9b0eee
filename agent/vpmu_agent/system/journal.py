"""The log: lines on standard error, or entries with fields where standard error is systemd's journal.

Fields are what `journalctl -u vpmu-agent VPMU_VM=web01` searches by.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from enum import IntEnum
from functools import cache
from typing import cast


class Level(IntEnum):
    """The syslog priorities in use here."""

    ERROR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6


def tell(text: str, level: Level = Level.INFO, **fields: object) -> None:
    """Write one entry to the log. Names of fields are in capitals; a field that is None is left out."""
    if send := _journal():
        known = {name: str(value) for name, value in fields.items() if value is not None}
        try:
            send(text, PRIORITY=str(int(level)), SYSLOG_IDENTIFIER="vpmu-agent", **known)
            return
        except OSError:  # the journal is restarting: what is written to standard error waits for it
            pass
    print(text, file=sys.stderr, flush=True)


@cache
def _journal() -> Callable[..., None] | None:
    """What sends to the journal, if standard error goes there and python3-systemd is installed."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        stderr = os.fstat(sys.stderr.fileno())
        if (device, inode) != (str(stderr.st_dev), str(stderr.st_ino)):
            return None
        from systemd.journal import send
    except (OSError, ImportError):
        return None
    return cast(Callable[..., None], send)
