"""PID namespaces and a /proc of others: the PIDs that the probes send mean nothing there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.faults.conftest import Attack
from vpmu_agent.kernel.container import is_hosts_namespace

COMMANDS = (
    ("list",),
    ("top", "--once"),
    ("trace", "--duration", "1"),
    ("run", "--duration", "1", "--listen", "127.0.0.1:0"),
)
NAMESPACES = (
    ("unshare", "--pid", "--fork", "--mount-proc"),
    ("unshare", "--pid", "--fork"),  # with the host's /proc
    ("unshare", "--pid"),  # the first child is in it, this process is not
)
# The other way round: this process is the host's, /proc is that of a namespace where it does not exist.
STRANGERS_PROC = """
mount --make-rprivate /
mount -t tmpfs none /mnt
mkdir /mnt/proc
mounted='mount -t proc proc /mnt/proc && touch /mnt/ready && exec sleep 60'
unshare --pid --fork --kill-child sh -c "$mounted" >/dev/null 2>&1 &
while [ ! -e /mnt/ready ]; do sleep 0.1; done
mount --move /mnt/proc /proc
"$@"
status=$?
kill -KILL $!
exit $status
"""

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make these namespaces"),
    pytest.mark.skipif(is_hosts_namespace("pid") is not True, reason="this is a container itself"),
    pytest.mark.slow,
]


def refused(*command: str) -> str:
    """Return what the command says when it refuses to run."""
    agent = [sys.executable, "-m", "vpmu_agent"]
    end = ("timeout", "--signal=KILL", "60")  # where nothing can be started any more, it must not stay
    done = subprocess.run(
        [*end, *command[: command.index("AGENT")], *agent, *command[command.index("AGENT") + 1 :]],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 3, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stderr


def test_pid_namespaces(attack: Attack) -> None:
    """A command in a PID namespace of its own"""
    for words in COMMANDS:
        for namespace in NAMESPACES:
            with attack.once(" ".join((*namespace, *words))):
                said = refused(*namespace, "AGENT", *words)
                assert "PID namespace" in said
                assert "hostPID: true" in said
                assert "--pid=host" in said


def test_strangers_proc(attack: Attack) -> None:
    """A command whose /proc is that of another PID namespace"""
    for words in COMMANDS:
        with attack.once(" ".join(words)):
            said = refused("unshare", "--mount", "sh", "-c", STRANGERS_PROC, "sh", "AGENT", *words)
            assert "/proc is that of another PID namespace" in said
            assert "hostPID: true" in said


def test_hidden_proc(attack: Attack) -> None:
    """A daemon from which /proc hides the VMs, with hidepid"""
    agent = [sys.executable, "-m", "vpmu_agent", "run", "--duration", "1", "--listen", "127.0.0.1:0"]
    for option in (1, 2):
        script = f'mount -t proc -o hidepid={option} proc /proc && exec "$@"'
        with attack.once(f"hidepid={option}"):
            done = subprocess.run(
                [
                    "timeout",
                    "--signal=KILL",
                    "60",
                    "unshare",
                    "-m",
                    "sh",
                    "-c",
                    script,
                    "sh",
                    *agent,
                    "--wait",
                ],
                capture_output=True,
                text=True,
                check=False,
                stdin=subprocess.DEVNULL,
            )
            # It may end there: not every host of these tests can be probed.
            said = done.stderr
            assert said.count("/proc hides the processes of other users (hidepid=") == 1, said
