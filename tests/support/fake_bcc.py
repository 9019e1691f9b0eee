"""Folders that Python takes for bcc: what is found there is broken in one way or another."""

from __future__ import annotations

from pathlib import Path

from tests.support.tree import plant

LIBBCC = "def _load(): ...\n"


def plant_bcc(folder: Path, files: dict[str, str]) -> None:
    plant(folder, {f"bcc/{name}": text for name, text in files.items()})
