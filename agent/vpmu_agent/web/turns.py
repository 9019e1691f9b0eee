"""Turns by neighbourhood: who asks for much waits behind himself, and not others behind him."""

from __future__ import annotations

import asyncio
import ipaddress
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class BusyError(Exception):
    """Too many are waiting for their turn."""


def neighbourhood(host: str) -> str:
    """Return whom a client's address is counted with, as far as one machine can choose among addresses.

    That is an IPv4 address, an IPv6 network of 64 bits, or all that is not the network: loopback and AF_UNIX.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return "local"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return "local" if address.is_loopback else str(ipaddress.ip_network((address, 64), strict=False))
        address = address.ipv4_mapped
    return "local" if address.is_loopback else str(address)


class Turns:
    """A few turns at once, given to each neighbourhood in rotation. For one event loop.

    With `newest_first`, the newest of a neighbourhood is its next, and its oldest has to go where too many
    wait: so somebody who comes once has his turn soon, among others who come again and again.
    """

    def __init__(self, *, at_once: int, waiting: int, waiting_each: int, newest_first: bool = False) -> None:
        """Let so many have their turn at once, so many wait for it, and so many of one neighbourhood."""
        self._free = at_once
        self._newest_first = newest_first
        self._most = waiting
        self._most_each = waiting_each
        self._lanes: dict[str, deque[asyncio.Future[None]]] = {}  # none is empty; the first is the next

    @asynccontextmanager
    async def turn(self, neighbours: str) -> AsyncIterator[None]:
        """Wait for a turn and have it. Raise BusyError if too many are waiting."""
        await self._begin(neighbours)
        try:
            yield
        finally:
            self._end()

    async def _begin(self, neighbours: str) -> None:
        if self._free:
            self._free -= 1
            return
        self._make_room(neighbours)
        turn = asyncio.get_running_loop().create_future()
        self._lanes.setdefault(neighbours, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(neighbours, turn)
            elif turn.exception() is None:  # it came too late
                self._end()
            raise

    def _make_room(self, neighbours: str) -> None:
        """Let one more wait in a lane, in the place of another if need be. Raise BusyError if none can."""
        before = len(self._lanes.get(neighbours, ()))
        crowded = neighbours
        if before < self._most_each:
            if sum(map(len, self._lanes.values())) < self._most:
                return
            longest = max(self._lanes, key=lambda each: len(self._lanes[each]))
            if len(self._lanes[longest]) > before + 1:
                crowded = longest
        if crowded == neighbours and not (self._newest_first and before):
            raise BusyError
        refused = self._lanes[crowded][0 if self._newest_first else -1]
        self._leave(crowded, refused)
        refused.set_exception(BusyError())

    def _leave(self, neighbours: str, turn: asyncio.Future[None]) -> None:
        lane = self._lanes[neighbours]
        lane.remove(turn)
        if not lane:
            del self._lanes[neighbours]

    def _end(self) -> None:
        if not self._lanes:
            self._free += 1
            return
        neighbours, lane = next(iter(self._lanes.items()))
        turn = lane.pop() if self._newest_first else lane.popleft()
        del self._lanes[neighbours]
        if lane:
            self._lanes[neighbours] = lane  # behind the others
        turn.set_result(None)
