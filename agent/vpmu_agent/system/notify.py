"""Messages to the service manager, as sd_notify(3) sends them."""

from __future__ import annotations

import os
import socket

ENVIRONMENT = "NOTIFY_SOCKET"


class NotifyError(Exception):
    """The service manager waits for a message that cannot be sent; this one says why and what to do."""


def notify(*states: str) -> None:
    """Send assignments such as READY=1 to the service manager; do nothing where none asks for them.

    Raise NotifyError where they cannot be sent: the manager would wait for READY=1, and end the daemon.
    """
    address = os.environ.get(ENVIRONMENT)
    if address is None:
        return
    if not address.startswith(("/", "@")):
        raise NotifyError(f"{ENVIRONMENT} is {address!r}: expected an absolute path, or @NAME")
    # An abstract socket's address begins with a zero byte.
    target = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.sendto("\n".join(states).encode(), target)
    except OSError as error:
        raise NotifyError(
            f"cannot notify the service manager at {ENVIRONMENT}={address}: {error.strerror or error}; "
            f"unset {ENVIRONMENT} where there is none"
        ) from error
