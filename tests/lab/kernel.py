"""Which kernel the lab boots."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

from .errors import LabError

BOOT = Path("/boot")


@dataclass(frozen=True, slots=True)
class Kernel:
    """A bootable kernel image with its release, as in `uname -r`."""

    image: Path
    release: str

    @property
    def modules(self) -> Path:
        """Its modules, in the same root file system as its image."""
        return self.image.parents[1] / "lib" / "modules" / self.release

    @property
    def build_tree(self) -> Path:
        """What modules for this kernel are built against (linux-headers, or the kernel's own build tree)."""
        return self.modules / "build"

    @property
    def is_installed(self) -> bool:
        """Whether it is a kernel of this machine, and not one in a folder of its own."""
        return self.image.parent == BOOT


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


def newest_stock() -> Kernel:
    """Debian's newest kernel in /boot.

    Raises LabError where there is none.
    """
    images = sorted(BOOT.glob("vmlinuz-*-amd64"), key=_version)
    if not images:
        raise LabError(f"no Debian kernel in {BOOT}: apt-get install linux-image-amd64 linux-headers-amd64")
    return read(images[-1])


def _version(image: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", image.name)]
