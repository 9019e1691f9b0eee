"""What the daemon tells of counters that fail: once it begins, by whom, and once it is over."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.guests import amd, found
from tests.support.looks import WEB, host_event, pmc, starved, without_event
from vpmu_agent.counts.guests import Found
from vpmu_agent.daemon.failing import AGAIN_S, FAILING, MAX_AT_ONCE, OVER_S, FailingCounters
from vpmu_agent.probes.census import HostEvent, Pmc
from vpmu_agent.system.journal import Level

PROFILER = [host_event(0x900 + i) for i in range(4)]


class Log:
    """What is told, and the time at which."""

    def __init__(self) -> None:
        self.now = 100.0
        self.watchdog: bool | None = False
        self.entries: list[dict[str, Any]] = []
        self.failing = FailingCounters(lambda: self.now, self.tell, lambda: self.watchdog)

    def tell(self, text: str, level: Level, **fields: object) -> None:
        self.entries.append({"MESSAGE": text, "PRIORITY": level, **fields})

    def see(self, found: Found, seconds: float = 1.0) -> list[str]:
        """Tell of this, and return what is new; some time goes by before."""
        self.now += seconds
        before = len(self.entries)
        self.failing.tell_of(found)
        return [entry["MESSAGE"] for entry in self.entries[before:]]


@pytest.fixture
def log() -> Log:
    return Log()


def web01(*things: Pmc | HostEvent) -> Found:
    return found({WEB: "web01"}, amd(), *things)


def test_it_is_told_when_it_begins_and_when_it_is_over(log: Log) -> None:
    starving = web01(pmc(0), pmc(1), starved(2), starved(3), *PROFILER)
    assert log.see(web01(pmc(0))) == []
    assert log.see(starving) == [
        "web01: 2 of 4 counters starved; on CPU 3 otel-profiler (pid 99) has 4 events, pinned"
    ]
    assert log.entries[0] == {
        "MESSAGE": log.entries[0]["MESSAGE"],
        "MESSAGE_ID": FAILING,
        "PRIORITY": Level.WARNING,
        "VPMU_VM": "web01",
        "VPMU_STATUS": "starved",
        "VPMU_FAILING": 2,
    }
    assert log.see(starving) == []
    assert log.see(web01(pmc(0))) == []
    assert log.see(web01(pmc(0)), OVER_S - 1) == []
    assert log.see(web01(pmc(0))) == [
        "web01: no counter has been starved for 30 s; now there are 1 counting, 5 idle"
    ]
    assert (log.entries[1]["MESSAGE_ID"], log.entries[1]["PRIORITY"]) == (FAILING, Level.NOTICE)
    assert log.see(web01(pmc(0)), OVER_S) == []
    assert len(log.see(starving)) == 1


def test_the_nmi_watchdog_is_asked_for_at_that_moment(log: Log) -> None:
    log.watchdog = True
    (said,) = log.see(web01(starved()))
    assert said == "web01: 1 of 1 counters starved; on CPU 3 the NMI watchdog has 1 event, pinned"


def test_a_guest_that_measures_again_and_again_is_one_story(log: Log) -> None:
    for _ in range(300):
        log.see(web01(starved()))
        log.see(web01())
    assert len(log.entries) == 1


def test_that_more_counters_fail_is_told_only_so_often(log: Log) -> None:
    told = []
    for second in range(int(AGAIN_S) + 1):
        told += log.see(web01(*(starved(index) for index in range(min(6, second + 1)))))
    assert [text.partition(";")[0] for text in told] == [
        "web01: 1 of 1 counters starved",
        "web01: 6 of 6 counters starved",
    ]
    assert log.see(web01(starved()), AGAIN_S) == []  # fewer than then


def test_counters_that_are_denied(log: Log) -> None:
    assert log.see(web01(pmc(0), without_event(1))) == ["web01: of 2 counters 1 denied"]
    (said,) = log.see(web01(starved(0), without_event(1), without_event(2)), AGAIN_S)
    assert said.startswith("web01: 1 of 3 counters starved; ")
    assert said.endswith("; also 2 denied")
    assert log.entries[1]["VPMU_STATUS"] == "starved,denied"
    log.see(web01())
    assert log.see(web01(), OVER_S)[0].startswith("web01: no counter has been denied or starved for 30 s; ")


def test_where_the_census_stops_to_work_nothing_is_over(log: Log) -> None:
    assert len(log.see(web01(starved()))) == 1
    unknown = Found(pulls=2, missing="cannot read the census")
    assert log.see(unknown) == []
    assert log.see(unknown, 2 * OVER_S) == []
    assert log.see(web01(starved())) == []


def test_nothing_is_said_or_kept_of_a_vm_that_is_gone(log: Log) -> None:
    log.see(web01(starved()))
    assert log.see(found({})) == []
    assert log.see(found({}), OVER_S) == []
    assert len(log.see(web01(starved()))) == 1


def test_a_host_full_of_starved_vms_is_told_in_few_lines(log: Log) -> None:
    names = {tgid: f"vm{tgid:03}" for tgid in range(1, 101)}
    things = [
        each
        for tgid in names
        for each in (amd(tgid=tgid, address=tgid, vm=tgid), starved(tgid=tgid, vcpu=tgid))
    ]
    told = log.see(found(names, *things))
    assert len(told) == MAX_AT_ONCE + 1
    assert told[0].startswith("vm001: 1 of 1 counters starved")
    assert told[-1] == "counters of 80 more VMs are failing; vpmu_pmcs has all of them"
    assert log.see(found(names, *things), AGAIN_S) == []
