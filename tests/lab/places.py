"""Where the lab reads and writes: the source tree is only read, everything made goes under one directory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).resolve().parent

# Set for every command in the VM: the directory that it may write to, the same path there and outside.
RESULTS = "VPMU_LAB_RESULTS"

PYCACHE = "/var/cache/vpmu-lab-pycache"
"""In the VM: Python's bytecode, of what is in the source tree too."""


def lab_dir() -> Path:
    """The lab's own directory, `$XDG_CACHE_HOME/vpmu-agent/lab`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache.resolve() / "vpmu-agent" / "lab"


def build_dir() -> Path:
    """What the lab has built."""
    return lab_dir() / "build"


@contextmanager
def new_results_dir() -> Iterator[Path]:
    """A directory for what one VM writes, as long as it is needed."""
    lab_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="results-", dir=lab_dir()) as results:
        yield Path(results)


def results_dir() -> Path:
    """In the VM: the one directory that can be written and is still there afterwards."""
    return Path(os.environ[RESULTS])


def in_vm() -> bool:
    """True in the lab VM, false on the machine that runs it."""
    return RESULTS in os.environ
