"""Basic authentication: who is let in, and what a look at a password costs."""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
import threading
from collections.abc import Mapping

import bcrypt

PASSWORD_S = 5.0
"""How long a client may wait until its password is looked at: one at a time is."""


class BusyError(Exception):
    """More clients than can be served want their passwords looked at."""


class Users:
    """Who may ask.

    bcrypt takes its time for each look at a password, on purpose. So what proved to be right is remembered,
    as a keyed digest, and one that is not is looked at only when it is its turn. For a user that is not known
    somebody else's hash is taken, so that nobody learns by the time it takes who is.
    """

    def __init__(self, hashes: Mapping[str, bytes]) -> None:
        self._hashes = hashes
        self._strangers = max(hashes.values(), key=lambda each: each.split(b"$")[2])  # by its cost
        self._key = secrets.token_bytes(32)
        self._proved: dict[str, bytes] = {}
        self._turn = threading.Lock()

    def admits(self, authorization: str) -> bool:
        """Whether the value of an Authorization header is of one of them. Raises BusyError."""
        user, password = _credentials(authorization)
        digest = hmac.digest(self._key, b"\0".join((user.encode(), password)), "sha256")
        if hmac.compare_digest(self._proved.get(user, b""), digest):
            return True
        if not user or b"\0" in password:  # which bcrypt does not take
            return False
        if not self._turn.acquire(timeout=PASSWORD_S):
            raise BusyError
        try:
            # bcrypt itself looks no further than 72 bytes; its newer versions refuse more.
            is_right = bcrypt.checkpw(password[:72], self._hashes.get(user, self._strangers))
        finally:
            self._turn.release()
        if is_right and user in self._hashes:
            self._proved[user] = digest
            return True
        return False


def _credentials(authorization: str) -> tuple[str, bytes]:
    """User and password; no user if it has none."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return "", b""
    try:
        user, _, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        return user.decode(), password
    except (binascii.Error, ValueError):
        return "", b""
