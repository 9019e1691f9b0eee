"""Small copies of /proc and /sys, for what reads facts about a host."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path


def plant(root: Path, files: Mapping[str, str | None]) -> Path:
    """Writes each file below `root`: "name/" is a folder, .gz is compressed, None takes one away."""
    for name, text in files.items():
        path = root / name
        if text is None:
            path.unlink()
        elif name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return root
