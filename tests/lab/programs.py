"""The agent's BPF programs, kept from one VM to the next: compiling takes a minute in QEMU, many in Bochs.

They depend on the kernel and its modules, on the userland and on the agent's sources, and not on the CPU: the
BTF of both machines is the same, and addresses are placeholders in what is kept (vpmu_agent/loader/cache.py).
Of other sources, or by another compiler, the agent does not find them, and compiles.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from tests.support import debian
from vpmu_agent.loader.cache import FOLDER

from . import agent, live, places
from .errors import LabError
from .hosts import Target

COMPILE = ("python3", "-m", "tests.lab.programs")
"""In the VM: compiles what Bochs needs."""

_LEFT = "programs"  # in the results
_COMPLETE = "complete"  # beside what is kept: the hash of the sources of which nothing is missing
_KEPT = 16  # of each target, the newest: of a few ways to attach, from this commit and the one before


def put(target: Target, changed: Path) -> None:
    """Puts what is kept of a host and kernel where the agent in the VM will look, in the layer `changed`."""
    to = changed / FOLDER.relative_to("/")
    with _locked(target):
        _copy(_kept(target), to)
    to.chmod(0o755)  # the agent uses no folder that others may write to


def take(target: Target, results: Path) -> None:
    """Keeps what leave() has left in the results."""
    with _locked(target):
        kept = _kept(target)
        _copy(results / _LEFT, kept)
        for old in _newest_first(kept)[_KEPT:]:
            old.unlink()
            (kept / _COMPLETE).unlink(missing_ok=True)


def leave() -> None:
    """In the VM: leaves what the agent has compiled for take()."""
    _copy(FOLDER, places.results_dir() / _LEFT)


def compile_once(target: Target, run: Callable[[], int]) -> None:
    """Sees to it that put() has all that these sources need.

    If that is not known, `run` runs COMPILE in QEMU, and returns its status. Raises LabError if that fails.
    """
    digest = hashlib.sha256()
    for folder in ("agent", "bpf"):
        for file in sorted((places.REPO / folder).rglob("*.[pch]*")):
            if file.suffix in (".py", ".c", ".h"):
                digest.update(file.name.encode() + b"\0" + file.read_bytes())
    done = _kept(target) / _COMPLETE
    if done.exists() and done.read_text() == digest.hexdigest():
        return
    print(f"lab: compiling the agent's programs for {target} in QEMU: a minute or two", flush=True)
    if status := run():
        raise LabError(f"{' '.join(COMPILE)} ended with status {status} in QEMU ({target})")
    done.write_text(digest.hexdigest())


def _kept(target: Target) -> Path:
    return places.build_dir() / f"programs-{target.userland.name}-{target.kernel.folder.name}"


def _locked(target: Target) -> AbstractContextManager[None]:
    return debian.locked(_kept(target).name)


def _copy(source: Path, to: Path) -> None:
    """With their times, by which the agent keeps the newest."""
    to.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*.bpf"):
        shutil.copy2(file, to)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.bpf"), key=lambda file: -file.stat().st_mtime)


def main() -> None:
    """Fills the agent's cache, and leaves what is in it."""
    live.make_live()
    # Probes and census together, and the census alone.
    subprocess.run([*agent.COMMAND, "run", "--compile-only"], check=True)
    subprocess.run([*agent.COMMAND, "list"], check=True)
    leave()


if __name__ == "__main__":
    main()
