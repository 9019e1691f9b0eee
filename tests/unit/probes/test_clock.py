"""The time of day of what CLOCK_MONOTONIC dates, as the clock is set and corrected."""

from __future__ import annotations

import time

import pytest

from vpmu_agent.probes.clock import Clock

EPOCH, SECOND = 1_700_000_000_000_000_000, 1_000_000_000


class Clocks:
    """A host's clocks; each reading takes a while."""

    def __init__(self) -> None:
        self.now, self.offset, self.takes = 5 * SECOND, EPOCH, 1000

    def monotonic(self) -> int:
        self.now += self.takes
        return self.now

    def time_of_day(self) -> int:
        self.now += self.takes
        return self.now + self.offset


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def clock(clocks: Clocks) -> Clock:
    return Clock(clocks.time_of_day, clocks.monotonic)


@pytest.mark.parametrize("step", [3600 * SECOND, -3600 * SECOND, 30 * 365 * 86400 * SECOND, -SECOND // 2])
def test_a_clock_that_is_set_is_followed(clocks: Clocks, clock: Clock, step: int) -> None:
    clock.offset_ns()
    clocks.offset += step
    assert clock.offset_ns() == pytest.approx(EPOCH + step, rel=0, abs=10_000)


def test_small_corrections_are_followed_before_they_add_up(clocks: Clocks, clock: Clock) -> None:
    for _ in range(100_000):
        clocks.offset += 500  # ppm
        clock.offset_ns()
    assert abs(clock.offset_ns() - clocks.offset) < 2_000_000


def test_calls_that_follow_each_other_stay_in_order(clocks: Clocks, clock: Clock) -> None:
    first = clock.offset_ns()
    for takes in (1, 500, 20_000, 1):
        clocks.takes = takes
        assert clock.offset_ns() == first


def test_a_reading_that_was_interrupted_is_none(clocks: Clocks, clock: Clock) -> None:
    first = clock.offset_ns()
    clocks.takes = 50_000_000
    assert clock.offset_ns() == first


def test_this_hosts_clocks() -> None:
    assert abs(time.monotonic_ns() + Clock().offset_ns() - time.time_ns()) < SECOND
