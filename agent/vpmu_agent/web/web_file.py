"""The file of --web.config.file as it is in force: TLS and authentication for the server.

Imported only where there is such a file, for it needs bcrypt and yaml.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpmu_agent.web.config import Stamp, WebConfig, read, stamp
from vpmu_agent.web.errors import WebConfigError, time_left
from vpmu_agent.web.users import BusyError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class WebFile:
    """The file, reloaded whenever it or one that it names has changed.

    Raises WebConfigError when it is made, if the file cannot be used. Later such an error is passed to
    `report`, once, and the previous configuration stays in effect.
    """

    def __init__(self, path: Path, report: Callable[[str], None]) -> None:
        self.path = path
        self._report = report
        self._reading = threading.Lock()
        self._seen: dict[Path, Stamp] = {}
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

    def secured(self, client: socket.socket, end: float) -> socket.socket | None:
        """Return the client's connection after a TLS handshake, or `client` itself where TLS is off.

        Return None if the client has to use TLS and does not. Raise OSError, with `client` closed, if the
        handshake fails or is not complete at `end` (time.monotonic()).
        """
        config = self.current()
        if config.tls is None:
            return client
        client.settimeout(time_left(end))
        if client.recv(1, socket.MSG_PEEK) != _HANDSHAKE:
            return None
        connection = config.tls.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        try:
            connection.settimeout(time_left(end))
            connection.do_handshake()
            if config.allowed_sans and config.allowed_sans.isdisjoint(_sans(connection.getpeercert())):
                raise ConnectionAbortedError("client_allowed_sans has none of the certificate's names")
        except BaseException:
            connection.close()
            raise
        return connection

    def guarded(self, application: WSGIApplication) -> WSGIApplication:
        """Return `application` behind authentication, with the file's headers on every answer."""

        def guard(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            config = self.current()
            replaced = {name.lower() for name in config.headers}

            def start(
                status: str, headers: list[tuple[str, str]], *failure: Any
            ) -> Callable[[bytes], object]:
                kept = [(name, value) for name, value in headers if name.lower() not in replaced]
                return start_response(status, [*kept, *config.headers.items()], *failure)

            try:
                if config.users is None or config.users.admits(environ.get("HTTP_AUTHORIZATION", "")):
                    return application(environ, start)
                start("401 Unauthorized", [_TEXT, ("WWW-Authenticate", _CHALLENGE)])
                body = b"user name and password required\n"
            except BusyError:
                start("503 Service Unavailable", [_TEXT])
                body = b"too many passwords are waiting to be checked; try again\n"
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

        return guard

    def _has_changed(self) -> bool:
        return any(stamp(path) != before for path, before in self._seen.items())

    def _read(self) -> WebConfig:
        seen: dict[Path, Stamp] = {}
        try:
            return read(self.path, seen)
        finally:
            self._seen = seen  # after a failure, too: any of these files may be the one that gets fixed


_HANDSHAKE = b"\x16"  # the first byte of TLS: the type of its first record
_TEXT = ("Content-Type", "text/plain; charset=utf-8")
_CHALLENGE = 'Basic realm="vpmu-agent", charset="UTF-8"'


def _sans(certificate: Mapping[str, Any] | None) -> set[str]:
    """Return the subject alternative names of a client's certificate: DNS, IP, e-mail, URI."""
    names = (certificate or {}).get("subjectAltName", ())
    return {str(ipaddress.ip_address(name)) if kind == "IP Address" else name for kind, name in names}
