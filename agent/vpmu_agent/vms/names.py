"""Which VM is this process: its name and more, and whether it still runs."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vpmu_agent.vms.command_line import Identity, Vmm, identify
from vpmu_agent.vms.libvirt import domain, domain_uuid
from vpmu_agent.vms.process import Process, read_text

MAX_NAME = 128
"""Characters. A VM's name becomes a label value of every one of its series."""

_TRUST_S = 1.0
"""How long a tgid is taken for the process it was. Shorter than any wrap of the pid space."""

_COMMAND_SIZE = 511
"""Bytes of a command line that the probes send at most (VPMU_COMMAND_SIZE, but for its 0)."""


@dataclass(frozen=True, slots=True)
class VmInfo:
    """Who a VM is."""

    name: str
    """Fit for a label, and no other live VM's; `pid-N` if it has none."""
    uuid: str
    """"" if nobody says."""
    vmm: Vmm
    tgid: int
    pod_uid: str
    """Of the Kubernetes pod that it runs in, "" if in none."""


@dataclass(slots=True)
class _Vm:
    info: VmInfo
    process: Process | None  # None if it was gone before anyone looked
    checked: float

    def is_alive(self) -> bool:
        return self.process is not None and self.process.is_alive()

    def is_surely_known(self) -> bool:
        """Whether its process has said its name, and can be no other process now."""
        return (
            self.process is not None
            and self.process.is_surely_alive()
            and self.info.name != _nameless(self.info.tgid)
        )


class Vms:
    """Names VMs by their processes, and remembers them.

    A process keeps its name until it is gone, and a tgid that comes back as another process is another VM.
    Two live VMs never share a name: the one seen later gets its tgid appended (`web01-4242`). That happens to
    the second end of a migration within one host. Threads may share one of these. `proc` and `libvirt` are
    where /proc is, and libvirt's state of running VMs; no privilege is needed for either.
    """

    def __init__(self, *, proc: Path = Path("/proc"), libvirt: Path = Path("/run/libvirt")) -> None:
        self._proc = proc
        self._libvirt = libvirt
        self._lock = threading.Lock()
        self._vms: dict[int, _Vm] = {}
        self._names: dict[str, int] = {}  # the last one that was given this name: no other is alive
        self._commands: dict[int, Sequence[str]] = {}

    def met(self, tgid: int, command: Sequence[str]) -> None:
        """Takes note of a process that made its first call, for it may be gone before it is looked at.

        `command` is the beginning of its command line, as the process had it then.
        """
        with self._lock:
            vm = self._vms.get(tgid)
            if vm is not None and vm.is_surely_known():
                return  # another of its vCPUs
            self._drop(tgid)  # if there was one, it was another process
            self._commands[tgid] = command

    def name(self, tgid: int) -> str:
        """The name of a VM, `pid-N` if its process does not say (or no longer exists)."""
        return self.about(tgid).name

    def about(self, tgid: int) -> VmInfo:
        """Who a VM is, as far as its process says or said."""
        with self._lock:
            return self._about(tgid)

    def is_alive(self, tgid: int) -> bool:
        """False once the process that was named is gone, even if its tgid is in use again.

        About a microsecond where the kernel gives a pidfd for it.
        """
        with self._lock:
            vm = self._vms.get(tgid)
            return vm is not None and vm.is_alive()

    def forget(self, tgid: int) -> None:
        """Drops what is remembered of a process that is gone."""
        with self._lock:
            self._drop(tgid)
            self._commands.pop(tgid, None)

    def _about(self, tgid: int) -> VmInfo:
        vm = self._vms.get(tgid)
        now = time.monotonic()
        if vm is not None:
            if now - vm.checked < _TRUST_S:
                return vm.info
            if vm.is_alive():
                vm.checked = now
                return vm.info
        process = Process.find(tgid)
        if vm is not None and (process is None or not process.is_alive()):
            # A process that is gone may still have calls in the ring: they are its own.
            vm.checked = now
            return vm.info
        identity = self._identity(tgid, process)
        name = self._unshared(_given_name(identity) or _nameless(tgid), tgid)
        info = VmInfo(name, identity.uuid, identity.vmm, tgid, identity.pod_uid)
        self._drop(tgid)
        self._vms[tgid] = _Vm(info, process, now)
        self._names[name] = tgid
        return info

    def _identity(self, tgid: int, process: Process | None) -> Identity:
        told = self._commands.pop(tgid, ())
        line = self._read(tgid, "cmdline").rstrip("\0")
        command = line.split("\0") if line else []
        found = identify(command, comm=self._read(tgid, "comm"), cgroup=self._read(tgid, "cgroup"))
        # What was read is the process's own if that is still there; and who made the calls is who was met.
        is_gone = process is None or not process.is_alive()
        if told and (is_gone or not _may_be(line, told)):
            found = identify(_uncut(told))
        return found if is_gone else self._with_libvirts(tgid, found)

    def _with_libvirts(self, tgid: int, found: Identity) -> Identity:
        """With what libvirt knows, where this user may read that, and the command line does not say."""
        if found.vmm in (Vmm.FIRECRACKER, Vmm.CROSVM, Vmm.KUBEVIRT):  # the last has it in its pod
            return found
        for driver, vmm in ("qemu", Vmm.LIBVIRT), ("ch", Vmm.CLOUD_HYPERVISOR):
            if found.name and found.uuid:
                break
            directory = f"{self._libvirt}/{driver}"
            name = found.name or domain(directory, tgid)
            uuid = domain_uuid(directory, name, tgid)
            if uuid or name != found.name:
                found = Identity(vmm, name, found.uuid or uuid, found.pod_uid)
        return found

    def _read(self, tgid: int, file: str) -> str:
        """Empty if the process is gone, or /proc hides it (its mount option hidepid)."""
        return read_text(f"{self._proc}/{tgid}/{file}")

    def _unshared(self, name: str, tgid: int) -> str:
        for candidate in (name, f"{name[: MAX_NAME - len(f'-{tgid}')]}-{tgid}"):
            other = self._names.get(candidate, tgid)
            if other == tgid or not self._vms[other].is_alive():
                return candidate
        return _nameless(tgid)

    def _drop(self, tgid: int) -> None:
        vm = self._vms.pop(tgid, None)
        if vm is not None and self._names.get(vm.info.name) == tgid:
            del self._names[vm.info.name]


def clean_name(name: str) -> str:
    """`name` without what a label, a terminal or a log line would choke on, and of bounded length."""
    if name.isprintable() and len(name) <= MAX_NAME:
        return name
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name[:MAX_NAME])


def _nameless(tgid: int) -> str:
    return f"pid-{tgid}"


def _given_name(identity: Identity) -> str:
    """The VM's name, cleaned. `pid-N` is none: it stands for VMs that have none."""
    return "" if re.fullmatch(r"pid-\d+", identity.name) else clean_name(identity.name)


def _may_be(line: str, told: Sequence[str]) -> bool:
    """Whether a process that has this command line may be the one that was met."""
    # The last character may have been cut in the middle.
    return line.startswith("\0".join(told).rstrip("\N{REPLACEMENT CHARACTER}"))


def _uncut(told: Sequence[str]) -> Sequence[str]:
    """Without the last argument if there may be more of it: half a name is another VM's name."""
    return told[:-1] if len("\0".join(told).encode()) >= _COMMAND_SIZE else told
