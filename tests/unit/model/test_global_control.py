"""One write of global control stops or starts all of a vCPU's counters: KVM's calls and the verdicts."""

from __future__ import annotations

import random

from tests.support.world import World
from vpmu_agent.model.call import Call
from vpmu_agent.model.check import Checker
from vpmu_agent.model.mechanism import ALL_COUNTERS, FIXED_BASE
from vpmu_agent.model.rules import Kind

GP, FIXED = 8, 4
OF_ALL = [*(f"gp{i}" for i in range(GP)), *(f"fixed{i}" for i in range(FIXED))]


class Vcpu:
    """A vCPU with all counters that KVM may give it, of which each has `size` events."""

    def __init__(self, *, size: int = 1) -> None:
        self.world = World(random.Random(0), sizes=(size,), vcpus=1, pmcs=GP + FIXED, fixed=FIXED)
        self.counters = self.world.counters
        self._size = size
        self._checker = Checker()
        self._seen = 0

    def program(self, *numbers: int) -> list[str]:
        """The guest selects an event for these counters."""
        for number in numbers or range(GP + FIXED):
            self.world.take(self.counters[number], "program", size=self._size)
        return self.calls()

    def write(self, value: int) -> list[str]:
        """The guest writes global control."""
        self.world.write_global_ctrl(0, value)
        return self.calls()

    def calls(self) -> list[str]:
        """The calls since the last time, each as predicted."""
        new: list[Call] = self.world.calls[self._seen :]
        self._seen += len(new)
        assert {self._checker.observe(call).kind for call in new} <= {Kind.PREDICTED}
        return [f"{call.name} {call.pmc_name}" for call in new]


def test_all_counters_are_paused_and_resumed_in_the_order_of_their_bits() -> None:
    vcpu = Vcpu()
    assert vcpu.program() == [f"create {name}" for name in OF_ALL]
    for _ in range(3):
        assert vcpu.write(0) == [f"pause {name}" for name in OF_ALL]
        assert vcpu.write(ALL_COUNTERS) == [f"enable {name}" for name in OF_ALL]


def test_a_counter_whose_bit_does_not_change_is_left_alone() -> None:
    vcpu = Vcpu()
    vcpu.program()
    some = 0b101 | 1 << FIXED_BASE + 3
    assert vcpu.write(ALL_COUNTERS & ~some) == ["pause gp0", "pause gp2", "pause fixed3"]
    assert vcpu.write(ALL_COUNTERS & ~0b100) == ["enable gp0", "enable fixed3"]
    assert vcpu.write(ALL_COUNTERS & ~0b100) == []


def test_a_counter_that_is_enabled_in_its_own_control_only_has_no_event_yet() -> None:
    vcpu = Vcpu()
    assert vcpu.write(0) == []
    assert vcpu.program(0, GP) == []
    assert vcpu.write(ALL_COUNTERS) == ["create gp0", "create fixed0"]


def test_what_is_programmed_while_it_is_stopped_is_created_anew() -> None:
    vcpu = Vcpu()
    vcpu.program(0, 1)
    assert vcpu.write(0) == ["pause gp0", "pause gp1"]
    assert vcpu.program(0) == []  # it is paused already
    assert vcpu.write(ALL_COUNTERS) == ["release gp0", "create gp0", "enable gp1"]


def test_what_was_turned_off_meanwhile_stays_paused() -> None:
    vcpu = Vcpu()
    vcpu.program(0, 1)
    vcpu.write(0)
    vcpu.world.take(vcpu.counters[0], "pause", size=1)
    assert vcpu.write(ALL_COUNTERS) == ["enable gp1"]


def test_a_group_is_stopped_and_programmed_again() -> None:
    vcpu = Vcpu(size=2)
    whole = [f"{name} gp0" for name in ("create", "create", "enable", "enable")]
    assert vcpu.program(0) == whole
    for _ in range(2):
        assert vcpu.write(0) == ["release gp0", "release gp0"]
        assert vcpu.write(ALL_COUNTERS) == whole


def test_a_group_whose_definition_is_not_asked_for_is_degraded() -> None:
    """The guest has accessed global control and not the counter, and a release leaves N at 1."""
    world = World(random.Random(0), sizes=(3,), vcpus=1, pmcs=1)
    for step in ("program", "global-off", "global-on"):
        world.step(world.counters[0], step, size=3)
    checker = Checker()
    said = [(call.name, checker.observe(call).kind) for call in world.calls]
    assert said[-4:-1] == [("release", Kind.PREDICTED)] * 3
    assert said[-1] == ("create", Kind.DEGRADED_GROUP)
    assert world.hazards == {Kind.DEGRADED_GROUP: 1}


def test_an_event_that_is_not_precise_does_not_serve_pebs() -> None:
    """pmc_resume_counter() refuses it, so that another one is created."""
    world = World(random.Random(0), sizes=(1,), vcpus=1, pmcs=1)
    (counter,) = world.counters
    checker = Checker()
    for pebs in (False, True, True, False):
        counter.pmc.pebs = pebs
        counter.pmc.config = 0x76
        world.write_global_ctrl(0, 0)
        world.write_global_ctrl(0, ALL_COUNTERS)
    made = [(call.name, call.attr.precise_ip) for call in world.calls]
    again = [("pause", 0), ("release", 0), ("create", 1), ("pause", 1), ("enable", 1)]
    assert made == [("create", 0), *again, ("pause", 1), ("release", 1), ("create", 0)]
    assert {checker.observe(call).kind for call in world.calls} == {Kind.PREDICTED}
