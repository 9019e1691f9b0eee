"""The VM that a VMM's command line describes. Pure: the caller reads the process."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath
from uuid import UUID

from vpmu_agent.vms.owner import owner
from vpmu_agent.vms.qemu_options import fields, options


class Vmm(StrEnum):
    """The program that runs a VM. `libvirt` and `kubevirt` are QEMU started by these."""

    QEMU = "qemu"
    LIBVIRT = "libvirt"
    KUBEVIRT = "kubevirt"
    FIRECRACKER = "firecracker"
    CLOUD_HYPERVISOR = "cloud-hypervisor"
    CROSVM = "crosvm"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a process says about the VM that it runs; "" for what it does not say."""

    vmm: Vmm
    name: str
    """As written there; see clean.clean_name()."""
    uuid: str
    """In canonical form."""
    pod_uid: str
    """The UID of the Kubernetes pod that the process is in."""


Reader = Callable[[Sequence[str]], tuple[str, str]]

_UUID = re.compile(r"[0-9a-f]{8}(-?)(?:[0-9a-f]{4}\1){3}[0-9a-f]{12}", re.IGNORECASE | re.ASCII)

_EMULATOR = re.compile(r"/qemu/linux-\w+/qemu-system-")  # where the Android SDK has it

# The guest's kernel parameters, which may look like an option (crosvm, kvmtool).
_GUEST_PARAMETERS = ("-p", "--params")

# kubelet names a pod's cgroup by its UID; under the systemd driver `_` stands for `-`, which separates slices
# there (pkg/kubelet/cm/cgroup_manager_linux.go).
_POD = re.compile(r"\bpod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})\b")


def identify(command: Sequence[str], *, comm: str = "", cgroup: str = "") -> Identity:
    """Return what a VMM's command line says about its VM.

    Args:
        command: its arguments from argv[0] on, as far as they are known.
        comm: the text of /proc/PID/comm, for programs with an arbitrary argv[0].
        cgroup: the text of /proc/PID/cgroup.
    """
    vmm, read = _vmm(command, comm)
    name, uuid = read(command)
    match = _POD.search(cgroup)
    pod_uid = match[1].replace("_", "-") if match else ""
    if vmm is Vmm.QEMU and _is_libvirts(command):
        vmm = Vmm.KUBEVIRT if _is_kubevirts(command, name, pod_uid) else Vmm.LIBVIRT
    return Identity(vmm, _title(command) or name, uuid, pod_uid)


def canonical_uuid(text: str) -> str:
    """Return `text` in lower case with its four hyphens, "" if it is no UUID or that of nothing (all 0)."""
    digits = text.lower().replace("-", "") if _UUID.fullmatch(text) else ""
    return str(UUID(digits)) if digits.strip("0") else ""


def _vmm(command: Sequence[str], comm: str) -> tuple[Vmm, Reader]:
    for program in (PurePath(command[0]).name if command else "", comm.strip()):
        for pattern, vmm, reader in _PROGRAMS:
            if pattern.match(program):
                return vmm, reader
    names = (argument.partition("=")[0] for argument in command[1:])
    vmm = next((_OPTIONS[name] for name in names if name in _OPTIONS), Vmm.OTHER)
    return vmm, _READERS[vmm]


def _is_libvirts(command: Sequence[str]) -> bool:
    """Return whether libvirt started this QEMU.

    Since 1.3.3 it gives every QEMU a key for its secrets (qemuBuildMasterKeyCommandLine), and since 0.7.1 a
    monitor with an ID that only libvirt uses; those before kept its socket in libvirt's directory.
    """
    return any(
        (option == "object" and "masterKey0" in value)
        or (option == "chardev" and "charmonitor" in value)
        or (option == "monitor" and "/libvirt/qemu/" in value)
        for option, value in options(command)
    )


def _is_kubevirts(command: Sequence[str], name: str, pod_uid: str) -> bool:
    """Return whether this is the QEMU of KubeVirt's virt-launcher.

    It runs in a pod, and its domain is named NAMESPACE_NAME, with an underscore that a namespace cannot
    contain. If the pod is not known: a launcher that is not root keeps libvirt's files in
    /var/run/kubevirt-private, and the manufacturer is KubeVirt unless configured. A pod alone proves nothing:
    others run libvirt in pods too (openstack-helm).
    """
    return (pod_uid != "" and "_" in name) or any(
        "/kubevirt-private/" in argument or "manufacturer=KubeVirt" in argument for argument in command
    )


# Each returns the VM's name and UUID, "" for what it does not find.


def _of_qemu(command: Sequence[str]) -> tuple[str, str]:
    """Read `-name web01` or `-name guest=web01,debug-threads=on`; StratoVirt has QEMU's options.

    The UUID is in `-uuid` or is the system's in the SMBIOS tables (`-smbios type=1,uuid=…`, as Proxmox has
    it): both set the same variable, so the later one counts (softmmu/vl.c, hw/smbios/smbios.c). Android's
    emulator is a QEMU with `-avd NAME` or `@NAME`.
    """
    name = avd = uuid = ""
    for option, value in options(command):
        match option:
            case "name":
                found = fields(value)
                name = found.get("guest", found.get("", "")) or name
            case "uuid":
                uuid = value
            case "smbios" if (system := fields(value)).get("type") == "1":
                uuid = system.get("uuid", uuid)
            case "avd":
                avd = value
    if not avd and command and _EMULATOR.search(command[0]):
        avd = next((argument[1:] for argument in command[1:] if argument.startswith("@")), "")
    return avd or name, canonical_uuid(uuid)


def _of_firecracker(command: Sequence[str]) -> tuple[str, str]:
    """Read `--id`, which the jailer always gives, or else the name of its API socket or configuration."""
    name = _last(command, "--id")
    if name in ("", "anonymous-instance"):  # Firecracker's default (src/firecracker/src/main.rs)
        name = owner(_last(command, "--api-sock")) or owner(_last(command, "--config-file"))
    return name, ""


def _of_cloud_hypervisor(command: Sequence[str]) -> tuple[str, str]:
    """Read the name of the API socket or event monitor: Cloud Hypervisor has no option for a VM's name.

    libvirt passes the socket as a descriptor, and names the monitor NAME-event-monitor-fifo (ch_monitor.c).
    """
    name = ""
    for value in (_last(command, "--api-socket"), _last(command, "--event-monitor")):
        path = fields(value)
        name = name or owner(path.get("path", path.get("", "")))
    return name, canonical_uuid(fields(_last(command, "--platform")).get("uuid", ""))


def _of_crosvm(command: Sequence[str]) -> tuple[str, str]:
    """Read `--name` (since 2024), else the name of the control socket, else the VM's vsock CID."""
    name = _last(command, "--name") or owner(_last(command, "--socket", "-s"))
    vsock = fields(_last(command, "--vsock", "--cid"))
    cid = vsock.get("cid", vsock.get("", ""))
    return name or (f"cid-{cid}" if cid else ""), ""


def _of_kvmtool(command: Sequence[str]) -> tuple[str, str]:
    return _last(command, "--name"), ""


def _of_virtualbox(command: Sequence[str]) -> tuple[str, str]:
    """Read `--comment NAME --startvm UUID`, as VirtualBox starts a VM; a user may write `--startvm NAME`."""
    vm = _last(command, "--startvm", "-startvm", "-s")
    uuid = canonical_uuid(vm.strip("{}"))
    return _last(command, "--comment", "-comment") or ("" if uuid else vm), uuid


def _of_gvisor(command: Sequence[str]) -> tuple[str, str]:
    """Read the container's ID, after the flags of `boot` (`runsc-sandbox … boot --bundle=… … ID`).

    If the end of the command line is not known, the last argument is a flag, or the value of one: that is
    told by the flag before, which has no `=`.
    """
    before, last = ("", "", *command)[-2:]
    is_id = "boot" in command and re.match(r"--[\w-]+=", before) and not last.startswith("-")
    return last if is_id else "", ""


def _of_kata_shim(command: Sequence[str]) -> tuple[str, str]:
    """Read the sandbox's ID: Kata's own VMM, Dragonball, runs in threads of its containerd shim."""
    return _last(command, "-id"), ""


_READERS: dict[Vmm, Reader] = {
    Vmm.QEMU: _of_qemu,
    Vmm.FIRECRACKER: _of_firecracker,
    Vmm.CLOUD_HYPERVISOR: _of_cloud_hypervisor,
    Vmm.CROSVM: _of_crosvm,
    Vmm.OTHER: _of_qemu,
}

# Programs by their names in argv[0] or (15 characters of it) in /proc/PID/comm. Proxmox's QEMU is `kvm`,
# Ubuntu's was `kvm-spice`.
_PROGRAMS: tuple[tuple[re.Pattern[str], Vmm, Reader], ...] = (
    (re.compile(r"\.?qemu|kvm(-spice)?$"), Vmm.QEMU, _of_qemu),
    (re.compile("firecracker"), Vmm.FIRECRACKER, _of_firecracker),
    (re.compile("cloud-hyperviso"), Vmm.CLOUD_HYPERVISOR, _of_cloud_hypervisor),
    (re.compile("crosvm"), Vmm.CROSVM, _of_crosvm),
    (re.compile("stratovirt"), Vmm.OTHER, _of_qemu),
    (re.compile("lkvm|kvmtool"), Vmm.OTHER, _of_kvmtool),
    (re.compile("VBoxHeadless|VBoxSDL|VirtualBox"), Vmm.OTHER, _of_virtualbox),
    (re.compile("runsc"), Vmm.OTHER, _of_gvisor),
    (re.compile("containerd-shim-kata"), Vmm.OTHER, _of_kata_shim),
)

# For programs under another name: options that only one of them has.
_OPTIONS = {
    "-machine": Vmm.QEMU,
    "-M": Vmm.QEMU,
    "-accel": Vmm.QEMU,
    "-enable-kvm": Vmm.QEMU,
    "--api-sock": Vmm.FIRECRACKER,
    "--api-socket": Vmm.CLOUD_HYPERVISOR,
}


def _title(command: Sequence[str]) -> str:
    """Return the name in an argv[0] that was set to show it, as microvm.nix does: `microvm@web01`."""
    prefix, _, name = (command[0] if command else "").partition("@")
    return name if prefix == "microvm" else ""


def _last(command: Sequence[str], *names: str) -> str:
    """Return the last value of an option that is written `--option VALUE` or `--option=VALUE`, "" if none."""
    found = ""
    i = 1
    while i < len(command) and command[i] != "--":  # what follows is not for this program
        option, equals, value = command[i].partition("=")
        i += 1
        takes_next = not equals and (option in names or option in _GUEST_PARAMETERS)
        if takes_next:
            value = command[i] if i < len(command) else ""
            i += 1
        if option in names:
            found = value
    return found
