"""Whether the daemon is seen to work, as the service manager's watchdog hears of it."""

from __future__ import annotations

from collections.abc import Callable

from vpmu_agent.system.journal import Level, tell
from vpmu_agent.system.notify import notify


class Pulse:
    """Feeds the service manager's watchdog as long as the daemon is seen to work: it, and its server."""

    def __init__(self, trouble: Callable[[], str]) -> None:
        """Take what says why the server does not work, or nothing."""
        self._trouble = trouble
        self._told = ""

    def sweep(self) -> None:
        """Feed the watchdog, or say once why not."""
        trouble = self._trouble()
        if not trouble:
            notify("WATCHDOG=1")
        if trouble and not self._told:
            tell(f"{trouble}; a service manager with a watchdog will restart this daemon", Level.ERROR)
        elif self._told and not trouble:
            tell("the HTTP server works again")
        self._told = trouble
