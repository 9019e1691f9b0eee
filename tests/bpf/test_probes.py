"""The probes' bodies on this kernel: as uprobes of a program that looks like the kernel to them."""

from __future__ import annotations

import errno
from collections import Counter
from itertools import groupby

import pytest

from tests.bpf.conftest import Lookalike
from vpmu_agent.counts.counts import ALL_CALLS, DURATION_BUCKETS, FIELDS, Counts
from vpmu_agent.counts.sums import Sums
from vpmu_agent.loader.program import MAX_ENTRIES
from vpmu_agent.model.call import CallName, PmcType, UncheckedCall
from vpmu_agent.model.rules import Kind
from vpmu_agent.probes import FUNCTIONS, Probes
from vpmu_agent.probes.layout import VCPU, pmc_name


@pytest.mark.parametrize("threads", [1, 4])
def test_every_call_of_single_events_at_full_speed(stock: Lookalike, threads: int) -> None:
    # Room for all of them, so that a reader that gets no CPU time for a while is no failure.
    with stock.probes(ring_pages=8192) as probes:
        run = stock.run(probes, threads=threads, rounds=5000)
    assert run.told["create"] == 5000 * threads
    assert not any(run.lost.values())
    assert run.seen() == without_failed(run.told)
    by_vcpu = {vcpu: [c for c in run.calls if c.vcpu == vcpu] for vcpu in range(threads)}
    for calls in by_vcpu.values():
        assert [call.name for call in calls] == ["create", "pause", "enable", "pause", "release"] * 5000
    assert set(run.kinds()) == {Kind.PREDICTED}


def test_no_two_objects_have_one_address_as_in_a_kernel(stock: Lookalike) -> None:
    threads = 2
    with stock.probes() as probes:
        runs = [stock.run(probes, threads=threads, rounds=3, stop=last) for last in (False, True)]
    addresses = [{address for c in run.calls for address in (c.pmc, c.event)} for run in runs]
    assert not set.intersection(*addresses)
    # A pmc for each thread, and one event, for which the memory of the last one is used again.
    assert [len(of_process) for of_process in addresses] == [2 * threads, 2 * threads]


def test_groups_are_seen_with_their_leader(grouped: Lookalike) -> None:
    with grouped.probes() as probes:
        run = grouped.run(probes, rounds=1000, size=4)
    assert not any(run.lost.values())
    assert run.seen() == without_failed(run.told) == {"create": 4000, "enable": 4000, "release": 4000}
    leader = 0
    for i, call in enumerate(c for c in run.calls if c.name is CallName.CREATE):
        assert call.leader == (leader if i % 4 else 0)
        leader = leader if i % 4 else call.event
    assert {call.max_nr_events for call in run.calls} == {4}
    assert set(run.kinds()) == {Kind.PREDICTED}


def test_a_record_says_whose_call_it_was_and_with_what(stock: Lookalike) -> None:
    with stock.probes() as probes:
        run = stock.run(probes, threads=2, rounds=1)
    for vcpu, calls in groupby(sorted(run.calls, key=lambda c: (c.vcpu, c.time_ns)), key=lambda c: c.vcpu):
        create, pause, *_ = list(calls)
        assert (create.vcpu, create.pmc_type, create.pmc_idx) == (vcpu, PmcType.FIXED, 0)
        assert (create.result, create.leader, create.max_nr_events) == (0, 0, 1)
        assert create.tgid != create.tid
        assert create.pmc_name == "fixed0"
        attr = create.attr
        assert (attr.type, attr.config, attr.sample_period, attr.precise_ip) == (4, 0x76, 4096, 2)
        assert attr.pinned
        assert attr.exclude_kernel
        assert attr.exclude_host
        assert attr.exclude_idle
        assert not attr.disabled
        assert not attr.exclude_user
        assert not attr.exclude_guest
        # Later calls tell the same of the event, out of the event itself.
        assert (pause.pmc, pause.event, pause.attr) == (create.pmc, create.event, attr)
        assert create.duration_ns > 0
        assert pause.time_ns >= create.time_ns + create.duration_ns


def test_a_failed_create_has_its_errno_and_no_event(grouped: Lookalike) -> None:
    with grouped.probes() as probes:
        run = grouped.run(probes, rounds=100, size=4, fail_at=2)
    assert run.told["failed"] == 100
    assert run.seen() == without_failed(run.told) == {"create": 300, "release": 200}
    failures = [call for call in run.calls if call.result]
    assert {(call.name, call.result, call.event) for call in failures} == {("create", -errno.ENOSPC, 0)}
    assert run.kinds() == {Kind.PREDICTED: 400, Kind.PARTIAL_GROUP: 100}


@pytest.mark.parametrize("size", [1, 3])
def test_reads_and_new_periods_are_counted_and_timed_and_not_checked(grouped: Lookalike, size: int) -> None:
    with grouped.probes() as probes:
        run = grouped.run(probes, threads=2, rounds=500, size=size, reads=3, others=1)
        ((_, counts),) = counted(probes).items()
    assert by_name(counts) == without_failed(run.told)
    assert counts.numbers[FIELDS["reads"]].tolist() == [2 * 500 * 3, 2 * 500 * 3]
    assert set(run.kinds()) == {Kind.PREDICTED}
    assert not sum(run.lost.values())
    assert min(counts.numbers[FIELDS["read_ns"]]) > 0
    in_buckets = [sum(counts.numbers[buckets]) for buckets in DURATION_BUCKETS]
    assert in_buckets == counts.numbers[ALL_CALLS].tolist()


def test_reads_can_be_left_out(stock: Lookalike) -> None:
    with stock.probes(stream=False, reads=False) as probes:
        run = stock.run(probes, rounds=100, reads=5)
        ((_, counts),) = counted(probes).items()
        assert probes.functions == tuple(FUNCTIONS.values())
    assert run.told["read"] == run.told["period"] == 500
    assert counts.numbers[FIELDS["reads"]].tolist() == [0, 0]
    assert counts.numbers[FIELDS["calls"]].tolist() == [100, 100, 200, 100]


def test_without_durations_reads_are_counted(stock: Lookalike) -> None:
    with stock.probes(stream=False, durations=False) as probes:
        run = stock.run(probes, rounds=100, reads=5)
        ((_, counts),) = counted(probes).items()
    assert by_name(counts) == without_failed(run.told)
    assert counts.numbers[FIELDS["read_ns"]].tolist() == [0, 0]


def test_a_starved_event_is_seen_as_it_is_created_and_enabled(stock: Lookalike) -> None:
    with stock.probes() as probes:
        run = stock.run(probes, rounds=100, starved=1)
        ((_, counts),) = counted(probes).items()
        assert probes.starvations() == 200
    starved = Counter(call.name for call in run.calls if call.starved)
    assert starved == {"create": 100, "enable": 100}
    assert counts.numbers[FIELDS["starvations"]].tolist() == [200]
    assert set(run.kinds()) == {Kind.PREDICTED}


def test_a_starved_group_is_seen_once_its_last_member_was_enabled(grouped: Lookalike) -> None:
    with grouped.probes() as probes:
        run = grouped.run(probes, rounds=100, size=4, starved=1)
        ((_, counts),) = counted(probes).items()
    enables = [call.starved for call in run.calls if call.name is CallName.ENABLE]
    assert enables == [False, False, False, True] * 100
    assert not any(call.starved for call in run.calls if call.name is not CallName.ENABLE)
    assert counts.numbers[FIELDS["starvations"]].tolist() == [100]


def test_events_that_have_room_are_not_starved(stock: Lookalike) -> None:
    with stock.probes() as probes:
        run = stock.run(probes, rounds=10)
        ((_, counts),) = counted(probes).items()
    assert not any(call.starved for call in run.calls)
    assert counts.numbers[FIELDS["starvations"]].tolist() == [0]


def test_without_durations_only_creates_are_looked_at(stock: Lookalike) -> None:
    with stock.probes(stream=False, durations=False) as probes:
        stock.run(probes, rounds=100, starved=1)
        ((_, counts),) = counted(probes).items()
    assert counts.numbers[FIELDS["starvations"]].tolist() == [100]


def test_guest_lbr_can_starve_too_and_its_count_outlives_its_events(stock: Lookalike) -> None:
    with stock.probes(stream=False) as probes:
        stock.run(probes, rounds=10, lbr=1, starved=1)
        ((_, counts),) = counted(probes).items()
        (ended,) = [
            starvations
            for values in probes.vcpus()
            for vcpu, starvations in VCPU.reader("vcpu_id", "starvations").iter_unpack(values)
            if vcpu < 0
        ]
    assert ended == 10
    assert counts.numbers[FIELDS["starvations"]].tolist() == [30]


def test_the_errno_of_a_counters_last_creation_is_kept(grouped: Lookalike) -> None:
    with grouped.probes(stream=False) as probes:
        grouped.run(probes, rounds=1, size=4, fail_at=2)
        ((tgid, counts),) = counted(probes).items()
        (counter,) = counts.pmcs
        assert probes.errnos() == {(tgid, counter): errno.ENOSPC}


@pytest.mark.parametrize(("size", "fail_at", "programs"), [(1, 0, 0), (4, 0, 0), (4, 2, 3)])
def test_a_program_whose_first_event_fails_is_none(
    grouped: Lookalike, size: int, fail_at: int, programs: int
) -> None:
    with grouped.probes(stream=False) as probes:
        grouped.run(probes, rounds=3, size=size, fail_at=fail_at)
        (counts,) = counted(probes).values()
    assert sum(counts.numbers[FIELDS["sizes"]]) == programs
    assert counts.numbers[FIELDS["sizes_sum"].start] == size * programs
    assert by_name(counts)["create"] == 3 * (fail_at + 1)


def test_events_of_others_are_left_alone_and_guest_lbr_is_named(stock: Lookalike) -> None:
    with stock.probes() as probes:
        run = stock.run(probes, rounds=50, others=10, lbr=1)
    assert run.seen() == without_failed(run.told)
    lbr = [call for call in run.calls if call.pmc_type is PmcType.LBR]
    assert [call.name for call in lbr] == ["create", "release"] * 50
    assert {(call.pmc, call.vcpu, call.pmc_name) for call in lbr} == {(0, -1, "lbr")}
    assert set(run.kinds()) == {Kind.PREDICTED}


BURSTS, GP, FIXED = 300, 8, 4


@pytest.mark.parametrize("size", [1, 3])
def test_global_control_stops_and_starts_all_counters_back_to_back(grouped: Lookalike, size: int) -> None:
    """KVM then makes a call for each counter of the vCPU, one right after the other."""
    threads, bursts = 3, BURSTS // size
    with grouped.probes(stream=False) as probes:
        run = grouped.run(probes, threads=threads, pmcs=GP + FIXED, gp=GP, bursts=bursts, size=size)
        ((_, counts),) = counted(probes).items()
    assert run.said == []
    assert not any(run.lost.values())
    assert by_name(counts) == without_failed(run.told)
    counters = [f"gp{i}" for i in range(GP)] + [f"fixed{i}" for i in range(FIXED)]
    programs = (bursts + 1) * size
    each = (1, bursts, bursts, 1) if size == 1 else (programs, programs, 0, programs)
    names = [(vcpu, pmc_name(kind, idx)) for vcpu, kind, idx in counts.pmcs]
    calls = (
        tuple(counts.calls[at : at + len(CallName)]) for at in range(0, len(counts.calls), len(CallName))
    )
    made = dict(zip(names, calls, strict=True))
    assert made == {(vcpu, name): each for vcpu in range(threads) for name in counters}


def test_kvms_count_of_events_has_that_of_guest_lbr_too(stock: Lookalike) -> None:
    with stock.probes() as probes:
        run = stock.run(probes, threads=2, rounds=50, lbr=1)
    counts = {call.event_count for call in run.calls if call.name is CallName.CREATE and call.pmc}
    assert counts == {0, 1}
    assert set(run.kinds()) == {Kind.PREDICTED}


def test_what_a_full_ring_drops_is_counted_and_shown_where_it_was(stock: Lookalike) -> None:
    with stock.probes(ring_pages=1) as probes:
        run = stock.run(probes, read_while_running=False, rounds=500)
        assert run.lost["ring_full"] == sum(run.lost.values()) > 0
    assert len(run.calls) + sum(run.lost.values()) == sum(without_failed(run.told).values())


def test_a_gap_is_shown_by_the_first_call_after_it(stock: Lookalike) -> None:
    with stock.probes(ring_pages=1) as probes:
        before = stock.run(probes, stop=False, read_while_running=False, rounds=500)
        after = stock.run(probes, rounds=1)
    assert {call.lost for call in before.calls} == {0}
    assert [call.lost for call in after.calls] == [sum(before.lost.values()), 0, 0, 0, 0]


def test_a_call_that_never_returns_is_counted_when_its_thread_calls_again(stock: Lookalike) -> None:
    with stock.probes() as probes:
        run = stock.run(probes, rounds=3, jump=1)
    # The last of the three is not followed by another.
    assert {reason: count for reason, count in run.lost.items() if count} == {"missed_return": 2}
    assert run.seen() == without_failed(run.told)


def test_a_guest_that_is_gone_before_anybody_looks_still_has_its_name(stock: Lookalike) -> None:
    with stock.probes() as probes:
        for name in ("web01", "db01"):
            run = stock.run(probes, name=name, read_while_running=False, stop=False, rounds=1)
            assert {call.vm for call in run.calls} == {name}


def test_the_maps_have_the_counts_when_nothing_is_sent(grouped: Lookalike) -> None:
    with grouped.probes(stream=False) as probes:
        run = grouped.run(probes, threads=4, rounds=100, size=4, fail_at=2)
        assert Kind.PREDICTED not in run.kinds()
        ((tgid, counts),) = counted(probes).items()
        assert by_name(counts) == without_failed(run.told)
        assert sorted(vcpu for vcpu, _, _ in counts.pmcs) == [0, 1, 2, 3]
        assert list(probes.errors()) == [(tgid, errno.ENOSPC, run.told["failed"])]
        assert probes.occupancy(probes.shares())["vcpus"] == (4, MAX_ENTRIES["vcpus"])
        # The labels of vpmu_agent_map_entries.
        assert set(probes.occupancy(probes.shares())) == {"errors", "left", "pmcs", "processes", "vcpus"}
        probes.forget({tgid + 1})
        assert probes.occupancy(probes.shares())["vcpus"][0] == 4
        probes.forget({tgid})
        occupancy = probes.occupancy(probes.shares())
        assert [occupancy[name][0] for name in ("vcpus", "pmcs", "errors", "processes")] == [0, 0, 0, 0]


def counted(probes: Probes) -> dict[int, Counts]:
    """What is in the maps, by process."""
    sums = Sums(probes.pmc)
    sums.add_ended(probes.vcpus())
    sums.add_pmcs(probes.pmcs())
    sums.add_vcpus(probes.vcpus())
    return sums.counts()


def by_name(counts: Counts) -> Counter[str]:
    calls = zip(map(str, (*CallName, *UncheckedCall)), counts.numbers[ALL_CALLS], strict=True)
    return +Counter(dict(calls))


def without_failed(told: Counter[str]) -> Counter[str]:
    return Counter({name: count for name, count in told.items() if name != "failed" and count})


def test_guest_lbr_of_many_threads_is_counted_completely(stock: Lookalike) -> None:
    with stock.probes(stream=False) as probes:
        run = stock.run(probes, threads=4, rounds=2000, lbr=3)
        ((_, counts),) = counted(probes).items()
        vcpus = [
            vcpu
            for values in probes.vcpus()
            for _, vcpu in VCPU.reader("tgid", "vcpu_id").iter_unpack(values)
        ]
    assert sum(vcpu < 0 for vcpu in vcpus) == 4
    assert counts.numbers[FIELDS["events"]].tolist() == [0]
    assert by_name(counts) == without_failed(run.told)
    assert run.told["create"] == 4 * 2000 * 3 + 4 * 2000
