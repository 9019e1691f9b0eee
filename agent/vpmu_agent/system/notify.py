"""What a service manager is told of the daemon: sd_notify(3), through python3-systemd where one asks."""

from __future__ import annotations

import os

ENVIRONMENT = "NOTIFY_SOCKET"


class NotifyError(Exception):
    """The service manager waits for a word that cannot be said; the message says why and what to do."""


def notify(*states: str) -> None:
    """Tells it assignments such as READY=1; does nothing where no service manager asks.

    Raises NotifyError without python3-systemd: the manager would wait for READY=1, and end the daemon.
    """
    if ENVIRONMENT not in os.environ:
        return
    try:
        import systemd.daemon
    except ImportError as error:
        raise NotifyError(
            f"{ENVIRONMENT} is set, but Python's systemd module is missing: "
            "install Debian's python3-systemd, or use Type=exec"
        ) from error
    systemd.daemon.notify("\n".join(states))
