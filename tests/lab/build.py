"""Builds what the lab runs inside the VM: the test PMU, guest A, and guest B's root file system.

Everything is built outside the VM and kept by the hash of what it is made from: a second run builds nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import places
from .errors import LabError
from .kernel import Kernel

CFLAGS = ("-O2", "-Wall", "-Wextra", "-Werror")


@dataclass(frozen=True, slots=True)
class Built:
    """What the VM needs, as files."""

    test_pmu: Path  # vpmu_test_pmu.ko, for one kernel
    guest_a: Path  # a VMM
    guest_b_initramfs: Path  # a cpio archive with guest_b_init as /init


def build(kernel: Kernel) -> Built:
    """Everything for one kernel, from the cache where it is there.

    Raises LabError with the compiler's words.
    """
    module_sources = sorted((places.SOURCES / "vpmu_test_pmu").iterdir())
    guest_a = places.SOURCES / "guest_a.c"
    guest_b = places.SOURCES / "guest_b_init.c"
    return Built(
        test_pmu=_cached(
            "vpmu_test_pmu.ko",
            module_sources,
            kernel.release,
            lambda out: _build_module(module_sources, kernel, out),
        ),
        guest_a=_cached("guest_a", [guest_a], "", lambda out: _compile(guest_a, out, "-pthread")),
        guest_b_initramfs=_cached("guest_b.cpio", [guest_b], "", lambda out: _build_initramfs(guest_b, out)),
    )


def _cached(name: str, sources: list[Path], made_for: str, make: Callable[[Path], None]) -> Path:
    """The file `name` made from `sources`, from the cache or anew; old versions of it stay."""
    digest = hashlib.sha256()
    # This file says how things are made, so it is an input too.
    for source in [*sources, Path(__file__)]:
        digest.update(source.read_bytes())
    digest.update(made_for.encode())
    target = places.build_dir() / digest.hexdigest()[:16] / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            made = Path(scratch) / name
            make(made)
            made.rename(target)
    return target


def _build_module(sources: list[Path], kernel: Kernel, out: Path) -> None:
    if not kernel.build_tree.is_dir():
        raise LabError(
            f"no headers of kernel {kernel.release} at {kernel.build_tree}: "
            "apt-get install linux-headers-amd64"
        )
    for source in sources:
        shutil.copy(source, out.parent)
    _run("make", "-C", str(kernel.build_tree), f"M={out.parent}", "modules")


def _compile(source: Path, out: Path, *flags: str) -> None:
    _run("gcc", *CFLAGS, *flags, "-o", str(out), str(source))


def _build_initramfs(source: Path, out: Path) -> None:
    root = out.parent / "root"
    (root / "proc").mkdir(parents=True)
    _compile(source, root / "init", "-static")
    # /dev/console is in the initramfs that is part of every kernel.
    archive = _run("cpio", "-o", "-H", "newc", "--quiet", "-D", str(root), stdin=b"init\nproc\n")
    out.write_bytes(archive)


def _run(*command: str, stdin: bytes = b"") -> bytes:
    done = subprocess.run(
        command, input=stdin, capture_output=True, check=False, env={**os.environ, "LC_ALL": "C"}
    )
    if done.returncode:
        words = (done.stdout + done.stderr).decode(errors="replace")
        raise LabError(f"building failed: {' '.join(command)}\n{words}")
    return done.stdout
