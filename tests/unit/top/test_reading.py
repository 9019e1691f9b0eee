from __future__ import annotations

from typing import Any

import pytest

from tests.support.states import SECOND, counter, holder, later, older, starved_vm, state, vm
from vpmu_agent.top.reading import Reading, Readings, StateError, VmLine, counter_lines


def rates(reading: Reading) -> dict[str, tuple[float | None, float | None]]:
    return {vm.vm: (vm.calls_per_s, vm.host_share) for vm in reading.vms}


def test_rates_are_those_of_the_time_between_two_readings() -> None:
    readings = Readings()
    first = state(vm("web01", host_share=0.25), vm("db01"))
    assert rates(readings.take(first)) == {"web01": (None, 0.25), "db01": (None, None)}
    reading = readings.take(later(first, seconds=2, calls=300))
    assert rates(reading) == {"web01": (150.0, 0.015), "db01": (150.0, 0.015)}
    assert (reading.interval_s, reading.calls_per_s, reading.host_share) == (2.0, 300.0, 0.03)


def test_the_same_state_again_has_the_same_rates() -> None:
    """A daemon reads its maps once a second at most, however often it is asked."""
    readings, first = Readings(), state(vm("web01"))
    readings.take(first)
    second = later(first)
    assert rates(readings.take(second)) == rates(readings.take(second)) == {"web01": (100.0, 0.01)}
    assert readings.take(later(second, seconds=2)).interval_s == 2.0


def test_rates_of_what_began_again_are_not_known() -> None:
    readings = Readings()
    readings.take(state(vm("web01")))
    restarted = later(state(vm("web01", calls=0, host_ns=0), vm("new")), seconds=2)
    assert rates(readings.take(restarted)) == {"web01": (None, None), "new": (None, None)}


def test_without_durations_there_is_no_tax() -> None:
    readings, first = Readings(), state(vm("web01", host_ns=None))
    readings.take(first)
    reading = readings.take(later(first))
    assert rates(reading) == {"web01": (100.0, None)}
    assert reading.host_share is None


def test_what_an_older_daemon_does_not_tell_is_unknown() -> None:
    reading = Readings().take(older(state(starved_vm("web01"), holders=[holder("perf")])))
    (web01,) = reading.vms
    assert (reading.holders, reading.all_starved) == (None, None)
    assert (web01.counters, web01.running, web01.starved) == (None, None, "")


def test_what_a_newer_one_tells_besides_is_left_out() -> None:
    assert Readings().take(state(vm("web01", more=[1]), more={"a": 1})).vms[0].vm == "web01"


def test_vms_that_have_nothing_to_trace_are_listed() -> None:
    untraced = [
        {"vm": "old", "mode": "off", "reason": "no_irqchip"},
        {"vm": "web01", "mode": "off", "reason": None},  # it made calls, with another PMU
    ]
    vms = Readings().take(state(vm("web01"), untraced=untraced, all_untraced=2)).vms
    assert [each.vm for each in vms] == ["web01", "old"]
    assert vms[1] == VmLine("old", mode="off", reason="no_irqchip")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (["state"], "not the state"),
        ({"kind": "call", "schema": 1}, "not the state"),
        (state() | {"schema": 2}, "schema 2, and this version reads 1"),
        ({"kind": "state", "schema": 1}, "KeyError 'time_ns'"),
        (state() | {"vms": None}, "TypeError"),
        (state() | {"vms": ["web01"]}, "TypeError"),
        (state(vm("web01", calls="many")), "ValueError"),
        (state() | {"vms": [vm("web01") | {"counters": [1]}]}, "AttributeError"),
        (state(vm("web01", counters={"idle": "many"})), "ValueError"),
        (state(holders=[{"pid": 1}]), "KeyError"),
        (state() | {"lost": 3}, "AttributeError"),
    ],
)
def test_what_is_not_a_state_is_refused_in_a_sentence(answer: Any, said: str) -> None:
    with pytest.raises(StateError, match=said):
        Readings().take(answer)


def test_nothing_that_a_terminal_would_obey_is_kept() -> None:
    hostile = "a\x1b[2J\u202eb\nc"
    reading = Readings().take(
        state(vm(hostile, starved=hostile, counters={hostile: 1}), host=hostile, holders=[holder(hostile)])
    )
    assert reading.holders
    (line,) = reading.vms
    for text in (reading.host, line.vm, line.starved, *(line.counters or ()), reading.holders[0].comm):
        assert text == "a\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c"
    (shown,) = counter_lines([counter(pmc=hostile, status="x" * 10_000)])
    assert shown.pmc.isprintable()
    assert len(shown.status) < 1000


def test_a_reading_long_after_is_of_that_time() -> None:
    readings, first = Readings(), state(vm("web01"))
    readings.take(first)
    assert readings.take(first | {"time_ns": first["time_ns"] + 3600 * SECOND}).interval_s == 3600
