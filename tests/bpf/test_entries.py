"""Entries of the arrays in this kernel's maps: read, forgotten, given back. No program runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import pytest

from tests.support.arrays import PMC, Arrays, Values
from tests.support.children import in_child
from tests.support.counted import Processes, by_pmc
from vpmu_agent.counts.counts import FIELDS, Counts
from vpmu_agent.counts.watch import Watch
from vpmu_agent.model.call import PmcType
from vpmu_agent.model.rules import State
from vpmu_agent.probes import Probes, entries
from vpmu_agent.probes.entries import Share
from vpmu_agent.probes.layout import PMC_TYPES, VCPU
from vpmu_agent.system import privileges
from vpmu_agent.system.user import DAEMON_USER, find_user

WEB, DB = 4242, 777
RUNNING = list(State).index(State.RUNNING)
LBR = PMC_TYPES.index(PmcType.LBR)
PMCS, VCPUS = 64, 32  # a process may have 16 and 8


@pytest.fixture
def arrays() -> Iterator[Arrays]:
    arrays = Arrays(pmcs=PMCS, vcpus=VCPUS)
    yield arrays
    arrays.close()


@pytest.fixture
def probes(arrays: Arrays) -> Iterator[Probes]:
    with arrays.probes() as probes:
        yield probes


@pytest.fixture
def watch(probes: Probes) -> Watch:
    return Watch(probes, Processes(web01=WEB, db01=DB))


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has to rest, and what has not changed since the last look is idle."""
    monkeypatch.setattr(entries, "REST_S", 0.0)
    monkeypatch.setattr(entries, "IDLE_S", 0.0)


def vm(arrays: Arrays, tgid: int, *, pmcs: int, **values: int | Sequence[int]) -> list[int]:
    """A vCPU with so many pmcs, each of which has made 1, 2, 3 and 4 calls; the numbers of their entries."""
    vcpu = arrays.take_vcpu(tgid, 0)
    usual: dict[str, int | Sequence[int]] = {"calls": [1, 2, 3, 4], "create_buckets": [1] * 12, "epoch": 1}
    return [arrays.take_pmc(tgid, 0xF000 + i, vcpu, **(usual | {"pmc_idx": i} | values)) for i in range(pmcs)]


def number(counts: Counts, field: str) -> int:
    return sum(counts.numbers[FIELDS[field]])


def test_what_entries_add_up_to(arrays: Arrays, watch: Watch) -> None:
    one, two = (
        arrays.take_vcpu(WEB, vcpu, siblings=3, sizes=[0, 1] + [0] * 4, reads=10, periods=20)
        for vcpu in (0, 1)
    )
    arrays.take_vcpu(DB, 0)
    arrays.take_pmc(
        WEB,
        0xF000,
        one,
        state=RUNNING,
        members=0b1011,
        orphans=0b0100,
        left=2,
        pause_ns=10**10,
        calls=[5, 0, 0, 7],
        calls_high=[0, 0, 0, 1],
        due=[0, 4, 0, -1],
        verdicts=[0, 2] + [0] * 12 + [1],
        reads=1 << 40,
    )
    arrays.take_pmc(WEB, 0xF100, two, calls=[4, 0, 0, 0], vcpu_id=1, pause_ns=10**10, reads=2, periods=3)
    counts = watch.snapshot().vms["web01"]
    numbers = {field: counts.numbers[at].tolist() for field, at in FIELDS.items()}
    assert numbers["calls"] == [9, 0, 0, (1 << 32) + 7]
    assert numbers["predicted"] == [9, 4, 0, (1 << 32) + 6]
    assert numbers["reads"] == [(1 << 40) + 22, 43]
    assert numbers["verdicts"] == [(1 << 32) + 16 - 3, 2] + [0] * 12 + [1]
    assert numbers["groups"] == [int(i == RUNNING) for i in range(len(State))]
    assert (numbers["events"], numbers["orphans"]) == ([3], [3])
    assert numbers["sizes"] == [9 - 6 - 2, 2, 0, 0, 0, 0]
    assert numbers["duration_ns"] == [0, 0, 2 * 10**10, 0]
    assert by_pmc(counts) == {(0, 0, 0): (5, 0, 0, (1 << 32) + 7), (1, 0, 0): (4, 0, 0, 0)}
    assert sum(counts.pmc_divergences().values()) == 1
    assert number(watch.snapshot().vms["db01"], "calls") == 0


def test_what_a_bucket_carries(arrays: Arrays, watch: Watch) -> None:
    vcpu = arrays.take_vcpu(WEB, 0)
    some: Values = {"enable_buckets": [0] * 3 + [7] + [0] * 8, "enable_carries": 2 << 5 * 3 | 1 << 5 * 11}
    more: Values = {"enable_buckets": [0] * 3 + [0xFFFFFFFF] + [0] * 8, "enable_carries": 1 << 5 * 11}
    arrays.take_pmc(WEB, 0xF000, vcpu, **some)
    arrays.take_pmc(WEB, 0xF100, vcpu, **more)
    buckets = watch.snapshot().vms["web01"].numbers[FIELDS["duration_buckets"]]
    assert {at: count for at, count in enumerate(buckets) if count} == {
        12 + 3: (3 << 32) + 6,
        12 + 11: 2 << 32,
    }


def test_guest_lbr_counts_while_its_events_live_and_after(arrays: Arrays, watch: Watch) -> None:
    lbr = arrays.take_vcpu(
        WEB,
        -1 - 99,
        calls=[6, 0, 0, 6],
        due=[0, 0, 0, 1],
        verdicts=[0, 1] + [0] * 13,
        starvations=2,
        durations_ns=[1000, 0, 0, 10],
        buckets=[0, 6] + [0] * 46,
    )
    durations: Values = {"create_ns": 300, "create_buckets": [0, 1] + [0] * 10}
    held: Values = {"members": 1, "state": RUNNING, "starvations": 1}
    arrays.take_pmc(WEB, 0xE000, lbr, pmc_type=LBR, calls=[1, 0, 0, 0], **held, **durations)
    counts = watch.snapshot().vms["web01"]
    assert counts.numbers[FIELDS["calls"]].tolist() == [7, 0, 0, 6]
    assert (number(counts, "predicted"), number(counts, "starvations")) == (14, 3)
    assert (number(counts, "events"), number(counts, "sizes")) == (1, 7)
    assert (number(counts, "duration_ns"), number(counts, "duration_buckets")) == (1310, 7)
    assert by_pmc(counts) == {}


def test_starvations_have_64_bits(arrays: Arrays, watch: Watch) -> None:
    vm(arrays, WEB, pmcs=2, starvations=1 << 40)
    assert number(watch.snapshot().vms["web01"], "starvations") == 1 << 41


def test_the_errno_of_a_counters_last_creation(arrays: Arrays, probes: Probes) -> None:
    denied, *_ = vm(arrays, WEB, pmcs=2, error=28)
    vm(arrays, DB, pmcs=1)
    assert probes.errnos() == {}  # nothing has failed, says the map `errors`: the entries are not read
    arrays.fail(WEB, 28, 2)
    assert probes.errnos() == {(WEB, (0, 0, 0)): 28, (WEB, (0, 0, 1)): 28}
    arrays.change("pmcs", denied, "tgid", 0)
    assert probes.errnos() == {(WEB, (0, 0, 1)): 28}
    probes.forget({WEB})
    assert probes.errnos() == {}


def test_only_entries_that_were_ever_used_are_read(arrays: Arrays, probes: Probes) -> None:
    vm(arrays, WEB, pmcs=3)
    assert sum(len(values) for values in probes.pmcs()) == 3 * PMC.size
    assert sum(len(values) for values in probes.vcpus()) == VCPU.size
    occupancy = probes.occupancy(probes.shares())
    assert (occupancy["pmcs"], occupancy["vcpus"], occupancy["processes"]) == (
        (3, PMCS),
        (1, VCPUS),
        (1, VCPUS),
    )


@pytest.mark.usefixtures("at_once")
def test_a_process_that_is_gone_leaves_its_entries_to_others(
    arrays: Arrays, probes: Probes, watch: Watch
) -> None:
    gone = vm(arrays, WEB, pmcs=5)
    vm(arrays, DB, pmcs=2)
    probes.forget({WEB})
    assert watch.snapshot().vms.keys() == {"db01"}
    assert probes.shares() == {DB: Share(2, 1, 0)}
    assert not arrays.is_known(0xF000, WEB)
    assert arrays.is_known(0xF000, DB)
    probes.give_back()
    assert sorted(arrays.free("pmcs") for _ in range(5)) == gone
    assert arrays.free("vcpus") == 0
    assert probes.shares() == {DB: Share(2, 1, 0)}


def test_entries_of_the_gone_rest_before_others_get_them(arrays: Arrays, probes: Probes) -> None:
    """A program may be at work in one."""
    vm(arrays, WEB, pmcs=1)
    probes.forget({WEB})
    probes.give_back()
    with pytest.raises(AssertionError, match="no free pmcs"):
        arrays.free("pmcs")


def settle(watch: Watch) -> Counts:
    """Give back all that can be; the counts of web01, which must be the same all the time."""
    before = watch.snapshot().vms["web01"]
    for _ in range(6):
        watch.give_back()
        found = watch.snapshot().vms["web01"]
        assert (found.numbers, by_pmc(found)) == (before.numbers, by_pmc(before))
    return before


@pytest.mark.usefixtures("at_once")
def test_idle_entries_are_given_back_while_their_process_lives_and_no_count_is_lost(
    arrays: Arrays, probes: Probes, watch: Watch
) -> None:
    vm(arrays, WEB, pmcs=16, verdicts=[0] * 14 + [1], reads=2)
    vm(arrays, DB, pmcs=8)
    found = settle(watch)
    assert (number(found, "calls"), number(found, "reads")) == (160, 32)
    assert probes.shares() == {WEB: Share(0, 1, 0), DB: Share(8, 1, 0)}
    assert not arrays.is_known(0xF000, WEB)
    # The same pmcs once more: the counts go on.
    vm(arrays, WEB, pmcs=16)
    again = settle(watch)
    assert number(again, "calls") == 320
    assert by_pmc(again)[0, 0, 3] == (2, 4, 6, 8)


@pytest.mark.usefixtures("at_once")
def test_vcpus_are_given_back_once_no_pmc_is_theirs(arrays: Arrays, probes: Probes, watch: Watch) -> None:
    for vcpu in range(8):
        taken = arrays.take_vcpu(WEB, vcpu, siblings=1)
        if vcpu < 6:
            arrays.take_pmc(WEB, 0xF000 + vcpu, taken, vcpu_id=vcpu, members=int(vcpu == 2), epoch=1)
    settle(watch)
    assert probes.shares()[WEB] == Share(1, 1, 0)
    assert arrays.is_known(0x1002, WEB, 2)
    assert not arrays.is_known(0x1003, WEB, 3)


@pytest.mark.usefixtures("at_once")
def test_half_a_share_is_not_too_much(arrays: Arrays, probes: Probes, watch: Watch) -> None:
    vm(arrays, WEB, pmcs=8)
    settle(watch)
    assert probes.shares()[WEB] == Share(8, 1, 0)


@pytest.mark.parametrize(
    "busy",
    [{"members": 1, "state": RUNNING}, {"orphans": 2}, {"left": 1}, {"pmc_type": LBR, "epoch": 0}],
    ids=["events", "orphans", "left", "guest LBR"],
)
@pytest.mark.usefixtures("at_once")
def test_what_holds_something_stays(
    busy: dict[str, int], arrays: Arrays, probes: Probes, watch: Watch
) -> None:
    vm(arrays, WEB, pmcs=16, **busy)
    settle(watch)
    assert probes.shares()[WEB] == Share(16, 1, 0)


@pytest.mark.usefixtures("at_once")
def test_what_was_held_before_calls_were_lost_is_not_known_any_more(
    arrays: Arrays, probes: Probes, watch: Watch
) -> None:
    vm(arrays, WEB, pmcs=16, members=1, state=RUNNING, epoch=7)
    for _ in range(6):
        watch.give_back()
    assert probes.shares()[WEB].pmcs == 0


@pytest.mark.usefixtures("at_once")
def test_what_is_used_now_and_then_stays(arrays: Arrays, probes: Probes, watch: Watch) -> None:
    pmcs = vm(arrays, WEB, pmcs=16)
    for calls in range(5, 10):
        watch.give_back()
        arrays.change("pmcs", pmcs[7], "calls", calls)
    assert probes.shares()[WEB] == Share(1, 1, 0)
    assert number(watch.snapshot().vms["web01"], "calls") == 15 * 10 + 9 + 2 + 3 + 4


@pytest.mark.usefixtures("at_once")
def test_what_a_program_still_counts_in_a_retired_entry_is_not_lost(
    arrays: Arrays, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    pmcs = vm(arrays, WEB, pmcs=16)
    monkeypatch.setattr(entries, "REST_S", 60.0)
    watch.give_back()
    watch.give_back()
    assert not arrays.is_known(0xF000, WEB)
    arrays.change("pmcs", pmcs[0], "calls", 100)
    monkeypatch.setattr(entries, "REST_S", 0.0)
    for _ in range(3):
        assert number(watch.snapshot().vms["web01"], "calls") == 15 * 10 + 109
        watch.give_back()
    assert arrays.free("pmcs") in pmcs


@pytest.mark.usefixtures("at_once")
def test_the_kept_counts_of_a_living_process_end_with_it(arrays: Arrays, probes: Probes) -> None:
    processes = Processes(web01=WEB)
    watch = Watch(probes, processes)
    vm(arrays, WEB, pmcs=16)
    settle(watch)
    vm(arrays, WEB, pmcs=2)
    processes.living = set()
    watch.sweep()
    last = watch.scrape().vms["web01"]
    assert number(last, "calls") == 180
    assert by_pmc(last)[0, 0, 1] == (2, 4, 6, 8)
    watch.sweep()
    assert watch.scrape().vms == {}


def test_no_sum_goes_down_while_an_event_of_guest_lbr_ends(arrays: Arrays, watch: Watch) -> None:
    """Its counts are in no entry for a moment."""
    lbr = arrays.take_vcpu(WEB, -1 - 99)
    event = arrays.take_pmc(WEB, 0xE000, lbr, pmc_type=LBR, calls=[1, 0, 0, 1])
    assert number(watch.snapshot().vms["web01"], "calls") == 2
    arrays.change("pmcs", event, "tgid", 0)
    assert number(watch.snapshot().vms["web01"], "calls") == 2
    arrays.change("vcpus", lbr, "calls", 5)
    assert number(watch.snapshot().vms["web01"], "calls") == 6


def test_refused_calls_are_told_once(arrays: Arrays, probes: Probes) -> None:
    processes = Processes(web01=WEB)
    watch = Watch(probes, processes)
    vm(arrays, WEB, pmcs=1)
    assert watch.newly_refused() == []
    arrays.refuse(WEB, 5)
    assert [(about.name, count) for about, count in watch.newly_refused()] == [("web01", 5)]
    arrays.refuse(WEB, 6)
    assert watch.newly_refused() == []
    assert number(watch.snapshot().vms["web01"], "refused") == 11
    processes.living = set()
    watch.sweep()
    assert number(watch.snapshot().vms["web01"], "refused") == 11


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to give up")
@pytest.mark.usefixtures("at_once")
def test_giving_back_takes_no_privileges(arrays: Arrays, probes: Probes) -> None:
    vm(arrays, WEB, pmcs=16)
    vm(arrays, DB, pmcs=2)

    def check() -> None:
        privileges.drop(find_user(DAEMON_USER))
        probes.forget({DB})
        for _ in range(4):
            probes.give_back()

    in_child(check)
    assert probes.shares() == {WEB: Share(0, 1, 0)}
