"""What the daemon tells of counters that outlived a reset: each reset once, of a loop not each."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.guests import amd, seen
from tests.support.looks import WEB, Thing, look, pmc
from vpmu_agent.counts.guests import Found
from vpmu_agent.counts.resets import reset_sentence
from vpmu_agent.daemon.resets import AGAIN_S, RESET, ResetReport
from vpmu_agent.system.journal import Level


class Log:
    """What is told, and the time at which."""

    def __init__(self) -> None:
        self.now = 100.0
        self.entries: list[dict[str, Any]] = []
        self.report = ResetReport(lambda: self.now, self.tell)

    def tell(self, text: str, level: Level, **fields: object) -> None:
        self.entries.append({"MESSAGE": text, "PRIORITY": level, **fields})

    def see(self, found: Found, seconds: float = 1.0) -> int:
        """Tell of this, some time after the last, and return how many entries are new."""
        self.now += seconds
        before = len(self.entries)
        self.report.tell_of(found)
        return len(self.entries) - before


@pytest.fixture
def log() -> Log:
    return Log()


def found(*looks: tuple[Thing, ...]) -> Found:
    return seen({WEB: "web01"}, *(look(*things) for things in looks))


USUAL = found((amd(), pmc(0)))
RESET_ONCE = found((amd(), pmc(0)), (amd(tsc_set_ns=2 * 10**9), pmc(0)))


def test_a_reset_is_told_once(log: Log) -> None:
    assert log.see(USUAL) == 0
    assert log.see(RESET_ONCE) == 1
    assert log.entries == [
        {
            "MESSAGE": reset_sentence("web01", RESET_ONCE.counters["web01"]),
            "PRIORITY": Level.WARNING,
            "MESSAGE_ID": RESET,
            "VPMU_VM": "web01",
            "VPMU_COUNTERS": 1,
        }
    ]
    assert [log.see(RESET_ONCE, seconds=AGAIN_S) for _ in range(100)] == [0] * 100
    assert log.see(USUAL) == 0
    assert log.see(RESET_ONCE, seconds=AGAIN_S) == 1


def test_a_guest_that_resets_itself_in_a_loop_is_not_told_of_each_time(log: Log) -> None:
    entries = sum(log.see(each) for _ in range(300) for each in (USUAL, RESET_ONCE))
    assert 600 / AGAIN_S <= entries + 1 <= 600 / AGAIN_S + 2


def test_without_a_census_nothing_is_told(log: Log) -> None:
    assert log.see(RESET_ONCE) == 1
    assert log.see(Found(), seconds=AGAIN_S) == 0
    assert log.see(RESET_ONCE, seconds=AGAIN_S) == 0
