"""What makes systemd PID 1 of a VM, with the command as one of its services.

The VM's root is then an overlay: the machine's own root below, read and cached, and memory above, so that a
package can be installed there. virtme's initramfs mounts the former and runs the `init` of here.
"""

from __future__ import annotations

import shlex
from pathlib import Path

UNIT = "vpmu-lab.service"

KERNEL_ARGS = (
    "console=ttyS0",
    "panic=-1",
    # Where the kernel mounts it, and no initramfs does.
    "rootfstype=9p",
    "rootflags=version=9p2000.L,trans=virtio,access=any",
    f"systemd.unit={UNIT}",
    "systemd.show_status=0",
    # Twenty seconds of a boot where every instruction is emulated, for directories that are there already.
    "systemd.mask=systemd-tmpfiles-setup.service",
    "systemd.mask=systemd-timesyncd.service",
)

# What tells that the machine is a container would make systemd leave out the kernel's command line, and
# packages their start.
_INIT = """\
#!/bin/sh
set -e
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /mnt
mkdir /mnt/below /mnt/above /mnt/work /mnt/root
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=524288,cache=loose lab_root /mnt/below
mount -t overlay -o lowerdir=/mnt/below,upperdir=/mnt/above,workdir=/mnt/work overlay /mnt/root
mount -t 9p -o trans=virtio,version=9p2000.L,access=any virtme.initmount0 /mnt/root{results}
rm -f /mnt/root/.dockerenv /mnt/root/usr/sbin/policy-rc.d
{modules}
cp {results}/{unit} /mnt/root/etc/systemd/system/
exec switch_root /mnt/root /lib/systemd/systemd
"""

_MODULES = """\
mount -t tmpfs tmpfs /mnt/root/lib/modules
ln -s {modules} /mnt/root/lib/modules/
"""

_SERVICE = """\
[Unit]
Description=what the lab runs
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=oneshot
ExecStart=/bin/sh {script}
"""

PORT = """\
port() { grep -lx "$1" /sys/class/virtio-ports/*/name | sed 's|.*/\\(.*\\)/name|/dev/\\1|'; }
"""
"""Defines a shell function that prints the device of a virtio port, which has a name only in sysfs before
udev has come to it."""


def write_init(results: Path, script: Path, modules: Path | None) -> Path:
    """Writes PID 1 of the VM, which becomes systemd and runs `script`; returns its path.

    `modules` are those of a kernel that is not installed on the machine.
    """
    (results / UNIT).write_text(_SERVICE.format(script=script))
    init = results / "init"
    text = _INIT.format(
        results=shlex.quote(str(results)),
        unit=UNIT,
        modules=_MODULES.format(modules=shlex.quote(str(modules))) if modules else "",
    )
    init.write_text(text)
    init.chmod(0o755)
    return init
