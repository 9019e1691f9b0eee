"""Boots a host of the lab in a VM and runs one command in it.

virtme-ng boots the kernel on this machine's own root file system, read-only; the command runs in the
host's. One folder, for results, is still there afterwards.
"""

from __future__ import annotations

import functools
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from . import places, supervise, systemd_boot
from .errors import LabError
from .hosts import Target
from .kernel import Kernel
from .script import write_script
from .supervise import Sink

CPUS = 2
# QEMU's emulation (7.2) does not carry two CPUs for long. With a host thread for each, one goes on running
# its translation of code that the other has patched, and is caught for good in the int3 of a jump label that
# is no longer there (KVM's first and last event patch schedule()). With one thread for both, every other
# guest hangs at boot in a timer interrupt that came while interrupts were off.
EMULATED_CPUS = 1
MEMORY = "2G"
TRIAL_BOOT_S = 60.0
CONSOLE_TAIL_LINES = 40

# The command's stderr: virtme-run puts it on the console, among the kernel's messages.
STDERR_PORT = Path("/dev/virtio-ports/vpmu_lab.stderr")

# What udev would load at boot and nothing here uses: seconds of a boot without hardware virtualization. KVM
# is among it because it has to wait for the test PMU. A module named to modprobe still loads.
UNWANTED_MODULES = (
    "kvm_amd",
    "kvm_intel",
    "kvm",
    "ccp",
    "aesni_intel",
    "ghash_clmulni_intel",
    "crct10dif_pclmul",
    "crc32_pclmul",
    "sha512_ssse3",
    "sha256_ssse3",
    "sha1_ssse3",
    "ahci",
    "sr_mod",
    "sg",
    "psmouse",
    "serio_raw",
    "evdev",
    "button",
    "pcspkr",
    "i6300esb",
    "iTCO_wdt",
    "lpc_ich",
    "i2c_i801",
    "qemu_fw_cfg",
    "powernow_k8",
    "acpi_cpufreq",
)

KERNEL_ARGS = (
    f"modprobe.blacklist={','.join(UNWANTED_MODULES)}",
    "mitigations=off",
    "loglevel=6",
)

# QEMU's emulation of SVM (7.2: helper_vmrun(), do_vmexit()) changes a CPU's pending interrupts at every entry
# and exit of a guest while another thread may be adding one, which is lost then. If it was the timer's, a CPU
# that rearms the timer at each interrupt sleeps for ever: seen with the interrupt still in the APIC's IRR.
# With a periodic tick the next interrupt, 4 ms later, delivers both.
EMULATION_KERNEL_ARGS = ("nohz=off", "highres=off")

# The root file system of the command: the layers, which are one folder by then, shared and cached
# (virtme-run's own mount of the machine's root is not: starting Python takes 6 s there instead of 1),
# memory above it, the source tree read-only, and the one folder that can be written. Caching is right as
# long as nobody changes those files during the run.
_MOUNT = """\
set -e
lab={at}
mkdir -p $lab
mount -t tmpfs tmpfs $lab
mkdir $lab/above $lab/work $lab/below $lab/root
modprobe -d {kernel} overlay
share() {{ mkdir -p "$2" && mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,$3 "$1" "$2"; }}
share lab_root $lab/below ro,cache=loose
mount -t overlay -o lowerdir=$lab/below,upperdir=$lab/above,workdir=$lab/work overlay $lab/root
share lab_tree $lab/root{tree} ro,cache=loose
share lab_results $lab/root{results} access=any
{more}
"""

_ENTER = """\
for folder in /dev /proc /sys /run; do mount --rbind $folder $lab/root$folder; done
status=0
chroot $lab/root /usr/bin/env -i TERM="$TERM" /bin/sh {command} {redirect} || status=$?
echo $status > $lab/root{results}/status
exit $status
"""


def run(
    command: Sequence[str],
    *,
    target: Target,
    layers: Sequence[Path],
    shares: Mapping[str, Path],
    results: Path,
    timeout_s: float,
    env: Mapping[str, str],
    output: Sink | None = None,
    systemd: bool = False,
    counted: bool = False,
) -> int:
    """Runs `command` as root in a VM that boots `target`'s kernel; returns its exit status.

    Its root file system is made of `layers`, the topmost first, and can be written, to memory; what is to
    stay goes to `results`. `shares` are more folders of this machine, to be read only, by where they are
    there. With `systemd` that is PID 1 there. With `counted` the VM is emulated, and its clocks count the
    instructions that it executes, each as a nanosecond. The command's stdout and stderr go line by line to
    this process's own as they come (stdout to `output` where given). Raises LabError with the end of the VM's
    console if the VM dies, or is not done after `timeout_s`.
    """
    status_file = results / "status"
    fast = not counted and accelerated(target.kernel)
    arguments = _virtme_run(target.kernel, accelerated=fast)
    if counted:
        arguments += _qemu(["-icount", "shift=0"])
    script = write_script(command, env, results)
    # Not on the kernel's command line, where virtme-run puts it: that ends after 2048 characters.
    boot = results / "boot.sh"
    if systemd:
        mounts = _mount_script(target, shares, results, at="/mnt")
        boot.write_text(systemd_boot.script(mounts, results=results, command=script, stderr_port=STDERR_PORT))
        boot.chmod(0o755)
        kernel_args = (*systemd_boot.KERNEL_ARGS, *_kernel_args(accelerated=fast), f"init={boot}")
        # Of two -append, QEMU takes the last: virtme-run has its own init in the first.
        arguments += _qemu(["-append", " ".join(kernel_args)])
    else:
        enter = _ENTER.format(command=_quote(script), results=_quote(results), redirect=f"2>{STDERR_PORT}")
        boot.write_text(_mount_script(target, shares, results, at="/run/lab") + enter)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vpmu-lab-") as merged:
        arguments = [*_with_layers(layers, Path(merged)), *arguments, *_shares(Path(merged), shares, results)]
        arguments += ["--script-sh", f"sh {boot}"]
        console = _supervise(arguments, timeout_s, output or supervise.to_stdout)
    took = time.monotonic() - started
    if status_file.exists():
        return int(status_file.read_text())
    what = "was not done" if took >= timeout_s else "ended without a result"
    raise LabError(
        f"the VM ({target}) {what} after {took:.0f} s; the end of its console:\n" + "\n".join(console)
    )


def shell(target: Target, *, layers: Sequence[Path], results: Path, env: Mapping[str, str]) -> int:
    """Gives the person at this terminal a shell in the VM."""
    script = write_script(["bash"], env, results)
    boot = results / "boot.sh"
    enter = _ENTER.format(command=_quote(script), results=_quote(results), redirect="")
    boot.write_text("#!/bin/sh\n" + _mount_script(target, {}, results, at="/run/lab") + enter)
    boot.chmod(0o755)
    arguments = _virtme_run(target.kernel, accelerated=accelerated(target.kernel))
    with tempfile.TemporaryDirectory(prefix="vpmu-lab-") as scratch:
        merged = Path(scratch) / "root"
        merged.mkdir()
        arguments = [*_with_layers(layers, merged), *arguments, *_shares(merged, {}, results)]
        command_line = [*arguments, "--shell", str(boot)]
        return subprocess.run(command_line, env=_environment(scratch), check=False).returncode


@functools.cache
def accelerated(which: Kernel) -> bool:
    """Whether hardware virtualization works here and its guests are AMD's.

    Where it exists it may still hang a stock kernel at boot, so this boots one, with a time limit.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    if " svm " not in Path("/proc/cpuinfo").read_text():
        return False
    seen: list[bytes] = []
    arguments = _virtme_run(which, accelerated=True)
    _supervise([*arguments, "--script-sh", "echo alive"], TRIAL_BOOT_S, seen.append)
    return b"alive\n" in seen


def _virtme_run(which: Kernel, *, accelerated: bool) -> list[str]:
    options = ["--kimg", str(which.image), "--mods", "auto", "--force-9p", "--disable-microvm"]
    options += ["--cpus", str(CPUS if accelerated else EMULATED_CPUS), "--memory", MEMORY]
    options += ["--show-boot-console"]
    for argument in _kernel_args(accelerated=accelerated):
        options += ["-a", argument]
    if accelerated:
        options += _qemu(["-cpu", "host,pmu=off"])  # the test PMU is to be the only one
    else:
        options += ["--disable-kvm"]
    return [str(_tool("virtme-run")), *options]


def _shares(merged: Path, shares: Mapping[str, Path], results: Path) -> list[str]:
    """Options of virtme-run for the folders that the VM mounts."""
    read_only = dict(zip(_tags(shares), shares.values(), strict=True))
    read_only |= {"lab_root": merged, "lab_tree": places.REPO}
    words = []
    for tag, path in read_only.items():
        words += _share(tag, path, ",readonly=on")
    return _qemu([*words, *_share("lab_results", results, "")])


def _share(tag: str, path: Path, option: str) -> list[str]:
    device = f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"
    how = f"local,id={tag},path={path},security_model=none,multidevs=remap{option}"
    return ["-fsdev", how, "-device", device]


def _tags(shares: Collection[str]) -> list[str]:
    return [f"lab_share{i}" for i in range(len(shares))]


def _with_layers(layers: Sequence[Path], merged: Path) -> list[str]:
    """What to put before a command, so that it finds the layers, as one folder, in `merged`.

    Here and not in the VM: there, to look for a file in a layer that has it not is a request of its own each
    time, and to start Python is to look for thousands.
    """
    mount = 'mount -t overlay overlay -o "lowerdir=$1" "$2"; shift 2; exec "$@"'
    return ["unshare", "--mount", "sh", "-euc", mount, "sh", ":".join(map(str, layers)), str(merged)]


def _kernel_args(*, accelerated: bool) -> Sequence[str]:
    return (*KERNEL_ARGS, *(() if accelerated else EMULATION_KERNEL_ARGS))


def _qemu(words: Sequence[str]) -> list[str]:
    # One -q each: --qemu-opts would swallow what comes after it.
    return [f"-q={word}" for word in words]


def _tool(name: str) -> Path:
    tool = Path(sys.prefix) / "bin" / name
    if not tool.exists():
        raise LabError(f"{tool} is missing: run this with the project's own Python, `make lab` does")
    return tool


def _mount_script(target: Target, shares: Mapping[str, Path], results: Path, *, at: str) -> str:
    more = (
        f"share {tag} $lab/root{shlex.quote(where)} ro,cache=loose"
        for tag, where in zip(_tags(shares), shares, strict=True)
    )
    return _MOUNT.format(
        at=at,
        kernel=_quote(target.kernel.folder),
        more="\n".join(more),
        tree=_quote(places.REPO),
        results=_quote(results),
    )


def _quote(path: Path) -> str:
    return shlex.quote(str(path))


def _environment(scratch: str) -> dict[str, str]:
    # virtme-run looks up its own tools in PATH, and leaves files in TMPDIR when it is killed.
    return {**os.environ, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}", "TMPDIR": scratch}


def _supervise(arguments: Sequence[str], timeout_s: float, output: Sink) -> Sequence[str]:
    """Runs virtme-run to its end, or to `timeout_s`; nothing of it is left behind either way.

    Returns the last lines of the VM's console.
    """
    console: deque[str] = deque(maxlen=CONSOLE_TAIL_LINES)
    stderr = supervise.pipe(supervise.to_stderr)
    port = _qemu(
        [
            "-chardev",
            f"file,id=lab_stderr,path={stderr.path}",
            "-device",
            "virtio-serial-pci",
            "-device",
            f"virtserialport,name={STDERR_PORT.name},chardev=lab_stderr",
        ]
    )
    with tempfile.TemporaryDirectory(prefix="vpmu-lab-") as scratch:
        supervise.run(
            [*arguments, *port],
            timeout_s=timeout_s,
            env=_environment(scratch),
            stdout=supervise.pipe(output),
            stderr=supervise.pipe(lambda line: console.append(line.decode(errors="replace").rstrip())),
            others=[stderr],
        )
    return console
