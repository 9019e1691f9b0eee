"""HTTP: the standard library's WSGI server, one thread per client, with limits on clients, time and size."""

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
"""How long a client may take to read the answer: 13 MB for 1,000 VMs, over a slow link."""

MAX_REQUEST = 32 * 1024
"""Bytes of a request line and its headers; longer requests are answered with 431."""

MAX_CLIENTS = 16
"""Clients at once; further connections are closed without an answer."""

_SHUTDOWN_S = 0.1  # how often the server checks whether it was told to stop
_LINGER_S = 1.0  # how long a client may take to hang up after its answer


class Security(Protocol):
    """What the server needs for TLS and authentication; its answers may change from client to client."""

    @property
    def has_tls(self) -> bool:
        """Whether clients have to use TLS."""

    def secured(self, client: socket.socket, end: float) -> socket.socket | None:
        """Return the client's connection after a TLS handshake, or `client` itself where TLS is off.

        Return None if the client has to use TLS and does not. Raise OSError, with `client` closed, if the
        handshake fails or is not complete at `end` (time.monotonic()).
        """

    def guarded(self, application: WSGIApplication) -> WSGIApplication:
        """Return `application` behind authentication."""


class Server:
    """An HTTP server that listens once it is made, and answers between `start()` and `close()`.

    Raises ListenError when it is made, if it cannot listen on the address. Without `security` it speaks plain
    HTTP and answers everybody.
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
        """Where it listens, with the port that the kernel chose for port 0."""
        host, port = self._http.server_address[:2]
        return Address(str(host), int(port))

    @property
    def url(self) -> str:
        """The same as a URL without a path."""
        scheme = "https" if self._security and self._security.has_tls else "http"
        return f"{scheme}://{self.address}"

    def start(self, application: WSGIApplication) -> None:
        """Start to answer requests with `application`, in a thread."""
        self._http.set_app(self._security.guarded(application) if self._security else application)
        self._thread.start()

    def close(self) -> None:
        """Stop listening. Requests that are being answered may still complete."""
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()


class _TooLargeError(Exception):
    """A request is larger than MAX_REQUEST."""


class _Stream(io.RawIOBase):
    """A client's connection with a deadline and, until `answer()`, with a limit on what is read."""

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
            # The one error that wsgiref takes for a client that left.
            raise ConnectionAbortedError from error
        return len(data)

    def answer(self) -> None:
        """Set the deadline for the answer: the request has been read."""
        self._end = time.monotonic() + ANSWER_S

    def _limit_time(self) -> None:
        self._client.settimeout(time_left(self._end))  # for sendall() a limit on the whole of it


class _Request(WSGIRequestHandler):
    default_request_version = "HTTP/1.0"  # HTTP/0.9 has no status to report an error with
    error_content_type = "text/plain; charset=utf-8"
    error_message_format = "%(code)d %(message)s\n"
    connection: socket.socket
    server: _HttpServer

    def setup(self) -> None:
        end = time.monotonic() + REQUEST_S
        security = self.server.security
        secured = security.secured(self.request, end) if security else self.request
        self._lacks_tls = secured is None
        self.connection = secured or self.request
        self._stream = _Stream(self.connection, end)
        self.rfile = io.BufferedReader(self._stream)
        self.wfile = self._stream  # type: ignore[assignment]  # not buffered, as that of the base class

    def handle(self) -> None:
        # send_error() needs these, and there may be no request line to take them from.
        self.requestline = self.request_version = self.command = ""
        try:
            if self._lacks_tls:
                self.send_error(400, "this port speaks TLS: use https://")
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
        """End the connection so that the client gets the whole answer.

        In TLS the end has to be announced, or an attacker could have cut the answer short. And to close a
        socket with unread data resets the connection, which can discard what the client has not read yet.
        """
        with closing(self.connection) as client, suppress(OSError):
            client.settimeout(_LINGER_S)
            if isinstance(client, ssl.SSLSocket):
                with suppress(OSError):
                    client.unwrap()
            end = time.monotonic() + _LINGER_S
            # On the socket itself: what still comes need not be TLS.
            socket.socket.shutdown(client, socket.SHUT_WR)
            while (left := end - time.monotonic()) > 0:
                client.settimeout(left)
                if not socket.socket.recv(client, MAX_REQUEST):
                    break

    def address_string(self) -> str:
        return str(self.client_address[0])  # without asking a name server

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: scrapes are not news."""


class _HttpServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # The default of 5 is less than MAX_CLIENTS: in a burst, clients would wait a second to retry.
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
            # "::" and an empty host include IPv4, whatever net.ipv6.bindv6only says.
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # Not HTTPServer's, which looks up our own name, and that can take long.
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
        # Clients that are slow or leave are not reported; anything else is a bug, and is.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)
