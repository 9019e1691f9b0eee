"""What the daemon tells of leaked events: each once, bounded, and nothing of a VM that ends."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.guests import amd, seen
from tests.support.looks import WEB, look, stray
from vpmu_agent.counts.guests import Found
from vpmu_agent.daemon.leaks import BURST, LEAKED, WINDOW_S, LeakReport
from vpmu_agent.probes.census import Stray
from vpmu_agent.system.journal import Level


class Log:
    """What is told, and the time at which."""

    def __init__(self) -> None:
        self.now = 100.0
        self.entries: list[dict[str, Any]] = []
        self.report = LeakReport(lambda: self.now, self.tell)

    def tell(self, text: str, level: Level, **fields: object) -> None:
        self.entries.append({"MESSAGE": text, "PRIORITY": level, **fields})

    def see(self, found: Found, seconds: float = 1.0) -> list[str]:
        """Tell of this, and return what is new; some time goes by before."""
        self.now += seconds
        before = len(self.entries)
        self.report.tell_of(found)
        return [entry["MESSAGE"] for entry in self.entries[before:]]


@pytest.fixture
def log() -> Log:
    return Log()


def web01(*strays: Stray) -> Found:
    return seen({WEB: "web01"}, look(amd(), at=1), look(amd(), *strays, at=2), look(amd(), *strays, at=9))


def test_a_leak_is_told_once_and_that_it_is_gone(log: Log) -> None:
    assert log.see(web01()) == []
    (said,) = log.see(web01(stray(1)))
    assert said.startswith("web01, vCPU 0, gp0: KVM has leaked an event (r076:GD): for 7 s ")
    assert log.entries == [
        {
            "MESSAGE": said,
            "PRIORITY": Level.WARNING,
            "MESSAGE_ID": LEAKED,
            "VPMU_VM": "web01",
            "VPMU_VCPU": 0,
            "VPMU_PMC": "gp0",
        }
    ]
    for _ in range(100):
        assert log.see(web01(stray(1)), seconds=60) == []
    assert len(log.see(web01(stray(1), stray(2)))) == 1
    assert log.see(web01(stray(2))) == [
        "web01: an event is no longer leaked: held or released after all, or gone with the thread"
    ]
    assert log.entries[-1]["PRIORITY"] == Level.NOTICE


def test_of_a_vm_that_ends_nothing_is_told(log: Log) -> None:
    log.see(web01(stray()))
    assert log.see(seen({}, look(at=10))) == []
    # Another process that is called web01 by now.
    log.see(web01(stray()))
    assert log.see(seen({777: "web01"}, look(amd(tgid=777), at=10))) == []


def test_without_a_census_nothing_begins_or_ends(log: Log) -> None:
    log.see(web01(stray()))
    assert log.see(Found(missing="refused", pulls=3)) == []
    assert log.see(web01(stray())) == []


def test_a_kvm_that_leaks_at_every_program_does_not_fill_the_log(log: Log) -> None:
    many = [stray(number) for number in range(1, 101)]
    assert len(log.see(web01(*many))) == BURST
    assert log.see(web01(*many)) == []
    assert log.see(web01(*many), seconds=WINDOW_S) == [
        "KVM has leaked 90 more events of web01 within 60 s; vpmu_leaked_events has all"
    ]
    assert log.entries[-1]["VPMU_HELD_BACK"] == 90
    assert log.see(web01(*many), seconds=WINDOW_S) == []
    assert log.see(web01()) == [
        "web01: 100 events are no longer leaked: held or released after all, or gone with the thread"
    ]
