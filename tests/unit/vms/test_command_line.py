from __future__ import annotations

from typing import Any

import pytest

from tests.support.vmm_commands import COMMANDS, PROCESSES, expected
from vpmu_agent.vms.command_line import Vmm, identify


@pytest.mark.parametrize("process", PROCESSES)
def test_command_lines_of_vmms(process: dict[str, Any]) -> None:
    found = identify(
        process["command"].split("\n"), comm=process["comm"] + "\n", cgroup=process.get("cgroup", "")
    )
    assert found == expected(process)


def test_there_are_command_lines_of_every_vmm() -> None:
    assert {file.stem for file in COMMANDS.glob("*.toml")} == set(Vmm)
    assert {Vmm(process["vmm"]) for (process,) in (each.values for each in PROCESSES)} == set(Vmm)  # type: ignore[index]


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("qemu-system-x86_64 -name debug-threads=on,guest=web01", "web01"),
        ("qemu-system-x86_64 --name guest=web01", "web01"),
        ("qemu-system-x86_64 -name guest=a,,b,debug-threads=on", "a,b"),
        ("qemu-system-x86_64 -name a,,b", "a,b"),
        ("qemu-system-x86_64 -name guest=a=b", "a=b"),
        ("qemu-system-x86_64 -name first -m 2G -name guest=last", "last"),
        ("qemu-system-x86_64 -name first -name debug-threads=on", "first"),
        ("qemu-system-x86_64 -name debug-threads=on", ""),
        ("qemu-system-x86_64 -name", ""),
        ("qemu-system-x86_64 -append x=-name", ""),
        ("qemu-system-x86_64 -append -name -S web01", ""),
        ("qemu-system-x86_64 -name web01 -D -name", "web01"),
        ("/usr/bin/firecracker --id=fc-1", "fc-1"),
        ("/usr/bin/firecracker --id anonymous-instance --api-sock /srv/fc/web01.sock", "web01"),
        ("crosvm run --socket /proc/self/fd/9", ""),
        ("", ""),
    ],
)
def test_names_in_command_lines(command: str, name: str) -> None:
    assert identify(command.split()).name == name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/run/ch/web01.sock", "web01"),
        ("/run/ch/web01.example.org.sock", "web01.example.org"),
        ("/run/vms/web01/api.socket", "web01"),
        ("/run/vms/web01/run/cloud-hypervisor.sock", "web01"),
        ("/run/vms/100/api.sock", "100"),
        ("web01-api.sock", "web01"),
        ("/run/vms/web01/run/state/monitor.sock", "web01"),
        ("/run/vms/prod/web01/api.sock", ""),  # either could be the VM
        ("/run/product/ch.sock", ""),
        ("/opt/firecracker/images/ch.sock", ""),
        ("/srv/1f2e3d4c5b6a7988/ch.sock", "1f2e3d4c5b6a7988"),
        ("/dev/fd/63", ""),
        ("/dev/stdin", ""),
        ("/proc/4242/fd/3", ""),
        ("/home/alice/ch.sock", ""),
        ("/run/user/1000/ch.sock", ""),
        ("/root/.ch.sock", ""),
        ("/", ""),
        ("", ""),
    ],
)
def test_whose_a_socket_is(path: str, name: str) -> None:
    assert identify(["cloud-hypervisor", "--api-socket", f"path={path}"]).name == name
    assert identify(["cloud-hypervisor", f"--api-socket={path}"]).name == name


@pytest.mark.parametrize(
    ("options", "uuid"),
    [
        ("-uuid 8E5E3E56-D4EC-44F5-9363-E3699359CA9B", "8e5e3e56-d4ec-44f5-9363-e3699359ca9b"),
        ("-uuid none", ""),
        ("-smbios type=2,uuid=8e5e3e56-d4ec-44f5-9363-e3699359ca9b", ""),
        (
            "-uuid 8e5e3e56-d4ec-44f5-9363-e3699359ca9b "
            "-smbios type=1,uuid=b886e2ce-0caf-42a3-84db-d3568b369292",
            "b886e2ce-0caf-42a3-84db-d3568b369292",
        ),
        (
            "-smbios type=1,uuid=b886e2ce-0caf-42a3-84db-d3568b369292 -smbios type=1,serial=1",
            "b886e2ce-0caf-42a3-84db-d3568b369292",
        ),
        ("-uuid 00000000-0000-0000-0000-000000000000", ""),
        ("-uuid 8e5e3e56-d4ec44f5-9363-e3699359ca9b", ""),
    ],
)
def test_uuids_of_qemu(options: str, uuid: str) -> None:
    assert identify(["qemu-system-x86_64", *options.split()]).uuid == uuid


@pytest.mark.parametrize(
    ("cgroup", "pod_uid"),
    [
        ("0::/system.slice/podman-1.scope", ""),
        ("0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podabc.slice", ""),
        # As a process in another cgroup namespace sees it.
        (
            "0::/../../kubepods-pod307f790a_dd46_4fb3_a8eb_1a834c75e222.slice",
            "307f790a-dd46-4fb3-a8eb-1a834c75e222",
        ),
    ],
)
def test_pods(cgroup: str, pod_uid: str) -> None:
    assert identify(["qemu-kvm", "-name", "a"], cgroup=cgroup).pod_uid == pod_uid


def test_kubevirt_may_call_its_machines_otherwise() -> None:
    key = "secret,id=masterKey0,format=raw,file=/var/lib/libvirt/qemu/domain-1-default_web01/master-key.aes"
    command = [
        "qemu-kvm",
        "-name",
        "guest=default_web01",
        "-object",
        key,
        "-smbios",
        "type=1,manufacturer=Red Hat",
    ]
    pod = "0::/kubepods/burstable/pod307f790a-dd46-4fb3-a8eb-1a834c75e222/1f2e"
    assert identify(command, cgroup=pod).vmm is Vmm.KUBEVIRT
    assert identify(command, cgroup="0::/machine.slice").vmm is Vmm.LIBVIRT


@pytest.mark.parametrize(
    ("command", "comm", "vmm"),
    [
        ("web01 -machine q35", "", Vmm.QEMU),
        ("web01 -name web01", "qemu-system-x86", Vmm.QEMU),
        ("web01 --api-sock=/x", "", Vmm.FIRECRACKER),
        ("web01 --api-socket path=/x", "", Vmm.CLOUD_HYPERVISOR),
        ("lkvm run", "lkvm", Vmm.OTHER),
        ("python3 -c x", "python3", Vmm.OTHER),
        ("", "kvm", Vmm.QEMU),
    ],
)
def test_programs_that_go_by_another_name(command: str, comm: str, vmm: Vmm) -> None:
    assert identify(command.split(), comm=comm).vmm is vmm
