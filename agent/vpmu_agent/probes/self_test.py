"""Whether attached probes run: a call is made that they must see.

The kernel has switches that take all probes out without a word to those who attached them. So a process of
the agent's releases a perf event of its own, once a second, and both programs of that function have to count
it. It shows that this way of attaching works at the entry and at the return of a function; of the other
functions, which only KVM and the kernel itself can call, it is concluded.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Protocol

from vpmu_agent.kernel import switches
from vpmu_agent.kernel.arch import current_arch
from vpmu_agent.kernel.own_event import open_and_close

PATIENCE_S = 10.0
"""How long to wait for a tester that does not answer before the result is unknown."""


@dataclass(frozen=True, slots=True)
class Sight:
    """Whether the probes are seen to run; None if it cannot be known, or not yet."""

    runs: bool | None = None
    why: str = ""
    """Why they do not, or why it is not known."""
    todo: str = ""

    def __str__(self) -> str:
        return f"{self.why}; {self.todo}" if self.todo else self.why


class SelfTested(Protocol):
    """Probes that count the calls of a tester."""

    @property
    def mode(self) -> str:
        """How the probes are attached."""

    def expect_tests_of(self, tgid: int) -> None:
        """Count releases by this process from now on."""

    def tests_seen(self) -> tuple[int, ...]:
        """Return how many of them were seen so far, at each end of the function."""

    def begin_epoch(self) -> None:
        """Make the state of every counter unknown."""


class Tester(Protocol):
    """A process that makes the calls."""

    @property
    def tgid(self) -> int:
        """Its process ID, as the kernel has it."""

    def ask(self) -> None:
        """Have it make one call."""

    def answer(self) -> str | None:
        """Return "" once it has made the call, why it could not, or None as long as it has not answered."""


class OwnTester:
    """This process, which must be permitted to open perf events."""

    def __init__(self) -> None:
        self.tgid = os.getpid()
        self._answer = ""

    def ask(self) -> None:
        """Make the call."""
        try:
            open_and_close(current_arch().perf_event_open)
            self._answer = ""
        except OSError as error:
            self._answer = f"no perf event can be opened to test them: {error.strerror}"

    def answer(self) -> str | None:
        """Return how it went."""
        return self._answer


class SelfTest:
    """Tests the probes that are attached now, again and again."""

    def __init__(self, tester: Tester) -> None:
        self.sight = Sight()
        """What is known by now."""
        self._tester = tester
        self._probes: SelfTested | None = None
        self._asked: SelfTested | None = None  # the probes that were there at the last call
        self._asked_at = 0.0
        self._is_due = False  # an answer
        self._before: tuple[int, ...] = ()
        self._ftrace: bool | None = None

    def step(self, probes: SelfTested | None) -> Sight:
        """Test these probes; to be called about once a second. Return what is known by now.

        Whenever calls may have been missed, a new epoch begins. None has nothing to test.
        """
        if probes is not self._probes:
            self._probes, self.sight, self._ftrace = probes, Sight(), None
            if probes:
                probes.expect_tests_of(self._tester.tgid)
        if not probes:
            return self.sight
        was_blind = self.sight.runs is False
        if not self._is_due:
            self._asked, self._before = probes, probes.tests_seen()
            self._tester.ask()
            self._is_due, self._asked_at = True, time.monotonic()
        if (failed := self._tester.answer()) is not None:
            self._is_due = False
            if self._asked is probes:  # and not those before them
                self.sight = self._by_switches(probes, failed) if failed else self._by_calls(probes)
        elif time.monotonic() - self._asked_at >= PATIENCE_S:
            self.sight = self._by_switches(probes, "the process that tests them does not answer")
        ftrace = switches.ftrace_enabled()
        has_changed = self._ftrace is not None and ftrace is not self._ftrace
        self._ftrace = ftrace
        if was_blind or has_changed or self.sight.runs is False:
            probes.begin_epoch()
        return self.sight

    def _by_calls(self, probes: SelfTested) -> Sight:
        now = probes.tests_seen()
        if all(after > before for before, after in zip(self._before, now, strict=True)):
            return Sight(True)
        return self._blind(probes)

    def _by_switches(self, probes: SelfTested, untested: str) -> Sight:
        if switches.ftrace_enabled() is False:
            return self._blind(probes)
        return Sight(None, f"whether the probes run is unknown: {untested}")

    def _blind(self, probes: SelfTested) -> Sight:
        cause, todo = switches.why_no_probe_runs(probes.mode)
        return Sight(False, f"the {probes.mode} probes are attached but do not run: {cause}", todo)
