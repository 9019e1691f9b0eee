"""One client's connection, in an event loop: TLS, its request, its answer, and the end of it."""

from __future__ import annotations

import asyncio
import io
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http.client import HTTPMessage
from types import SimpleNamespace
from typing import TypeVar
from wsgiref.simple_server import WSGIRequestHandler

MAX_REQUEST = 32 * 1024
"""Bytes of a request line and its headers; longer requests are answered with 431."""

_PART = 8 * 1024  # bytes that are read at once
_HANDSHAKE = b"\x16"  # the first byte of TLS: the type of its first record

_T = TypeVar("_T")


class Connection:
    """A socket that never blocks. All methods raise OSError if the connection fails."""

    def __init__(self, client: socket.socket) -> None:
        client.setblocking(False)
        self._client = client
        self._loop = asyncio.get_running_loop()

    async def speaks_tls(self) -> bool:
        """Return whether the client begins as TLS does."""
        first = await self._once_readable(lambda: self._client.recv(1, socket.MSG_PEEK))
        return first == _HANDSHAKE

    async def secure(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        """Make the TLS handshake; return the connection for what it says of the client."""
        secured = context.wrap_socket(self._client, server_side=True, do_handshake_on_connect=False)
        self._client = secured
        await self._once_readable(secured.do_handshake)
        return secured

    async def request(self) -> bytes:
        """Return the request line and the headers, and what came with them.

        They are not complete if the client hung up or if they are larger than MAX_REQUEST.
        """
        request = bytearray()
        while len(request) <= MAX_REQUEST:
            part = await self._once_readable(lambda: self._client.recv(_PART))
            request += part
            if not part or _has_blank_line(request, len(request) - len(part)):
                break
        return bytes(request)

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        left = memoryview(data)
        while left:
            left = left[await self._once_writable(partial(self._client.send, left)) :]

    async def finish(self) -> None:
        """End the connection so that the client gets the whole answer.

        In TLS the end has to be announced, or an attacker could have cut the answer short. And to close a
        socket with unread data resets the connection, which can discard what the client has not read yet.
        """
        client = self._client
        if isinstance(client, ssl.SSLSocket):
            # An error also says that the client has not announced its own end, which nobody needs.
            with suppress(OSError):
                client.unwrap()
        # On the socket itself: what still comes need not be TLS.
        socket.socket.shutdown(client, socket.SHUT_WR)
        while await self._once_readable(lambda: socket.socket.recv(client, MAX_REQUEST)):
            pass

    def close(self) -> None:
        """Close it at once."""
        self._client.close()

    async def _once_readable(self, step: Callable[[], _T]) -> _T:
        return await self._once(step, self._loop.add_reader, self._loop.remove_reader)

    async def _once_writable(self, step: Callable[[], _T]) -> _T:
        return await self._once(step, self._loop.add_writer, self._loop.remove_writer)

    async def _once(
        self, step: Callable[[], _T], add: Callable[..., object], remove: Callable[[int], object]
    ) -> _T:
        """Take the step, after a wait if it would block; TLS may have to wait for the other direction."""
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                await self._wait(self._loop.add_reader, self._loop.remove_reader)
            except ssl.SSLWantWriteError:
                await self._wait(self._loop.add_writer, self._loop.remove_writer)
            except (BlockingIOError, InterruptedError):
                await self._wait(add, remove)

    async def _wait(self, add: Callable[..., object], remove: Callable[[int], object]) -> None:
        ready = self._loop.create_future()
        descriptor = self._client.fileno()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        add(descriptor, wake)
        try:
            await ready
        finally:
            remove(descriptor)


def _has_blank_line(data: bytes | bytearray, new: int) -> bool:
    """Return whether there is a blank line in data of which the last part, from `new` on, is new."""
    start = max(new - 3, 0)
    return data.find(b"\n\r\n", start) >= 0 or data.find(b"\n\n", start) >= 0


class Request(WSGIRequestHandler):
    """A request that was read, parsed as the standard library's server does."""

    default_request_version = "HTTP/1.0"  # HTTP/0.9 has no status to report an error with
    error_content_type = "text/plain; charset=utf-8"
    error_message_format = "%(code)d %(message)s\n"
    headers: HTTPMessage

    def __init__(self, data: bytes, client_host: str) -> None:
        """Parse the request; what cannot be parsed has an answer."""
        self.client_address = (client_host, 0)
        self.server = SimpleNamespace(base_environ={})  # type: ignore[assignment]
        self.rfile = io.BufferedReader(io.BytesIO(data))
        self.wfile = io.BytesIO()
        # send_error() needs these, and there may be no request line to take them from.
        self.requestline = self.request_version = self.command = ""
        self.raw_requestline = self.rfile.readline()
        self.is_good = False
        if len(data) > MAX_REQUEST and not _has_blank_line(data, 0):
            self.send_error(431)
        else:
            self.is_good = self.parse_request()

    def refusal(self, status: int = 0, reason: str = "") -> bytes:
        """Return the answer with this status, or to what could not be parsed: that may be empty."""
        if status:
            self.send_error(status, reason)
        return self.wfile.getvalue()  # type: ignore[attr-defined, no-any-return]

    def address_string(self) -> str:
        """Return the client's address, without asking a name server."""
        return str(self.client_address[0])

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: scrapes are not news."""

    def version_string(self) -> str:
        """Return what stands in the header Server."""
        return "vpmu-agent"
