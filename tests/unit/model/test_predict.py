"""The prediction, against the sequences that DESIGN and the RFC spell out."""

from __future__ import annotations

import errno

import pytest

from vpmu_agent.model.call import CallName
from vpmu_agent.model.mechanism import Step
from vpmu_agent.model.predict import Outcome, Prediction, predict


def calls(*steps: str, events: int, fail_at: int | None = None) -> list[tuple[Step, int]]:
    found = predict(steps, events=events, fail_at=fail_at)
    return [(one.call, one.result) for one in found if isinstance(one, Prediction)]


def outcomes(*steps: str, events: int, fail_at: int | None = None) -> list[Outcome]:
    return [one for one in predict(steps, events=events, fail_at=fail_at) if isinstance(one, Outcome)]


def create(event: int, *, disabled: bool) -> Step:
    return Step(CallName.CREATE, event, leader=0 if event else None, disabled=disabled)


def test_a_group_is_created_disabled_and_then_enabled_in_order() -> None:
    creates = [create(i, disabled=True) for i in range(4)]
    enables = [Step(CallName.ENABLE, i) for i in range(4)]
    assert calls("program", events=4) == [(call, 0) for call in [*creates, *enables]]
    assert outcomes("program", events=4) == [Outcome("program", 0, (0, 1, 2, 3), False, 4)]


def test_a_single_event_is_created_enabled() -> None:
    assert calls("program", events=1) == [(create(0, disabled=False), 0)]


def test_a_failed_member_ends_the_program_and_leaves_its_elders() -> None:
    assert calls("program", events=4, fail_at=2) == [
        (create(0, disabled=True), 0),
        (create(1, disabled=True), 0),
        (create(2, disabled=True), -errno.ENOSPC),
    ]
    (outcome,) = outcomes("program", events=4, fail_at=2)
    assert (outcome.result, outcome.held, outcome.event_count) == (-errno.ENOSPC, (0, 1), 2)


def test_a_failed_first_create_holds_nothing() -> None:
    (outcome,) = outcomes("program", events=4, fail_at=0)
    assert (outcome.held, outcome.event_count) == ((), 0)


def test_a_single_event_is_paused_resumed_and_released() -> None:
    names = [call.name for call, _ in calls("program", "pause", "resume", "pause", "release", events=1)]
    assert names == ["create", "pause", "enable", "pause", "release"]


def test_a_group_is_stopped_by_a_pause_and_programmed_anew_by_a_resume() -> None:
    stopped = [(Step(CallName.RELEASE, i), 0) for i in range(3)]
    program = calls("program", events=3)
    assert calls("program", "pause", "resume", "release", events=3) == [
        *program,
        *stopped,
        *program,
        *stopped,
    ]


def test_global_control_pauses_and_resumes_a_single_event() -> None:
    names = [call.name for call, _ in calls("program", "global-off", "global-on", "global-on", events=1)]
    assert names == ["create", "pause", "enable"]


def test_a_group_that_global_control_stops_and_starts_is_a_single_event() -> None:
    found = calls("program", "global-off", "global-on", events=3)[6:]
    assert [call.name for call, _ in found] == ["release", "release", "release", "create"]
    assert found[-1] == (create(0, disabled=False), 0)


def test_a_partial_group_is_released_as_far_as_it_exists() -> None:
    found = calls("program", "release", events=4, fail_at=2)
    assert found[3:] == [(Step(CallName.RELEASE, i), 0) for i in range(2)]


@pytest.mark.parametrize(
    ("steps", "events", "fail_at", "says"),
    [
        (["program"], 0, None, "1 to 255 events"),
        (["program"], 256, None, "1 to 255 events"),
        (["program"], 4, 4, "no event 4"),
        (["program"], 4, -1, "no event -1"),
        (["program", "dance"], 4, None, "no step 'dance'"),
    ],
)
def test_what_cannot_be_is_refused(steps: list[str], events: int, fail_at: int | None, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        list(predict(steps, events=events, fail_at=fail_at))
