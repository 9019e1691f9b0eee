"""What server and web file share: how a web file fails, and how long a socket may still wait."""

from __future__ import annotations

import time


class WebConfigError(Exception):
    """The file of --web.config.file, or one that it names, cannot be used; the message says where and why."""


def time_left(end: float) -> float:
    """Return the seconds until `end` (time.monotonic()), as a socket's timeout.

    Never 0, which would make the socket non-blocking.
    """
    return max(end - time.monotonic(), 0.001)
