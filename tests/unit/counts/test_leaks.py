"""Which events are leaked: those that stay strays, whatever restarts and however often the census looks."""

from __future__ import annotations

import pytest

from tests.support.guests import amd, seen
from tests.support.looks import STRAY, VCPU, WEB, Thing, look, pmc, stray
from vpmu_agent.counts.leaks import LEAKED_S, Leak, Leaks, sentence
from vpmu_agent.model.counter_status import EventState
from vpmu_agent.probes.census import Stray, decode
from vpmu_agent.probes.layout import FIXED_BASE_IDX

NAMES = {WEB: "web01"}
LONG = LEAKED_S + 1


class Looks:
    """Looks of a census, one after the other."""

    def __init__(self) -> None:
        self.leaks = Leaks()
        self.now = 100.0

    def see(self, *found: Thing, after: float = 1.0) -> list[Leak]:
        """Return what is leaked by a look that finds this, some time after the one before."""
        self.now += after
        return self.leaks.take(look(*found, at=self.now), NAMES).get("web01", [])


@pytest.fixture
def looks() -> Looks:
    return Looks()


def test_a_record_has_a_number_and_no_address() -> None:
    made = {"kind": 3, "tgid": WEB, "kvm_vcpu": 0x10, "id": 77, "config": 0xC0, "type": 4, "state": -1}
    of = VCPU.pack({"kvm_vcpu": 0x10, "tgid": WEB})
    data = of + STRAY.pack({**made, "attr_flags": 4, "vcpu_id": 1, "pmc_type": 1, "pmc_idx": 33})
    (found,) = decode(data * 2).strays  # by two files of one vCPU
    assert found == Stray(WEB, 0x10, 77, 0xC0, 4, 4, 1, -1, 1, 33)
    assert STRAY.size == VCPU.size


def test_the_event_for_guest_lbr_is_never_leaked_though_no_counter_holds_it(looks: Looks) -> None:
    made = {"kind": 3, "tgid": WEB, "kvm_vcpu": 0x10, "id": 78, "config": 0x1B00, "type": 4, "pmc_type": 2}
    found = decode(VCPU.pack({"kvm_vcpu": 0x10, "tgid": WEB}) + STRAY.pack(made))
    assert found.strays == []
    (event,) = found.guest_lbr
    for _ in range(3):
        assert looks.see(amd(), event, after=LONG) == []


def test_an_event_that_stays_a_stray_is_leaked(looks: Looks) -> None:
    assert looks.see(amd()) == []
    assert looks.see(amd(), pmc(), stray()) == []
    assert looks.see(amd(), pmc(), stray(), after=LEAKED_S - 0.1) == []
    (leak,) = looks.see(amd(), pmc(), stray(state=0), after=0.1)
    assert (leak.vm, leak.tgid, leak.vcpu, leak.pmc, leak.event) == ("web01", WEB, 0, "gp0", "r076:GD")
    assert leak.age_s == pytest.approx(LEAKED_S)
    assert leak.state is EventState.INACTIVE
    assert leak.takes_room
    assert not leak.is_older
    assert looks.see(amd(), pmc()) == []  # it was released after all


def test_an_event_that_is_being_made_at_each_look_is_another_one_each_time(looks: Looks) -> None:
    for number in range(1, 100):
        assert looks.see(amd(), stray(number), after=LONG) == []


def test_one_that_its_counter_held_in_between_is_not_leaked(looks: Looks) -> None:
    for found in (amd(), stray()), (amd(), pmc()), (amd(), stray()):
        assert looks.see(*found, after=LEAKED_S - 1) == []


def test_an_agent_that_comes_late_says_that_it_may_be_older(looks: Looks) -> None:
    assert looks.see(amd(), stray()) == []
    (leak,) = looks.see(amd(), stray(), after=LONG)
    assert leak.is_older


def test_of_a_vm_that_ends_or_is_another_by_now_nothing_is_left(looks: Looks) -> None:
    looks.see(amd(), stray())
    assert looks.see(amd(), stray(), after=LONG)
    assert looks.see() == []
    # KVM was loaded again, and a vCPU is where the other was.
    assert looks.see(amd(), stray(0x501), after=LONG) == []
    (leak,) = looks.see(amd(), stray(0x501), after=LONG)
    assert leak.age_s == pytest.approx(LONG)


def test_what_was_not_looked_at_stays_what_it_was(looks: Looks) -> None:
    more = stray(0)
    looks.see(amd(), stray(1))
    assert [leak.id for leak in looks.see(amd(), stray(1), after=LONG)] == [1]
    assert [leak.id for leak in looks.see(amd(), stray(2), more)] == [1]
    assert [leak.id for leak in looks.see(amd(), stray(2), more, after=LONG)] == [1, 2]
    assert [leak.id for leak in looks.see(amd(), stray(2))] == [2]
    other = amd(address=0x20, vcpu_id=1)  # whose thread says nothing of the first one's
    assert [leak.id for leak in looks.see(amd(), other, stray(0, vcpu=0x20))] == []


def test_the_holder_of_each_is_named(looks: Looks) -> None:
    found = (
        amd(),
        amd(address=0x20, vcpu_id=1),
        stray(1, pmc_idx=3),
        stray(2, vcpu=0x20, vcpu_id=1, pmc_type=1, pmc_idx=FIXED_BASE_IDX + 1),
    )
    looks.see(*found)
    assert [(leak.vcpu, leak.pmc) for leak in looks.see(*found, after=LONG)] == [(0, "gp3"), (1, "fixed1")]


def test_a_process_that_is_no_vm_yet_has_none(looks: Looks) -> None:
    looks.see(amd(tgid=777), stray(tgid=777))
    looks.see(amd(tgid=777), stray(tgid=777), after=LONG)
    assert looks.leaks.take(look(amd(tgid=777), stray(tgid=777), at=looks.now), NAMES) == {}


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (1, "it still counts, on one of the host's counters"),
        (0, "it still counts, on one of the host's counters"),
        (-1, "it is off and counts nothing"),
        (-2, "it is in error state, without one of the host's counters"),
        (-7, "its state is unknown"),
    ],
)
def test_what_is_said_of_it(looks: Looks, state: int, says: str) -> None:
    looks.see(amd())
    looks.see(amd(), stray(state=state))
    (leak,) = looks.see(amd(), stray(state=state), after=6)
    assert sentence(leak) == (
        "web01, vCPU 0, gp0: KVM has leaked an event (r076:GD): for 6 s the counter has not held it, so "
        f"nothing will release it; {says}"
    )
    (leak,) = looks.see(amd(), stray(state=state), after=3600)
    assert ": for 60 min the counter" in sentence(leak)


def test_of_an_old_one_it_is_said_that_it_may_be_older(looks: Looks) -> None:
    looks.see(amd(), stray())
    (leak,) = looks.see(amd(), stray(), after=6)
    assert ": for more than 6 s the counter has not held it" in sentence(leak)


def test_they_are_found_with_the_vms() -> None:
    found = seen(NAMES, look(amd(), stray(), at=1), look(amd(), stray(), at=9))
    assert [leak.id for leak in found.leaks["web01"]] == [0x500]
    assert seen(NAMES, look(amd(), at=1), look(amd(), at=9)).leaks == {}
