"""What the rooms of the web share: how a web file fails, and how long a socket may still wait."""

from __future__ import annotations

import time


class WebConfigError(Exception):
    """The file of --web.config.file, or one that it names, cannot be used; the message says where and why."""


def time_left(end: float) -> float:
    """Seconds until `end` (time.monotonic()), for a socket: never 0, which would mean not to wait."""
    return max(end - time.monotonic(), 0.001)
