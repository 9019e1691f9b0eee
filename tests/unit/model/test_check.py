"""The check, against sequences written out by hand from DESIGN's model and the RFC."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from tests.support.scenes import USER_CYCLES, Guest, as_guest_lbr
from vpmu_agent.model import check as module
from vpmu_agent.model.call import Call, CallName, PmcType
from vpmu_agent.model.check import Checker
from vpmu_agent.model.rules import Kind, State
from vpmu_agent.model.verdict import Verdict

PMC = 0xFFFF_8880_0000_1000


def call(name: str, event: int, *, leader: int = 0, size: int = 1, result: int = 0, pmc: int = PMC) -> Call:
    """One call of gp0; `event` is a small number that stands for an address."""
    return Call(
        time_ns=0,
        duration_ns=1000,
        name=CallName(name),
        pmc=pmc,
        event=event,
        leader=leader,
        result=result,
        attr=replace(USER_CYCLES, disabled=size > 1),
        vm="web01",
        tgid=100,
        tid=101,
        vcpu=0,
        pmc_type=PmcType.GP,
        pmc_idx=0,
        max_nr_events=size,
        event_count=-1,
    )


def program(size: int, *, first: int = 1) -> list[Call]:
    """A whole program of a group: its events are `first`, `first` + 1, …"""
    events = range(first, first + size)
    creates = [call("create", e, leader=0 if e == first else first, size=size) for e in events]
    return creates + [call("enable", e, size=size) for e in events if size > 1]


def release(size: int, *, first: int = 1) -> list[Call]:
    return [call("release", e, size=size) for e in range(first, first + size)]


def observe(calls: list[Call], monitor: Checker | None = None) -> list[Verdict]:
    monitor = monitor or Checker()
    return [monitor.observe(one) for one in calls]


def kinds(calls: list[Call]) -> list[Kind]:
    return [verdict.kind for verdict in observe(calls)]


def only_divergence(calls: list[Call]) -> tuple[int, Verdict]:
    """Where the one divergence is, and what it says; there must be exactly one."""
    found = [(i, v) for i, v in enumerate(observe(calls)) if v.kind.is_divergence]
    assert len(found) == 1, found
    return found[0]


STOCK = [
    call("create", 1),
    call("pause", 1),
    call("enable", 1),
    call("pause", 1),
    call("release", 1),
    call("create", 2),
    call("release", 2),
]


def test_the_life_of_a_single_event_is_as_predicted() -> None:
    assert set(kinds(STOCK)) == {Kind.PREDICTED}


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_the_life_of_a_group_is_as_predicted(size: int) -> None:
    # The second round reuses the addresses of the first, as the kernel's allocator does.
    calls = [*program(size), *release(size), *program(size), *release(size)]
    verdicts = observe(calls)
    assert {v.kind for v in verdicts} == {Kind.PREDICTED}
    assert [v.event for v in verdicts] == [*range(size)] * 6
    assert [v.leader for v in verdicts[:size]] == [None] + [0] * (size - 1)


@pytest.mark.parametrize("calls", [STOCK, [*program(4), *release(4)]], ids=["single", "group"])
def test_as_many_calls_are_predicted_as_are_made(calls: list[Call]) -> None:
    verdicts = observe(calls)
    predicted = [name for verdict in verdicts for name in verdict.predicted]
    assert sorted(predicted) == sorted(one.name for one in calls)


def test_a_call_that_never_comes_stays_predicted() -> None:
    verdicts = observe(program(3)[:-1])
    predicted = [name for verdict in verdicts for name in verdict.predicted]
    assert predicted.count(CallName.ENABLE) == 3


def test_groups_tells_what_is_held() -> None:
    monitor = Checker()
    observe(program(4)[:2], monitor)
    (group,) = monitor.groups()
    assert (group.vm, group.vcpu, group.pmc) == ("web01", 0, "gp0")
    assert (group.state, group.size, group.events) == (State.CREATING, 4, 2)
    observe([*program(4)[2:], *release(4)[:1]], monitor)
    (group,) = monitor.groups()
    assert (group.state, group.events) == (State.RELEASING, 3)
    observe(release(4)[1:], monitor)
    assert list(monitor.groups()) == []


def test_a_first_create_that_fails_is_as_predicted_and_holds_nothing() -> None:
    monitor = Checker()
    (verdict,) = observe([call("create", 0, size=4, result=-errno.ENOSPC)], monitor)
    assert verdict.kind is Kind.PREDICTED
    assert list(monitor.groups()) == []


def test_a_member_that_fails_leaves_a_partial_group_until_it_is_released() -> None:
    failed = call("create", 0, leader=1, size=4, result=-errno.ENOSPC)
    calls = [*program(4)[:2], failed]
    monitor = Checker()
    verdicts = observe(calls, monitor)
    assert verdicts[-1].kind is Kind.PARTIAL_GROUP
    assert verdicts[-1].event == 2
    (group,) = monitor.groups()
    assert (group.state, group.size, group.events) == (State.PARTIAL, 4, 2)
    assert {v.kind for v in observe(release(4)[:2], monitor)} == {Kind.PREDICTED}
    assert list(monitor.groups()) == []


def test_a_group_that_comes_back_as_one_event_is_degraded() -> None:
    where, verdict = only_divergence([*program(4), *release(4), *program(1, first=7), *release(1, first=7)])
    assert (where, verdict.kind) == (12, Kind.DEGRADED_GROUP)
    assert "4" in verdict.expected


def test_members_past_a_shrunken_size_are_orphaned() -> None:
    shrunken = [replace(one, max_nr_events=2) for one in release(4)[:2]]
    where, verdict = only_divergence([*program(4), *shrunken])
    assert (where, verdict.kind) == (9, Kind.ORPHANED_MEMBER)
    assert verdict.expected == "release(event=2) and release(event=3) to follow"


def test_a_new_program_without_a_release_orphans_the_old_events() -> None:
    where, verdict = only_divergence([*program(1), *program(1, first=2), *release(1, first=2)])
    assert (where, verdict.kind) == (1, Kind.ORPHANED_MEMBER)
    assert verdict.expected == "pause(event=0) or release(event=0)"


GROUP = [*program(3), *release(3)]
CREATE, ENABLE, RELEASE = 0, 3, 6


@pytest.mark.parametrize(
    ("calls", "where", "kind"),
    [
        ([*GROUP[:2], replace(GROUP[2], leader=2), *GROUP[3:]], 2, Kind.WRONG_LEADER),
        ([*GROUP[:2], replace(GROUP[2], leader=99), *GROUP[3:]], 2, Kind.WRONG_LEADER),
        ([*program(3), call("create", 9, leader=1, size=3)], 6, Kind.EXTRA_MEMBER),
        ([GROUP[0], replace(GROUP[1], attr=USER_CYCLES), *GROUP[2:]], 1, Kind.ENABLED_EARLY),
        ([*GROUP[:2], GROUP[ENABLE]], 2, Kind.ENABLED_EARLY),
        ([*GROUP[:ENABLE], GROUP[ENABLE + 1], GROUP[ENABLE]], 3, Kind.ENABLED_OUT_OF_ORDER),
        ([*GROUP[: ENABLE + 2], *release(3)], 5, Kind.NOT_ENABLED),
        ([*program(3), GROUP[RELEASE + 1], GROUP[RELEASE]], 6, Kind.RELEASED_OUT_OF_ORDER),
        ([*GROUP, GROUP[RELEASE + 2]], 9, Kind.RELEASED_TWICE),
        ([*program(3), GROUP[RELEASE], GROUP[RELEASE]], 7, Kind.RELEASED_TWICE),
        ([*program(3), call("pause", 1, size=3)], 6, Kind.UNEXPECTED_CALL),
        ([*program(1), call("enable", 1)], 1, Kind.UNEXPECTED_CALL),
        ([*program(1), call("pause", 1), call("pause", 1)], 2, Kind.UNEXPECTED_CALL),
        ([*program(1), *release(1), call("pause", 1)], 2, Kind.UNEXPECTED_CALL),
    ],
)
def test_each_fault_is_named_where_it_happens(calls: list[Call], where: int, kind: Kind) -> None:
    found, verdict = only_divergence(calls)
    assert (found, verdict.kind) == (where, kind)
    assert verdict.expected


def test_after_a_divergence_the_check_goes_on_from_what_was_seen() -> None:
    broken = [*program(1), call("enable", 1), call("pause", 1), *release(1)]
    assert kinds([*broken, *STOCK[5:]]) == [
        Kind.PREDICTED,
        Kind.UNEXPECTED_CALL,
        *[Kind.PREDICTED] * 4,
    ]


@pytest.mark.parametrize("start", range(1, 5))
def test_what_was_there_before_the_agent_is_unknown_once_then_followed(start: int) -> None:
    assert kinds(STOCK[start:]) == [Kind.UNKNOWN] + [Kind.PREDICTED] * (len(STOCK) - start - 1)


@pytest.mark.parametrize("start", range(1, 12))
def test_a_group_met_half_way_never_diverges(start: int) -> None:
    calls = [*program(4), *release(4)][start:]
    assert set(kinds(calls)) == {Kind.UNKNOWN}
    assert set(kinds([*calls, *program(4), *release(4)])[len(calls) :]) == {Kind.PREDICTED}


@pytest.mark.parametrize("gap", range(1, len(STOCK)))
def test_lost_calls_are_unknown_and_never_a_divergence(gap: int) -> None:
    calls = [*STOCK[: gap - 1], replace(STOCK[gap], lost=1), *STOCK[gap + 1 :]]
    assert not any(kind.is_divergence for kind in kinds(calls))


def test_pmcs_are_followed_apart() -> None:
    mixed = [one for pair in zip(STOCK, [replace(c, pmc=0x2000) for c in STOCK], strict=True) for one in pair]
    assert set(kinds(mixed)) == {Kind.PREDICTED}


def test_an_address_that_another_vm_got_starts_anew() -> None:
    other = [replace(one, tgid=200, vm="db01") for one in STOCK]
    assert kinds([*STOCK[:1], *other]) == [Kind.PREDICTED] * (1 + len(STOCK))


def test_a_vm_that_is_gone_is_forgotten() -> None:
    monitor = Checker()
    observe(program(2), monitor)
    monitor.forget(100)
    assert list(monitor.groups()) == []


def test_guest_lbr_events_are_followed_each_on_its_own() -> None:
    lbr = [as_guest_lbr(call("create", event)) for event in (5, 6)]
    gone = [replace(c, name=CallName.RELEASE) for c in lbr]
    assert set(kinds([*lbr, *gone])) == {Kind.PREDICTED}


def test_kvms_own_event_count_must_be_what_its_calls_add_up_to() -> None:
    counts = [0, 1, 1, 1, 1, 0, 1]
    told = [replace(one, event_count=count) for one, count in zip(STOCK, counts, strict=True)]
    assert set(kinds(told)) == {Kind.PREDICTED}
    other_vcpu = [replace(one, vcpu=1, pmc=0x2000, event_count=7 + one.event_count) for one in told]
    assert set(kinds([*told, *other_vcpu])) == {Kind.PREDICTED}
    # It is looked at when an event is created, and then only.
    wrong = [*told[:2], *(replace(one, event_count=2) for one in told[2:])]
    where, verdict = only_divergence(wrong)
    assert (where, verdict.kind) == (5, Kind.EVENT_COUNT_MISMATCH)
    assert verdict.expected == "event_count=0, not 2"


GUEST_LBR = as_guest_lbr(call("create", 9))


@pytest.mark.parametrize(
    ("name", "counted", "found"),
    [
        (CallName.CREATE, 1, None),
        (CallName.RELEASE, 255, None),
        (CallName.CREATE, 0, None),  # that of another vCPU
        (CallName.CREATE, 2, Kind.EVENT_COUNT_MISMATCH),
        (CallName.RELEASE, 254, Kind.EVENT_COUNT_MISMATCH),
    ],
)
def test_kvm_counts_a_guest_lbr_event_of_which_nobody_knows_the_vcpu(
    name: CallName, counted: int, found: Kind | None
) -> None:
    told = [replace(one, event_count=count) for one, count in zip(STOCK, [0, 1, 1, 1, 1], strict=False)]
    after = replace(STOCK[5], event_count=counted)
    said = kinds([*told, replace(GUEST_LBR, name=name), after])
    assert said[-1] == (found or Kind.PREDICTED)
    assert not any(kind.is_divergence for kind in said[:-1])


def test_a_guest_lbr_event_of_another_process_explains_nothing() -> None:
    told = [replace(one, event_count=count) for one, count in zip(STOCK, [0, 1, 1, 1, 1, 1], strict=False)]
    for tgid, found in ((GUEST_LBR.tgid, Kind.PREDICTED), (GUEST_LBR.tgid + 1, Kind.EVENT_COUNT_MISMATCH)):
        assert kinds([*told[:5], replace(GUEST_LBR, tgid=tgid), told[5]])[-1] == found


def test_a_count_of_256_wraps_as_kvms_does() -> None:
    counts = [255, 0, 0, 0, 0, 255, 0]
    calls = [replace(one, event_count=count) for one, count in zip(STOCK, counts, strict=True)]
    assert set(kinds(calls)) == {Kind.PREDICTED}


def test_n_is_not_asked_for_while_a_single_event_is_paused_and_resumed() -> None:
    grown = [replace(one, max_nr_events=4) for one in STOCK[1:5]]
    assert set(kinds([STOCK[0], *grown])) == {Kind.PREDICTED}
    # The program after it is held against N again: it is that of a group.
    late = [*STOCK[:5], replace(STOCK[5], max_nr_events=4)]
    assert kinds(late)[-1] is Kind.ENABLED_EARLY


def test_every_kind_has_a_meaning() -> None:
    assert len({kind.meaning for kind in Kind}) == len(Kind)


def test_of_too_many_pmcs_those_that_are_quiet_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is forgotten is unknown and no divergence; a pmc that goes on being used is never forgotten."""
    monkeypatch.setattr(module, "MAX_PMCS", 8)
    checker = Checker()
    quiet, busy = Guest("quiet", 1), Guest("busy", 2)
    create, *rest = quiet.life()
    checker.observe(create)
    for call in busy.life():
        checker.observe(call)
    for tgid in range(100, 120):
        for call in Guest(f"vm{tgid}", tgid).life():
            assert not checker.observe(call).kind.is_divergence
        for call in busy.life():
            assert checker.observe(call).kind is Kind.PREDICTED
    assert len(checker._all()) <= 8
    assert checker.observe(rest[0]).kind is Kind.UNKNOWN
    assert not any(checker.observe(call).kind.is_divergence for call in rest[1:])
