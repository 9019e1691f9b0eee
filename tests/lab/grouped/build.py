"""Builds the grouped kernel: `python -m tests.lab.grouped.build`.

Debian's sources, edited (edits.py), with no more than the lab needs (config), in a Debian root of its own,
so that it is the same kernel on every machine. The result is kept by the hash of everything it is made
from, so a second run does nothing; it takes its name only when it is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support import debian
from tests.support.debian import Root, RootError

from .. import kernel, places
from ..errors import LabError
from ..kernel import Kernel
from . import edits

SUITE = "bookworm"
"""The release that has these sources and the compiler for them; the patches are written for no other."""
SOURCE_PACKAGE = "linux-source-6.1"
CONFIG = Path(__file__).resolve().parent / "config"
LEADER_CHECK = Path(__file__).resolve().parent / "leader_check"

# What the root has, beside the sources; spatch loads libpython3.11.so, which only libpython3-dev has.
PACKAGES = (
    "bc",
    "bison",
    "coccinelle",
    "dwarves",
    "flex",
    "gcc",
    "kmod",
    "libc6-dev",
    "libelf-dev",
    "libpython3-dev",
    "libssl-dev",
    "make",
    "python3",
    "rsync",
    "xz-utils",
)

MAKE_LIMIT_S = 3 * 3600
PROGRESS_S = 30.0
SCRATCH = "/srv/build"  # in that root: the folder in which all is made

# What modules are built against, as in scripts/package/builddeb, and installed with.
BUILD_TREE = (
    ".config",
    "Makefile",
    "Module.symvers",
    "System.map",
    "arch/x86/Makefile",
    "arch/x86/include",
    "include",
    "scripts",
    "tools/objtool/objtool",
)


def grouped_kernel() -> Kernel:
    """The grouped kernel, which is built if it is not there: that takes a quarter of an hour.

    Raises LabError where an edit finds no place, or the build fails.
    """
    folder = places.lab_dir() / "kernels" / f"grouped-{_digest()}"
    if not folder.exists():
        with _only_one():
            if not folder.exists():
                _build(folder)
    return kernel.in_folder(folder)


def _digest() -> str:
    """Of everything that the kernel is made from."""
    digest = hashlib.sha256()
    for file in (*edits.inputs(), CONFIG, *sorted(LEADER_CHECK.iterdir()), Path(__file__)):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
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


def _build(folder: Path) -> None:
    started = time.monotonic()
    # A name that is always the same: what a killed build has left is found and removed.
    scratch = places.build_dir() / "grouped-kernel.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    tree, made = scratch / SOURCE_PACKAGE, scratch / "kernel"
    made.mkdir(parents=True)
    log = places.build_dir() / "grouped-kernel.log"
    log.write_text("")
    try:
        with debian.writable(debian.base(SUITE, (*PACKAGES, SOURCE_PACKAGE))) as root:
            run = _Runner(root, scratch, log)
            _say(f"unpacking {SOURCE_PACKAGE}")
            run(f"tar -xf /usr/src/{SOURCE_PACKAGE}.tar.xz")
            _say("editing it")
            edits.apply(tree, root=root, scratch=scratch, at=SCRATCH)
            _say("configuring it")
            _configure(tree, f"-{folder.name}", run)
            _say(f"compiling it (log: {log})")
            run(f"{_make(SOURCE_PACKAGE)} bzImage modules")
            _say("installing it")
            _install(tree, made, run)
        folder.parent.mkdir(parents=True, exist_ok=True)
        made.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    _say(f"built {folder} in {(time.monotonic() - started) / 60:.0f} min")


def _configure(tree: Path, local_version: str, run: _Runner) -> None:
    """Writes .config. Raises LabError where a line of ours did not hold."""
    wanted = f'{CONFIG.read_text()}CONFIG_LOCALVERSION="{local_version}"\n'
    (tree / ".config").write_text(wanted)
    run(f"{_make(SOURCE_PACKAGE)} olddefconfig")
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


def _install(tree: Path, made: Path, run: _Runner) -> None:
    """Image, modules and what modules are built against, laid out as in a root file system."""
    release = (tree / "include/config/kernel.release").read_text().strip()
    boot = made / "boot"
    boot.mkdir()
    (made / "lib").symlink_to("usr/lib")
    shutil.copy(tree / "arch/x86/boot/bzImage", boot / f"vmlinuz-{release}")
    shutil.copy(tree / ".config", boot / f"config-{release}")
    install = f"INSTALL_MOD_PATH={SCRATCH}/{made.name}/usr"
    run(f"{_make(SOURCE_PACKAGE)} modules_install {install} INSTALL_MOD_STRIP=1")

    headers = made / "usr" / "src" / f"linux-headers-{release}"
    for name in BUILD_TREE:
        copy = headers / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if (tree / name).is_dir():
            shutil.copytree(tree / name, copy, symlinks=True)
        else:
            shutil.copy(tree / name, copy)
    modules = made / "usr" / "lib" / "modules" / release
    for link in ("build", "source"):
        (modules / link).unlink(missing_ok=True)
    (modules / "build").symlink_to(os.path.relpath(headers, modules))

    # Outside of the tree that everything was built in: it shows that nothing is missing.
    check = made.parent / LEADER_CHECK.name
    shutil.copytree(LEADER_CHECK, check)
    make = f"{_make(headers.relative_to(made.parent))} M={SCRATCH}/{check.name}"
    run(f"{make} modules")
    run(f"{make} modules_install {install}")


def _make(folder: str | Path) -> str:
    # LOCALVERSION: the Makefile would add a plus sign when the folder is in somebody's git repository.
    return f"nice -n 19 make -C {folder} -j{os.cpu_count() or 1} LOCALVERSION="


class _Runner:
    """Runs shell commands in the root, in the scratch folder, with their output in a log."""

    def __init__(self, root: Root, scratch: Path, log: Path) -> None:
        self._root = root
        self._scratch = scratch
        self._log = log

    def __call__(self, script: str) -> None:
        """Says now and then how far it is. Raises LabError with the last lines of the log if it fails."""
        script = f"cd {SCRATCH} && ( {script} ) >> /srv/log 2>&1"
        with self._log.open("a") as log:
            log.write(f"$ {script}\n")
        binds = {self._scratch: SCRATCH, self._log: "/srv/log"}
        try:
            with self._progress():
                self._root.run("sh", "-euc", script, binds=binds, limit_s=MAKE_LIMIT_S)
        except RootError as error:
            tail = "\n".join(self._log.read_text().splitlines()[-30:])
            raise LabError(
                f"building the grouped kernel failed: {error}\n{tail}\nall of it is in {self._log}"
            ) from error

    @contextlib.contextmanager
    def _progress(self) -> Iterator[None]:
        over = threading.Event()

        def watch() -> None:
            while not over.wait(PROGRESS_S):
                if compiled := len(re.findall(r"^  (?:CC|AS) ", self._log.read_text(), re.MULTILINE)):
                    _say(f"  {compiled} files compiled")

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


def _say(line: str) -> None:
    print(f"lab-kernel: {line}", flush=True)


def main() -> int:
    """Builds the kernel if it is not there, and prints where its image is."""
    # What is half built is removed in either case.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        print(grouped_kernel().image)
    except (LabError, RootError) as error:
        print(f"lab-kernel: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
