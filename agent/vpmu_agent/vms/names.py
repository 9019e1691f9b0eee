"""The VM that a process runs: its name and more, and whether it is still there."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vpmu_agent.vms.clean import MAX_NAME, clean_name
from vpmu_agent.vms.command_line import Identity, Vmm, identify
from vpmu_agent.vms.libvirt import domain, domain_uuid
from vpmu_agent.vms.process import Ends, Process, read_text

_COMMAND_SIZE = 511
"""Bytes of a command line that the probes send at most (VPMU_COMMAND_SIZE less its final 0)."""


@dataclass(frozen=True, slots=True)
class VmInfo:
    """The identity of a VM."""

    name: str
    """Fit for a label and unique among live VMs; `pid-N` if it has none."""
    uuid: str
    """"" if it is unknown."""
    vmm: Vmm
    tgid: int
    pod_uid: str
    """The UID of the Kubernetes pod that it runs in, "" if in none."""

    @property
    def is_nameless(self) -> bool:
        """Whether the process has not said the VM's name."""
        return self.name == _nameless(self.tgid)


@dataclass(slots=True)
class _Vm:
    info: VmInfo
    process: Process | None  # None if it was gone before the first look
    wanted: str = ""  # the VM's name, if another process of the VM has it
    is_source: bool = False  # another process of the VM took the name over from this one, which is paused
    is_watched: bool = False  # its end is told by Ends
    has_ended: bool = False  # as Ends has told

    def is_alive(self) -> bool:
        return not self.has_ended and self.process is not None and self.process.is_alive()

    def was_alive(self) -> bool:
        """Return is_alive() at the time that the ends were told, if its is."""
        return not self.has_ended if self.is_watched else self.is_alive()

    def is_surely_known(self) -> bool:
        """Return whether its process gave its name and is certainly still the same process."""
        return self.process is not None and self.process.is_surely_alive() and not self.info.is_nameless


class Vms:
    """The VMs by their processes, remembered; threads may share one of these.

    A process keeps its name until it is gone, and a tgid that comes back as another process is another VM.
    Two live VMs never share a name: the one seen later gets its tgid appended (`web01-4242`), as happens to
    the target of a migration within one host. That is one VM, as its UUID says: the target makes no call
    before the source is paused (QEMU sends the state of the vCPUs last), so it has the name from its first
    call on, or once the source is gone.

    `proc` is where /proc is, and `libvirt` where libvirt keeps the state of running VMs; neither takes
    privileges.
    """

    def __init__(
        self,
        *,
        proc: Path = Path("/proc"),
        libvirt: Path = Path("/run/libvirt"),
    ) -> None:
        self._proc = proc
        self._libvirt = libvirt
        self._lock = threading.Lock()
        self._vms: dict[int, _Vm] = {}
        self._names: dict[str, int] = {}  # the last tgid given this name; no other with it is alive
        self._commands: dict[int, Sequence[str]] = {}
        self._ends = Ends()

    def met(self, tgid: int, command: Sequence[str]) -> None:
        """Note a process that made its first call: it may be gone before anyone looks at it.

        `command` is the beginning of its command line at that time.
        """
        with self._lock:
            vm = self._vms.get(tgid)
            if vm is not None and vm.is_surely_known():
                self._take_over(vm, has_called=True)
                return  # the first call of another of its vCPUs
            self._drop(tgid)  # an earlier process with this tgid
            self._commands[tgid] = command

    def name(self, tgid: int) -> str:
        """Return the name of a VM, `pid-N` if its process does not say (or no longer exists)."""
        return self.about(tgid).name

    def about(self, tgid: int) -> VmInfo:
        """Return the identity of a VM, as far as its process says or said."""
        with self._lock:
            return self._about(tgid)

    def is_alive(self, tgid: int) -> bool:
        """Return False once the process that was named is gone, even if its tgid is in use again.

        Takes about a microsecond if there is a pidfd for it.
        """
        with self._lock:
            vm = self._vms.get(tgid)
            return vm is not None and vm.is_alive()

    def alive(self, tgids: Iterable[int]) -> set[int]:
        """Return those of which is_alive() is true; one system call for all where there are pidfds."""
        with self._lock:
            self._note_ends()
            return {tgid for tgid in tgids if (vm := self._vms.get(tgid)) and vm.was_alive()}

    def settled(self, known: Mapping[int, VmInfo]) -> set[int]:
        """Return those that are alive and of which about() would return this very object, as alive() does."""
        with self._lock:
            self._note_ends()
            return {
                tgid
                for tgid, info in known.items()
                if (vm := self._vms.get(tgid)) and vm.info is info and not vm.wanted and vm.was_alive()
            }

    def have_ended(self) -> bool:
        """Return whether processes have ended since the last look; one system call for all of them."""
        with self._lock:
            return self._note_ends()

    def _note_ends(self) -> bool:
        ended = self._ends.take()
        for tgid in ended & self._vms.keys():
            self._vms[tgid].has_ended = True
        return bool(ended)

    def forget(self, tgid: int) -> None:
        """Forget a process that is gone."""
        with self._lock:
            self._drop(tgid)
            self._commands.pop(tgid, None)

    def _about(self, tgid: int) -> VmInfo:
        vm = self._vms.get(tgid)
        # Asked every time, which takes a microsecond: a PID can be another process's at once.
        if vm is not None and vm.is_alive():
            self._take_over(vm)
            return vm.info
        process = Process.find(tgid)
        if vm is not None and (process is None or not process.is_alive()):
            # Calls of a process that is gone may still be in the ring: they keep its name.
            return vm.info
        has_called = tgid in self._commands
        identity = self._identity(tgid, process)
        name = self._unshared(_given_name(identity) or _nameless(tgid), tgid)
        info = VmInfo(name, identity.uuid, identity.vmm, tgid, identity.pod_uid)
        self._drop(tgid)
        vm = self._vms[tgid] = _Vm(info, process, self._wanted(info, identity))
        vm.is_watched = process is not None and self._ends.watch(process)
        self._names[name] = tgid
        self._take_over(vm, has_called=has_called)
        return vm.info

    def _wanted(self, info: VmInfo, identity: Identity) -> str:
        """Return the name that another process of the same VM has, "" if none has."""
        given = _given_name(identity)
        other = self._names.get(given)
        is_same = other is not None and info.uuid != "" and self._vms[other].info.uuid == info.uuid
        return given if is_same and info.name != given else ""

    def _take_over(self, vm: _Vm, *, has_called: bool = False) -> None:
        """Give a VM the name that it shares with another process, once that one is gone or paused.

        `has_called` says that this process just made a call, as only the one that is not paused does.
        """
        if not vm.wanted or not vm.is_alive():
            return
        name, vm.wanted = vm.wanted, ""
        other = self._vms.get(self._names.get(name, 0))
        if other is None or not other.is_alive():
            self._rename(vm, name)
        elif has_called and not vm.is_source and other.info.uuid == vm.info.uuid:
            self._rename(vm, name)
            other.wanted, other.is_source = name, True
            self._rename(other, self._unshared(name, other.info.tgid))
        else:
            vm.wanted = name

    def _rename(self, vm: _Vm, name: str) -> None:
        if self._names.get(vm.info.name) == vm.info.tgid:
            del self._names[vm.info.name]
        vm.info = replace(vm.info, name=name)
        self._names[name] = vm.info.tgid

    def _identity(self, tgid: int, process: Process | None) -> Identity:
        sent = self._commands.pop(tgid, ())
        line = self._read(tgid, "cmdline").rstrip("\0")
        command = line.split("\0") if line else []
        found = identify(command, comm=self._read(tgid, "comm"), cgroup=self._read(tgid, "cgroup"))
        # /proc is trusted only if the process is still alive and can be the one whose first call was seen;
        # otherwise the command line that the probe sent is.
        is_gone = process is None or not process.is_alive()
        if sent and (is_gone or not _may_be(line, sent)):
            found = identify(_uncut(sent))
        return found if is_gone else self._with_libvirts(tgid, found)

    def _with_libvirts(self, tgid: int, found: Identity) -> Identity:
        """Return `found` with what libvirt adds to the command line, if this user may read that."""
        if found.vmm in (Vmm.FIRECRACKER, Vmm.CROSVM, Vmm.KUBEVIRT):  # KubeVirt's libvirt is in the pod
            return found
        for driver, vmm in (("qemu", Vmm.LIBVIRT), ("ch", Vmm.CLOUD_HYPERVISOR)):
            if found.name and found.uuid:
                break
            directory = f"{self._libvirt}/{driver}"
            name = found.name or domain(directory, tgid)
            uuid = domain_uuid(directory, name, tgid)
            if uuid or name != found.name:
                found = Identity(vmm, name, found.uuid or uuid, found.pod_uid)
        return found

    def _read(self, tgid: int, file: str) -> str:
        """Return "" if the process is gone, or /proc hides it (mount option hidepid)."""
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


def _nameless(tgid: int) -> str:
    return f"pid-{tgid}"


def _given_name(identity: Identity) -> str:
    """Return the VM's name, cleaned; "" for `pid-N`, which stands for VMs that have none."""
    return "" if re.fullmatch(r"pid-\d+", identity.name) else clean_name(identity.name)


def _may_be(line: str, sent: Sequence[str]) -> bool:
    """Return whether a process with this command line can be the one whose command line was sent."""
    # The last character may have been cut in the middle.
    return line.startswith("\0".join(sent).rstrip("\N{REPLACEMENT CHARACTER}"))


def _uncut(sent: Sequence[str]) -> Sequence[str]:
    """Drop the last argument if it may be cut: half a name could be another VM's name."""
    return sent[:-1] if len("\0".join(sent).encode()) >= _COMMAND_SIZE else sent
