"""Basic authentication: checks passwords against bcrypt hashes, at a bounded cost."""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
import threading
from collections.abc import Mapping

import bcrypt

PASSWORD_S = 5.0
"""How long a client may wait for its password to be checked: one is checked at a time."""


class BusyError(Exception):
    """Too many clients are waiting for their passwords to be checked."""


class Users:
    """The users and their passwords.

    bcrypt is slow on purpose. So a password that was right is remembered, as a keyed digest, and any other is
    checked one at a time. For an unknown user another user's hash is checked, so that the time of an answer
    does not reveal which users exist.
    """

    def __init__(self, hashes: Mapping[str, bytes]) -> None:
        self._hashes = hashes
        self._strangers = max(hashes.values(), key=lambda each: each.split(b"$")[2])  # with the highest cost
        self._key = secrets.token_bytes(32)
        self._proved: dict[str, bytes] = {}
        self._turn = threading.Lock()

    def admits(self, authorization: str) -> bool:
        """Return whether an Authorization header has a user's name and password. Raise BusyError."""
        user, password = _credentials(authorization)
        digest = hmac.digest(self._key, b"\0".join((user.encode(), password)), "sha256")
        if hmac.compare_digest(self._proved.get(user, b""), digest):
            return True
        if not user or b"\0" in password:  # bcrypt refuses NUL
            return False
        if not self._turn.acquire(timeout=PASSWORD_S):
            raise BusyError
        try:
            # bcrypt uses the first 72 bytes only, and newer versions refuse longer passwords.
            is_right = bcrypt.checkpw(password[:72], self._hashes.get(user, self._strangers))
        finally:
            self._turn.release()
        if is_right and user in self._hashes:
            self._proved[user] = digest
            return True
        return False


def _credentials(authorization: str) -> tuple[str, bytes]:
    """Return user and password; an empty user if there is none."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return "", b""
    try:
        user, _, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        return user.decode(), password
    except (binascii.Error, ValueError):
        return "", b""
