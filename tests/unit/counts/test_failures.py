from __future__ import annotations

from dataclasses import replace

from tests.support.scenes import USER_CYCLES, Guest, checked
from vpmu_agent.counts.failures import KEPT, Failures
from vpmu_agent.counts.recent import Recent
from vpmu_agent.model.call import CallName
from vpmu_agent.model.rules import Kind


def test_a_creation_that_fails_again_is_one_story() -> None:
    failures, guest = Failures(), Guest("web01", 1)
    calls = [guest.failed_create() for _ in range(3)]
    for call in calls:
        failures.add(call)
    (story,) = failures
    assert (story.count, story.since_ns, story.last) == (3, calls[0].time_ns, calls[-1])


def test_another_counter_event_or_errno_is_another_story() -> None:
    failures, guest = Failures(), Guest("web01", 1)
    first = guest.failed_create()
    others = [
        guest.failed_create(pmc=1),
        replace(first, vcpu=1),
        replace(first, vm="db01"),
        replace(first, result=-22),
        replace(first, attr=replace(USER_CYCLES, config=0xC0)),
        replace(first, attr=replace(USER_CYCLES, exclude_kernel=False)),
    ]
    same = replace(first, attr=replace(USER_CYCLES, sample_period=1))  # KVM starts from the counter's value
    for call in (first, *others, same):
        failures.add(call)
    assert [story.count for story in failures] == [2, 1, 1, 1, 1, 1, 1]


def test_a_guest_cannot_make_it_grow_without_end() -> None:
    failures, guest = Failures(), Guest("web01", 1)
    for config in range(KEPT + 10):
        failures.add(guest.call(CallName.CREATE, 0, result=-22, attr=replace(USER_CYCLES, config=config)))
    assert sum(1 for _ in failures) == KEPT
    assert failures.forgotten == 10
    assert next(iter(failures)).last.attr.config == KEPT + 9


def test_of_the_last_calls_a_failure_replaces_itself_and_no_divergence() -> None:
    recent, guest = Recent(), Guest("web01", 1)
    diverged = list(checked(guest.unexpected_pause(pmc=1)))
    failed = list(checked(guest.failed_create() for _ in range(500)))
    for call, verdict in (*diverged, *failed):
        recent.add(call, verdict)
    assert recent.last() == (failed[-1], diverged[-1])
    (story,) = recent.failures()
    assert story.count == 500


def test_a_group_that_stays_partial_is_one_of_the_last_calls() -> None:
    recent, guest = Recent(), Guest("mail01", 1)
    disabled = replace(USER_CYCLES, disabled=True)
    for _ in range(3):
        leader = guest.new_event()
        calls = [
            guest.call(CallName.CREATE, leader, size=2, attr=disabled),
            guest.call(CallName.CREATE, 0, leader=leader, size=2, result=-22, attr=disabled),
            guest.call(CallName.RELEASE, leader, size=2, attr=disabled),
        ]
        for call, verdict in checked(calls):
            recent.add(call, verdict)
    ((call, verdict),) = recent.last()
    assert (verdict.kind, call.result) == (Kind.PARTIAL_GROUP, -22)
    (story,) = recent.failures()
    assert story.count == 3
