"""The status of a counter: each word, and what takes two looks."""

from __future__ import annotations

import pytest

from vpmu_agent.model.counter_status import (
    MIN_LACKING_NS,
    CounterStatus,
    Event,
    EventState,
    Held,
    counter_status,
    is_wanted,
    running_ratio,
    times,
)

SECOND = 10**9
ENABLED = 1 << 22


def event(
    address: int = 1,
    state: EventState = EventState.ACTIVE,
    *,
    enabled_ns: int = SECOND,
    running_ns: int | None = None,
    thread_runs: bool = True,
) -> Event:
    """An event that ran for all the time that it was enabled, unless told otherwise."""
    return Event(address, state, enabled_ns, enabled_ns if running_ns is None else running_ns, thread_runs)


def waiting(address: int = 1, *, enabled_ns: int = SECOND, thread_runs: bool = False) -> Event:
    return event(address, EventState.INACTIVE, enabled_ns=enabled_ns, thread_runs=thread_runs)


def off(address: int = 1) -> Event:
    return event(address, EventState.OFF, enabled_ns=0)


def held(*events: Event, size: int = 1, wanted: bool = True, control: int = ENABLED) -> Held:
    return Held(control, wanted, size, events)


ERROR = event(1, EventState.ERROR, enabled_ns=0, thread_runs=False)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (held(event()), "counting"),
        (held(event(1), event(2), size=2), "counting"),
        # Of a time slice, perf has written one of the times and not yet the other.
        (held(event(running_ns=SECOND - MIN_LACKING_NS + 1)), "counting"),
        (held(event(enabled_ns=SECOND - 1000, running_ns=SECOND)), "counting"),
        (held(waiting()), "descheduled"),
        (held(waiting(1), waiting(2), size=2), "descheduled"),
        (held(ERROR), "starved"),
        (held(event(2), ERROR, size=2), "starved"),
        # A leader in error keeps its group from running; that members are missing is not why.
        (held(ERROR, size=2), "starved"),
        (held(event(running_ns=SECOND // 2)), "starved"),
        (held(event(1), event(2, running_ns=SECOND // 2), size=2), "starved"),
        (held(wanted=False), "idle"),
        (held(event(), wanted=False), "idle"),
        (held(ERROR, wanted=False), "idle"),
    ],
)
def test_what_one_look_tells(now: Held, expected: str) -> None:
    assert counter_status(now) == expected


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (held(), "denied"),
        (held(event(), size=2), "partial"),
        (held(waiting(thread_runs=True)), "starved"),
        (held(waiting(1, thread_runs=True), waiting(2, thread_runs=True), size=2), "starved"),
        # Only a filter turns off all events of a counter that its guest wants.
        (held(off()), "unknown"),
    ],
)
def test_what_takes_two_looks(now: Held, expected: str) -> None:
    """KVM takes these steps too on its way to a counter that counts."""
    assert counter_status(now) == "unknown"
    assert counter_status(now, now) == expected
    other = held(*now.events, size=now.size, control=ENABLED | 0xC0)
    assert counter_status(now, other) == "unknown"  # the guest has programmed it again in between


def test_another_event_is_not_the_one_of_the_look_before() -> None:
    now, other = held(waiting(1, thread_runs=True)), held(waiting(2, thread_runs=True))
    assert counter_status(now, other) == "unknown"
    assert counter_status(held(), other) == "unknown"


def test_a_vcpu_that_has_just_come_to_its_cpu_is_not_starved() -> None:
    assert counter_status(held(waiting(thread_runs=True)), held(waiting())) == "unknown"
    assert counter_status(held(waiting()), held(waiting(thread_runs=True))) == "descheduled"


@pytest.mark.parametrize(("now", "alone"), [(held(), "denied"), (held(off()), "unknown")])
def test_a_filter_explains_what_would_be_a_failure(now: Held, alone: str) -> None:
    """KVM then creates no event, or leaves the one that it has paused (reprogram_counter())."""
    assert counter_status(now, filtered=True) == "unknown"
    assert counter_status(now, now, filtered=True) == "filtered"
    assert counter_status(now, now) == alone
    # Of counters that the filter lets count it says nothing.
    assert counter_status(held(event()), filtered=True) == "counting"


def test_a_failed_creation_is_denied_at_once_whatever_the_filter() -> None:
    assert counter_status(held(), errno=28) == "denied"
    assert counter_status(held(), held(), filtered=True, errno=28) == "denied"
    # A counter that has its events was created again since.
    assert counter_status(held(event()), errno=28) == "counting"


def test_a_mediated_counter_needs_no_event() -> None:
    assert counter_status(held(), mediated=True) == "mediated"
    assert counter_status(held(wanted=False), mediated=True) == "idle"


def test_a_starvation_that_is_over_is_not_told_again() -> None:
    """The times count from the event's beginning; what counts is since the look before."""
    before = held(event(enabled_ns=10 * SECOND, running_ns=SECOND))
    now = held(event(enabled_ns=11 * SECOND, running_ns=2 * SECOND))
    assert counter_status(now) == "starved"
    assert counter_status(now, before) == "counting"
    again = held(event(enabled_ns=12 * SECOND, running_ns=2 * SECOND))
    assert counter_status(again, now) == "starved"


def test_times_that_were_read_while_perf_wrote_them_are_no_starvation() -> None:
    """The look before got the old time enabled and the new time running."""
    before = held(event(enabled_ns=SECOND, running_ns=2 * SECOND))
    assert counter_status(held(event(enabled_ns=3 * SECOND)), before) == "counting"


def test_how_much_is_starved() -> None:
    for running_ns, expected in ((990_000_000, "counting"), (989_999_999, "starved")):
        assert counter_status(held(event(running_ns=running_ns))) == expected
    lacking = MIN_LACKING_NS - 1
    assert counter_status(held(event(enabled_ns=lacking, running_ns=0))) == "counting"
    assert counter_status(held(event(enabled_ns=lacking + 1, running_ns=0))) == "starved"


def test_a_waiting_event_that_lacked_time_is_starved_though_its_vcpu_sleeps() -> None:
    assert counter_status(held(event(1, EventState.INACTIVE, running_ns=0, thread_runs=False))) == "starved"


@pytest.mark.parametrize("status", CounterStatus)
def test_which_of_them_mean_wrong_numbers(status: CounterStatus) -> None:
    assert status.is_failing == (status in {"starved", "denied", "partial", "orphaned"})


@pytest.mark.parametrize(
    ("index", "control", "global_ctrl", "version", "expected"),
    [
        (1, ENABLED | 0x76, 0b10, 2, True),
        (1, ENABLED | 0x76, 0b01, 2, False),
        (1, 0x76, 0b10, 2, False),
        (1, ENABLED | 0x76, 0, 1, True),  # version 1 has no global control
        (0, ENABLED, 1 << 32, 2, False),
    ],
)
def test_a_gp_counter_is_wanted(
    index: int, control: int, global_ctrl: int, version: int, *, expected: bool
) -> None:
    wanted = is_wanted(
        fixed=False, index=index, control=control, global_ctrl=global_ctrl, pmu_version=version
    )
    assert wanted is expected


@pytest.mark.parametrize(
    ("control", "global_ctrl", "expected"),
    [
        (0b0001, 1 << 33, True),
        (0b0010, 1 << 33, True),
        (0b1011, 1 << 33, True),
        (0b1000, 1 << 33, False),  # an interrupt, and nothing to count
        (0b0011, 1 << 32, False),
        (0b0011, 1 << 1, False),
    ],
)
def test_a_fixed_counter_is_wanted(control: int, global_ctrl: int, *, expected: bool) -> None:
    assert is_wanted(fixed=True, index=1, control=control, global_ctrl=global_ctrl, pmu_version=2) is expected


def test_the_running_ratio() -> None:
    assert running_ratio(*times([])) is None
    assert running_ratio(*times([off()])) is None
    assert running_ratio(*times([event(running_ns=SECOND // 4)])) == 0.25
    assert running_ratio(*times([event(1), event(2, running_ns=0)])) == 0.5
    assert running_ratio(*times([event(enabled_ns=SECOND, running_ns=SECOND + 100)])) == 1.0


def test_the_times_since_the_look_before() -> None:
    before = [event(1, enabled_ns=10 * SECOND, running_ns=0)]
    now = [event(1, enabled_ns=11 * SECOND, running_ns=SECOND)]
    assert times(now, before) == (SECOND, SECOND)
    assert times(now, now) == (0, 0)
    # An event that was not there before counts from its beginning; one that is gone counts no more.
    assert times([event(2, running_ns=0)], before) == (SECOND, 0)
    assert times([*now, event(2, running_ns=0)], before) == (2 * SECOND, SECOND)
