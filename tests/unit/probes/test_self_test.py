"""The self-test against probes that see, do not see, or cannot be tested; with the kernel's own switches."""

from __future__ import annotations

import pytest

from vpmu_agent.kernel import switches
from vpmu_agent.probes.self_test import PATIENCE_S, SelfTest, Sight


class Programs:
    """Probes whose programs run at the ends that are in `running`."""

    mode = "fexit"

    def __init__(self) -> None:
        self.running = [True, True]
        self.seen = [0, 0]
        self.epochs = 0
        self.tester = 0

    def expect_tests_of(self, tgid: int) -> None:
        self.tester = tgid

    def tests_seen(self) -> tuple[int, ...]:
        return tuple(self.seen)

    def begin_epoch(self) -> None:
        self.epochs += 1


class Caller:
    """A tester whose calls reach `programs`; it answers when `answers` is set, as it says there."""

    tgid = 42

    def __init__(self, programs: Programs) -> None:
        self.programs = programs
        self.answers: str | None = ""
        self.calls = 0

    def ask(self) -> None:
        self.calls += 1
        for end, runs in enumerate(self.programs.running):
            self.programs.seen[end] += runs

    def answer(self) -> str | None:
        return self.answers


@pytest.fixture
def programs() -> Programs:
    return Programs()


@pytest.fixture
def caller(programs: Programs) -> Caller:
    return Caller(programs)


@pytest.fixture
def test(caller: Caller) -> SelfTest:
    return SelfTest(caller)


@pytest.fixture(autouse=True)
def ftrace(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool | None]:
    switch: dict[str, bool | None] = {"on": True}
    monkeypatch.setattr(switches, "ftrace_enabled", lambda **_: switch["on"])
    return switch


def test_probes_that_see_the_call_run(test: SelfTest, programs: Programs) -> None:
    for _ in range(3):
        assert test.step(programs) == Sight(True)
    assert (programs.tester, programs.epochs) == (42, 0)


@pytest.mark.parametrize("running", [[False, False], [True, False], [False, True]])
def test_probes_that_miss_an_end_are_blind(test: SelfTest, programs: Programs, running: list[bool]) -> None:
    test.step(programs)
    programs.running = running
    sight = test.step(programs)
    assert sight.runs is False
    assert sight.why == "the fexit probes are attached but do not run: the cause is unknown"
    assert programs.epochs == 1
    programs.running = [True, True]
    assert test.step(programs).runs
    assert programs.epochs == 2  # what ended between two tests was missed, too
    test.step(programs)
    assert programs.epochs == 2


def test_a_switch_that_was_off_between_two_tests_begins_an_epoch(
    test: SelfTest, programs: Programs, ftrace: dict[str, bool | None]
) -> None:
    ftrace["on"] = False  # it was switched off only after the call
    test.step(programs)
    assert programs.epochs == 0
    ftrace["on"] = True
    assert test.step(programs).runs
    assert programs.epochs == 1


@pytest.mark.parametrize("on", [True, None])
def test_a_call_that_cannot_be_made_leaves_it_unknown(
    test: SelfTest, caller: Caller, programs: Programs, ftrace: dict[str, bool | None], on: bool | None
) -> None:
    ftrace["on"] = on
    caller.answers = "no perf event can be opened to test them: Operation not permitted"
    sight = test.step(programs)
    assert sight.runs is None
    assert sight.why == f"whether the probes run is unknown: {caller.answers}"


def test_where_no_call_can_be_made_the_switch_tells(
    test: SelfTest, caller: Caller, programs: Programs, ftrace: dict[str, bool | None]
) -> None:
    caller.answers, ftrace["on"] = "no perf event can be opened", False
    assert test.step(programs) == Sight(
        False,
        "the fexit probes are attached but do not run: kernel.ftrace_enabled is 0",
        "sysctl kernel.ftrace_enabled=1",
    )


def test_a_tester_that_does_not_answer_is_waited_for(
    test: SelfTest, caller: Caller, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    assert test.step(programs).runs
    caller.answers = None
    assert test.step(programs).runs
    now += PATIENCE_S
    assert test.step(programs).runs is None
    assert caller.calls == 2
    caller.answers = ""
    assert test.step(programs).runs


def test_an_answer_about_earlier_probes_says_nothing_of_the_next_ones(test: SelfTest, caller: Caller) -> None:
    earlier, caller.answers = caller.programs, None
    test.step(earlier)
    later = Programs()
    caller.programs, caller.answers = later, ""
    assert test.step(later) == Sight()
    assert test.step(later).runs
    assert test.step(None) == Sight()
