"""What Bochs boots from: it shares no folder with this machine, so all that it sees is on disks.

They are made by the tools of Bochs's own root file system, so that nothing needs to be installed here.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.support import debian

from . import places
from .kernel import Kernel

SUITE = "trixie"
"""It has Bochs 3.0."""
PACKAGES = (
    "bochs",
    "bochs-term",
    "bochsbios",
    "busybox-static",
    "cpio",
    "e2fsprogs",
    "isolinux",
    "kmod",
    "syslinux-common",
    "vgabios",
    "xorriso",
)

# What the initramfs needs of the kernel, and then the command: with what they depend on, and built in or not.
MODULES = ("crc32c_generic", "ata_piix", "sd_mod", "ext4", "overlay", "kvm_intel")

# Room on a disk beside what is put there: what ext4 itself takes, and what is written to it.
_SPARE_PART = 0.2
_SPARE_MB = 32

_MAKE = 'mke2fs -q -t ext4 -O ^has_journal -m 0 -L "$1" -d /srv/from "/srv/to/$2" "$3M"'
_READ = "debugfs -R 'rdump / /srv/to' /srv/disk"

# A CD, isolinux on it, the kernel, and an initramfs of busybox, modules and the script.
_BOOT = """
modules=$(ls /srv/kernel/usr/lib/modules)
from=/srv/kernel/usr/lib/modules/$modules
mkdir -p /srv/initramfs/bin /srv/initramfs/lib/modules/$modules /srv/cd/isolinux
cd /srv/initramfs
mkdir dev proc sys run
cp /usr/bin/busybox bin/
cp /srv/parts/init .
chmod +x init
cp $from/modules.builtin $from/modules.builtin.modinfo $from/modules.order lib/modules/$modules/
for name in MODULES; do
    modprobe -d /srv/kernel -S $modules --show-depends $name | while read -r kind file rest; do
        [ $kind = insmod ] || continue
        below=${file#*/lib/modules/$modules/}
        install -D -m 644 $from/$below lib/modules/$modules/$below
    done
done
depmod -b . $modules
find . | cpio -o -H newc --quiet > /srv/cd/initramfs
cd /srv/cd
cp /srv/kernel/boot/vmlinuz-* vmlinuz
cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 /srv/parts/isolinux.cfg isolinux/
xorriso -as mkisofs -quiet -R -o /srv/to/boot.iso -b isolinux/isolinux.bin -c isolinux/boot.cat \\
    -no-emul-boot -boot-load-size 4 -boot-info-table .
"""

_ISOLINUX = """\
default lab
prompt 0
label lab
    kernel /vmlinuz
    initrd /initramfs
    append {arguments}
"""


def room() -> Path:
    """The root file system that has Bochs and these tools; it is made if it is not there."""
    return debian.base(SUITE, PACKAGES)


def boot_cd(kernel: Kernel, *, init: str, arguments: str) -> Path:
    """A CD that boots `kernel` with these arguments and runs the shell script `init`."""
    script = _BOOT.replace("MODULES", " ".join(MODULES))

    def make(to: Path) -> None:
        with debian.writable(room()) as root, tempfile.TemporaryDirectory() as parts:
            (Path(parts) / "init").write_text(init)
            (Path(parts) / "isolinux.cfg").write_text(_ISOLINUX.format(arguments=arguments))
            binds = {Path(parts): "/srv/parts", kernel.folder: "/srv/kernel", to: "/srv/to"}
            root.run("sh", "-euc", script, binds=binds)

    return _kept("boot.iso", [kernel.folder.name, kernel.release, script, init, arguments], make)


def userland_disk(userland: Path, label: str) -> Path:
    """A disk with all of a host's root file system, kept by the name of that."""
    return _kept(
        "userland.img", [userland.name, label, _MAKE], lambda to: make(userland, label, to / "userland.img")
    )


def make(folder: Path, label: str, disk: Path, *, spare_mb: int = _SPARE_MB) -> None:
    """Makes a disk with what is in `folder`, and room for more."""
    size = int(_used_mb(folder) * (1 + _SPARE_PART)) + spare_mb
    with debian.writable(room()) as root:
        binds = {folder: "/srv/from", disk.parent: "/srv/to"}
        root.run("sh", "-euc", _MAKE, "sh", label, disk.name, str(size), binds=binds)


def read(disk: Path, to: Path) -> None:
    """Copies what is on a disk into a folder."""
    with debian.writable(room()) as root:
        root.run("sh", "-euc", _READ, binds={disk: "/srv/disk", to: "/srv/to"})


def _used_mb(folder: Path) -> float:
    # A file takes whole blocks, and an inode.
    return sum(file.lstat().st_size + 4096 for file in folder.rglob("*")) / 1e6


def _kept(name: str, made_from: list[str], make: Callable[[Path], None]) -> Path:
    digest = hashlib.sha256("\0".join([room().name, *made_from]).encode()).hexdigest()[:16]
    kept = places.build_dir() / digest / name
    with debian.locked("disks"):
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
                make(Path(scratch))
                shutil.move(Path(scratch) / name, kept)
    return kept
