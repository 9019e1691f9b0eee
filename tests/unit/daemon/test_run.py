"""What the daemon's loop does at each turn."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from tests.support.counted import Maps, Processes
from tests.support.guests import Pulls, amd, emulating
from tests.support.looks import WEB, without_event
from tests.support.scenes import Guest
from vpmu_agent.counts.guests import Guests
from vpmu_agent.counts.watch import Watch
from vpmu_agent.daemon.failing import FailingCounters
from vpmu_agent.daemon.pulse import Pulse
from vpmu_agent.daemon.run import look_at_guests
from vpmu_agent.model.counter_status import CounterStatus
from vpmu_agent.model.verdict import Observation


class Attached(Maps):
    """Probes with a census that finds a VM with a counter that has no event."""

    census = Pulls(amd(), without_event())

    def poll(self, _timeout_s: float) -> list[Observation]:
        return []

    def stop(self) -> list[Observation]:
        return []

    def close(self) -> None:
        self.is_closed = True


def test_a_counter_that_was_denied_is_shown_and_told_with_its_errno(
    capsys: pytest.CaptureFixture[str],
) -> None:
    probes = Attached([Guest("web01", WEB).failed_create()])
    names = Processes(web01=WEB)
    watch = Watch(probes, names)
    look_at_guests(probes, Guests(names, emulating), watch, [FailingCounters().tell_of])
    (counter,) = watch.snapshot().guests.counters["web01"].counters
    assert (counter.status, counter.errno) == (CounterStatus.DENIED, errno.ENOSPC)
    assert capsys.readouterr().err == "web01: of 1 counters 1 denied (ENOSPC)\n"


def test_the_watchdog_is_fed_only_while_the_server_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trouble = ""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        pulse = Pulse(lambda: trouble)
        pulse.sweep()
        assert manager.recv(100) == b"WATCHDOG=1"
        trouble = "the HTTP server has not answered itself for 11 s"
        pulse.sweep()
        trouble = "the HTTP server has not answered itself for 12 s"
        pulse.sweep()
        with pytest.raises(BlockingIOError):
            manager.recv(100)
        trouble = ""
        pulse.sweep()
        assert manager.recv(100) == b"WATCHDOG=1"
    assert capsys.readouterr().err.splitlines() == [
        "the HTTP server has not answered itself for 11 s; a service manager with a watchdog will restart "
        "this daemon",
        "the HTTP server works again",
    ]
