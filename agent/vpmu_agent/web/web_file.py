"""The file of --web.config.file as it is in force: TLS and authentication for the server.

Imported only where there is such a file, for it needs bcrypt and yaml.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vpmu_agent.web.config import Stamp, WebConfig, read, stamp
from vpmu_agent.web.errors import WebConfigError
from vpmu_agent.web.users import Passwords
from vpmu_agent.web.workers import Workers

RELOAD_S = 1.0
"""How long a client may have to wait for a reload; after that, it meets the previous configuration."""


class WebFile:
    """The file, reloaded whenever it or one that it names has changed.

    Raises WebConfigError when it is made, if the file cannot be used. Later such an error is passed to
    `report`, once, and the previous configuration stays in effect.
    """

    def __init__(self, path: Path, report: Callable[[str], None]) -> None:
        self.path = path
        self._report = report
        self._reading = threading.Lock()
        self._reader = Workers(1, "web file")
        self._reload: asyncio.Future[WebConfig] | None = None
        self._checker = Workers(1, "HTTP password")
        self._passwords = Passwords(self._checker)
        self._seen: dict[Path, Stamp] = {}
        self._config: WebConfig = WebConfig()
        self._config = self._read()

    def current(self) -> WebConfig:
        """Return the configuration in effect, after a reload if anything has changed.

        One caller reloads. The others wait for no file: meanwhile they get the previous configuration.
        """
        if self._has_changed() and self._reading.acquire(blocking=False):
            try:
                if self._has_changed():
                    self._config = self._read()
            except WebConfigError as error:
                self._report(f"{error}; the previous configuration stays in effect")
            except Exception as error:  # a file must not keep clients out, however it is wrong
                found = f"{self.path}: {type(error).__name__}: {error}; please report this"
                self._report(f"{found}; the previous configuration stays in effect")
            finally:
                self._reading.release()
        return self._config

    @property
    def has_tls(self) -> bool:
        """Whether clients have to use TLS."""
        return self.current().tls is not None

    def reload(self) -> None:
        """Reload the file. Raise WebConfigError if it cannot be used; the previous configuration stays."""
        with self._reading:
            self._config = self._read()

    def start(self) -> None:
        """Start the threads that the others need. Raise RuntimeError if there can be none."""
        self._reader.start()
        self._checker.start()

    def stop(self) -> None:
        """Stop them."""
        self._reader.stop()
        self._checker.stop()

    async def terms(self) -> WebConfig:
        """Return the configuration in effect, as `current()` does, without waiting long for a file."""
        if self._has_changed():
            if self._reload is None or self._reload.done():
                self._reload = asyncio.wrap_future(self._reader.submit(self.current))
            with suppress(TimeoutError):
                async with asyncio.timeout(RELOAD_S):
                    await asyncio.shield(self._reload)
        return self._config

    async def admits(self, authorization: str, neighbours: str) -> bool:
        """Return whether an Authorization header has a user's name and password. Raise BusyError."""
        users = self._config.users
        return users is None or await self._passwords.admit(users, authorization, neighbours)

    def _has_changed(self) -> bool:
        return any(stamp(path) != before for path, before in self._seen.items())

    def _read(self) -> WebConfig:
        seen: dict[Path, Stamp] = {}
        try:
            config = read(self.path, seen)
        finally:
            self._seen = seen  # after a failure, too: any of these files may be the one that gets fixed
        if config.users and self._config.users:
            config.users.keep(self._config.users)
        return config
