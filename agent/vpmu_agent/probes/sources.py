"""The place of the BPF programs' sources."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def bpf_folder() -> Path:
    """Return the folder of the BPF programs: that of an installed package, or the source tree's."""
    installed = _PACKAGE / "bpf"
    return installed if installed.exists() else _PACKAGE.parents[1] / "bpf"
