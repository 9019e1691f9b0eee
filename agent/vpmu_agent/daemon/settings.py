"""The daemon's settings: those in force, and what a reload changes of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vpmu_agent.daemon.config_file import ConfigError
from vpmu_agent.probes import Mode
from vpmu_agent.system.journal import Level, tell
from vpmu_agent.system.notify import notify
from vpmu_agent.system.user import User
from vpmu_agent.web.address import Address
from vpmu_agent.web.errors import WebConfigError

if TYPE_CHECKING:
    from vpmu_agent.counts.watch import Watch
    from vpmu_agent.web.web_file import WebFile


@dataclass(frozen=True, slots=True)
class Settings:
    """What flags and configuration file amount to; the fields are the keys of the file (config_file.py)."""

    listen: Address
    allow_hosts: frozenset[str]
    """Hosts that requests may be for, besides those that are known (web/hosts.py)."""
    web_config_file: Path | None
    per_counter: bool
    durations: bool
    """Measure how long calls take."""
    reads: bool
    """Count the calls that read counters and set their periods."""
    user: User
    wait: bool
    """Start also where KVM is not loaded yet."""
    attach: Mode


class Configuration:
    """The settings in force, and where new ones come from."""

    def __init__(self, read_settings: Callable[[], Settings]) -> None:
        """Read the settings. `read_settings` raises ConfigError where it cannot, and so does this."""
        self._read_settings = read_settings
        self.settings = read_settings()

    def reload_if(self, requested: bool, watch: Watch, web: WebFile | None) -> None:
        """Reload where that was requested, and tell the service manager and the log how it went."""
        if requested:
            notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            tell(f"configuration reload: {self.reload(watch, web)}")
            notify("READY=1")

    def reload(self, watch: Watch, web: WebFile | None) -> str:
        """Put in force what the files say now, as far as that takes no restart; return how it went.

        If anything is wrong with one of them, nothing changes.
        """
        done = []
        try:
            new = self._read_settings()
            if web:
                web.reload()
                done.append(f"{web.path} too")
        except (ConfigError, WebConfigError) as error:
            return _rejected(str(error))
        except Exception as error:  # a file must not end the daemon, however it is wrong
            return _rejected(f"{type(error).__name__}: {error}; please report this")
        if new.per_counter != self.settings.per_counter:
            watch.count_per_counter(new.per_counter)
            self.settings = replace(self.settings, per_counter=new.per_counter)
            done.append(f"per_counter is now {str(new.per_counter).lower()}")
        differ = [
            each.name for each in fields(new) if getattr(new, each.name) != getattr(self.settings, each.name)
        ]
        if differ:
            done.append(f"restart to change {', '.join(differ)}")
        return "; ".join(done) or "nothing changed"


def _rejected(found: str) -> str:
    for line in found.splitlines():
        tell(line, Level.ERROR)
    return "rejected, the previous settings stay in force"
