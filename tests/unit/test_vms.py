from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from vpmu_agent.vms import MAX_NAME, Vms, clean_name, running, vm_name

SLEEP = "import time; print(flush=True); time.sleep(60)"


@contextmanager
def process(*arguments: str) -> Iterator[int]:
    """A process with these arguments on its command line, as long as the block runs."""
    with subprocess.Popen([sys.executable, "-c", SLEEP, *arguments], stdout=subprocess.PIPE) as child:
        assert child.stdout
        child.stdout.readline()
        try:
            yield child.pid
        finally:
            child.kill()


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("qemu-system-x86_64 -name web01", "web01"),
        ("qemu-system-x86_64 -name guest=web01,debug-threads=on -m 2G", "web01"),
        ("qemu-system-x86_64 -name debug-threads=on,guest=web01", "web01"),
        ("qemu-system-x86_64 -name web01,process=qemu:web01", "web01"),
        ("qemu-system-x86_64 --name guest=web01", "web01"),
        ("qemu-system-x86_64 -name guest=a,,b,debug-threads=on", "a,b"),
        ("qemu-system-x86_64 -name guest=a=b", "a=b"),
        ("qemu-system-x86_64 -name first -m 2G -name guest=last", "last"),
        ("qemu-system-x86_64 -name debug-threads=on", ""),
        ("qemu-system-x86_64 -m 2G", ""),
        ("qemu-system-x86_64 -name", ""),
        ("qemu-system-x86_64 -name guest=pid-17", ""),
        ("/usr/bin/firecracker --id fc-1 --api-sock /run/fc.sock", "fc-1"),
        ("/usr/bin/firecracker --id=fc-1", "fc-1"),
        ("/usr/bin/something --id fc-1", ""),
        ("cloud-hypervisor --api-socket /run/ch.sock", ""),
        ("", ""),
    ],
)
def test_names_in_command_lines(command: str, name: str) -> None:
    assert vm_name(command.split()) == name


def test_names_are_cleaned_of_what_labels_and_terminals_choke_on() -> None:
    assert clean_name("naïve 机器 1") == "naïve 机器 1"
    assert clean_name("a\nb\x1b[31m\udcff") == "a\ufffdb\ufffd[31m\ufffd"
    assert len(clean_name("x" * 10_000)) == MAX_NAME


def test_a_process_is_named_by_its_command_line() -> None:
    with process("-name", "guest=web01,debug-threads=on") as tgid:
        vms = Vms()
        assert vms.name(tgid) == "web01"
        assert vms.is_alive(tgid)


def test_a_process_without_a_name_or_already_gone_is_named_by_its_pid() -> None:
    vms = Vms()
    with process() as tgid:
        assert vms.name(tgid) == f"pid-{tgid}"
    late = Vms()
    assert late.name(tgid) == f"pid-{tgid}"
    assert not late.is_alive(tgid)


def test_a_vm_keeps_its_name_after_its_process_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vpmu_agent.vms._TRUST_S", 0.0)
    vms = Vms()
    with process("-name", "web01") as tgid:
        assert vms.name(tgid) == "web01"
    assert vms.name(tgid) == "web01"  # its last calls are still in the ring
    assert not vms.is_alive(tgid)


def test_a_zombie_is_not_alive() -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEP], stdout=subprocess.PIPE) as child:
        vms = Vms()
        vms.name(child.pid)
        child.kill()
        deadline = time.monotonic() + 10
        while vms.is_alive(child.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not vms.is_alive(child.pid)


def test_a_pid_that_is_used_again_is_another_vm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vpmu_agent.vms._TRUST_S", 0.0)
    last_pid = Path("/proc/sys/kernel/ns_last_pid")
    if not os.access(last_pid, os.W_OK):
        pytest.skip("only root may choose the next pid")
    for _ in range(20):  # others start processes too
        vms = Vms()
        with process("-name", "web01") as first:
            vms.name(first)
        last_pid.write_text(str(first - 1))
        with process("-name", "db01") as second:
            if second == first:
                assert not vms.is_alive(second)
                assert vms.name(second) == "db01"
                assert vms.is_alive(second)
                return
    pytest.skip("the kernel did not hand out the same pid twice")


def test_two_live_vms_never_share_a_name() -> None:
    with ExitStack() as stack:
        first, second = (stack.enter_context(process("-name", "web01")) for _ in range(2))
        vms = Vms()
        assert (vms.name(first), vms.name(second)) == ("web01", f"web01-{second}")
        taken = stack.enter_context(process("-name", f"web01-{second}"))
        others = Vms()
        assert [others.name(tgid) for tgid in (first, taken, second)] == [
            "web01",
            f"web01-{second}",
            f"pid-{second}",
        ]


def test_a_name_is_free_again_when_its_vm_is_gone() -> None:
    vms = Vms()
    with process("-name", "web01") as first:
        vms.name(first)
    with process("-name", "web01") as second:
        assert vms.name(second) == "web01"


def test_a_long_name_leaves_room_for_the_pid() -> None:
    with process("-name", "x" * 200) as first, process("-name", "x" * 200) as second:
        vms = Vms()
        vms.name(first)
        assert vms.name(second).endswith(f"x-{second}")
        assert len(vms.name(second)) == MAX_NAME


def test_a_process_without_a_vm_does_not_run_one() -> None:
    with process("-name", "web01") as tgid:
        assert tgid not in running()


HIDEPID = """
import os, sys
from vpmu_agent import privileges
from vpmu_agent.vms import Vms
privileges.drop(privileges.find_user("nobody"))
tgid = int(sys.argv[1])
assert not os.path.exists(f"/proc/{tgid}")
vms = Vms()
vms.met(tgid, ["qemu-system-x86_64", "-name", "web01"])
print(vms.name(tgid), vms.is_alive(tgid), flush=True)
sys.stdin.readline()
print(vms.name(tgid), vms.is_alive(tgid))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount /proc with hidepid")
def test_a_vm_is_alive_also_where_proc_hides_it() -> None:
    script = 'mount -t proc -o hidepid=2 proc /proc && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-c", HIDEPID]
    with process() as tgid:
        looker = subprocess.Popen(
            [*command, str(tgid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert looker.stdout
        assert looker.stdout.readline() == "web01 True\n"
    # The process is gone and was waited for.
    assert looker.communicate("\n", timeout=10)[0] == "web01 False\n"
