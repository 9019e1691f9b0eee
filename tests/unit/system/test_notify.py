"""sd_notify(3), with a socket of the test's as the service manager."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from vpmu_agent.system.notify import ENVIRONMENT, NotifyError, notify


def test_what_is_told_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "notify"))
        notify("READY=1", "STATUS=attached fexit probes to 4 functions")
        assert manager.recv(999) == b"READY=1\nSTATUS=attached fexit probes to 4 functions"


def test_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setitem(sys.modules, "systemd", None)
    notify("READY=1")


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "/nowhere")
    monkeypatch.setitem(sys.modules, "systemd", None)
    with pytest.raises(NotifyError, match="install Debian's python3-systemd"):
        notify("READY=1")
