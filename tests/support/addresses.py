"""Kernel addresses, looked for in what the agent says."""

from __future__ import annotations

import re

LOWEST = 0xFF00_0000_0000_0000
"""Of the kernel's half of the address space, on x86-64 with five levels of page tables."""

_HEX = re.compile(r"(?<![0-9a-f])ff[0-9a-f]{14}(?![0-9a-f])", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d{12,20}")


def addresses_in(text: str) -> list[str]:
    """Everything in a text that could be a kernel address: in hex, or as a number with or without a sign."""
    numbers = [each for each in _NUMBER.findall(text) if int(each) % 2**64 >= LOWEST and int(each) < 2**64]
    return [*_HEX.findall(text), *numbers]
