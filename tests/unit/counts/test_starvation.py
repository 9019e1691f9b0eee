"""Which VMs are starved, since when, and by whom: in sentences."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.guests import Names, Pulls, amd, emulating, found
from tests.support.looks import WEB, host_event, look, pmc, starved, without_event
from vpmu_agent.counts.guests import Found, Guests
from vpmu_agent.counts.starvation import NewlyStarved, failing_sentence, sentence
from vpmu_agent.probes.census import HostEvent, Pmc, Vcpu

DB = 777


def web01(*things: Vcpu | Pmc | HostEvent) -> Found:
    return found({WEB: "web01", DB: "db01"}, amd(), *things)


def said(found: Found, *, nmi_watchdog: bool | None = None) -> str:
    return sentence("web01", found, nmi_watchdog=nmi_watchdog)


def test_nobody_is_starved() -> None:
    assert said(web01(pmc(0))) == ""
    assert failing_sentence("web01", web01(pmc(0)), nmi_watchdog=True) == ""


def test_a_profiler_the_watchdog_and_another_vm_are_named() -> None:
    db01 = amd(tgid=DB, address=0x20, vm=2)
    its = [pmc(index, tgid=DB, vcpu=0x20, event=0x500 + index) for index in range(2)]
    profiler = [host_event(0x900 + i) for i in range(3)]
    elsewhere = host_event(0x950, tgid=98, comm="perf", cpu=7, oncpu=7)
    assert said(web01(pmc(0), starved(1), db01, *its, *profiler, elsewhere), nmi_watchdog=True) == (
        "web01: 1 of 2 counters starved; on CPU 3 otel-profiler (pid 99) has 3 events, pinned, VM db01 has "
        "2 events, pinned, the NMI watchdog has 1 event, pinned"
    )


def test_a_guest_that_wants_more_than_there_is() -> None:
    alone = web01(pmc(0), starved(1))
    assert said(alone).endswith("so it wants more than the PMU has")
    assert said(replace(alone, no_holders="perf_read() is not there")) == (
        "web01: 1 of 2 counters starved; who else has events on CPU 3 is not known"
    )


@pytest.mark.parametrize(
    ("things", "expected"),
    [
        ((pmc(0), without_event(1)), "web01: of 2 counters 1 denied"),
        ((pmc(0, size=2), without_event(1)), "web01: of 2 counters 1 denied, 1 partial"),
    ],
)
def test_counters_that_fail_in_another_way(things: tuple[Pmc, ...], expected: str) -> None:
    assert failing_sentence("web01", web01(*things), nmi_watchdog=None) == expected


def test_a_denied_counter_has_its_errno() -> None:
    guests = Guests(Names({WEB: "web01"}), emulating)
    guests.look(Pulls(amd(), without_event(1)), lambda: {(WEB, (0, 0, 1)): 95})
    assert failing_sentence("web01", guests.found, nmi_watchdog=None) == (
        "web01: of 1 counters 1 denied (EOPNOTSUPP)"
    )


def test_it_begins_once_and_again_when_more_are_starved() -> None:
    guests, census, newly = Guests(Names({WEB: "web01"}), emulating), Pulls(), NewlyStarved(lambda: None)

    def pull(*things: Pmc) -> list[list[str]]:
        census.look = look(amd(), *things)
        guests.look(census)
        return [[counter.pmc for counter in each.counters] for each in newly.take(guests.found)]

    assert pull(pmc(0)) == []
    assert pull(starved(0)) == [["gp0"]]
    assert pull(starved(0)) == []
    assert pull(starved(0), starved(1)) == [["gp0", "gp1"]]
    assert pull(starved(0)) == []
    assert pull(starved(0), starved(1)) == []
    census.missing = "cannot read the census"
    assert pull() == []
    census.missing = ""
    assert pull(starved(0)) == []
    assert pull(pmc(0)) == []
    assert pull(starved(0)) == [["gp0"]]
    assert newly.take(guests.found) == []
