"""The lab itself, without the agent: KVM does what DESIGN says, by the PMU's and the kernel's own count."""

from __future__ import annotations

import errno
import os
from collections import Counter

import pytest

from . import live, pmu, tracefs
from .guests import guest_a, guest_b
from .pmu import Counts


def test_vpmu_is_live() -> None:
    assert live.ENABLE_PMU.read_text().strip() == "Y"


def test_the_test_pmu_counts_after_it_was_loaded_again() -> None:
    live.make_live()
    with guest_a() as guest:
        guest.finish()
        counts = pmu.kvm_counts(guest.tgid)
    assert counts.added == counts.removed > 0


def test_guest_a_makes_the_calls_that_are_expected_of_it() -> None:
    with tracefs.watch() as trace, guest_a(realtime=True) as guest:
        ((values,),) = guest.wait_for("vcpus")["vcpus"]
        guest.finish()
        counts = pmu.kvm_counts(guest.tgid)
    steps = ["create", "pause", "enable", "pause", "release"]
    assert trace.names(guest.tgid) == [step for step in steps for _ in range(4)]
    assert (counts.initialised, counts.destroyed, counts.failed) == (4, 4, 0)
    assert counts.added == counts.removed > 0
    assert len(values) == 4
    assert min(values) > 0


def test_every_vcpu_and_round_makes_its_own_events() -> None:
    with tracefs.watch() as trace, guest_a(counters=3, rounds=5, vcpus=2) as guest:
        guest.finish()
        counts = pmu.kvm_counts(guest.tgid)
    calls = Counter(trace.names(guest.tgid))
    assert calls["create"] + calls["enable"] == 2 * 30
    assert calls["create"] == calls["release"] == counts.initialised == counts.destroyed >= 30


def test_guest_a_stands_still_where_a_test_wants_it() -> None:
    with guest_a(stepwise=True) as guest:
        alive = {}
        for _ in range(3):
            stage = guest.wait_for("stage")["stage"]
            alive[stage] = pmu.kvm_counts(guest.tgid).alive
            guest.go_on()
        guest.finish()
        alive["over"] = pmu.kvm_counts(guest.tgid).alive
    assert alive == {"ready": 0, "programmed": 4, "done": 4, "over": 0}


def test_guest_b_counts_with_linux_perf() -> None:
    with tracefs.watch() as trace, guest_b(rounds=2) as guest:
        rounds = [guest.wait_for("round") for _ in range(2)]
        guest.wait_for("done")
        guest.finish()
        counts = pmu.kvm_counts(guest.tgid)
    for values in rounds:
        assert min(values[name] for name in ("cycles", "instructions", "branches", "branch_misses")) > 0
    assert counts.initialised == counts.destroyed >= 4
    calls = Counter(trace.names(guest.tgid))
    assert (calls["create"], calls["release"]) == (counts.initialised, counts.destroyed)


@pytest.mark.usefixtures("host_event")
def test_an_ordinary_event_is_counted_apart_from_kvms() -> None:
    kvm = pmu.kvm_counts()
    assert pmu.perf_counts(os.getpid()).alive == 1
    assert pmu.kvm_counts(os.getpid()) == Counts()
    with guest_a() as guest:
        guest.finish()
    assert (pmu.kvm_counts() - kvm).initialised >= 4
    assert pmu.perf_counts(os.getpid()).alive == 1


def test_a_full_pmu_leaves_counters_that_count_nothing() -> None:
    pmu.set_room(2)
    with guest_a() as guest:
        ((values,),) = guest.wait_for("vcpus")["vcpus"]
        guest.finish()
        counts = pmu.kvm_counts(guest.tgid)
    assert counts.initialised == counts.destroyed >= 4
    assert counts.failed == 0
    assert counts.refused > 0
    assert [value > 0 for value in values] == [True, True, False, False]


def test_creation_fails_when_asked() -> None:
    pmu.fail_creation(errno.ENODEV, after=3)
    with guest_a() as guest:
        guest.finish()
        counts = pmu.kvm_counts(guest.tgid)
    assert (counts.initialised, counts.destroyed) == (3, 3)
    assert counts.failed > 0


def test_a_killed_guest_leaves_no_events() -> None:
    with guest_a(stepwise=True) as guest:
        guest.wait_for("stage")
        guest.go_on()
        guest.wait_for("stage")
        assert pmu.kvm_counts(guest.tgid).alive == 4
        guest.kill()
        assert pmu.kvm_counts(guest.tgid).alive == 0
