"""Builds the grouped kernel: `python -m tests.lab.grouped.build`.

Debian's sources, edited (edits.py), with no more than the lab needs (config). The result is kept by the hash
of everything it is made from, so a second run does nothing; it takes its name only when it is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from .. import kernel, places
from ..errors import LabError
from ..kernel import Kernel
from . import edits

SOURCE_PACKAGE = "linux-source-6.1"
SOURCE = Path("/usr/src") / f"{SOURCE_PACKAGE}.tar.xz"
CONFIG = Path(__file__).resolve().parent / "config"
LEADER_CHECK = Path(__file__).resolve().parent / "leader_check"

# Debian's package by the program that it is needed for.
PACKAGES = {
    "spatch": "coccinelle",
    "pahole": "dwarves",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "depmod": "kmod",
    "gcc": "gcc",
    "make": "make",
    "tar": "tar",
    "xz": "xz-utils",
}

MAKE_LIMIT_S = 3 * 3600
PROGRESS_S = 30.0
LOG_TAIL_LINES = 30

# What modules are built against, as in scripts/package/builddeb, and installed with.
BUILD_TREE = (
    *(".config", "Makefile", "Module.symvers", "System.map", "arch/x86/Makefile"),
    *("arch/x86/include", "include", "scripts", "tools/objtool/objtool"),
)


def grouped_kernel() -> Kernel:
    """The grouped kernel, which is built if it is not there: that takes a quarter of an hour.

    Raises LabError where a package is missing, an edit finds no place, or the build fails.
    """
    digest = _digest()
    root = places.build_dir() / f"grouped-kernel-{digest}"
    if not root.exists():
        with _only_one():
            if not root.exists():
                _build(root, digest)
    (image,) = (root / "boot").glob("vmlinuz-*")
    return kernel.read(image)


def _digest() -> str:
    """Of everything that the kernel is made from."""
    if not SOURCE.exists():
        raise LabError(f"{SOURCE} is missing: apt-get install {SOURCE_PACKAGE}")
    digest = hashlib.sha256()
    for file in (*edits.inputs(), CONFIG, *sorted(LEADER_CHECK.iterdir()), Path(__file__)):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    versions = (
        _output("dpkg-query", "-W", "-f=${Version}", SOURCE_PACKAGE),
        _output("gcc", "-dumpfullversion"),
        importlib.metadata.version("virtme-ng"),
    )
    digest.update("\0".join(versions).encode())
    return digest.hexdigest()[:12]


@contextlib.contextmanager
def _only_one() -> Iterator[None]:
    """Holds the lock of this build; another one that is running is waited for."""
    places.build_dir().mkdir(parents=True, exist_ok=True)
    with (places.build_dir() / "grouped-kernel.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another build is running, waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(root: Path, digest: str) -> None:
    if missing := [package for tool, package in PACKAGES.items() if not _which(tool)]:
        raise LabError(f"to build the grouped kernel: apt-get install {' '.join(missing)}")
    started = time.monotonic()
    # A name that is always the same: what a killed build has left is found and removed.
    scratch = places.build_dir() / "grouped-kernel.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    tree = scratch / SOURCE_PACKAGE
    made = scratch / root.name
    made.mkdir(parents=True)
    log = places.build_dir() / "grouped-kernel.log"
    log.unlink(missing_ok=True)
    try:
        _say(f"unpacking {SOURCE}")
        _run(["tar", "-xf", str(SOURCE), "-C", str(scratch)], cwd=scratch, log=log)
        _say("editing it")
        edits.apply(tree)
        _say("configuring it")
        _configure(tree, f"-grouped-{digest}", log)
        _say(f"compiling it (log: {log})")
        _make(tree, "bzImage", "modules", log=log)
        _say("installing it")
        _install(tree, made, log)
        made.rename(root)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    _say(f"built {root} in {(time.monotonic() - started) / 60:.0f} min")


def _configure(tree: Path, local_version: str, log: Path) -> None:
    """Writes .config: virtme-ng's, then ours. Raises LabError where a line of ours did not hold."""
    wanted = f'{CONFIG.read_text()}CONFIG_LOCALVERSION="{local_version}"\n'
    _run(["vng", "--kconfig"], cwd=tree, log=log)
    with (tree / ".config").open("a") as config:
        config.write(wanted)
    _make(tree, "olddefconfig", log=log)
    got = set((tree / ".config").read_text().splitlines())
    # An option whose menu is off is not in .config at all.
    lost = [
        line
        for line in wanted.splitlines()
        if (line.startswith("CONFIG_") and line not in got)
        or (line.endswith(" is not set") and any(had.startswith(line.split()[1] + "=") for had in got))
    ]
    if lost:
        raise LabError(f"the kernel's configuration did not take these lines of {CONFIG}: {', '.join(lost)}")


def _install(tree: Path, made: Path, log: Path) -> None:
    """Image, modules and what modules are built against, laid out as in a root file system."""
    release = (tree / "include/config/kernel.release").read_text().strip()
    boot = made / "boot"
    boot.mkdir()
    shutil.copy(tree / "arch/x86/boot/bzImage", boot / f"vmlinuz-{release}")
    shutil.copy(tree / ".config", boot / f"config-{release}")
    _make(tree, "modules_install", f"INSTALL_MOD_PATH={made}", "INSTALL_MOD_STRIP=1", log=log)

    build_tree = made / "usr" / "src" / f"linux-headers-{release}"
    for name in BUILD_TREE:
        target = build_tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (tree / name).is_dir():
            shutil.copytree(tree / name, target, symlinks=True)
        else:
            shutil.copy(tree / name, target)
    modules = made / "lib" / "modules" / release
    for link in ("build", "source"):
        (modules / link).unlink(missing_ok=True)
    (modules / "build").symlink_to(os.path.relpath(build_tree, modules))

    # Outside of the tree that everything was built in: it shows that nothing is missing.
    check = made.parent / LEADER_CHECK.name
    shutil.copytree(LEADER_CHECK, check)
    _make(build_tree, f"M={check}", "modules", log=log)
    _make(build_tree, f"M={check}", "modules_install", f"INSTALL_MOD_PATH={made}", log=log)


def _make(tree: Path, *targets: str, log: Path) -> None:
    # LOCALVERSION: the Makefile would add a plus sign when the folder is in somebody's git repository.
    command = ["nice", "-n", "19", "make", f"-j{os.cpu_count() or 1}", "LOCALVERSION=", *targets]
    _run(command, cwd=tree, log=log)


def _run(command: list[str], *, cwd: Path, log: Path) -> None:
    """Runs `command` with its output in `log`, and says now and then how far it is."""
    with log.open("a") as output:
        output.write(f"$ {' '.join(command)}\n")
        output.flush()
        process = subprocess.Popen(
            ["timeout", "--kill-after=10", str(MAKE_LIMIT_S), *command],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(),
        )
        try:
            while (status := _wait(process)) is None:
                if compiled := len(re.findall(r"^  (?:CC|AS) ", log.read_text(), re.MULTILINE)):
                    _say(f"  {compiled} files compiled")
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if status:
        tail = log.read_text().splitlines()[-LOG_TAIL_LINES:]
        raise LabError(
            f"building the grouped kernel failed: {' '.join(command)}\n"
            + "\n".join(tail)
            + f"\nall of it is in {log}"
        )


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(PROGRESS_S)
    except subprocess.TimeoutExpired:
        return None


def _environment() -> dict[str, str]:
    # vng looks up its own tools in PATH, and depmod may be in sbin only. Make's own variables are for the
    # makefile that started this.
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return {**own, "PATH": _path(), "LC_ALL": "C"}


def _path() -> str:
    return os.pathsep.join([f"{sys.prefix}/bin", os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _which(tool: str) -> str | None:
    return shutil.which(tool, path=_path())


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise LabError(f"{' '.join(command)} failed: {error}") from error


def _say(line: str) -> None:
    print(f"lab-kernel: {line}", flush=True)


def main() -> int:
    """Builds the kernel if it is not there, and prints where its image is."""
    # What is half built is removed in either case.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        print(grouped_kernel().image)
    except LabError as error:
        print(f"lab-kernel: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
