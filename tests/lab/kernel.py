"""Which kernel the lab boots: one of Debian's, fetched by apt and not installed, or one built here.

A kernel is a folder laid out as in a root file system, /usr merged, so that it can be laid over any
userland's root: `boot/vmlinuz-RELEASE`, `usr/lib/modules/RELEASE`, and what modules are built against.
"""

from __future__ import annotations

import re
import shutil
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.support import debian
from tests.support.debian import Root

from . import places
from .errors import LabError

# The parts of one kernel among what apt would install; Debian's 7.x are several packages, the image with
# the modules.
_PARTS = re.compile(
    r"^Inst (linux-(?:image|binary|modules|base|headers|kbuild)-\d\S*) \((\S+) ", re.MULTILINE
)
_META = ("linux-image-amd64", "linux-headers-amd64")
_FETCH_S = 900.0

# In the root that fetches it: unpacks the packages into /srv/kernel, merges /usr, and makes what the
# packages' scripts make. The modules are unpacked too, for whoever loads them emulates every instruction of
# it.
_UNPACK = """
cd /srv/kernel
for package in /srv/packages/*.deb; do dpkg-deb -x "$package" .; done
if [ ! -L lib ]; then
    mkdir -p usr/lib
    [ ! -d lib ] || cp -a lib/. usr/lib/
    rm -rf lib
    ln -s usr/lib lib
fi
for modules in usr/lib/modules/*; do
    [ ! -e "$modules/vmlinuz" ] || install -D "$modules/vmlinuz" "boot/vmlinuz-${modules##*/}"
done
find usr/lib/modules -name '*.ko.xz' -print0 | xargs -0 -r -n 64 -P 2 xz -d
for modules in usr/lib/modules/*; do depmod -b /srv/kernel "${modules##*/}"; done
"""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A bootable kernel: its folder, its image in there, and its release, as in `uname -r`."""

    image: Path
    release: str

    @property
    def folder(self) -> Path:
        """What is laid over a root file system."""
        return self.image.parents[1]


def read(image: Path) -> Kernel:
    """The kernel in a bzImage; the release is read from its header (Documentation/arch/x86/boot.rst)."""
    try:
        with image.open("rb") as file:
            head = file.read(0x8000)
    except OSError as error:
        raise LabError(f"cannot read the kernel {image}: {error.strerror}") from error
    if head[0x202:0x206] != b"HdrS":
        raise LabError(f"{image} is not an x86 kernel image (bzImage)")
    (offset,) = struct.unpack_from("<H", head, 0x20E)
    text = head[offset + 0x200 :].split(b"\0", 1)[0].decode(errors="replace")
    return Kernel(image.resolve(), text.split()[0])


def of_debian(suite: str, userland: Path) -> Kernel:
    """The newest kernel in Debian's `suite` as it was when this machine first asked, fetched by `userland`.

    Raises LabError, and RootError where apt fails.
    """
    folder = places.lab_dir() / "kernels" / suite
    if not folder.exists():
        # Two labs may be started at once, and both want it.
        with debian.locked(f"kernel-{suite}"):
            if not folder.exists():
                _fetch_once(suite, userland, folder)
    return in_folder(folder)


def _fetch_once(suite: str, userland: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    print(f"lab: fetching the kernel of {suite}", flush=True)
    with (
        tempfile.TemporaryDirectory(dir=folder.parent) as scratch,
        debian.writable(userland) as root,
    ):
        made = Path(scratch) / "kernel"
        made.mkdir()
        _fetch(root, suite, made)
        made.rename(folder)


def in_folder(folder: Path) -> Kernel:
    """The one kernel that is in this folder."""
    images = sorted((folder / "boot").glob("vmlinuz-*"))
    if len(images) != 1:
        raise LabError(f"there are {len(images)} kernels in {folder}, and not one; delete it")
    return read(images[0])


def _fetch(root: Root, suite: str, to: Path) -> None:
    release, _, is_addition = suite.partition("-")
    if is_addition:
        lists = root.upper / "etc/apt/sources.list.d"
        lists.mkdir(parents=True)
        line = debian.sources_of(release)[0].replace(f" {release} ", f" {suite} ")
        (lists / "lab.list").write_text(f"{line}\n")
    root.apt("update")
    # Only an addition has to be preferred: of a release itself, the kernel may come from its security
    # updates.
    preferred = ["-t", suite] if is_addition else []
    plan = root.run("apt-get", "-s", "--no-install-recommends", *preferred, "install", *_META).stdout
    parts = [f"{name}={version}" for name, version in _PARTS.findall(plan)]
    if not parts:
        raise LabError(f"apt finds no kernel in {suite}:\n{plan}")
    root.run("sh", "-euc", 'mkdir /srv/packages; cd /srv/packages; apt-get download "$@"', "sh", *parts)
    root.run("sh", "-euc", _UNPACK, binds={to: "/srv/kernel"}, limit_s=_FETCH_S)
    shutil.rmtree(root.upper / "srv/packages")
