"""HTTP: the standard library's WSGI server, a thread for each client; bounded in number, time and size."""

from __future__ import annotations

import io
import socket
import ssl
import sys
import threading
import time
from contextlib import closing, suppress
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any, Protocol
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from vpmu_agent.web.address import Address, ListenError
from vpmu_agent.web.errors import time_left

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

REQUEST_S = 5.0
"""How long a client may take for its request, from the connection to the last header."""

ANSWER_S = 60.0
"""How long it may take to read the answer: 13 MB for 1,000 VMs, and a slow link."""

MAX_REQUEST = 32 * 1024
"""Bytes of a request line and its headers; who sends more is told so."""

MAX_CLIENTS = 16
"""Clients at once; who comes when so many are there is turned away."""

_SHUTDOWN_S = 0.1  # how often the server looks whether it shall end
_LINGER_S = 1.0  # how long a client may take to hang up once it has its answer


class Security(Protocol):
    """What a server needs to speak TLS and to know its users; it may change between two clients."""

    @property
    def has_tls(self) -> bool:
        """Whether clients must speak TLS now."""

    def secured(self, client: socket.socket, end: float) -> socket.socket | None:
        """Return the client behind TLS, if that is wanted; None if it speaks something else.

        Raise OSError if the handshake fails, or is not over at `end` (time.monotonic()); `client` is closed
        then.
        """

    def guarded(self, application: WSGIApplication) -> WSGIApplication:
        """Return an application that answers known users as `application` does, and refuses others."""


class Server:
    """An HTTP server that listens from the moment it is made, and answers between `start()` and `close()`.

    Raise ListenError if it cannot listen on the address. Without `security` it answers everybody, in plain
    HTTP.
    """

    def __init__(self, address: Address, security: Security | None = None) -> None:
        self._security = security
        try:
            self._http = _HttpServer(address, security)
        except OSError as error:
            raise ListenError(f"cannot listen on {address}: {error.strerror or error}") from error
        self._thread = threading.Thread(target=self._http.serve_forever, args=(_SHUTDOWN_S,), daemon=True)

    @property
    def address(self) -> Address:
        """Where it listens, with the port that the kernel chose if it was left to it."""
        host, port = self._http.server_address[:2]
        return Address(str(host), int(port))

    @property
    def url(self) -> str:
        """The same as a person would write it into a browser, without a path."""
        scheme = "https" if self._security and self._security.has_tls else "http"
        return f"{scheme}://{self.address}"

    def start(self, application: WSGIApplication) -> None:
        """Answer with `application`, in a thread, from now on."""
        self._http.set_app(self._security.guarded(application) if self._security else application)
        self._thread.start()

    def close(self) -> None:
        """Stops listening. A request that is being answered may still end."""
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()


class _TooLargeError(Exception):
    """A request has more bytes than anyone needs."""


class _Stream(io.RawIOBase):
    """What a client sends and gets, in bounded time, and of bounded size until `answer()`."""

    def __init__(self, client: socket.socket, end: float) -> None:
        self._client = client
        self._end = end  # time.monotonic()
        self._room = MAX_REQUEST

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._room <= 0:
            raise _TooLargeError
        self._limit_time()
        count = self._client.recv_into(buffer)
        self._room -= count
        return count

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._limit_time()
        try:
            self._client.sendall(data)
        except OSError as error:
            # The one kind that wsgiref takes for what it is: a client that left, or might as well have.
            raise ConnectionAbortedError from error
        return len(data)

    def answer(self) -> None:
        """The request is there; from now on the time is that of the answer."""
        self._end = time.monotonic() + ANSWER_S

    def _limit_time(self) -> None:
        self._client.settimeout(time_left(self._end))  # sendall() takes it for all that it sends


class _Request(WSGIRequestHandler):
    default_request_version = "HTTP/1.0"  # 0.9 has no status to say that something is wrong
    error_content_type = "text/plain; charset=utf-8"
    error_message_format = "%(code)d %(message)s\n"
    connection: socket.socket
    server: _HttpServer

    def setup(self) -> None:
        end = time.monotonic() + REQUEST_S
        security = self.server.security
        secured = security.secured(self.request, end) if security else self.request
        self._speaks_plainly = secured is None
        self.connection = secured or self.request
        self._stream = _Stream(self.connection, end)
        self.rfile = io.BufferedReader(self._stream)
        self.wfile = self._stream  # type: ignore[assignment]  # not buffered, as that of the base class

    def handle(self) -> None:
        # What send_error() needs if there is no request line to take it from.
        self.requestline = self.request_version = self.command = ""
        try:
            if self._speaks_plainly:
                self.send_error(400, "this port speaks TLS: ask for https://")
            else:
                super().handle()
        except _TooLargeError:
            self.send_error(431)

    def parse_request(self) -> bool:
        try:
            return super().parse_request()
        finally:
            self._stream.answer()

    def finish(self) -> None:
        """Ends the connection in such a way that the client gets all of the answer.

        In TLS its end must be said, or it could be anybody's. And closing a connection with something unread
        would reset it, and the client might never see what it was told.
        """
        with closing(self.connection) as client, suppress(OSError):
            client.settimeout(_LINGER_S)
            if isinstance(client, ssl.SSLSocket):
                with suppress(OSError):
                    client.unwrap()
            end = time.monotonic() + _LINGER_S
            # Whatever comes now: it need not be TLS any more.
            socket.socket.shutdown(client, socket.SHUT_WR)
            while (left := end - time.monotonic()) > 0:
                client.settimeout(left)
                if not socket.socket.recv(client, MAX_REQUEST):
                    break

    def address_string(self) -> str:
        return str(self.client_address[0])  # not the name server's answer

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not news."""


class _HttpServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # The standard library's 5 is fewer than the clients that are served at once: a burst would wait a second.
    request_queue_size = 4 * MAX_CLIENTS

    def __init__(self, address: Address, security: Security | None) -> None:
        self.security = security
        self._room = threading.BoundedSemaphore(MAX_CLIENTS)
        host = address.host
        if not host and socket.has_dualstack_ipv6():
            self.address_family = socket.AF_INET6
        elif host:
            self.address_family = socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM)[0][0]
        super().__init__((host, address.port), _Request)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            # "::" and no host at all mean IPv4 as well, whatever the system's default is.
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # Not HTTPServer's: it asks the name server who we are, which may take its time.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that was slow, or left, is its own affair; anything else is a bug and shows.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)
