"""The grouped kernel without the agent: KVM does what the design says, and what the lab tells it to."""

from __future__ import annotations

import errno
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from .. import pmu
from ..guests import guest_a
from . import calls, control
from .calls import Call


def test_hazards_happen_at_one_counter_alone() -> None:
    control.define_groups(3, 3, 3)
    control.fail_create(1, errno.ENOSPC)
    control.hazards_at(counter=1)
    seen, _ = run_guest_a(counters=3)
    assert names(seen)[:14] == "ccceee" + "cc" + "ccceee"
    assert names(seen)[14:21] == "rrr" + "r" + "rrr"


def test_hazards_happen_at_one_vcpu_of_one_vm_alone() -> None:
    control.define_groups(2)
    control.fail_create(1, errno.ENOSPC)
    with (
        guest_a(counters=1, vcpus=2, stepwise=True) as healthy,
        guest_a(counters=1, vcpus=2, stepwise=True) as ill,
    ):
        control.hazards_at(tgid=ill.tgid, vcpu=1)
        for guest in (healthy, ill):
            guest.wait_for("stage")
            guest.go_on()
            guest.wait_for("stage")
        assert pmu.kvm_counts(healthy.tgid).alive == 4
        assert pmu.kvm_counts(ill.tgid).alive == 3


@pytest.fixture
def _counts_known() -> Iterator[None]:
    """An event that ran has counted its event select number, however long it ran."""
    parameter = pmu.PARAMETERS / "count_select"
    parameter.write_text("Y\n")
    yield
    parameter.write_text("N\n")


def run_guest_a(*, counters: int = 1, rounds: int = 1) -> tuple[list[Call], pmu.Counts]:
    """All of a guest A's calls, and what the test PMU saw of it. It programs its counters twice a round.

    It is never preempted: KVM releases what a vCPU did not use in a time slice, and creates it again.
    """
    with calls.watch() as trace, guest_a(counters=counters, rounds=rounds, realtime=True) as guest:
        guest.finish()
        counts = pmu.kvm_counts(guest.tgid)
    return list(calls.of(trace, guest.tgid)), counts


def names(seen: Sequence[Call]) -> str:
    """The calls by their first letters: c, e, p, r."""
    return "".join(call.name[0] for call in seen)


def created(seen: Sequence[Call]) -> list[Call]:
    return [call for call in seen if call.name == "create"]


def indexes(seen: Sequence[Call], of: str) -> list[int]:
    """Which event, by the order of its creation, each of the calls called `of` was for."""
    events = [call.event for call in created(seen)]
    return [events.index(call.event) for call in seen if call.name == of]


def test_four_counters_of_4_1_2_and_1_events() -> None:
    control.define_groups(4, 1, 2, 1)
    seen, counts = run_guest_a(counters=4)
    # Counters 0 and 2 are stopped and created again; 1 and 3 are paused twice, resumed, and released at the
    # VM's end.
    assert Counter(call.name for call in seen) == {"create": 14, "enable": 14, "release": 14, "pause": 4}
    assert (counts.initialised, counts.destroyed, counts.failed) == (14, 14, 0)


@pytest.mark.parametrize("size", range(2, control.MAX_GROUP_SIZE + 1))
def test_a_group_is_created_enabled_and_released_in_order(size: int) -> None:
    control.define_groups(size)
    seen, _ = run_guest_a()
    assert names(seen) == ("c" * size + "e" * size + "r" * size) * 2
    for first in (0, size):
        leader, *members = created(seen)[first : first + size]
        assert leader.leader is None
        assert {member.leader for member in members} == {leader.event}
        assert all(member.disabled for member in (leader, *members))
    assert indexes(seen, "enable") == indexes(seen, "release") == list(range(2 * size))


def test_one_event_is_created_enabled_and_paused() -> None:
    seen, _ = run_guest_a()
    assert names(seen) == "cpepr"
    (event,) = created(seen)
    assert event.leader is None
    assert not event.disabled


def test_members_have_their_own_configs() -> None:
    control.define_groups(4)
    control.define_members(0x1C0, 0x1C2)
    seen, _ = run_guest_a()
    guests_choice = created(seen)[0].config
    assert [call.config for call in created(seen)] == [guests_choice, 0x1C0, 0x1C2, guests_choice] * 2


def test_a_failed_member_leaves_a_partial_group() -> None:
    control.define_groups(4)
    control.fail_create(2, errno.ENOSPC)
    seen, counts = run_guest_a()
    assert names(seen) == "cccrr" * 2
    assert [call.event for call in created(seen)][2::3] == [-errno.ENOSPC] * 2
    assert (counts.initialised, counts.destroyed) == (4, 4)


def test_a_failed_leader_leaves_nothing() -> None:
    control.define_groups(4)
    control.fail_create(0, errno.EBUSY)
    seen, counts = run_guest_a()
    assert names(seen) == "cc"
    assert counts.initialised == 0


def test_a_group_that_is_defined_once_is_degraded_to_one_event() -> None:
    control.define_groups(4, once=True)
    seen, _ = run_guest_a(rounds=2)
    # Stopped, it comes back as one event, which is paused and resumed from then on.
    assert names(seen) == "cccceeeerrrr" + "cp" + "rcpepr"


def test_a_shrunk_group_leaves_orphans() -> None:
    control.define_groups(4)
    control.shrink_to(2)
    seen, counts = run_guest_a()
    assert names(seen) == ("cccceeee" + "rr") * 2
    assert indexes(seen, "release") == [0, 1, 4, 5]
    assert (counts.initialised, counts.destroyed) == (8, 4)


@pytest.mark.parametrize(
    ("how", "enabled", "released"),
    [
        ("none", [0, 1, 2], [0, 1, 2]),
        ("create_enabled", [0, 1, 2], [0, 1, 2]),
        ("enable_early", [0, 0, 1, 2], [0, 1, 2]),
        ("wrong_leader", [0, 1, 2], [0, 1, 2]),
        ("swap_enables", [0, 2, 1], [0, 1, 2]),
        ("skip_enable", [0, 1], [0, 1, 2]),
        ("release_backwards", [0, 1, 2], [2, 1, 0]),
    ],
)
def test_kvm_misbehaves_when_asked(how: str, enabled: list[int], released: list[int]) -> None:
    control.define_groups(3)
    control.misbehave(how)
    seen, _ = run_guest_a()
    once = seen[: len(seen) // 2]
    assert indexes(once, "enable") == enabled
    assert indexes(once, "release") == released
    leader, second, third = created(once)
    assert second.leader == leader.event
    assert third.leader == (None if how == "wrong_leader" else leader.event)
    assert [call.disabled for call in (leader, second, third)] == [True, True, how != "create_enabled"]


def guest_reads(*, rounds: int = 1) -> list[int]:
    """What guest A reads with one rdmsr from its one counter at the end of each round."""
    with guest_a(counters=1, rounds=rounds) as guest:
        (values,) = guest.wait_for("vcpus")["vcpus"]
        guest.finish()
    return [value for (value,) in values]


def fields(value: int, bits: int) -> list[int]:
    """The fields of a counter of four events, the leader's first."""
    return [value >> i * bits & (1 << bits) - 1 for i in range(4)]


@pytest.mark.usefixtures("_counts_known")
@pytest.mark.parametrize("bits", [8, 16])
def test_a_guest_reads_four_events_with_one_rdmsr(bits: int) -> None:
    control.define_groups(4)
    control.define_members(0x21, 0x32, 0x43)
    control.splice(bits)
    first, second = guest_reads(rounds=2)
    # The guest chose 0x76 and programs its counter twice a round: what a group counted outlives the group.
    once = [0x76, 0x21, 0x32, 0x43]
    assert fields(first, bits) == [2 * count for count in once]
    assert fields(second, bits) == [4 * count % (1 << bits) for count in once]


@pytest.mark.usefixtures("_counts_known")
def test_without_splicing_the_guest_reads_the_leader() -> None:
    control.define_groups(4)
    control.define_members(0x21, 0x32, 0x43)
    assert guest_reads() == [2 * 0x76]


@pytest.mark.usefixtures("_counts_known")
def test_a_guest_sees_a_degraded_group() -> None:
    control.define_groups(4, once=True)
    control.define_members(0x21, 0x32, 0x43)
    control.splice(16)
    (value,) = guest_reads()
    # The second time the leader alone was there to count.
    assert fields(value, 16) == [2 * 0x76, 0x21, 0x32, 0x43]


@pytest.mark.parametrize("value", ["0", "5", "4,5"])
def test_kvm_refuses_group_sizes_that_it_has_no_room_for(value: str) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        (control.PARAMETERS / "group_sizes").write_text(value)


def test_perf_refuses_leaders_from_another_context() -> None:
    # The module's initialisation is the test.
    subprocess.run(["modprobe", "vpmu_leader_check"], check=True)
    subprocess.run(["rmmod", "vpmu_leader_check"], check=True)
