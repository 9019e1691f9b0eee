"""Debian root file systems: made once from this machine's mirrors and kept, and copies that cost nothing.

A copy is an overlay on what it was made from. Each command in it gets mounts of its own, in a mount namespace
that ends with it: there is nothing to unmount, whatever happens.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LIMIT_S = 600.0
"""For one command in a root."""

UNSTABLE = ("sid", "unstable")

ENVIRONMENT = {
    "DEBIAN_FRONTEND": "noninteractive",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
}
# The kernel's packages make an initramfs when they are installed; nothing here boots with it.
_BOOTSTRAP_ENVIRONMENT = {"INITRD": "No", "LC_ALL": "C.UTF-8"}


class RootError(Exception):
    """A root could not be made, or a command in it did not end as it should; with what was printed."""


@dataclass(frozen=True, slots=True)
class Root:
    """A Debian root file system: the folders that it is made of, and the one that takes what is written."""

    layers: tuple[Path, ...]
    """The topmost first; nothing may be written to them any more."""
    own: Path

    @property
    def upper(self) -> Path:
        """What was written in it."""
        return self.own / "upper"

    def run(
        self,
        *command: str,
        status: int | None = 0,
        binds: Mapping[Path, str] | None = None,
        env: Mapping[str, str] | None = None,
        limit_s: float = LIMIT_S,
    ) -> subprocess.CompletedProcess[str]:
        """Runs `command` in it, as root, with `binds`, folders and files of this machine, where they say.

        Raises RootError if it exits with another status (None: any will do) or takes longer than `limit_s`.
        """
        try:
            done = subprocess.run(
                self.arguments(*command, binds=binds),
                env={**ENVIRONMENT, **(env or {})},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise RootError(f"{shlex.join(command)} was not done after {limit_s:.0f} s") from error
        if status is not None and done.returncode != status:
            raise RootError(f"{shlex.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def arguments(self, *command: str, binds: Mapping[Path, str] | None = None) -> list[str]:
        """The command that runs `command` in it, for a caller that runs it in a way of its own."""
        # No process of it stays, and so no mount does.
        enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc"]
        return [*enter, self._enter(binds or {}), "sh", *command]

    def apt(self, *arguments: str) -> None:
        """Runs apt-get in it."""
        self.run("apt-get", "-y", "-q", "--no-install-recommends", *arguments)

    def put(self, file: Path) -> str:
        """Copies a file into it, and returns where to."""
        folder = self.upper / "srv"
        folder.mkdir(exist_ok=True)
        shutil.copy(file, folder)
        return f"/srv/{file.name}"

    def files(self) -> set[str]:
        """All that it has."""
        return set(self.run("find", "/", "-xdev").stdout.splitlines())

    @contextmanager
    def copy(self) -> Iterator[Root]:
        """Another one that begins as this one is, which must not be written to meanwhile."""
        with writable(self.upper, *self.layers) as root:
            yield root

    def _enter(self, binds: Mapping[Path, str]) -> str:
        """The shell script that mounts it and runs its arguments there."""
        root = self.own / "root"
        lower = ":".join(map(str, self.layers))
        overlay = f"lowerdir={lower},upperdir={self.upper},workdir={self.own / 'work'}"
        mounts = [
            shlex.join(["mount", "-t", "overlay", "overlay", "-o", overlay, str(root)]),
            f"cd {shlex.quote(str(root))}",
            "mount -t proc proc proc",
            "mount -t sysfs -o ro sysfs sys",
            "mount --rbind /dev dev",
            "[ -e etc/resolv.conf ] || : > etc/resolv.conf",
            "mount --bind /etc/resolv.conf etc/resolv.conf",
        ]
        for source, target in {archives(): "/var/cache/apt/archives", **binds}.items():
            made = ["mkdir", "-p"] if source.is_dir() else ["touch"]
            mounts.append(shlex.join([*made, f".{target}"]))
            mounts.append(shlex.join(["mount", "--rbind", str(source), f".{target}"]))
        return "\n".join([*mounts, 'exec chroot . "$@"'])


@contextmanager
def writable(*layers: Path) -> Iterator[Root]:
    """A root of these layers, the topmost first, that is gone afterwards with all that was written in it."""
    with tempfile.TemporaryDirectory(prefix="run-", dir=cache()) as own:
        for name in ("upper", "work", "root"):
            (Path(own) / name).mkdir()
        yield Root(layers, Path(own))


def base(suite: str, packages: Sequence[str]) -> Path:
    """A minimal Debian `suite` with `packages`, kept by the hash of what it is made from.

    It takes its name when it is whole. Raises RootError.
    """
    sources, options = sources_of(suite), _options()
    made_from = "\0".join([suite, *sorted(packages), *sources, options])
    path = cache() / f"{suite}-{hashlib.sha256(made_from.encode()).hexdigest()[:12]}"
    with locked(suite):
        if not path.exists():
            _bootstrap(path, suite, packages, sources, options)
    return path


def _bootstrap(path: Path, suite: str, packages: Sequence[str], sources: Sequence[str], options: str) -> None:
    if not shutil.which("mmdebstrap"):
        raise RootError("a Debian root is made by mmdebstrap, which is missing: apt-get install mmdebstrap")
    started = time.monotonic()
    print(f"roots: making a Debian {suite} with {len(packages)} packages: one or two minutes", flush=True)
    partial = path.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(packages)}"]
    command += [f"--aptopt={option}" for option in options.splitlines()]
    done = subprocess.run(
        [*command, suite, str(partial), *sources],
        env={**os.environ, **_BOOTSTRAP_ENVIRONMENT},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        shutil.rmtree(partial, ignore_errors=True)
        raise RootError(f"mmdebstrap could not make a Debian {suite}:\n{done.stdout}{done.stderr}")
    partial.rename(path)
    print(f"roots: made {path} in {time.monotonic() - started:.0f} s", flush=True)


def cache() -> Path:
    """Where the roots are kept."""
    above = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = above.resolve() / "vpmu-agent" / "roots"
    path.mkdir(parents=True, exist_ok=True)
    return path


def archives() -> Path:
    """Where the packages are kept that were fetched for copies of the roots."""
    path = cache() / "archives"
    (path / "partial").mkdir(parents=True, exist_ok=True)
    return path


def sources_of(suite: str) -> list[str]:
    """Lines of a sources.list for `suite`, from the mirrors that this machine's apt uses for its own.

    Raises RootError where it uses none of Debian's.
    """
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Origin: Debian"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    mirrors = {release: uri for uri, release in map(str.split, found.splitlines())}
    main = {uri for release, uri in mirrors.items() if "-" not in release}
    security = {uri for release, uri in mirrors.items() if release.endswith("-security")}
    if not main:
        raise RootError("this machine's apt knows no mirror of Debian: see /etc/apt, and run apt-get update")
    lines = [f"deb {min(main)} {suite} main"]
    if suite not in UNSTABLE:
        lines.append(f"deb {min(main)} {suite}-updates main")
        lines += [f"deb {uri} {suite}-security main" for uri in security]
    return lines


def _options() -> str:
    """How this machine's apt reaches its mirrors: proxies, and whether what they have may be old."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    return "".join(re.findall(r"^Acquire::(?:Check-|https?::|Retries).*\n", dump, re.MULTILINE))


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock of this name, of all processes on this machine; wait for it."""
    with (cache() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
