"""The user that the daemon runs as."""

from __future__ import annotations

import pwd
from dataclasses import dataclass

DAEMON_USER = "nobody"
"""The user that the daemon switches to when it was started as root, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class User:
    """A user to switch to, by its numbers."""

    uid: int
    gid: int


def find_user(name: str) -> User:
    """Return the user of that name, with its primary group. Raise KeyError if there is none."""
    entry = pwd.getpwnam(name)
    return User(entry.pw_uid, entry.pw_gid)
