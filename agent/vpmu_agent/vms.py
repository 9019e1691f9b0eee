"""Which VM is this process: its name, and whether it still runs."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import psutil

MAX_NAME = 128
"""Characters. A VM's name becomes a label value of every one of its series."""

_TRUST_S = 1.0
"""How long a tgid is taken for the process it was. Shorter than any wrap of the pid space."""


@dataclass(slots=True)
class _Vm:
    name: str
    process: psutil.Process | None  # None if it was gone before anyone looked, or is hidden
    checked: float
    is_hidden: bool


class Vms:
    """Names VMs by their processes, and remembers them.

    A process keeps its name until it is gone, and a tgid that comes back as another process is another VM.
    Two live VMs never share a name: the one seen later gets its tgid appended (`web01-4242`). That happens to
    the second end of a migration within one host. Threads may share one of these.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._vms: dict[int, _Vm] = {}
        self._commands: dict[int, Sequence[str]] = {}

    def met(self, tgid: int, command: Sequence[str]) -> None:
        """Takes note of a process that made its first call, for it may be gone before it is looked at.

        `command` is the beginning of its command line, as the process had it then.
        """
        with self._lock:
            self._vms.pop(tgid, None)  # if there was one, it was another process
            self._commands[tgid] = command

    def name(self, tgid: int) -> str:
        """The name of a VM, `pid-N` if its process does not say (or no longer exists)."""
        with self._lock:
            return self._name(tgid)

    def is_alive(self, tgid: int) -> bool:
        """False once the process that `name()` named is gone, even if its tgid is in use again.

        Where /proc hides it from this user, it is there for as long as there is a process of that number.
        """
        vm = self._vms.get(tgid)
        if vm is None:
            return False
        return vm.is_hidden and _exists(tgid) if vm.process is None else _is_alive(vm.process)

    def forget(self, tgid: int) -> None:
        """Drops what is remembered of a process that is gone."""
        with self._lock:
            self._vms.pop(tgid, None)
            self._commands.pop(tgid, None)

    def _name(self, tgid: int) -> str:
        vm = self._vms.get(tgid)
        now = time.monotonic()
        if vm is not None and now - vm.checked < _TRUST_S:
            return vm.name
        process = _process(tgid)
        if vm is not None and process in (vm.process, None):
            # A process that is gone may still have calls in the ring: they are its own.
            vm.checked = now
            return vm.name
        told = self._commands.pop(tgid, ())
        command = _command(process) or told
        name = self._unshared(vm_name(command) or f"pid-{tgid}", tgid)
        self._vms[tgid] = _Vm(name, process, now, is_hidden=process is None and _exists(tgid))
        return name

    def _unshared(self, name: str, tgid: int) -> str:
        taken = {vm.name: other for other, vm in self._vms.items() if other != tgid}
        for candidate in (name, f"{name[: MAX_NAME - len(f'-{tgid}')]}-{tgid}"):
            if candidate not in taken or not self.is_alive(taken[candidate]):
                return candidate
        return f"pid-{tgid}"


def running() -> list[int]:
    """The processes that hold a VM now; only those that this user may look into."""
    return [tgid for tgid in psutil.pids() if _holds_vm(Path(f"/proc/{tgid}/fd"))]


def vm_name(command: Sequence[str]) -> str:
    """The VM's name in the command line of its VMM, cleaned; empty if there is none.

    QEMU's `-name` (also `--name`, and crosvm's): `web01`, or `guest=web01,debug-threads=on`, where a comma
    that belongs to the name is doubled and the last value counts (util/qemu-option.c). Firecracker's `--id`.
    `pid-N` is no name: it stands for VMs that have none.
    """
    name = ""
    is_firecracker = Path(command[0]).name.startswith("firecracker") if command else False
    for argument, value in zip_longest(command[1:], command[2:], fillvalue=""):
        option, equals, inline = argument.partition("=")
        if option in ("-name", "--name"):
            name = _guest(inline if equals else value) or name
        elif is_firecracker and option == "--id":
            name = inline if equals else value
    return "" if re.fullmatch(r"pid-\d+", name) else clean_name(name)


def clean_name(name: str) -> str:
    """`name` without what a label, a terminal or a log line would choke on, and of bounded length."""
    if name.isprintable() and len(name) <= MAX_NAME:
        return name
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name[:MAX_NAME])


def _guest(options: str) -> str:
    guest = ""
    for i, option in enumerate(re.findall(r"(?:[^,]|,,)+", options)):
        key, equals, value = option.partition("=")
        if equals and key == "guest":
            guest = value
        elif not equals and i == 0:
            guest = key  # the option's implied key
    return guest.replace(",,", ",")


def _process(tgid: int) -> psutil.Process | None:
    try:
        return psutil.Process(tgid)
    except psutil.Error:
        return None


def _exists(tgid: int) -> bool:
    """Whether there is such a process, also one that /proc hides (its mount option hidepid)."""
    try:
        os.kill(tgid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_alive(process: psutil.Process) -> bool:
    """psutil tells the process from another one that got its pid since."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _command(process: psutil.Process | None) -> list[str]:
    """The command line; empty if the process is on its way out or not ours to look into."""
    try:
        return process.cmdline() if process else []
    except psutil.Error:
        return []


def _holds_vm(fds: Path) -> bool:
    """Whether a process has a VM open: KVM_CREATE_VM returns a file of this name."""
    try:
        return any(_target(fd) == "anon_inode:kvm-vm" for fd in fds.iterdir())
    except OSError:
        return False


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # closed since
        return ""
