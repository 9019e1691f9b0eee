"""The VM that a VMM's command line describes. Pure: the caller reads the process."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest
from pathlib import PurePath
from uuid import UUID


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


# Names of the program, in argv[0] or (15 characters of it) in /proc/PID/comm. Proxmox's QEMU is `kvm`.
_PROGRAMS = {
    Vmm.QEMU: re.compile(r"\.?qemu|kvm$"),
    Vmm.FIRECRACKER: re.compile("firecracker"),
    Vmm.CLOUD_HYPERVISOR: re.compile("cloud-hyperviso"),
    Vmm.CROSVM: re.compile("crosvm"),
}

# For programs under another name: options that only one of them has.
_OPTIONS = {
    "-machine": Vmm.QEMU,
    "-M": Vmm.QEMU,
    "-accel": Vmm.QEMU,
    "-enable-kvm": Vmm.QEMU,
    "--api-sock": Vmm.FIRECRACKER,
    "--api-socket": Vmm.CLOUD_HYPERVISOR,
}

# Names of sockets and directories that say what they are, not which VM's.
_COMMON = re.compile(
    "api|ch|clh|cloud-hypervisor|config|crosvm|etc|fc|firecracker|hypervisor|internal|kata|lib|libvirt|microvms?"
    "|opt|qemu|root|run|sock|sockets?|srv|tmp|usr|var|vc|vms?|vmm",
    re.IGNORECASE,
)
_ENDINGS = re.compile(
    r"([-_.](api|config|control|ctl|event[-_]monitor|fifo|json|sock|socket))+$", re.IGNORECASE
)
_NOBODYS = re.compile(r"/home/[^/]+|/run/user/\d+|/proc/self/.*")  # a user's, or a descriptor

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
    vmm = _vmm(command, comm)
    name, uuid = _READERS[vmm](command)
    match = _POD.search(cgroup)
    pod_uid = match[1].replace("_", "-") if match else ""
    # Since 1.3.3 libvirt gives every QEMU a key for its secrets (qemuBuildMasterKeyCommandLine).
    if vmm is Vmm.QEMU and any("masterKey0" in argument for argument in command):
        vmm = Vmm.KUBEVIRT if _is_kubevirts(command, name, pod_uid) else Vmm.LIBVIRT
    return Identity(vmm, _title(command) or name, uuid, pod_uid)


def canonical_uuid(text: str) -> str:
    """Return `text` in lower case with its four hyphens, "" if it is not a UUID."""
    try:
        return str(UUID(text))
    except ValueError:
        return ""


def _vmm(command: Sequence[str], comm: str) -> Vmm:
    for program in (PurePath(command[0]).name if command else "", comm.strip()):
        for vmm, pattern in _PROGRAMS.items():
            if pattern.match(program):
                return vmm
    options = (argument.partition("=")[0] for argument in command[1:])
    return next((_OPTIONS[option] for option in options if option in _OPTIONS), Vmm.OTHER)


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
    """Read `-name web01` or `-name guest=web01,debug-threads=on`; kvmtool's and others' `--name` is the same.

    A comma in the name is doubled, and the last value counts (util/qemu-option.c). The UUID is in `-uuid`;
    Proxmox has it as the system's in the SMBIOS tables (`-smbios type=1,uuid=…`).
    """
    names = [_fields(value) for value in _values(command, "-name", "--name")]
    name = next(
        (guest for fields in reversed(names) if (guest := fields.get("guest", fields.get("", "")))), ""
    )
    systems = [fields for value in _values(command, "-smbios", "--smbios") if (fields := _fields(value))]
    uuids = [
        *(fields["uuid"] for fields in systems if fields.get("type") == "1" and "uuid" in fields),
        *_values(command, "-uuid", "--uuid"),
    ]
    return name, next(filter(None, map(canonical_uuid, reversed(uuids))), "")


def _of_firecracker(command: Sequence[str]) -> tuple[str, str]:
    """Read `--id`, which the jailer always gives, or else the name of its API socket or configuration."""
    name = _last(command, "--id")
    if name in ("", "anonymous-instance"):  # Firecracker's default (src/firecracker/src/main.rs)
        name = _owner(_last(command, "--api-sock")) or _owner(_last(command, "--config-file"))
    return name, ""


def _of_cloud_hypervisor(command: Sequence[str]) -> tuple[str, str]:
    """Read the name of the API socket or event monitor: Cloud Hypervisor has no option for a VM's name.

    libvirt passes the socket as a descriptor, and names the monitor NAME-event-monitor-fifo (ch_monitor.c).
    """
    name = ""
    for value in (_last(command, "--api-socket"), _last(command, "--event-monitor")):
        fields = _fields(value)
        name = name or _owner(fields.get("path", fields.get("", "")))
    return name, canonical_uuid(_fields(_last(command, "--platform")).get("uuid", ""))


def _of_crosvm(command: Sequence[str]) -> tuple[str, str]:
    """Read `--name` (since 2024), else the name of the control socket, else the VM's vsock CID."""
    name = _last(command, "--name") or _owner(_last(command, "--socket", "-s"))
    vsock = _fields(_last(command, "--vsock", "--cid"))
    cid = vsock.get("cid", vsock.get("", ""))
    return name or (f"cid-{cid}" if cid else ""), ""


_READERS = {
    Vmm.QEMU: _of_qemu,
    Vmm.FIRECRACKER: _of_firecracker,
    Vmm.CLOUD_HYPERVISOR: _of_cloud_hypervisor,
    Vmm.CROSVM: _of_crosvm,
    Vmm.OTHER: _of_qemu,
}


def _title(command: Sequence[str]) -> str:
    """Return the name in an argv[0] that was set to show it, as microvm.nix does: `microvm@web01`."""
    prefix, _, name = (command[0] if command else "").partition("@")
    return name if prefix == "microvm" else ""


# The syntax of options


def _values(command: Sequence[str], *options: str) -> Iterator[str]:
    for argument, value in zip_longest(command[1:], command[2:], fillvalue=""):
        option, equals, inline = argument.partition("=")
        if option in options:
            yield inline if equals else value


def _last(command: Sequence[str], *options: str) -> str:
    return next(reversed([*_values(command, *options)]), "")


def _fields(value: str) -> dict[str, str]:
    """Return `key=value,…` as a dictionary; a first value without `=` has an implied key, here ""."""
    fields = {}
    for i, field in enumerate(re.findall(r"(?:[^,]|,,)+", value)):
        key, equals, content = field.partition("=")
        if equals:
            fields[key] = content.replace(",,", ",")
        elif i == 0:
            fields[""] = key.replace(",,", ",")
    return fields


def _owner(path: str) -> str:
    """Return the VM that a socket or file belongs to, by its name or a directory's; "" if none names one.

    /run/vc/vm/5f0c/clh-api.sock belongs to 5f0c, /srv/vms/web01.sock to web01, /tmp/firecracker.sock to none.
    """
    file, *directories = reversed(
        [part for part in _NOBODYS.sub("", path, count=1).split("/") if part] or [""]
    )
    for part in (_ENDINGS.sub("", file), *directories):
        if part and not part.startswith(".") and not _COMMON.fullmatch(part):
            return part
    return ""
