"""Boots a kernel in a VM on the machine's own root file system (virtme-ng) and runs one command in it.

The root file system is read-only there; one directory, for results, can be written.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from . import places, systemd_boot
from .errors import LabError
from .kernel import Kernel

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
    *("kvm_amd", "kvm_intel", "kvm", "ccp"),
    *("aesni_intel", "ghash_clmulni_intel", "crct10dif_pclmul", "crc32_pclmul"),
    *("sha512_ssse3", "sha256_ssse3", "sha1_ssse3"),
    *("ahci", "sr_mod", "sg", "psmouse", "serio_raw", "evdev", "button", "pcspkr"),
    *("i6300esb", "iTCO_wdt", "lpc_ich", "i2c_i801", "qemu_fw_cfg", "powernow_k8", "acpi_cpufreq"),
)

KERNEL_ARGS = (
    f"modprobe.blacklist={','.join(UNWANTED_MODULES)}",
    "mitigations=off",
    "loglevel=6",
)

# QEMU's emulation of SVM (7.2: helper_vmrun(), do_vmexit()) changes a CPU's pending interrupts at every entry
# and exit of a guest while another thread may be adding one, which is lost then. If it was the timer's, a CPU
# that sets the timer anew at each interrupt sleeps for ever: seen with the interrupt still in the APIC's IRR.
# With a periodic tick the next interrupt, 4 ms later, delivers both.
EMULATION_KERNEL_ARGS = ("nohz=off", "highres=off")

# virtme-run mounts the root with no cache at all: every page of every library is one request, and starting
# Python takes 6 s instead of 1. So the command runs in a second mount of the same root that caches what it
# reads, which is right as long as nobody changes those files during the run.
ENTER_ROOT = """\
#!/bin/sh
set -e
root=/run/lab-root
mkdir -p $root /run/lab-tmp
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=524288,cache=loose lab_root $root
for dir in /dev /proc /sys /run {results}; do mount --rbind $dir $root$dir; done
mount -t tmpfs tmpfs $root/var/tmp
"""

# For a kernel that is not installed on the machine: modprobe finds its modules where it looks for them.
ENTER_MODULES = """\
mount -t tmpfs tmpfs $root/lib/modules
ln -s {modules} $root/lib/modules/
"""


def run(
    command: Sequence[str],
    *,
    which: Kernel,
    results: Path,
    timeout_s: float,
    env: Mapping[str, str],
    output: Callable[[bytes], None] | None = None,
    systemd: bool = False,
) -> int:
    """Runs `command` as root in a VM that boots `which` and may write to `results`; returns its exit status.

    With `systemd` that is PID 1 there, and all of the VM's root can be written, to memory.
    The command's stdout and stderr go line by line to this process's own as they come (stdout to `output`
    where given). Raises LabError with the end of the VM's console if the VM dies, or is not done after
    `timeout_s`.
    """
    status_file = results / "status"
    # A file, because the kernel's command line, where virtme-run puts it, ends after 2048 characters.
    script = results / "command.sh"
    fast = accelerated(which)
    arguments = _virtme_run(which, results, accelerated=fast)
    if systemd:
        script.write_text(_script_under_systemd(command, env, results))
        init = systemd_boot.write_init(results, script, None if which.is_installed else which.modules)
        kernel_args = (*systemd_boot.KERNEL_ARGS, *_kernel_args(accelerated=fast), f"init={init}")
        # Of two -append, QEMU takes the last: virtme-run has its own init in the first.
        arguments += _qemu(["-append", " ".join(kernel_args)])
    else:
        script.write_text(_script(which, command, env, results, f"2>{STDERR_PORT}"))
    started = time.monotonic()
    console = _supervise([*arguments, "--script-sh", f"sh {script}"], timeout_s, output or _to_stdout)
    took = time.monotonic() - started
    if status_file.exists():
        return int(status_file.read_text())
    what = "was not done" if took >= timeout_s else "ended without a result"
    raise LabError(
        f"the VM (kernel {which.release}) {what} after {took:.0f} s; the end of its console:\n"
        + "\n".join(console)
    )


def shell(which: Kernel, *, results: Path, env: Mapping[str, str]) -> int:
    """Gives the person at this terminal a shell in the VM."""
    script = results / "command.sh"
    script.write_text(_script(which, ["bash"], env, results, ""))
    script.chmod(0o755)
    arguments = [*_virtme_run(which, results, accelerated=accelerated(which)), "--shell", str(script)]
    with tempfile.TemporaryDirectory(prefix="vpmu-lab-") as scratch:
        return subprocess.run(arguments, env=_environment(scratch), check=False).returncode


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
    with places.new_results_dir() as results:
        arguments = _virtme_run(which, results, accelerated=True)
        _supervise([*arguments, "--script-sh", "echo alive"], TRIAL_BOOT_S, seen.append)
    return b"alive\n" in seen


def _virtme_run(which: Kernel, results: Path, *, accelerated: bool) -> list[str]:
    options = ["--kimg", str(which.image), "--mods", "auto", "--force-9p", "--disable-microvm"]
    options += ["--cpus", str(CPUS if accelerated else EMULATED_CPUS), "--memory", MEMORY]
    options += ["--rwdir", str(results), "--show-boot-console"]
    for argument in _kernel_args(accelerated=accelerated):
        options += ["-a", argument]
    qemu = ["-fsdev", "local,id=lab_root,path=/,security_model=none,readonly=on,multidevs=remap"]
    qemu += ["-device", "virtio-9p-pci,fsdev=lab_root,mount_tag=lab_root"]
    if accelerated:
        qemu += ["-cpu", "host,pmu=off"]  # the test PMU is to be the only one
    else:
        options += ["--disable-kvm"]
    options += _qemu(qemu)
    return [str(_tool("virtme-run")), *options]


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


def _script(
    which: Kernel, command: Sequence[str], env: Mapping[str, str], results: Path, redirect: str
) -> str:
    """The shell script that virtme-run's init runs in the VM."""
    variables = {"TMPDIR": "/run/lab-tmp", **_variables(env, results)}
    exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    inner = f"cd {shlex.quote(str(places.REPO))} && exec {shlex.join(command)}"
    return (
        ENTER_ROOT.format(results=shlex.quote(str(results)))
        + ("" if which.is_installed else ENTER_MODULES.format(modules=shlex.quote(str(which.modules))))
        + "status=0\n"
        + f'env -i TERM="$TERM" {exports} chroot $root /bin/sh -c {shlex.quote(inner)} {redirect}'
        + " || status=$?\n"
        + f"echo $status > {shlex.quote(str(results / 'status'))}\nexit $status\n"
    )


def _script_under_systemd(command: Sequence[str], env: Mapping[str, str], results: Path) -> str:
    """The shell script that systemd runs in the VM."""
    exports = "".join(
        f"export {name}={shlex.quote(value)}\n" for name, value in _variables(env, results).items()
    )
    return (
        systemd_boot.PORT
        + f"exec >$(port virtme.dev_stdout) 2>$(port {STDERR_PORT.name})\n"
        + f"{exports}cd {shlex.quote(str(places.REPO))}\nstatus=0\n{shlex.join(command)} || status=$?\n"
        + f"echo $status > {shlex.quote(str(results / 'status'))}\n"
    )


def _variables(env: Mapping[str, str], results: Path) -> Mapping[str, str]:
    return {
        "PATH": f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(Path.home()),
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        places.RESULTS: str(results),
        **env,
    }


def _environment(scratch: str) -> dict[str, str]:
    # virtme-run looks up its own tools in PATH, and leaves files in TMPDIR when it is killed.
    return {**os.environ, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}", "TMPDIR": scratch}


def _supervise(arguments: Sequence[str], timeout_s: float, output: Callable[[bytes], None]) -> Sequence[str]:
    """Runs virtme-run to its end, or to `timeout_s`; nothing of it is left behind either way.

    Returns the last lines of the VM's console.
    """
    console: deque[str] = deque(maxlen=CONSOLE_TAIL_LINES)
    stderr_read, stderr_write = os.pipe()
    port = _qemu(
        [
            *("-chardev", f"file,id=lab_stderr,path=/proc/self/fd/{stderr_write}"),
            *("-device", "virtio-serial-pci"),
            *("-device", f"virtserialport,name={STDERR_PORT.name},chardev=lab_stderr"),
        ]
    )
    with tempfile.TemporaryDirectory(prefix="vpmu-lab-") as scratch:
        # timeout(1) holds even if this process is killed without a chance to clean up.
        process = subprocess.Popen(
            ["timeout", "--kill-after=5", str(timeout_s), *arguments, *port],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(scratch),
            pass_fds=[stderr_write],
            start_new_session=True,  # its process group is all of it, QEMU too
        )
        os.close(stderr_write)
        assert process.stdout
        assert process.stderr
        sources: list[tuple[IO[bytes], Callable[[bytes], None]]] = [
            (process.stdout, output),
            (process.stderr, lambda line: console.append(line.decode(errors="replace").rstrip())),
            (os.fdopen(stderr_read, "rb"), _to_stderr),
        ]
        readers = [threading.Thread(target=_copy_lines, args=source) for source in sources]
        for reader in readers:
            reader.start()
        try:
            with _terminate_as_interrupt():
                process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for reader in readers:
                reader.join()
    return console


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM unwinds the stack, as Ctrl-C does, so that the VM is stopped."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _copy_lines(source: IO[bytes], sink: Callable[[bytes], None]) -> None:
    for line in source:
        sink(line)


def _to_stdout(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def _to_stderr(line: bytes) -> None:
    sys.stderr.buffer.write(line)
    sys.stderr.buffer.flush()
