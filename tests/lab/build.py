"""Builds what the lab runs inside the VM: the test PMU, guest A, and guest B's root file system.

Everything is built by the host's own compiler, in a copy of its root file system, and kept by the hash of
what it is made from: a second run builds nothing.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.support import debian
from tests.support.debian import RootError

from . import places
from .errors import LabError
from .hosts import Target

CFLAGS = ("-O2", "-Wall", "-Wextra", "-Werror")
SCRATCH = "/srv/build"  # in that copy: the folder with the sources, where things are made


@dataclass(frozen=True, slots=True)
class Built:
    """What the VM needs, as files."""

    test_pmu: Path  # vpmu_test_pmu.ko, for one kernel
    guest_a: Path  # a VMM
    guest_b_initramfs: Path  # a cpio archive with guest_b_init as /init


def build(target: Target) -> Built:
    """Everything for one host and kernel, from the cache where it is there.

    Raises LabError with the compiler's words.
    """
    module = sorted((places.SOURCES / "vpmu_test_pmu").iterdir())
    guest_a = places.SOURCES / "guest_a.c"
    guest_b = places.SOURCES / "guest_b_init.c"
    build_tree = f"/lib/modules/{target.kernel.release}/build"
    flags = " ".join(CFLAGS)
    return Built(
        test_pmu=_cached("vpmu_test_pmu.ko", module, target, f"make -C {build_tree} M=$PWD modules"),
        guest_a=_cached("guest_a", [guest_a], target, f"gcc {flags} -pthread -o guest_a guest_a.c"),
        guest_b_initramfs=_cached(
            "guest_b.cpio",
            [guest_b],
            target,
            # /dev/console is in the initramfs that is part of every kernel.
            f"mkdir -p root/proc && gcc {flags} -static -o root/init guest_b_init.c && cd root && "
            "printf '%s\\n' init proc | cpio -o -H newc --quiet > ../guest_b.cpio",
        ),
    )


def _cached(name: str, sources: list[Path], target: Target, script: str) -> Path:
    """The file `name` that `script` makes of `sources`, made if it is not kept; old versions stay."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    digest.update("\0".join([script, target.userland.name, target.kernel.release]).encode())
    kept = places.build_dir() / digest.hexdigest()[:16] / name
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            for source in sources:
                shutil.copy(source, scratch)
            _make(name, target, script, Path(scratch))
            (Path(scratch) / name).rename(kept)
    return kept


def _make(name: str, target: Target, script: str, scratch: Path) -> None:
    try:
        with debian.writable(*target.layers) as root:
            root.run("sh", "-euc", f"cd {SCRATCH} && {script}", binds={scratch: SCRATCH})
    except RootError as error:
        raise LabError(f"building {name} for {target} failed: {error}") from error
