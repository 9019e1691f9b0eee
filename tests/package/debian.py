"""A minimal Debian 12 to install the package in, and copies of it that cost nothing and leave nothing behind.

Each command gets mounts of its own, an overlay of what it writes on the Debian that it sees, in a mount
namespace that ends with it: there is nothing to unmount, whatever happens.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SUITE = "bookworm"
# What the tests look at the installed package with; what the package itself needs comes with it.
PACKAGES = ("bash-completion", "fish", "man-db", "python3-venv", "systemd", "zsh")

LIMIT_S = 600.0
"""For one command in it."""

_ENTER = """
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount -t proc proc "$1/root/proc"
mount -t sysfs -o ro sysfs "$1/root/sys"
mount --rbind /dev "$1/root/dev"
mount --bind /etc/resolv.conf "$1/root/etc/resolv.conf"
mount --bind "$3" "$1/root/var/cache/apt/archives"
root=$1/root
shift 3
exec chroot "$root" "$@"
"""
_ENVIRONMENT = {
    "DEBIAN_FRONTEND": "noninteractive",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
}


def cache() -> Path:
    """Where the Debian is kept, and the packages that were fetched for it."""
    above = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = above.resolve() / "vpmu-agent" / "package"
    (path / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    return path


@dataclass(frozen=True, slots=True)
class Root:
    """A Debian's root: the folders that it is made of, and the one that takes what is written."""

    layers: tuple[Path, ...]
    """The topmost first; nothing may be written to them any more."""
    own: Path

    def run(self, *command: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Runs `command` in it, as root; AssertionError with what it printed if it ends otherwise."""
        lower = ":".join(map(str, self.layers))
        # No process of it stays, and so no mount does.
        enter = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", _ENTER, "sh")
        done = subprocess.run(
            [*enter, str(self.own), lower, str(cache() / "archives"), *command],
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == status, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def apt(self, *arguments: str) -> None:
        """Runs apt-get in it."""
        self.run("apt-get", "-y", "-q", "--no-install-recommends", *arguments)

    def put(self, file: Path) -> str:
        """Copies a file into it, and returns where to."""
        folder = self.own / "upper" / "srv"
        folder.mkdir(exist_ok=True)
        shutil.copy(file, folder)
        return f"/srv/{file.name}"

    def files(self) -> set[str]:
        """All that it has."""
        return set(self.run("find", "/", "-xdev").stdout.splitlines())

    @contextmanager
    def copy(self) -> Iterator[Root]:
        """Another one that begins as this one is, which must not be written to meanwhile."""
        with _writable((self.own / "upper", *self.layers)) as root:
            yield root


@contextmanager
def minimal() -> Iterator[Root]:
    """A minimal Debian 12 with PACKAGES, made by debootstrap once, with its package lists as of now."""
    with _writable((base(),)) as root:
        root.run("apt-get", "-q", "update")
        yield root


@contextmanager
def _writable(layers: tuple[Path, ...]) -> Iterator[Root]:
    with tempfile.TemporaryDirectory(prefix="run-", dir=cache()) as own:
        for name in ("upper", "work", "root"):
            (Path(own) / name).mkdir()
        yield Root(layers, Path(own))


def base() -> Path:
    """The Debian itself, kept by the hash of what it is made from; it takes its name when it is whole."""
    sources, options = _sources(), _options()
    mirrors = [uri for uri, release, _ in map(str.split, sources) if release == SUITE]
    assert mirrors, f"apt has no mirror of Debian's {SUITE} here: see /etc/apt, and run apt-get update"
    packages = f"--include={','.join(PACKAGES)}"
    made_from = "\0".join([SUITE, packages, *sources, options])
    base = cache() / f"base-{hashlib.sha256(made_from.encode()).hexdigest()[:12]}"
    with (cache() / "base.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not base.exists():
            partial = base.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            print(f"\ndeb-test: making a minimal Debian in {base}: some two minutes", flush=True)
            command = ["debootstrap", "--variant=minbase", packages, SUITE, str(partial), mirrors[0]]
            subprocess.run(command, check=True)
            apt = partial / "etc" / "apt"
            (apt / "sources.list").write_text("".join(f"deb {source}\n" for source in sources))
            (apt / "apt.conf.d" / "50host").write_text(options)
            partial.rename(base)
    return base


def _sources() -> list[str]:
    """The mirrors of this machine: `URI RELEASE COMPONENT`."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Origin: Debian"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sorted({line for line in found.splitlines() if line.split()[1].startswith(SUITE)})


def _options() -> str:
    """How this machine's apt reaches them: proxies, and whether they may be old."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    return "".join(re.findall(r"^Acquire::(?:Check-|https?::|Retries).*\n", dump, re.MULTILINE))
