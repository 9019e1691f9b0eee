"""Pseudonyms for the addresses of kernel objects, which would help to attack the kernel."""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable
from functools import lru_cache

_KEY_SIZE = 32  # bytes
_REMEMBERED = 8192
"""Pseudonyms. Those of a busy host's counters and events, in 1.4 MB; another one takes some microseconds."""


def make_pseudonyms() -> Callable[[int], int]:
    """Return a function from the addresses of kernel objects to pseudonyms, with a new key.

    Equal addresses have equal pseudonyms, and only 0 has 0. Two addresses could share one in theory: with ten
    million addresses the odds are 1 in 180,000. A pseudonym is below 2^63, where no kernel address is, so
    that nobody takes it for one.

    It is a keyed hash and not a cheap permutation: addresses are so regular that a few known ones would give
    away the key of a permutation, and with it all others. It is SHA-256 because BLAKE2 is not available on
    hosts that enforce FIPS 140.
    """
    key = os.urandom(_KEY_SIZE)

    @lru_cache(maxsize=_REMEMBERED)
    def pseudonym(address: int) -> int:
        if not address:
            return 0
        digest = hmac.digest(key, address.to_bytes(8, "little"), "sha256")
        return int.from_bytes(digest[:8], "little") >> 1

    return pseudonym
