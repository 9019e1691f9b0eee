"""HTTP: an event loop that waits for clients, and a few threads that write answers.

Only a request that is complete, and admitted where there are passwords, gets a thread. An answer is written
into memory and sent from there, so that no thread waits for a client either.
"""

from __future__ import annotations

import asyncio
import io
import resource
import socket
import ssl
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol
from wsgiref.handlers import SimpleHandler

from vpmu_agent.web.address import Address, ListenError
from vpmu_agent.web.connection import Connection, Request
from vpmu_agent.web.turns import BusyError, Turns, neighbourhood
from vpmu_agent.web.workers import Workers

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

REQUEST_S = 5.0
"""How long a client may take for its request, from the connection to the last header."""

ANSWER_S = 60.0
"""How long a client may take to get the answer: 13 MB for 1,000 VMs, over a slow link."""

MAX_CLIENTS = 512
"""Connections at once. For one more, one that waits for a client is closed: see `_Clients._make_room()`."""

MAX_UNSENT = 64 << 20
"""Bytes of answers that clients have not taken yet, together."""

ANSWERS = 2
"""Answers that are written at once; with Python's lock, more would not be sooner."""

SILENT_S = 10.0
"""For how long the server may not have answered a request of its own before it is in trouble."""

_WAITING = 128  # complete requests that wait for their answer to be written
_WAITING_EACH = 64  # and of one neighbourhood
_BACKLOG = 1024  # connections that the kernel keeps until they are accepted
_ACCEPTED_AT_ONCE = 16  # connections, before those that are there already are looked at again
_RETRY_S = 0.1  # after a connection that could not be accepted
_PULSE_S = 1.0  # between two requests of its own
_LINGER_S = 1.0  # how long a client may take to hang up after its answer
_CLOSE_S = 1.0  # how long answers may still take when the server is closed

_TEXT = ("Content-Type", "text/plain; charset=utf-8")
_CHALLENGE = 'Basic realm="vpmu-agent", charset="UTF-8"'
_OWN_REQUEST = b"GET /-/healthy HTTP/1.0\r\n\r\n"


class Terms(Protocol):
    """On which terms clients are served at a time."""

    @property
    def tls(self) -> ssl.SSLContext | None:
        """What clients have to use, if anything."""

    @property
    def needs_password(self) -> bool:
        """Whether only users are answered."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers of every answer; they replace those of the same name."""

    def accepts(self, certificate: Mapping[str, Any] | None) -> bool:
        """Return whether a client is served that has this certificate, which was verified, or none."""


class Security(Protocol):
    """What the server needs for TLS and authentication; its terms may change from client to client."""

    @property
    def has_tls(self) -> bool:
        """Whether clients have to use TLS."""

    def start(self) -> None:
        """Start the threads that the others need. Raise RuntimeError if there can be none."""

    def stop(self) -> None:
        """Stop them."""

    async def terms(self) -> Terms:
        """Return the terms in effect."""

    async def admits(self, authorization: str, neighbours: str) -> bool:
        """Return whether an Authorization header has a user's name and password. Raise BusyError."""


class Server:
    """An HTTP server that listens once it is made, and answers between `start()` and `close()`.

    Raises ListenError when it is made, if it cannot listen on the address. Without `security` it speaks plain
    HTTP and answers everybody.
    """

    def __init__(self, address: Address, security: Security | None = None) -> None:
        self._security = security
        try:
            self._listener = _listening(address)
        except OSError as error:
            raise ListenError(f"cannot listen on {address}: {error.strerror or error}") from error
        host, port = self._listener.getsockname()[:2]
        self._address = Address(str(host), int(port))
        self._clients: _Clients | None = None

    @property
    def address(self) -> Address:
        """Where it listens, with the port that the kernel chose for port 0."""
        return self._address

    @property
    def url(self) -> str:
        """The same as a URL without a path."""
        scheme = "https" if self._security and self._security.has_tls else "http"
        return f"{scheme}://{self.address}"

    @property
    def trouble(self) -> str:
        """Why clients are not answered, as far as the server sees itself; empty if they are.

        It makes a request of its own every second, which goes the way of all others.
        """
        return self._clients.trouble if self._clients else "the HTTP server was not started"

    def start(self, application: WSGIApplication) -> None:
        """Start to answer requests with `application`, in threads. Raise ListenError if there can be none."""
        try:
            self._clients = _Clients(self._listener, application, self._security)
            self._clients.start()
        except (OSError, RuntimeError) as error:  # RuntimeError is a thread's
            raise ListenError(
                f"cannot serve on {self.address}: {error}; allow more threads and open files (TasksMax, "
                "LimitNOFILE)"
            ) from error

    def close(self) -> None:
        """Stop listening. Answers that are being written may take another second."""
        if self._clients:
            self._clients.stop()
        self._listener.close()


class _Client:
    """One client, and its answer, which a thread writes and the loop sends."""

    def __init__(self, connection: Connection, host: str, *, is_own: bool) -> None:
        self.connection = connection
        self.host = host
        self.neighbours = neighbourhood(host)
        self.is_own = is_own
        """Whether this is the server itself."""
        self.is_awaited = True
        """Whether the server waits for the client: for its request, its password's turn, or its end."""
        self.is_complete = False
        """Whether all of the answer was written."""
        self.is_cut = False
        self.chunks: deque[bytes] = deque()
        self.unsent = 0
        self.more = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class _Answer:
    """A client's answer as a file, for who writes it."""

    def __init__(self, client: _Client, take: Callable[[bytes], object]) -> None:
        self._client = client
        self._take = take

    def write(self, data: bytes) -> int:
        """Hand over the data. Raise ConnectionAbortedError, which ends an application, if nobody takes it."""
        if self._client.is_cut:
            raise ConnectionAbortedError
        try:
            self._take(data)
        except RuntimeError as error:  # the loop has ended
            raise ConnectionAbortedError from error
        return len(data)

    def flush(self) -> None:
        """Do nothing: all is on its way."""


class _Handler(SimpleHandler):
    """Calls an application, and writes what it answers."""

    os_environ: dict[str, str] = {}  # noqa: RUF012  # as in the base class; this process's own is not for it

    def log_exception(self, exc_info: Any) -> None:
        """Print the traceback of a bug, if that can be printed."""
        with suppress(OSError, ValueError):
            super().log_exception(exc_info)


class _Clients:
    """All clients, and the loop that serves them; most methods are for the loop's thread."""

    def __init__(
        self, listener: socket.socket, application: WSGIApplication, security: Security | None
    ) -> None:
        self._listener = listener
        self._application = application
        self._security = security
        self._clients: dict[_Client, None] = {}  # by age
        # Each takes a descriptor, and the rest of the daemon needs some.
        self._most_clients = max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2, 1)
        self._unsent = 0
        self._turns = Turns(at_once=ANSWERS, waiting=_WAITING, waiting_each=_WAITING_EACH)
        self._writers = Workers(ANSWERS, "HTTP answer")
        self._loop = asyncio.new_event_loop()
        self._is_stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="HTTP server", daemon=True)
        self._answered = time.monotonic()  # the last request of its own
        self._refused: tuple[float, str] | None = None  # since when no connection can be accepted, and why

    # Called by other threads

    @property
    def trouble(self) -> str:
        """See `Server.trouble`."""
        refused, now = self._refused, time.monotonic()
        if refused and now - refused[0] > SILENT_S:
            return f"the HTTP server cannot accept connections: {refused[1]}"
        if now - self._answered > SILENT_S:
            return f"the HTTP server has not answered itself for {now - self._answered:.0f} s"
        return ""

    def start(self) -> None:
        """Start all threads. Raise RuntimeError if one that is needed cannot be started."""
        try:
            self._writers.start()
            if self._security:
                self._security.start()
            self._thread.start()
        except RuntimeError:
            self._stop_workers()
            self._loop.close()
            raise

    def stop(self) -> None:
        """End the loop and the threads."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._is_stopped.set)
            self._thread.join(2 * _CLOSE_S)
            self._stop_workers()

    def _stop_workers(self) -> None:
        self._writers.stop()
        if self._security:
            self._security.stop()

    # The loop

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve_all())
        finally:
            self._loop.close()

    async def _serve_all(self) -> None:
        self._listener.setblocking(False)
        self._listen()
        pulse = asyncio.create_task(self._feel_pulse())
        await self._is_stopped.wait()
        pulse.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for client in [each for each in self._clients if each.is_awaited]:
            self._cut(client)
        if tasks := [each.task for each in self._clients if each.task]:
            await asyncio.wait(tasks, timeout=_CLOSE_S)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _listen(self) -> None:
        if not self._is_stopped.is_set():
            self._loop.add_reader(self._listener, self._accept)
            self._accept()

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                client, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                self._refused = None
                return
            except OSError as error:  # no descriptors or no memory left
                if self._refused is None:
                    self._refused = time.monotonic(), error.strerror or str(error)
                self._make_room()
                self._loop.remove_reader(self._listener)  # which stays ready
                self._loop.call_later(_RETRY_S, self._listen)
                return
            self._refused = None
            if len(self._clients) >= min(MAX_CLIENTS, self._most_clients):
                self._make_room()
            self._welcome(client, str(address[0]))

    def _welcome(self, client: socket.socket, host: str, *, is_own: bool = False) -> None:
        try:
            welcome = _Client(Connection(client), host, is_own=is_own)
            welcome.task = self._loop.create_task(self._serve(welcome))
        except (OSError, MemoryError):
            client.close()
        else:
            self._clients[welcome] = None
            welcome.task.add_done_callback(lambda _: self._part_with(welcome))

    def _make_room(self) -> None:
        """Let one client go that the server waits for: the oldest of the neighbourhood that has most of them.

        Where it waits for none: one whose answer was written and who does not take it.
        """
        others = [each for each in self._clients if not each.is_own]
        idle = [each for each in others if each.is_awaited] or [each for each in others if each.is_complete]
        if idle:
            most = _largest(Counter(each.neighbours for each in idle))
            self._cut(next(each for each in idle if each.neighbours == most))

    def _cut(self, client: _Client) -> None:
        """End a client's connection."""
        client.is_cut = True
        self._forget(client)
        if client.task:
            client.task.cancel()

    def _part_with(self, client: _Client) -> None:
        """Close the connection of a client that was served, or cut before that began."""
        client.is_cut = True
        self._forget(client)
        client.connection.close()

    def _forget(self, client: _Client) -> None:
        self._clients.pop(client, None)
        self._unsent -= client.unsent
        client.unsent = 0
        client.chunks.clear()

    async def _feel_pulse(self) -> None:
        """Ask for an answer all the time, through all but the network."""
        while True:
            with suppress(OSError):
                ours, theirs = socket.socketpair()
                self._welcome(theirs, "", is_own=True)
                reader, writer = await asyncio.open_connection(sock=ours)
                writer.write(_OWN_REQUEST)
                try:
                    async with asyncio.timeout(SILENT_S):
                        if b" 200 " in (await reader.read()).partition(b"\r\n")[0]:
                            self._answered = time.monotonic()
                finally:
                    writer.close()
            await asyncio.sleep(_PULSE_S)

    # One client

    async def _serve(self, client: _Client) -> None:
        try:
            await self._answer(client)
        except (OSError, asyncio.CancelledError):  # one that is slow, leaves, or was cut
            pass
        except Exception:  # a bug
            _report_bug()

    async def _answer(self, client: _Client) -> None:
        async with asyncio.timeout(REQUEST_S):
            request, has_tls = await self._request(client)
        writing = None
        if request.is_good:
            environ = request.get_environ()
            if has_tls:
                environ["HTTPS"] = "on"
            application, is_admitted = await self._admit(client, environ)
            if is_admitted:
                client.is_awaited = False
                writing = asyncio.create_task(self._write_in_turn(client, environ, application))
            else:
                _write(_Answer(client, partial(self._take, client)), environ, application)
        else:
            self._take(client, request.refusal())
        if writing is None:
            client.is_complete = True
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._send(client)
        finally:
            client.is_cut = True
            if writing:
                writing.cancel()
        client.is_awaited = True
        async with asyncio.timeout(_LINGER_S):
            await client.connection.finish()

    async def _request(self, client: _Client) -> tuple[Request, bool]:
        """Return the request, and whether it came over TLS."""
        connection = client.connection
        terms = await self._security.terms() if self._security and not client.is_own else None
        if terms and terms.tls:
            if not await connection.speaks_tls():
                request = Request(b"", client.host)
                request.refusal(400, "this port speaks TLS: use https://")
                return request, False
            if not terms.accepts((await connection.secure(terms.tls)).getpeercert()):
                raise ConnectionAbortedError("client_allowed_sans has none of the certificate's names")
        return Request(await connection.request(), client.host), bool(terms and terms.tls)

    async def _admit(self, client: _Client, environ: WSGIEnvironment) -> tuple[WSGIApplication, bool]:
        """Return what answers the request, and whether the client may have what the application tells."""
        if not self._security or client.is_own:
            return self._application, True
        terms = await self._security.terms()
        application, is_admitted = self._application, True
        if terms.needs_password:
            authorization = environ.get("HTTP_AUTHORIZATION", "")
            try:
                is_admitted = await self._security.admits(authorization, client.neighbours)
                application = self._application if is_admitted else _UNAUTHORIZED
            except BusyError:
                application, is_admitted = _BUSY_PASSWORDS, False
            environ["AUTH_TYPE"] = "Basic"
        return _with_headers(application, terms.headers), is_admitted

    async def _write_in_turn(
        self, client: _Client, environ: WSGIEnvironment, application: WSGIApplication
    ) -> None:
        answer = _Answer(client, lambda data: self._loop.call_soon_threadsafe(self._take, client, data))
        write = partial(_write, answer, environ, application)
        try:
            if client.is_own:
                await asyncio.wrap_future(self._writers.submit(write))
                return
            async with self._turns.turn(client.neighbours):
                # Not to be cancelled: the turn ends when the thread is free again.
                writing = asyncio.wrap_future(self._writers.submit(write))
                while not writing.done():
                    with suppress(asyncio.CancelledError):
                        await asyncio.wait([writing])
        except BusyError:
            _write(_Answer(client, partial(self._take, client)), environ, _BUSY)
        finally:
            client.is_complete = True
            client.more.set()

    def _take(self, client: _Client, data: bytes) -> None:
        """Take a part of an answer; let go who keeps most of them waiting if they are too many."""
        if client.is_cut:
            return
        client.chunks.append(data)
        client.unsent += len(data)
        self._unsent += len(data)
        client.more.set()
        while self._unsent > MAX_UNSENT:
            unsent = Counter[str]()
            for each in self._clients:
                unsent[each.neighbours] += each.unsent
            most = _largest(unsent)
            self._cut(next(each for each in self._clients if each.neighbours == most and each.unsent))

    async def _send(self, client: _Client) -> None:
        while True:
            while client.chunks:
                data = client.chunks.popleft()
                await client.connection.send(data)
                client.unsent -= len(data)
                self._unsent -= len(data)
            if client.is_complete:
                return
            client.more.clear()
            await client.more.wait()


def _write(answer: Any, environ: WSGIEnvironment, application: WSGIApplication) -> None:
    try:
        _Handler(io.BytesIO(), answer, sys.stderr, environ).run(application)
    except Exception:
        _report_bug()


def _report_bug() -> None:
    """Print the traceback of the exception that is being handled, if that can be printed."""
    with suppress(OSError, ValueError):
        traceback.print_exc()


def _largest(counts: Counter[str]) -> str:
    return max(counts, key=lambda each: counts[each])


def _listening(address: Address) -> socket.socket:
    """Return a socket that listens on the address. Raise OSError."""
    host, family = address.host, socket.AF_INET
    if host:
        family = socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM)[0][0]
    elif socket.has_dualstack_ipv6():
        family = socket.AF_INET6
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # "::" and an empty host include IPv4, whatever net.ipv6.bindv6only says.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((host, address.port))
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _with_headers(application: WSGIApplication, headers: Mapping[str, str]) -> WSGIApplication:
    """Return the application with these headers on every answer; they replace its own."""
    replaced = {name.lower() for name in headers}

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, own: list[tuple[str, str]], *failure: Any) -> Callable[[bytes], object]:
            kept = [(name, value) for name, value in own if name.lower() not in replaced]
            return start_response(status, [*kept, *headers.items()], *failure)

        return application(environ, start)

    return answer


def _refusing(status: str, reason: bytes, *headers: tuple[str, str]) -> WSGIApplication:
    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response(status, [_TEXT, *headers])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [reason]

    return answer


_UNAUTHORIZED = _refusing(
    "401 Unauthorized", b"user name and password required\n", ("WWW-Authenticate", _CHALLENGE)
)
_BUSY_PASSWORDS = _refusing(
    "503 Service Unavailable", b"too many passwords are waiting to be checked; try again\n"
)
_BUSY = _refusing("503 Service Unavailable", b"too many requests are waiting for their answers; try again\n")
