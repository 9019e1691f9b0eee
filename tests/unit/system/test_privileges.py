"""What a process is left with after it gave up its privileges, as the kernel tells it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.children import in_child
from vpmu_agent.kernel.facts import CAPABILITIES
from vpmu_agent.system import privileges
from vpmu_agent.system.user import DAEMON_USER, User, find_user

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to give up")
NONE = "0" * 16


def status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@as_root
def test_nothing_is_left_and_nothing_comes_back() -> None:
    def check() -> None:
        user = find_user(DAEMON_USER)
        privileges.drop(user)
        now = status()
        sets = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
        assert {name: now[name] for name in sets} == dict.fromkeys(sets, NONE)
        assert now["NoNewPrivs"] == "1"
        assert now["Uid"].split() == [str(user.uid)] * 4
        assert now["Gid"].split() == [str(user.gid)] * 4
        assert now["Groups"] == ""
        with pytest.raises(PermissionError):
            os.setuid(0)
        with pytest.raises(PermissionError):
            Path("/etc/shadow").read_bytes()

    in_child(check)


@as_root
def test_what_is_kept_is_all_there_is() -> None:
    def check() -> None:
        privileges.drop(find_user(DAEMON_USER), keep={"CAP_BPF"})
        now = status()
        only = f"{1 << CAPABILITIES['CAP_BPF']:016x}"
        assert (now["CapPrm"], now["CapEff"]) == (only, only)
        assert (now["CapInh"], now["CapBnd"], now["CapAmb"]) == (NONE, NONE, NONE)
        # Not even to those that it runs.
        run = subprocess.run(["/bin/cat", "/proc/self/status"], check=True, capture_output=True, text=True)
        assert f"CapEff:\t{NONE}" in run.stdout

    in_child(check)


@as_root
def test_a_user_with_capabilities_stays_who_it_is() -> None:
    """As under systemd with User= and AmbientCapabilities=."""
    code = (
        "import os\n"
        "from vpmu_agent.system.privileges import drop\n"
        "from vpmu_agent.system.user import find_user\n"
        "drop(find_user('nobody'))\n"
        "print(os.getuid(), open('/proc/self/status').read())\n"
    )
    bpf = ("--inh-caps=+bpf,+perfmon", "--ambient-caps=+bpf,+perfmon")
    command = ["setpriv", "--reuid=4242", "--regid=4242", "--clear-groups", *bpf, sys.executable, "-c", code]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    assert run.stdout.startswith("4242 ")
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert f"{name}:\t{NONE}" in run.stdout


@as_root
@pytest.mark.parametrize("capability", ["kill", "setgid", "setuid"])
def test_root_in_a_container_knows_what_it_lacks_to_become_another_user(capability: str) -> None:
    code = "from vpmu_agent.system import privileges as p; print(p.missing_to_switch())"
    command = ["setpriv", f"--bounding-set=-{capability}", "--inh-caps=-all", sys.executable, "-c", code]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    assert run.stdout == f"('CAP_{capability.upper()}',)\n"


def test_who_need_not_become_another_user_lacks_nothing() -> None:
    def check() -> None:
        if os.geteuid() == 0:
            assert not privileges.missing_to_switch()
            privileges.drop(find_user(DAEMON_USER))
        assert not privileges.missing_to_switch()

    in_child(check)


def test_a_process_without_privileges_has_none_to_give_up() -> None:
    def check() -> None:
        if os.geteuid() == 0:
            privileges.drop(find_user(DAEMON_USER))
        privileges.drop(find_user(DAEMON_USER))
        assert status()["CapPrm"] == NONE

    in_child(check)


def test_it_ends_with_its_parent() -> None:
    code = (
        "import os, signal, sys, time\n"
        "from vpmu_agent.system import privileges\n"
        "from vpmu_agent.system.user import find_user\n"
        "me = os.getpid()\n"
        "if os.fork(): time.sleep(60)\n"
        "def end(*_):\n"
        "    os.write(1, b'ended'); os._exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "if os.geteuid() == 0: privileges.drop(find_user('nobody'))\n"
        "privileges.end_with(me, signal.SIGTERM)\n"
        "print('ready', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        process.kill()
        assert process.stdout.read() == b"ended"


def test_a_parent_that_has_ended_already_is_noticed() -> None:
    with pytest.raises(ProcessLookupError):
        privileges.end_with(os.getppid() + 1, 0)


@as_root
def test_reading_a_map_is_tried_by_somebody_without_privileges() -> None:
    trial = privileges.try_map_access()
    assert trial.works, trial.reason  # Linux 5.19 or later
    # A process that is still root after it gave itself up has failed to: so that is what was tried.
    assert not privileges.try_map_access(User(0, 0)).works
