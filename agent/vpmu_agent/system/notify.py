"""Messages to the service manager, as sd_notify(3) sends them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from vpmu_agent.system.journal import Level, tell

ENVIRONMENT = "NOTIFY_SOCKET"

_SOON_OLD = ("WATCHDOG", "EXTEND_TIMEOUT_USEC")
"""What is true of one moment only: where it cannot be sent, the next one will do."""

_RELOAD = ("RELOADING", "MONOTONIC_USEC")


class ServiceManager:
    """Sends assignments such as READY=1, and keeps those that cannot be sent until they can be.

    Nothing here raises or blocks: a manager that is away for a while, or for good, is no reason to end.
    """

    def __init__(self, tell: Callable[[str, Level], None] = tell) -> None:
        """`tell` is journal.tell(), or a test's."""
        self._tell = tell
        self._kept: dict[str, str] = {}
        self._is_away = False
        self.delayed = 0
        """How many messages could not be sent when they were due."""

    def notify(self, *states: str) -> None:
        """Send assignments; do nothing where none asks for them.

        Those of before that could not be sent go with them, but for what a later one has replaced.
        """
        address = os.environ.get(ENVIRONMENT)
        if address is None:
            return
        for state in states:
            name, _, value = state.partition("=")
            self._kept.pop(name, None)  # the last one is last
            self._kept[name] = value
        if "READY=1" in states:  # what says that a reload goes on is over by now
            for name in _RELOAD:
                self._kept.pop(name, None)
        if why := _refusal(address, "\n".join(f"{name}={value}" for name, value in self._kept.items())):
            self._keep(address, why)
        else:
            self._kept.clear()
            if self._is_away:
                self._is_away = False
                self._tell("the service manager is told again", Level.NOTICE)

    def _keep(self, address: str, why: str) -> None:
        self.delayed += 1
        for name in _SOON_OLD:
            self._kept.pop(name, None)
        if not self._is_away:
            self._is_away = True
            self._tell(
                f"cannot notify the service manager at {ENVIRONMENT}={address}: {why}; it is tried again; "
                f"unset {ENVIRONMENT} where there is none",
                Level.WARNING,
            )


MANAGER = ServiceManager()
"""The service manager of this process."""

notify = MANAGER.notify


def _refusal(address: str, message: str) -> str:
    """Send a message without waiting; return why it could not be sent, "" if it was."""
    if not address.startswith(("/", "@")):
        return "expected an absolute path, or @NAME"
    # An abstract socket's address begins with a zero byte.
    target = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.setblocking(False)
            manager.sendto(message.encode(errors="backslashreplace"), target)
    except (OSError, ValueError) as error:  # ValueError: a name with a 0 in it
        return getattr(error, "strerror", None) or str(error)
    return ""
