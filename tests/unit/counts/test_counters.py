"""The status of each VM's counters, from looks of the census; and who else has events."""

from __future__ import annotations

import pytest

from tests.support.looks import (
    ENABLED,
    EXCLUDE_HOST,
    WEB,
    guest_lbr,
    host_event,
    look,
    pmc,
    starved,
    stray,
    vcpu,
    without_event,
)
from vpmu_agent.counts.counters import Counter, Counters, Holder, VmCounters, holders
from vpmu_agent.model.counter_status import CounterStatus
from vpmu_agent.probes.census import EXCLUDE_GUEST, PINNED, Look, Pmc, Vcpu

DB = 777
ALL = (1 << 6) - 1 | 0b111 << 32
INTEL = {"gp": 6, "fixed": 3, "global_ctrl": ALL}
SECOND = 10**9


def fixed(index: int = 0, **other: object) -> Pmc:
    """A fixed counter that counts in kernel and user space."""
    return pmc(index, **({"pmc_type": 1, "pmc_idx": 32 + index, "control": 0b1011} | other))


def amd(**other: object) -> Vcpu:
    return vcpu(**({"pmu_version": 1} | other))


def web(*looks: Look) -> VmCounters:
    """What is known of the VM after these looks."""
    counters = Counters()
    for each in looks:
        found = counters.take(each)
    return found[WEB]


def words(vm: VmCounters) -> dict[str, str]:
    return {counter.pmc: counter.status for counter in vm.counters}


def test_a_counter_is_told_with_all_that_the_kernel_has() -> None:
    found = web(look(amd(vcpu_id=2), pmc(1, vcpu_id=2, running_ns=SECOND // 2, counted=7)))
    assert found.counters == [
        Counter(
            vcpu=2,
            pmc="gp1",
            status=CounterStatus.STARVED,
            control=ENABLED | 0x76,
            config=0x76,
            size=1,
            events=found.counters[0].events,
            cpu=3,
            running=0.5,
            counted=7,
            errno=0,
            outlived_reset=False,
            precise_ip=0,
        )
    ]
    (event,) = found.counters[0].events
    assert (event.id, event.state, event.enabled_ns, event.running_ns) == (
        0x101,
        1,
        SECOND,
        SECOND // 2,
    )
    assert event.thread_runs


def test_the_event_of_a_guests_pebs_is_precise() -> None:
    flags = EXCLUDE_HOST | 3 << 15 | PINNED  # precise_ip has two bits
    found = web(look(vcpu(**INTEL), pmc(0), fixed(0, attr_flags=flags)))
    assert [(counter.pmc, counter.precise_ip) for counter in found.counters] == [("gp0", 0), ("fixed0", 3)]


@pytest.mark.parametrize(
    ("state", "status"),
    [(1, "counting"), (0, "descheduled"), (-2, "starved"), (-1, "unknown"), (-3, "unknown")],
)
def test_the_event_for_guest_lbr_is_told_apart_from_the_counters(state: int, status: str) -> None:
    found = web(look(vcpu(**INTEL), pmc(0), guest_lbr(state=state)))
    assert words(found) == {"gp0": "counting"}
    assert found.statuses == {"counting": 1, "idle": 8}
    (lbr,) = found.guest_lbr
    assert (lbr.vcpu, lbr.pmc, lbr.status, lbr.cpu) == (0, "lbr", status, 3)


def test_an_event_that_its_counter_let_go_of_makes_it_orphaned() -> None:
    forgotten = (
        stray(),
        stray(0x501, pmc_idx=1),
        stray(0x502, pmc_idx=2),
        stray(0x503, pmc_type=1, pmc_idx=33),
    )
    one = look(vcpu(**INTEL), pmc(0), starved(1), pmc(3), *forgotten)
    assert words(web(one)) == {"gp0": "counting", "gp1": "starved", "gp3": "counting"}
    found = web(one, one)
    assert words(found) == {  # what is wrong for certain goes first
        "gp0": "orphaned",
        "gp1": "starved",
        "gp3": "counting",
        "gp2": "orphaned",
        "fixed1": "orphaned",
    }
    assert found.statuses == {"orphaned": 3, "starved": 1, "counting": 1, "idle": 4}


def test_an_event_that_is_made_or_released_at_a_look_makes_no_orphan() -> None:
    assert words(web(look(amd(), pmc(0), stray(1)), look(amd(), pmc(0), stray(2)))) == {"gp0": "counting"}
    unseen = look(amd(), pmc(0), stray(0))  # the thread has more events than were looked at
    assert words(web(unseen, unseen)) == {"gp0": "counting"}


def test_all_counters_are_counted_and_the_idle_ones_too() -> None:
    found = web(
        look(amd(), amd(address=0x20, vcpu_id=1), pmc(0), pmc(1), starved(2), pmc(0, vcpu=0x20, vcpu_id=1))
    )
    assert found.statuses == {"counting": 3, "starved": 1, "idle": 8}
    assert (found.vcpus, found.pmu_version, found.gp, found.fixed) == (2, 1, 6, 0)


def test_counters_come_in_order_whatever_the_order_of_the_records() -> None:
    found = web(
        look(
            vcpu(address=0x20, vcpu_id=1, **INTEL),
            vcpu(**INTEL),
            fixed(1),
            pmc(3),
            pmc(0, vcpu=0x20, vcpu_id=1),
            pmc(2),
            fixed(0),
        )
    )
    assert [(counter.vcpu, counter.pmc) for counter in found.counters] == [
        (0, "gp2"),
        (0, "gp3"),
        (0, "fixed0"),
        (0, "fixed1"),
        (1, "gp0"),
    ]


def test_processes_are_told_apart() -> None:
    found = Counters().take(
        look(amd(), amd(tgid=DB, address=0x20), pmc(0), starved(0, tgid=DB, vcpu=0x20), pmc(1))
    )
    assert {tgid: words(vm) for tgid, vm in found.items()} == {
        WEB: {"gp0": "counting", "gp1": "counting"},
        DB: {"gp0": "starved"},
    }


def test_two_vms_of_a_process_are_added_up() -> None:
    found = web(look(amd(), amd(vm=2, address=0x20), pmc(0), starved(0, vcpu=0x20)))
    assert found.statuses == {"counting": 1, "starved": 1, "idle": 10}
    assert [counter.vcpu for counter in found.counters] == [0, 0]


def test_a_vm_that_uses_no_counter() -> None:
    found = web(look(amd()))
    assert list(found.counters) == []
    assert found.statuses == {"idle": 6}
    assert found.running is None


def test_a_pmu_without_counters() -> None:
    found = web(look(amd(gp=0, pmu_version=0)))
    assert (found.statuses.total(), found.gp, found.pmu_version) == (0, 0, 0)


@pytest.mark.parametrize(
    ("global_ctrl", "version", "expected"),
    [
        (ALL, 2, {"gp0": "counting", "fixed1": "counting"}),
        (0b1, 2, {"gp0": "counting", "fixed1": "idle"}),
        (1 << 33, 2, {"gp0": "idle", "fixed1": "counting"}),
        (1 << 1, 2, {"gp0": "idle", "fixed1": "idle"}),
        (0, 2, {"gp0": "idle", "fixed1": "idle"}),
        (0, 1, {"gp0": "counting", "fixed1": "counting"}),
    ],
)
def test_the_global_control_turns_counters_off(
    global_ctrl: int, version: int, expected: dict[str, str]
) -> None:
    """A fixed counter's bit is 32 higher than its number, and its pmc_idx that bit."""
    of = vcpu(gp=6, fixed=3, global_ctrl=global_ctrl, pmu_version=version)
    assert words(web(look(of, pmc(0), fixed(1)))) == expected


def test_a_fixed_counter_that_only_interrupts_is_idle() -> None:
    assert words(web(look(vcpu(**INTEL), fixed(2, control=0b1000)))) == {"fixed2": "idle"}


def test_a_counter_without_event_takes_two_looks() -> None:
    now = look(amd(), without_event(0))
    first, second = web(now), web(now, now)
    assert (words(first), words(second)) == ({"gp0": "unknown"}, {"gp0": "denied"})
    (counter,) = second.counters
    assert (counter.config, counter.cpu, counter.running, list(counter.events)) == (None, 3, None, [])


def test_it_must_be_the_same_counter_in_both_looks() -> None:
    now = look(amd(), without_event(0))
    for other in (
        look(amd(), without_event(1)),
        look(amd(address=0x20), without_event(0, vcpu=0x20)),
        look(amd(), without_event(0, control=ENABLED | 0xC0)),
        look(amd(), pmc(0)),
        look(amd()),
    ):
        assert words(web(other, now)) == {"gp0": "unknown"}
    assert words(web(now, look(), now)) == {"gp0": "unknown"}  # only the look right before counts


def test_a_vcpu_that_waits_for_its_first_moment_on_the_cpu() -> None:
    now = look(amd(), pmc(0, state=0, oncpu=-1))
    asleep = look(amd(), pmc(0, state=0, oncpu=-1, thread_runs=False))
    assert words(web(asleep)) == {"gp0": "descheduled"}
    assert words(web(asleep, now)) == {"gp0": "unknown"}
    assert words(web(now, now)) == {"gp0": "starved"}


def test_a_filter_is_the_vms() -> None:
    now = look(amd(has_filter=True), without_event(0), pmc(1))
    found = web(now, now)
    assert words(found) == {"gp0": "filtered", "gp1": "counting"}
    assert found.has_filter
    assert not web(look(amd())).has_filter


def test_a_mediated_counter() -> None:
    assert words(web(look(amd(mediated=True), without_event(0)))) == {"gp0": "mediated"}


def test_what_a_creation_failed_with_is_told_of_that_counter_only() -> None:
    now = look(amd(vcpu_id=1), without_event(0), without_event(1))
    errnos = {(WEB, (1, 0, 0)): 28, (WEB, (0, 0, 1)): 95, (DB, (1, 0, 1)): 95}
    found = Counters().take(now, errnos)[WEB]
    assert [(counter.pmc, counter.status, counter.errno) for counter in found.counters] == [
        ("gp0", "denied", 28),
        ("gp1", "unknown", 0),
    ]


def group(*present: int, size: int = 3, **other: object) -> list[Pmc]:
    """These events of gp0's group."""
    usual = [{"event_index": index, "event": 0x100 + index, "event_id": 0x100 + index} for index in present]
    return [pmc(0, **(each | {"size": size} | other)) for each in usual]


def test_a_group_is_one_counter() -> None:
    whole = look(amd(), *reversed(group(0, 1, 2)))
    (counter,) = web(whole).counters
    assert (counter.status, counter.size) == ("counting", 3)
    assert [event.id for event in counter.events] == [0x100, 0x101, 0x102]
    assert web(whole).statuses == {"counting": 1, "idle": 5}


def test_a_group_that_lacks_members_takes_two_looks() -> None:
    lacking = look(amd(), *group(0, 2))
    assert words(web(lacking)) == {"gp0": "unknown"}
    assert words(web(lacking, lacking)) == {"gp0": "partial"}
    assert words(web(look(amd(), *group(0)), lacking)) == {"gp0": "unknown"}  # it is being created
    assert words(web(lacking, look(amd(), *group(0, 1, 2)))) == {"gp0": "counting"}


def test_a_group_of_which_one_does_not_run_is_starved() -> None:
    now = look(amd(), *group(0, 1), *group(2, state=-2, enabled_ns=0, running_ns=0))
    assert words(web(now)) == {"gp0": "starved"}


def test_the_running_ratio_is_since_the_look_before() -> None:
    before = look(amd(), pmc(0, enabled_ns=10 * SECOND, running_ns=SECOND), pmc(1))
    now = look(
        amd(),
        pmc(0, enabled_ns=12 * SECOND, running_ns=2 * SECOND),
        pmc(1, enabled_ns=3 * SECOND, running_ns=3 * SECOND),
    )
    assert web(before).running == 2 / 11
    found = web(before, now)
    assert [counter.running for counter in found.counters] == [0.5, 1.0]
    assert found.running == 0.75
    assert words(found) == {"gp0": "starved", "gp1": "counting"}
    # Nothing was enabled in between.
    assert web(now, now).running is None


def test_counters_that_are_not_wanted_do_not_lower_the_running_ratio() -> None:
    found = web(look(amd(), pmc(0), pmc(1, control=0x76, running_ns=0)))
    assert words(found) == {"gp0": "counting", "gp1": "idle"}
    assert found.running == 1.0


def test_no_look_is_changed_by_later_ones() -> None:
    """A reader may still hold what was found before."""
    counters = Counters()
    first = counters.take(look(amd(), pmc(0)))[WEB]
    counters.take(look(amd(), starved(0)))
    assert words(first) == {"gp0": "counting"}


def test_the_holders_of_the_hosts_pmu() -> None:
    found = holders(
        [
            host_event(1, tgid=5, comm="perf", cpu=-1, oncpu=2, attr_flags=0),
            host_event(2, cpu=3),
            host_event(3, cpu=0, oncpu=-1, state=-2),
            host_event(4, cpu=3, attr_flags=EXCLUDE_GUEST),
        ]
    )
    assert found == [
        Holder(tgid=99, comm="otel-profiler", events=3, pinned=2, cpus=[0, 3], failed=1, include_guests=2),
        Holder(tgid=5, comm="perf", events=1, pinned=0, cpus=[2], failed=0, include_guests=1),
    ]
    assert all(each.active for each in found)


def test_holders_that_hold_nothing() -> None:
    (failed,) = holders([host_event(1, state=-2, oncpu=-1)])
    assert not failed.active
    (waits,) = holders([host_event(1, cpu=-1, oncpu=-1, state=0)])
    assert list(waits.cpus) == []
    assert holders([host_event(1, state=-4)]) == []  # PERF_EVENT_STATE_DEAD
    assert holders([]) == []


def test_holders_with_as_many_events_are_in_order_of_their_process() -> None:
    found = holders([host_event(1, tgid=9), host_event(2, tgid=8), host_event(3, tgid=10, comm="perf")])
    assert [each.tgid for each in found] == [8, 9, 10]
