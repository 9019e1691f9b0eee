"""Which kernel this is and how it was built. What cannot be read is None, not a guess."""

from __future__ import annotations

import gzip
from pathlib import Path

ROOT = Path("/")


def kernel_release(*, root: Path = ROOT) -> str | None:
    """Return the release, as `uname -r` prints it."""
    try:
        return (root / "proc/sys/kernel/osrelease").read_text(errors="replace").strip()
    except OSError:
        return None


def kernel_config(option: str, *, root: Path = ROOT) -> str | None:
    """Return the value of CONFIG_`option`: "y", "m", a value, or "n"; None if there is no readable config."""
    release = kernel_release(root=root) or ""
    for path in (root / "proc/config.gz", root / f"boot/config-{release}"):
        try:
            text = path.read_bytes()
        except OSError:
            continue
        if path.suffix == ".gz":
            text = gzip.decompress(text)
        start = f"CONFIG_{option}="
        found = (line for line in text.decode(errors="replace").splitlines() if line.startswith(start))
        return next(found, f"{start}n").removeprefix(start)
    return None
