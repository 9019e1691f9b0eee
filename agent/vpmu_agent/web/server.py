"""HTTP: the standard library's WSGI server, a thread for each client; bounded in number, time and size."""

from __future__ import annotations

import io
import socket
import ssl
import sys
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from vpmu_agent.web import page as landing
from vpmu_agent.web.metrics import OPENMETRICS, TEXT, Exporter
from vpmu_agent.web.state import Overview, state_json

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from vpmu_agent.web.config import WebFile

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


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. An empty host stands for every address of this machine."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Reads `HOST:PORT`, `[IPV6]:PORT` or `:PORT`. Raises ValueError that names what is wrong."""
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError(f"{text!r} has no port: write HOST:PORT")
    if not (port.isascii() and port.isdigit() and int(port[:6]) <= 65535):
        raise ValueError(f"{port!r} in {text!r} is not a port number from 0 to 65535")
    if host.startswith("[") and host.endswith("]"):
        return Address(host[1:-1], int(port))
    if ":" in host or "[" in host or "]" in host:
        raise ValueError(f"the host in {text!r} is not clear: write an IPv6 address as [::1]:{port}")
    return Address(host, int(port))


class ListenError(Exception):
    """The address cannot be listened on; the message says which and why."""


class WebConfigError(Exception):
    """The file of --web.config.file, or one that it names, cannot be used; the message says where and why."""


def time_left(end: float) -> float:
    """Seconds until `end` (time.monotonic()), for a socket: never 0, which would mean not to wait."""
    return max(end - time.monotonic(), 0.001)


class Server:
    """Listens from the moment it is made; answers between `start()` and `close()`.

    With `web` it speaks TLS and knows its users, as that file says.
    """

    def __init__(self, address: Address, web: WebFile | None = None) -> None:
        self._web = web
        try:
            self._http = _HttpServer(address, web)
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
        return f"{'https' if self._web and self._web.current().tls else 'http'}://{self.address}"

    def start(self, exporter: Exporter, overview: Overview) -> None:
        """Answers with the metrics of `exporter` and the page of `overview` from now on."""
        application = _application(exporter, overview)
        self._http.set_app(self._web.guarded(application) if self._web else application)
        self._thread.start()

    def close(self) -> None:
        """Stops listening. A request that is being answered may still end."""
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()


def _application(exporter: Exporter, overview: Overview) -> WSGIApplication:
    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path, method = environ.get("PATH_INFO") or "/", environ["REQUEST_METHOD"]
        if method not in ("GET", "HEAD"):
            allow = [("Allow", "GET, HEAD")]
            return _text(start_response, "405 Method Not Allowed", b"GET or HEAD only\n", allow)
        if path == "/metrics":
            return _metrics(exporter, environ, start_response)
        if path == "/":
            body = [landing.page(overview.state()).encode()]
            start_response("200 OK", [*landing.HEADERS, _NO_SNIFFING])
        elif path == "/api/v1/state":
            body = [f"{state_json(overview.state())}\n".encode()]
            start_response("200 OK", [("Content-Type", "application/json"), _NO_STORE, _NO_SNIFFING])
        elif path == "/-/healthy":
            body = _text(start_response, "200 OK", b"healthy\n")
        elif path == "/-/ready":
            body = _ready(start_response, overview.missing())
        else:
            body = _text(start_response, "404 Not Found", b"not here; the metrics are at /metrics\n")
        return [] if method == "HEAD" else body

    return application


_NO_STORE = ("Cache-Control", "no-store")
_NO_SNIFFING = ("X-Content-Type-Options", "nosniff")


def _ready(start_response: StartResponse, missing: str) -> list[bytes]:
    if missing:
        return _text(start_response, "503 Service Unavailable", f"not ready: {missing}\n".encode())
    return _text(start_response, "200 OK", b"ready\n")


def _metrics(exporter: Exporter, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The metrics in chunks; in one piece they would be 13 MB for 1,000 VMs.

    So nobody knows their length beforehand, and they end with the connection. Who must know that nothing is
    missing asks, as Prometheus does, for OpenMetrics, which has an end mark, or gzip, which has a checksum.
    """
    openmetrics = accepts_openmetrics(environ.get("HTTP_ACCEPT", ""))
    gzip = accepts_gzip(environ.get("HTTP_ACCEPT_ENCODING", ""))
    # A HEAD is no scrape: it must not take the last counts of a VM that is gone.
    is_scrape = environ["REQUEST_METHOD"] == "GET"
    chunks = exporter.scrape(openmetrics=openmetrics) if is_scrape else iter(())
    headers = [("Content-Type", OPENMETRICS if openmetrics else TEXT), _NO_SNIFFING]
    headers.append(("Vary", "Accept, Accept-Encoding"))
    start_response("200 OK", [*headers, ("Content-Encoding", "gzip")] if gzip else headers)
    return _gzipped(chunks) if gzip and is_scrape else chunks


def accepts_openmetrics(accept: str) -> bool:
    """Whether an Accept header names OpenMetrics, in a version that is ours or in none."""
    for media in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in media.split(";"))
        versions = [value for value in parameters if value.startswith("version=")]
        if kind == "application/openmetrics-text" and versions in ([], ["version=1.0.0"]):
            return True
    return False


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether an Accept-Encoding header names gzip."""
    return any(coding.split(";")[0].strip() == "gzip" for coding in accept_encoding.lower().split(","))


def _gzipped(chunks: Iterable[bytes]) -> Iterator[bytes]:
    # Level 1: the text is so uniform that the next ones take twice the time to save a tenth.
    compressor = zlib.compressobj(level=1, wbits=16 + zlib.MAX_WBITS)
    for chunk in chunks:
        if compressed := compressor.compress(chunk):
            yield compressed
    yield compressor.flush()


def _text(
    start_response: StartResponse, status: str, body: bytes, headers: Iterable[tuple[str, str]] = ()
) -> list[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), _NO_SNIFFING, *headers])
    return [body]


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
        secured = self.server.web.secured(self.request, end) if self.server.web else self.request
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

    def __init__(self, address: Address, web: WebFile | None) -> None:
        self.web = web
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
