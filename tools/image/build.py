"""Makes the image: a Debian with what the agent depends on, and over it a layer with the agent's own package.

The Debian is kept for the next build under a name made of the versions that apt would install, so that an
update of any of them makes another one; everyone who has pulled the image then pulls the small layer only.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tools.image.oci import Layer, pack, write_archive

SUITE = "trixie"
"""Debian 13: with LLVM 19 it is 13 MB smaller, compressed, than Debian 12 with LLVM 14, whose LLVM needs ICU
and whose libbpfcc needs perl's modules."""

_TREE = Path(__file__).parents[2]

ALTERNATIVES = {"systemd-standalone-sysusers"}
"""What to take where the package can do with one of several: makes the user, and is not all of systemd."""

UID = 65529
"""The agent's user. The host has no user namespace between it and the image, so it must be nobody else's
there: systemd (UIDS-GIDS) and Debian (policy 9.2.2) give 65520 to 65533 to no one."""

CONFIG: dict[str, object] = {
    # By number, or Kubernetes could not tell that it is not root.
    "User": f"{UID}:{UID}",
    "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "PYTHONDONTWRITEBYTECODE=1"],
    "Entrypoint": ["/usr/bin/vpmu-agent"],
    # A container's loopback is its own: who starts it says to whom the port is published.
    "Cmd": ["run", "--config", "/etc/vpmu-agent/vpmu-agent.toml", "--listen", ":9775", "--wait"],
    "ExposedPorts": {"9775/tcp": {}},
    "StopSignal": "SIGTERM",
    "WorkingDir": "/",
}

_LEFT_OUT = (
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/lintian/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
    "/usr/share/bash-completion/*",
    "/usr/share/fish/*",
    "/usr/share/zsh/*",
)
_LEFT_IN = ("/usr/share/doc/*/copyright",)
"""A licence has to come with what it is for."""

_NOT_IN_A_LAYER = re.compile(
    # What is the building machine's, and what the runtime makes.
    r"etc/(hostname|resolv\.conf|mtab|apt/sources\.list)|(dev|proc|sys|run|tmp|mnt)/.*"
    # Logs with times in them, and caches that are rebuilt or never used again.
    r"|var/log/.+|var/cache/(apt|debconf|ldconfig)/.+|var/lib/apt/lists/.+"
    r"|.*-old|etc/(group|gshadow|passwd|shadow)-"
)

_INSTALL = """
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
mkdir -p "$2/root/etc/sysusers.d"
echo "u vpmu-agent $3 \\"vpmu-agent\\"" > "$2/root/etc/sysusers.d/vpmu-agent.conf"
mount -t proc proc "$2/root/proc"
mount --bind "$4" "$2/root/mnt"
exec chroot "$2/root" dpkg --install "/mnt/$5"
"""


class BuildError(Exception):
    """The image cannot be made here; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Source:
    """What the image says of where it comes from. `created` is in seconds since 1970; "" is not known."""

    created: int
    revision: str = ""
    url: str = ""


def build(package: Path, folder: Path) -> Path:
    """Makes the archive of one .deb in `folder`, as root, and returns its path. Raises BuildError."""
    version = _field(package, "Version")
    source = source_of(_TREE)
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"vpmu-agent-{version}.oci.tar"
    with debian(dependencies(_field(package, "Depends"))) as (root, base):
        with tempfile.TemporaryDirectory(prefix="layer-", dir=cache()) as scratch:
            layers = [base, agent_layer(root, package, Path(scratch), source.created)]
            partial = archive.with_suffix(".partial")
            write_archive(
                partial,
                layers,
                config={**CONFIG, "Labels": labels(version, source)},
                architecture=_output("dpkg", "--print-architecture"),
                created=source.created,
                name=f"localhost/vpmu-agent:{version}",
            )
        partial.rename(archive)
    return archive


def labels(version: str, source: Source) -> dict[str, str]:
    """The image's labels, of the names that the OCI image specification gives (annotations.md)."""
    known = {
        "title": "vpmu-agent",
        "description": "Watches the virtual performance counters of KVM guests",
        "version": version,
        "licenses": "GPL-2.0-only",
        "base.name": f"debian:{SUITE}",
        "revision": source.revision,
        "source": source.url,
    }
    return {f"org.opencontainers.image.{name}": value for name, value in known.items() if value}


def source_of(tree: Path) -> Source:
    """Where a source tree comes from: git says, or SOURCE_DATE_EPOCH and the changelog of the package."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        commit, date = _output("git", "-C", tree, "log", "-1", "--format=%H %ct").split()
        if _output("git", "-C", tree, "status", "--porcelain"):
            commit += "-dirty"
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        changelog = ("dpkg-parsechangelog", "-l", tree / "debian/changelog", "-S", "Timestamp")
        return Source(int(epoch or _output(*changelog)))
    remote = subprocess.run(
        ["git", "-C", tree, "remote", "get-url", "origin"], capture_output=True, text=True, check=False
    )
    return Source(int(epoch or date), commit, remote.stdout.strip())


def dependencies(depends: str) -> list[str]:
    """The packages to install for a `Depends` field."""
    chosen = []
    for clause in depends.split(", "):
        names = [re.split(r"[ :(]", name.strip())[0] for name in clause.split("|")]
        chosen.append(next((name for name in names if name in ALTERNATIVES), names[0]))
    return sorted(set(chosen))


# The Debian


def cache() -> Path:
    """Where the Debian is kept."""
    above = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = above.resolve() / "vpmu-agent" / "image"
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def debian(packages: Sequence[str]) -> Iterator[tuple[Path, Layer]]:
    """A Debian with `packages`: its root, and the layer made of it.

    Nobody else makes or removes one meanwhile. Raises BuildError.
    """
    command = _mmdebstrap(packages)
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        versions = _versions(command)
        key = hashlib.sha256("\0".join([*command, *versions, _NOT_IN_A_LAYER.pattern]).encode()).hexdigest()
        kept = cache() / f"debian-{key[:12]}"
        if not kept.exists():
            for old in cache().glob("debian-*"):
                shutil.rmtree(old)
            print(f"making a Debian of {len(versions)} packages in {kept}: about a minute", flush=True)
            partial = cache() / "debian-partial"
            _make(command, partial)
            partial.rename(kept)
        about = json.loads((kept / "layer.json").read_text())
        yield kept / "root", Layer(kept / "layer.tar.gz", **about)


def _mmdebstrap(packages: Sequence[str]) -> list[str]:
    if not shutil.which("mmdebstrap"):
        raise BuildError("mmdebstrap is missing: apt install mmdebstrap, or run `make image`, which does")
    options = [
        "--variant=essential",
        f"--include={','.join(packages)}",
        *(f"--aptopt={option}" for option in _apt_options()),
        *(f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT),
        *(f"--dpkgopt=path-include={path}" for path in _LEFT_IN),
    ]
    return ["mmdebstrap", *options, SUITE]


def _versions(command: Sequence[str]) -> list[str]:
    """What apt would install now, each as `Inst NAME (VERSION ...)`. Raises BuildError."""
    *options, suite = command
    done = subprocess.run(
        [*options, "--simulate", "--verbose", "--format=null", suite, "/dev/null", *_sources()],
        capture_output=True,
        text=True,
        check=False,
    )
    found = sorted(set(re.findall(r"^Inst .*\)", done.stdout + done.stderr, re.MULTILINE)))
    if done.returncode or not found:
        raise BuildError(
            f"apt finds no packages of Debian's {SUITE} in this machine's mirrors:\n{done.stderr[-2000:]}"
        )
    return found


def _make(command: Sequence[str], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    root = folder / "root"
    *options, suite = command
    # Any date will do. With one, Python's compiled files hold a hash of their source (py_compile, PEP 552)
    # and not its date, so they are not taken for old, and nothing depends on when this was run.
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1"}
    subprocess.run(
        [*options, "--quiet", "--format=directory", suite, root, *_sources()], env=environment, check=True
    )
    newest = max(int(path.stat().st_mtime) for path in root.glob("usr/share/doc/*/copyright"))
    layer = pack(
        root,
        folder / "layer.tar.gz",
        created_by=f"mmdebstrap {suite}",
        newest=newest,
        leave_out=_is_left_out,
    )
    about = {name: value for name, value in asdict(layer).items() if name != "path"}
    (folder / "layer.json").write_text(json.dumps(about))


def _sources() -> list[str]:
    """Lines for apt: the mirrors of Debian that this machine has, with SUITE for its own release."""
    found = _output(
        "apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Origin: Debian"
    )
    lines = set()
    for uri, release, component in (line.split() for line in found.splitlines()):
        pocket = release.partition("-")[2]
        if component == "main" and pocket in ("", "updates", "security"):
            lines.add(f"deb {uri} {SUITE}{'-' if pocket else ''}{pocket} main")
    if not lines:
        raise BuildError("apt has no mirror of Debian here: see /etc/apt, and run apt-get update")
    return sorted(lines)


def _apt_options() -> list[str]:
    """How this machine's apt reaches its mirrors: proxies, and whether they may be old."""
    return re.findall(
        r"^Acquire::(?:Check-|https?::|Retries).*(?=;)", _output("apt-config", "dump"), re.MULTILINE
    )


# The agent


def agent_layer(root: Path, package: Path, scratch: Path, newest: int) -> Layer:
    """Installs the .deb over the Debian in `root`; the layer is what that changed."""
    for name in ("upper", "work", "root"):
        (scratch / name).mkdir()
    # In mounts of its own, which end with it.
    enter = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", _INSTALL, "sh")
    done = subprocess.run(
        [*enter, root, scratch, str(UID), package.resolve().parent, package.name],
        env={**os.environ, **_ENVIRONMENT, "SOURCE_DATE_EPOCH": str(newest)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BuildError(f"the package cannot be installed in the image:\n{done.stdout}")
    upper = scratch / "upper"
    if removed := [path for path in upper.rglob("*") if stat.S_ISCHR(path.lstat().st_mode)]:
        raise BuildError(f"installing the package removed {removed}, which this has no way to put in a layer")
    return pack(
        upper,
        scratch / "layer.tar.gz",
        created_by=f"dpkg --install {package.name}",
        newest=newest,
        leave_out=_is_left_out,
    )


_ENVIRONMENT = {
    "DEBIAN_FRONTEND": "noninteractive",
    "LC_ALL": "C.UTF-8",
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
}


def _is_left_out(path: str) -> bool:
    return bool(_NOT_IN_A_LAYER.fullmatch(path))


def _field(package: Path, name: str) -> str:
    return _output("dpkg-deb", "--field", package, name)


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
