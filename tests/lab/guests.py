"""The two guests, as processes in the lab VM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from types import TracebackType
from typing import Any, Self

from vpmu_agent.system.ready import is_readable

from .errors import LabError

GUEST_A = "VPMU_LAB_GUEST_A"  # the VMM's binary
GUEST_B_KERNEL = "VPMU_LAB_GUEST_B_KERNEL"
GUEST_B_INITRAMFS = "VPMU_LAB_GUEST_B_INITRAMFS"

# Guest A is done in 0.1 s, and the agent looks at a VM's command line when it reads the first of its calls.
LINGER_MS = 500

# What a person's Linux guest would have, less what only costs time where instructions are emulated twice.
GUEST_B_KERNEL_ARGS = (
    "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off nokaslr "
    # A watchdog would take one of four counters; and a slow guest must not distrust its clock.
    "nowatchdog tsc=reliable no_timer_check "
    "random.trust_cpu=on raid=noautodetect "
    # What QEMU's emulation says of XSAVE to a guest of a guest is not consistent, and Linux 7.3 ends there.
    "noxsave"
)


class Guest:
    """A guest's process: a context manager that leaves nothing behind."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._seen = b""

    @property
    def tgid(self) -> int:
        """The VM's process, as the agent and the test PMU name it."""
        return self.process.pid

    def wait_for(self, key: str, *, timeout_s: float = 120.0) -> dict[str, Any]:
        """The guest's next JSON line with `key` in it; raises LabError with all it said if there is none."""
        deadline = time.monotonic() + timeout_s
        while True:
            line = self._read_line(deadline)
            if line is None:
                raise LabError(f"the guest did not say {key!r} within {timeout_s:.0f} s:\n{self._said()}")
            # The firmware's last words may stand before the first line of the serial port.
            start = line.find(b"{")
            if start < 0:
                continue
            try:
                found = json.loads(line[start:])
            except ValueError:
                continue
            if key in found:
                assert isinstance(found, dict)
                return found

    def go_on(self) -> None:
        """Sends the line that the guest waits for."""
        assert self.process.stdin
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def finish(self, *, timeout_s: float = 120.0) -> None:
        """Waits until the guest is over. Raises LabError if it is not in time, or ended badly."""
        try:
            output, _ = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise LabError(f"the guest was still running after {timeout_s:.0f} s:\n{self._said()}") from error
        self._seen += output
        if self.process.returncode:
            raise LabError(f"the guest ended with status {self.process.returncode}:\n{self._said()}")

    def kill(self) -> None:
        """SIGKILL, and waits until the kernel has torn the VM down."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()

    def _read_line(self, deadline: float) -> bytes | None:
        """The next line, or None at the end of the output or the deadline."""
        assert self.process.stdout
        stream = self.process.stdout.fileno()
        line = b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not is_readable(stream, left):
                return None
            # Unbuffered and by one: what poll() has not seen must stay in the pipe.
            byte = os.read(stream, 1)
            if not byte:
                return None
            line += byte
            self._seen += byte
        return line

    def _said(self) -> str:
        return self._seen.decode(errors="replace")[-4000:]


def guest_a(
    name: str | None = None,
    *,
    counters: int = 4,
    rounds: int = 1,
    vcpus: int = 1,
    stepwise: bool = False,
    realtime: bool = False,
    filtered: bool = False,
    reading: bool = False,
    resetting: bool = False,
    fixed: int = 0,
    globally: bool = False,
    pebs: bool = False,
    lbr: bool = False,
) -> Guest:
    """The tiny VMM.

    Each round is, for every counter: create, pause, enable, pause, and a release at its end. But where a vCPU
    loses its CPU, KVM releases the counters that it did not use in that time slice (kvm_pmu_cleanup()), and
    creates them where it would have enabled them: what is always the same is creates and enables together.
    `realtime`: it loses its CPU to nothing else in the VM.

    `reading`: in each round it reads every counter while that counts, and writes it.

    `resetting`: its VMM resets it after "programmed", but not its counters, and then says {"stage": "reset"}.

    `fixed`: so many of Intel's fixed counters in addition to the general-purpose `counters`.

    `globally`: it enables its counters before "ready", and a round starts and stops all with one write to the
    global control. They keep their events, so in all rounds but the first one a create is an enable. On AMD
    that is a guest with PerfMonV2.

    `pebs`: its gp counters are PEBS counters. `lbr`: it reads a register of the last branch records. Both
    need pmu.set_capabilities() before it, and Intel.

    `filtered`: its VMM allows it no event (KVM_SET_PMU_EVENT_FILTER).

    `stepwise`: it says {"stage": "ready"}, "programmed" and "done" and waits for go_on() at each.
    """
    command = [os.environ[GUEST_A], "--counters", str(counters), "--rounds", str(rounds)]
    command += ["--vcpus", str(vcpus), "--linger-ms", str(LINGER_MS)]
    if realtime:
        command = ["chrt", "--fifo", "10", *command]
    if name is not None:
        command += ["-name", f"guest={name}"]
    if stepwise:
        command.append("--wait")
    if filtered:
        command.append("--filter")
    if reading:
        command.append("--read")
    if resetting:
        command.append("--reset")
    if fixed:
        command += ["--fixed", str(fixed)]
    if globally:
        command.append("--global")
    if pebs:
        command.append("--pebs")
    if lbr:
        command.append("--lbr")
    return Guest(command)


def guest_b(name: str = "web01", *, rounds: int = 1, work_ms: int = 100, hold: bool = False) -> Guest:
    """Linux under QEMU. `hold`: in its last round it keeps its events open until go_on()."""
    options = f"vpmu.rounds={rounds} vpmu.ms={work_ms} vpmu.hold={int(hold)}"
    return Guest(
        [
            "qemu-system-x86_64",
            "-accel",
            "kvm",
            "-cpu",
            "host",
            "-name",
            f"guest={name}",
            "-m",
            "256",
            "-nodefaults",
            "-display",
            "none",
            "-serial",
            "stdio",
            "-no-reboot",
            "-kernel",
            os.environ[GUEST_B_KERNEL],
            "-initrd",
            os.environ[GUEST_B_INITRAMFS],
            "-append",
            f"{GUEST_B_KERNEL_ARGS} {options}",
        ]
    )


def environment(guest_a: str, release: str, initramfs: str) -> dict[str, str]:
    """What the functions above read in the VM."""
    return {
        GUEST_A: guest_a,
        GUEST_B_KERNEL: f"/boot/vmlinuz-{release}",
        GUEST_B_INITRAMFS: initramfs,
    }
