"""Basic authentication: checks passwords against bcrypt hashes, at a bounded cost."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import bcrypt

from vpmu_agent.web.turns import BusyError, Turns
from vpmu_agent.web.workers import Workers

PASSWORD_S = 8.0
"""How long a client may wait for its password to be checked: less than the 10 s that Prometheus waits."""

STRANGERS_COST = 10
"""What the password of an unknown user costs at most, as bcrypt writes it: the exponent of 2."""

_WAITING = 64  # passwords that may wait to be checked
_WAITING_EACH = 16  # and of one neighbourhood
_SAMPLE_COST = 6  # 3 ms or so
_SLACK = 1.5  # how much longer a check may take than it should


@dataclass(frozen=True, slots=True)
class Credentials:
    """A name and a password that a client gave."""

    user: str
    password: bytes


class Users:
    """The users and the hashes of their passwords.

    bcrypt is slow on purpose. So a password that was right is remembered, as a keyed digest; any other is for
    `Passwords` to have checked.
    """

    def __init__(self, hashes: Mapping[str, bytes]) -> None:
        self._hashes = hashes
        dearest = max(int(each.split(b"$")[2]) for each in hashes.values())
        # Valid, and of no password that anybody knows.
        self._strangers = b"$2b$%02d$" % min(dearest, STRANGERS_COST) + b"." * 53
        self._key = secrets.token_bytes(32)
        self._proved: dict[str, bytes] = {}
        self.wrong_s = max(_SLACK * _duration(dearest), 0.02)
        """How long a wrong password is kept waiting, so that the time does not tell which users exist."""

    def keep(self, others: Users) -> None:
        """Remember what `others` do of users whose hash is the same."""
        self._key = others._key
        self._proved = {
            user: digest
            for user, digest in others._proved.items()
            if self._hashes.get(user) == others._hashes[user]
        }

    def digest(self, given: Credentials) -> bytes:
        """Return what to remember of credentials; it differs if the user's hash does."""
        hashed = self._hashes.get(given.user, b"")
        return hmac.digest(self._key, b"\0".join((given.user.encode(), hashed, given.password)), "sha256")

    def remembers(self, given: Credentials) -> bool:
        """Return whether these credentials were right before."""
        return hmac.compare_digest(self._proved.get(given.user, b""), self.digest(given))

    def check(self, given: Credentials) -> bool:
        """Return whether the password is that of the user. It takes long."""
        hashed = self._hashes.get(given.user, self._strangers)
        # bcrypt uses the first 72 bytes only, and newer versions refuse longer passwords.
        is_right = bcrypt.checkpw(given.password[:72], hashed) and given.user in self._hashes
        if is_right:
            self._proved[given.user] = self.digest(given)
        return is_right


class Passwords:
    """Has passwords checked for the clients of one event loop: one at a time, and in rotation.

    The check of a wrong password has its turn for the same time whoever the user is, and whether there is
    one; a CPU is busy with it for that long only if there is. A check goes on when its client leaves, so that
    one who was right is known when he comes again.
    """

    def __init__(self, worker: Workers) -> None:
        self._worker = worker
        self._turns = Turns(at_once=1, waiting=_WAITING, waiting_each=_WAITING_EACH, newest_first=True)
        self._checks: dict[bytes, asyncio.Task[bool]] = {}

    async def admit(self, users: Users, authorization: str, neighbours: str) -> bool:
        """Return whether an Authorization header has a user's name and password. Raise BusyError."""
        given = credentials(authorization)
        if given is None:
            return False
        if users.remembers(given):
            return True
        digest = users.digest(given)
        check = self._checks.get(digest)
        if check is None:
            check = asyncio.create_task(self._check(users, given, neighbours))
            self._checks[digest] = check
            check.add_done_callback(lambda _: self._checks.pop(digest, None))
        try:
            async with asyncio.timeout(PASSWORD_S):
                return await asyncio.shield(check)
        except TimeoutError:
            raise BusyError from None

    async def _check(self, users: Users, given: Credentials, neighbours: str) -> bool:
        async with self._turns.turn(neighbours):
            end = time.monotonic() + users.wrong_s
            is_right = await asyncio.wrap_future(self._worker.submit(partial(users.check, given)))
            if not is_right:
                await asyncio.sleep(end - time.monotonic())
            return is_right


def credentials(authorization: str) -> Credentials | None:
    """Return what an Authorization header has; None if it cannot be any user's."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, _, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        user = name.decode()
    except (binascii.Error, ValueError):
        return None
    if not user or b"\0" in password:  # bcrypt refuses NUL
        return None
    return Credentials(user, password)


def _duration(cost: int) -> float:
    """Return how long bcrypt takes with a hash of this cost, in seconds, from one of a lower cost."""
    sample = min(cost, _SAMPLE_COST)
    salt = b"$2b$%02d$" % sample + b"." * 22
    took = []
    for _ in range(3):
        start = time.perf_counter()
        bcrypt.hashpw(b"", salt)
        took.append(time.perf_counter() - start)
    return float(min(took) * 2 ** (cost - sample))
