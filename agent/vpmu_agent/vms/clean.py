"""Names that processes choose for themselves, made fit to be shown."""

from __future__ import annotations

MAX_NAME = 128
"""Characters. A VM's name is a label value in every one of its series."""


def clean_name(name: str) -> str:
    """Return `name` fit for labels, terminals and logs: cut to MAX_NAME, unprintable characters replaced."""
    if name.isprintable() and len(name) <= MAX_NAME:
        return name
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name[:MAX_NAME])
