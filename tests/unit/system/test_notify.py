"""sd_notify(3), with a socket of the test's as the service manager."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from vpmu_agent.system.notify import ENVIRONMENT, NotifyError, notify

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
        ("/nowhere/notify", "at NOTIFY_SOCKET=/nowhere/notify: No such file or directory; unset"),
        ("@vpmu-agent-nobody-there", "Connection refused"),
        ("/" + "x" * 200, "path too long"),
        ("notify", "NOTIFY_SOCKET is 'notify': expected an absolute path"),
        ("", "NOTIFY_SOCKET is '': expected an absolute path"),
    ],
)
def test_where_nothing_can_be_sent_it_says_why(
    address: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, address)
    with pytest.raises(NotifyError, match=said):
        notify("READY=1")
