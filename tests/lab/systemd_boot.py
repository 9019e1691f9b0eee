"""What makes systemd PID 1 of a VM, with the command as one of its services.

virtme's initramfs mounts this machine's own root and runs the script of here, which mounts the host's and
goes on there.
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
_ENTER = """\
rm -f $lab/root/.dockerenv $lab/root/usr/sbin/policy-rc.d
cp $lab/root{results}/{unit} $lab/root/etc/systemd/system/
exec switch_root $lab/root /lib/systemd/systemd
"""

_BEFORE_MOUNTS = """\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
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

# A virtio port has a name only in sysfs before udev has come to it.
_RUN = """\
port() {{ grep -lx "$1" /sys/class/virtio-ports/*/name | sed 's|.*/\\(.*\\)/name|/dev/\\1|'; }}
exec >$(port virtme.dev_stdout) 2>$(port {stderr})
status=0
/bin/sh {command} || status=$?
echo $status > {results}/status
"""


def script(mounts: str, *, results: Path, command: Path, stderr_port: Path) -> str:
    """PID 1 of the VM, a shell script that becomes systemd, which runs the script `command`.

    `mounts` is the part of it that makes the root file system in $lab/root.
    """
    run = results / "run.sh"
    quoted = shlex.quote(str(results))
    run.write_text(_RUN.format(stderr=stderr_port.name, command=shlex.quote(str(command)), results=quoted))
    (results / UNIT).write_text(_SERVICE.format(script=run))
    return _BEFORE_MOUNTS + mounts + _ENTER.format(results=quoted, unit=UNIT)
