"""The file of --web.config.file as it is in force: TLS and users for the server.

Only who has such a file imports this, and with it bcrypt and yaml.
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
    """The file, read anew whenever it or one that it names has changed.

    Raises WebConfigError when it is made. Later a file that cannot be used is told to `report`, once, and
    what was read before stays.
    """

    def __init__(self, path: Path, report: Callable[[str], None]) -> None:
        self.path = path
        self._report = report
        self._lock = threading.Lock()
        self._seen: dict[Path, Stamp] = {}
        self._config = self._read()

    def current(self) -> WebConfig:
        """What holds now."""
        if self._has_changed():
            with self._lock:
                if self._has_changed():
                    try:
                        self._config = self._read()
                    except WebConfigError as error:
                        self._report(f"{error}; what was read before stays")
        return self._config

    @property
    def has_tls(self) -> bool:
        """Whether clients must speak TLS now."""
        return self.current().tls is not None

    def reload(self) -> None:
        """Reads it anew. Raises WebConfigError if it cannot be used; what was read before stays then."""
        with self._lock:
            self._config = self._read()

    def secured(self, client: socket.socket, end: float) -> socket.socket | None:
        """The client behind TLS, if that is wanted; None if it speaks something else.

        OSError if the handshake fails, or is not over at `end` (time.monotonic()); `client` is closed then.
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
        """The same for users that are known, and with the headers that the file has."""

        def guard(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            config = self.current()
            theirs = {name.lower() for name in config.headers}

            def start(
                status: str, headers: list[tuple[str, str]], *failure: Any
            ) -> Callable[[bytes], object]:
                ours = [header for header in headers if header[0].lower() not in theirs]
                return start_response(status, [*ours, *config.headers.items()], *failure)

            try:
                if config.users is None or config.users.admits(environ.get("HTTP_AUTHORIZATION", "")):
                    return application(environ, start)
                start("401 Unauthorized", [_TEXT, ("WWW-Authenticate", _CHALLENGE)])
                body = b"a user and a password are needed\n"
            except BusyError:
                start("503 Service Unavailable", [_TEXT])
                body = b"too many passwords at once; try again\n"
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

        return guard

    def _has_changed(self) -> bool:
        return any(stamp(path) != before for path, before in self._seen.items())

    def _read(self) -> WebConfig:
        seen: dict[Path, Stamp] = {}
        try:
            return read(self.path, seen)
        finally:
            self._seen = seen  # of a failure, too: it may be mended in any of them


_HANDSHAKE = b"\x16"  # the first byte of TLS: the type of a record
_TEXT = ("Content-Type", "text/plain; charset=utf-8")
_CHALLENGE = 'Basic realm="vpmu-agent", charset="UTF-8"'


def _sans(certificate: Mapping[str, Any] | None) -> set[str]:
    """The names that a client's certificate has beside its subject: DNS, IP, e-mail, URI."""
    names = (certificate or {}).get("subjectAltName", ())
    return {str(ipaddress.ip_address(name)) if kind == "IP Address" else name for kind, name in names}
