"""The agent's BPF programs, compiled in QEMU for Bochs: it takes a minute there, and many in Bochs.

They depend on the kernel and its modules, on the userland and on the agent's sources, and not on the CPU: the
BTF of both machines is the same, and addresses are placeholders in what is kept (vpmu_agent/loader/cache.py).
Were it otherwise, the agent would not find them by their fingerprint, and compile.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.support import debian

from . import agent, live, places
from .errors import LabError
from .hosts import Target

FOLDER = Path("/var/cache/vpmu-agent")
"""Where the agent keeps them."""

COMPILE = ("python3", "-m", "tests.lab.programs")
"""In the VM: puts them into the results."""


def compiled(target: Target, run: Callable[[Path], int]) -> Path:
    """A folder with the programs for a host and kernel, kept by what they depend on.

    If it is not there, `run` runs COMPILE in QEMU with this folder for its results, and returns its status.
    Raises LabError if that fails.
    """
    digest = hashlib.sha256("\0".join([target.userland.name, target.kernel.folder.name]).encode())
    for folder in ("agent", "bpf"):
        for file in sorted((places.REPO / folder).rglob("*.[pch]*")):
            if file.suffix in (".py", ".c", ".h"):
                digest.update(file.name.encode() + b"\0" + file.read_bytes())
    kept = places.build_dir() / digest.hexdigest()[:16] / "programs"
    with debian.locked(f"programs-{target.kernel.folder.name}"):
        if not kept.exists():
            print(f"lab: compiling the agent's programs for {target} in QEMU: a minute or two", flush=True)
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
                if status := run(Path(scratch)):
                    raise LabError(f"{' '.join(COMPILE)} ended with status {status} in QEMU ({target})")
                (Path(scratch) / kept.name).rename(kept)
    return kept


def main() -> None:
    """Fills the agent's cache, and copies it into the results."""
    live.make_live()
    # Probes and census together, and the census alone.
    subprocess.run([*agent.COMMAND, "run", "--compile-only"], check=True)
    subprocess.run([*agent.COMMAND, "list"], check=True)
    shutil.copytree(FOLDER, places.results_dir() / "programs")


if __name__ == "__main__":
    main()
