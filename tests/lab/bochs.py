"""Runs one command in Bochs, which emulates Intel's VMX: the lab's machine where KVM has to be kvm_intel.

It is slow: every instruction is interpreted, 30 to 80 million a second. Its clock counts instructions, and
runs ahead where the CPU sleeps.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support import debian

from . import disks, places, supervise
from .errors import LabError
from .hosts import Target
from .script import write_script
from .supervise import Sink

MEMORY_MB = 1024
CONSOLE_TAIL_LINES = 40
# What the machine's clock takes for a second; near to what Bochs does in one.
INSTRUCTIONS_PER_SECOND = 400_000_000

# Of the source tree, what is run in the VM.
TREE = ("agent", "bpf", "tests", "tools", "pyproject.toml")

KERNEL_ARGS = (
    "console=ttyS0,115200",
    "loglevel=6",
    # What the kernel's ciphers prove at boot is a tenth of its time here.
    "cryptomgr.notests",
    "mitigations=off",
    "nokaslr",
    # Bochs's TSC and timers do not agree.
    "tsc=unstable",
    # A panic ends the machine: it stops at a triple fault.
    "panic=-1",
    "reboot=t",
)

_CONFIG = """\
cpu: model=corei7_skylake_x, count=1, ips={ips}, reset_on_triple_fault=0
memory: guest={memory}, host={memory}
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
display_library: term
clock: sync=none, time0=utc
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15
ata0-master: type=disk, path=/srv/userland.img, mode=volatile, journal=/srv/run/userland.changes
ata0-slave: type=disk, path=/srv/run/changed.img, mode=flat
ata1-master: type=cdrom, path=/srv/boot.iso, status=inserted
ata1-slave: type=disk, path=/srv/run/results.img, mode=flat
boot: cdrom
com1: enabled=1, mode=file, dev={console}
com2: enabled=1, mode=file, dev={output}
log: /srv/run/bochs.log
panic: action=fatal
error: action=report
info: action=ignore
debug: action=ignore
speaker: enabled=0
"""

# The labels of the disks.
USERLAND, CHANGED, RESULTS = "userland", "changed", "results"

# PID 1. The root file system of the command: the userland and what this run adds to it, with memory above.
# The results are on a disk of their own, which this machine reads when the VM is off.
_INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
mount -t securityfs securityfs /sys/kernel/security
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
for module in crc32c_generic ata_piix sd_mod ext4 overlay; do modprobe -q $module; done
mount -t tmpfs tmpfs /run
disk() {{
    left=100
    until device=$(findfs LABEL=$1) || [ $left = 0 ]; do sleep 0.1; left=$((left - 1)); done
    mkdir -p "$2"
    mount -t ext4 -o $3 "$device" "$2" || echo "the disk $1 cannot be mounted"
}}
lab=/run/lab
mkdir -p $lab/above $lab/work $lab/root
disk {userland} $lab/userland ro
disk {changed} $lab/changed ro
lower=$lab/changed:$lab/userland
mount -t overlay -o lowerdir=$lower,upperdir=$lab/above,workdir=$lab/work overlay $lab/root
disk {results} $lab/results rw
where=$(cat $lab/results/where)
mkdir -p "$lab/root$where" $lab/root/lib/modules
mount --bind $lab/results "$lab/root$where"
cp -a /lib/modules/* $lab/root/lib/modules/
for folder in dev proc sys run; do mount --rbind /$folder $lab/root/$folder; done
stty -F /dev/ttyS1 115200 raw
chroot $lab/root /usr/bin/env -i TERM=dumb /bin/sh "$where/command.sh" > /dev/ttyS1 2>&1 < /dev/null
echo $? > $lab/results/status
umount $lab/root$where
umount $lab/results
sync
# What was written to the serial ports is on its way for a while.
sleep 2
echo o > /proc/sysrq-trigger
sleep 60
"""


def run(
    command: Sequence[str],
    *,
    target: Target,
    changed: Path,
    results: Path,
    timeout_s: float,
    env: Mapping[str, str],
    output: Sink | None = None,
) -> int:
    """Runs `command` as root in Bochs with `target`'s kernel; returns its exit status.

    Its root file system is the target's userland with what is in `changed` and the source tree, and can be
    written, to memory; what is to stay goes to `results`. The command's stdout and stderr go to `output`, or
    this process's stdout, as they come. Raises LabError with the end of the VM's console if the VM dies, or
    is not done after `timeout_s`.
    """
    write_script(command, env, results)
    (results / "where").write_text(str(results))
    _copy_tree(changed)
    # Its configuration, which the agent reads, and the image, which guest B boots.
    shutil.copytree(target.kernel.folder / "boot", changed / "boot", dirs_exist_ok=True)
    init = _INIT.format(userland=USERLAND, changed=CHANGED, results=RESULTS)
    boot_cd = disks.boot_cd(target.kernel, init=init, arguments=" ".join(KERNEL_ARGS))
    userland = disks.userland_disk(target.userland, USERLAND)
    with tempfile.TemporaryDirectory(prefix="vpmu-lab-") as scratch:
        run_dir = Path(scratch)
        disks.make(changed, CHANGED, run_dir / "changed.img")
        disks.make(results, RESULTS, run_dir / "results.img", spare_mb=256)
        binds = {run_dir: "/srv/run", boot_cd: "/srv/boot.iso", userland: "/srv/userland.img"}
        started = time.monotonic()
        console = _supervise(run_dir, binds, timeout_s, output or supervise.to_stdout)
        took = time.monotonic() - started
        disks.read(run_dir / "results.img", results)
    if (results / "status").exists():
        return int((results / "status").read_text())
    what = "was not done" if took >= timeout_s else "ended without a result"
    raise LabError(
        f"Bochs ({target}) {what} after {took:.0f} s; the end of its console:\n" + "\n".join(console)
    )


def _supervise(run_dir: Path, binds: Mapping[Path, str], timeout_s: float, output: Sink) -> Sequence[str]:
    """Runs Bochs to its end, or to `timeout_s`; returns the last lines of the VM's console and of Bochs."""
    lines: deque[str] = deque(maxlen=CONSOLE_TAIL_LINES)
    console = supervise.pipe(lambda line: lines.append(line.decode(errors="replace").rstrip()))
    serial = supervise.pipe(output)
    # It is built without a display that shows nothing: this one draws on a terminal, which nobody reads.
    terminal = supervise.terminal(lambda _line: None)
    (run_dir / "bochsrc").write_text(
        _CONFIG.format(
            ips=INSTRUCTIONS_PER_SECOND, memory=MEMORY_MB, console=console.path, output=serial.path
        )
    )
    with debian.writable(disks.room()) as root:
        supervise.run(
            root.arguments("bochs", "-q", "-f", "/srv/run/bochsrc", binds=binds),
            timeout_s=timeout_s,
            env={**debian.ENVIRONMENT, "TERM": "vt100"},
            stdin=terminal.write,
            stdout=terminal,
            stderr=terminal,
            others=[console, serial],
        )
    log = run_dir / "bochs.log"
    return [*lines, *(log.read_text(errors="replace").splitlines()[-3:] if log.exists() else [])]


def _copy_tree(to: Path) -> None:
    tree = to / places.REPO.relative_to("/")
    tree.mkdir(parents=True, exist_ok=True)
    for name in TREE:
        source = places.REPO / name
        if source.is_dir():
            shutil.copytree(source, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, tree / name)
