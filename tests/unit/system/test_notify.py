"""sd_notify(3), with a socket of the test's as the service manager."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from vpmu_agent.system.notify import ENVIRONMENT, ServiceManager, notify

STATES = ("READY=1", "STATUS=attached fexit probes to 6 functions")


def test_what_is_told_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify@1"))
        monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "notify@1"))
        notify(*STATES)
        assert manager.recv(999) == "\n".join(STATES).encode()


def test_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("")  # the kernel chooses a name
        name = manager.getsockname().decode().replace("\0", "@")
        monkeypatch.setenv(ENVIRONMENT, name)
        notify(*STATES)
        assert manager.recv(999) == "\n".join(STATES).encode()


def test_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    notify("READY=1")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("/nowhere/notify", "at NOTIFY_SOCKET=/nowhere/notify: No such file or directory; it is tried again"),
        ("@vpmu-agent-nobody-there", "Connection refused"),
        ("/" + "x" * 200, "path too long"),
        ("/a\udcff", "No such file or directory"),
        ("notify", "at NOTIFY_SOCKET=notify: expected an absolute path"),
        ("", "at NOTIFY_SOCKET=: expected an absolute path"),
    ],
)
def test_where_nothing_can_be_sent_it_says_why_once_and_goes_on(
    address: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, address)
    told: list[str] = []
    manager = ServiceManager(lambda text, _: told.append(text))
    manager.notify("READY=1")
    manager.notify("WATCHDOG=1")
    assert manager.delayed == 2
    (line,) = told
    assert said in line


def test_a_manager_that_comes_back_is_told_what_it_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "notify"))
    told: list[str] = []
    manager = ServiceManager(lambda text, _: told.append(text))
    manager.notify("STATUS=loading the probes")
    manager.notify("RELOADING=1", "MONOTONIC_USEC=1")
    manager.notify("STATUS=attached")
    manager.notify("READY=1")
    manager.notify("WATCHDOG=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as there:
        there.bind(str(tmp_path / "notify"))
        manager.notify("WATCHDOG=1")
        assert there.recv(999) == b"STATUS=attached\nREADY=1\nWATCHDOG=1"
        manager.notify("WATCHDOG=1")
        assert there.recv(999) == b"WATCHDOG=1"
    assert told[1:] == ["the service manager is told again"]


def test_a_manager_that_reads_nothing_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "notify"))
    told: list[str] = []
    manager = ServiceManager(lambda text, _: told.append(text))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as there:
        there.bind(str(tmp_path / "notify"))
        while not manager.delayed:  # its queue gets full
            manager.notify("WATCHDOG=1")
        manager.notify("READY=1")
        while there.recv(999) == b"WATCHDOG=1":
            manager.notify("WATCHDOG=1")
    assert "Resource temporarily unavailable" in told[0]
