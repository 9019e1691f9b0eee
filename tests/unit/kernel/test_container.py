"""Namespaces and mount options, as a small /proc has them and as this process really finds them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vpmu_agent.kernel.container import (
    hidepid,
    is_hosts_namespace,
    require_children_here,
    require_host_pids,
)
from vpmu_agent.kernel.errors import KernelError


@pytest.mark.parametrize(
    ("link", "is_hosts"), [("pid:[4026531836]", True), ("pid:[4026532190]", False), ("", None)]
)
def test_whose_pid_namespace(tmp_path: Path, link: str, is_hosts: bool | None) -> None:
    folder = tmp_path / "proc/self/ns"
    folder.mkdir(parents=True)
    if link:
        (folder / "pid").symlink_to(link)
    assert is_hosts_namespace("pid", root=tmp_path) is is_hosts
    if is_hosts is False:
        with pytest.raises(KernelError, match=r"PID namespace of its own.*--pid=host.*hostPID: true"):
            require_host_pids(root=tmp_path)
    else:
        require_host_pids(root=tmp_path)


def test_a_proc_without_this_process(tmp_path: Path) -> None:
    """It is mounted, and /proc/self leads nowhere: it shows another PID namespace."""
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "self").symlink_to("4242")
    require_host_pids(root=tmp_path)  # an empty folder
    (proc / "version").write_text("Linux version 6.1\n")
    with pytest.raises(KernelError, match=r"/proc is that of another PID namespace.*hostPID: true"):
        require_host_pids(root=tmp_path)


@pytest.mark.parametrize("link", ["pid:[4026532190]", ""])
def test_children_in_another_namespace(tmp_path: Path, link: str) -> None:
    folder = tmp_path / "proc/self/ns"
    folder.mkdir(parents=True)
    (folder / "pid").symlink_to("pid:[4026531836]")
    require_children_here(root=tmp_path)  # Linux before 4.12
    (folder / "pid_for_children").symlink_to(link or "pid:[4026531836]")
    if link:
        with pytest.raises(KernelError, match=r"PID namespace of its own.*hostPID: true"):
            require_children_here(root=tmp_path)
    else:
        require_children_here(root=tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make these namespaces")
def test_children_in_a_real_namespace_that_has_no_process_yet() -> None:
    require_children_here()
    code = "from vpmu_agent.kernel.container import *; require_children_here()"
    command = ["unshare", "--pid", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare failed" in done.stderr:
        pytest.skip("unshare --pid is not permitted here, as in a chroot")
    assert "this process is in a PID namespace of its own" in done.stderr


def in_namespace(flag: str, code: str) -> str:
    command = ["unshare", *flag.split(), "--fork", "--mount-proc", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make these namespaces")
@pytest.mark.parametrize(("flag", "kind"), [("--pid", "pid"), ("--user --map-root-user --pid", "user")])
def test_a_real_namespace(flag: str, kind: str) -> None:
    if is_hosts_namespace(kind) is not True:
        pytest.skip("this process is in a container itself")
    if subprocess.run(
        ["unshare", *flag.split(), "--fork", "true"], stderr=subprocess.DEVNULL, check=False
    ).returncode:
        pytest.skip(f"unshare {flag} is not permitted here, as in a chroot")
    code = f"from vpmu_agent.kernel.container import *; print(is_hosts_namespace({kind!r}))"
    assert in_namespace(flag, code) == "False"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize(("option", "found"), [("2", ("2", "invisible")), ("0", ("",))])
def test_a_real_hidepid(option: str, found: tuple[str, ...]) -> None:
    """The kernel writes the option as a word since Linux 5.8."""
    code = (
        "import subprocess; from vpmu_agent.kernel.container import *; "
        f"subprocess.run(['mount', '-o', 'remount,hidepid={option}', '/proc'], check=True); print(hidepid())"
    )
    assert in_namespace("--pid", code) in found


def test_hidepid_of_no_proc(tmp_path: Path) -> None:
    assert hidepid(root=tmp_path) is None
