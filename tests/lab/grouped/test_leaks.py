"""Events that KVM leaks, found by the census: told once and with their holder, and of no other guest.

After a VM has ended, the test PMU's account says how many events of it KVM never released.
"""

from __future__ import annotations

import errno
import re
from contextlib import ExitStack

import pytest

from vpmu_agent.daemon.leaks import BURST

from .. import agent, pmu
from ..agent import Agent
from ..guests import Guest, guest_a
from ..listed import listed, programmed
from ..scrape import Metrics, scrape_until, total
from . import control

LISTEN = "127.0.0.1:9775"
LEAKED_S = 60.0  # an emulated machine pulls the census every few seconds, and it takes two pulls


def guest(name: str) -> Guest:
    """Two vCPUs of two counters, each programmed twice."""
    return guest_a(name, counters=2, vcpus=2, stepwise=True)


def run_to_its_end(started: Guest) -> None:
    """Has the guest do all it does; it stays there, with its vCPUs asleep."""
    for stage in ("ready", "programmed"):
        assert started.wait_for("stage")["stage"] == stage
        started.go_on()
    assert started.wait_for("stage")["stage"] == "done"


def leaked(ended: Guest) -> int:
    """How many events of a guest that turned its counters off are still there: a group is released then.

    A group of four that shrinks to two leaves two behind each time.
    """
    found = pmu.kvm_counts(ended.tgid).alive
    assert 0 < found <= BURST
    return found


def leaks_told(running: Agent) -> list[str]:
    return [line for line in running.stderr().splitlines() if "leaked" in line]


def wait_for_leaks(number: int, vm: str) -> Metrics:
    return scrape_until(
        LISTEN, lambda now: total(now, "vpmu_leaked_events", vm=vm) == number, timeout_s=LEAKED_S
    )


def wait_for_pulls(number: int) -> Metrics:
    """The metrics after so many more pulls of the census."""

    def pulls(metrics: Metrics) -> float:
        return total(metrics, "vpmu_agent_census_pulls_total")

    before = pulls(scrape_until(LISTEN, lambda _: True))
    found = scrape_until(LISTEN, lambda now: pulls(now) >= before + number, timeout_s=LEAKED_S)
    assert pulls(found) >= before + number
    return found


def has_series(metrics: Metrics, vm: str) -> bool:
    return ("vpmu_leaked_events", frozenset({("vm", vm)})) in metrics


@pytest.mark.intel
def test_a_counter_whose_events_are_leaked_is_orphaned_and_no_other_is() -> None:
    control.define_groups(4, 4)
    with ExitStack() as stack:
        ill, well = (stack.enter_context(guest(name)) for name in ("ill01", "well01"))
        control.shrink_to(2)
        control.hazards_at(tgid=ill.tgid, vcpu=1, counter=1)
        for each in (ill, well):
            run_to_its_end(each)
        found = listed("--all")
        leaked(ill)
    statuses = {(line["vm"], line["vcpu"], line["pmc"]): line["status"] for line in found.of("counter")}
    assert {where for where, status in statuses.items() if status == "orphaned"} == {("ill01", 1, "gp1")}
    assert found.status == 1


def test_each_leak_is_told_once_with_its_holder() -> None:
    control.define_groups(4, 4)
    with agent.run(LISTEN) as running, ExitStack() as stack:
        ill, well = (stack.enter_context(guest(name)) for name in ("ill01", "well01"))
        control.shrink_to(2)
        control.hazards_at(tgid=ill.tgid, vcpu=1, counter=1)
        for each in (ill, well):
            run_to_its_end(each)
        number = leaked(ill)
        found = wait_for_leaks(number, "ill01")
        assert total(found, "vpmu_leaked_events", vm="ill01") == number
        assert has_series(found, "well01")
        assert total(found, "vpmu_leaked_events") == number
        wait_for_pulls(2)
        told = leaks_told(running)
        assert len(told) == number
        for line in told:
            assert re.match(
                r"ill01, vCPU 1, gp1: KVM has leaked an event \(r[0-9a-f]+:\S+\): for (more than )?\d+ s the "
                r"counter has not held it, so nothing will release it; ",
                line,
            )
        for each in (ill, well):
            each.kill()
        assert [pmu.kvm_counts(each.tgid).alive for each in (ill, well)] == [number, 0]
        after = scrape_until(LISTEN, lambda now: not has_series(now, "ill01"), timeout_s=LEAKED_S)
        assert not has_series(after, "ill01")
        wait_for_pulls(1)
        assert leaks_told(running) == told
        assert running.stop().status == 0


def test_an_agent_that_restarts_tells_of_old_leaks_and_of_no_usual_guest() -> None:
    control.define_groups(4, 4)
    with ExitStack() as stack:
        ill = stack.enter_context(guest("ill01"))
        control.shrink_to(2)
        control.hazards_at(tgid=ill.tgid, vcpu=1, counter=1)
        run_to_its_end(ill)
        number = leaked(ill)
        control.reset()
        control.define_groups(4, 1, 2)
        programmed(stack, guest_a("whole01", counters=3, stepwise=True))
        control.fail_create(2, errno.ENOSPC)
        programmed(stack, guest_a("partial01", counters=3, stepwise=True))
        control.fail_create(-1, errno.ENOSPC)
        with agent.run(LISTEN) as running:
            found = wait_for_leaks(number, "ill01")
            assert total(found, "vpmu_leaked_events", vm="ill01") == number
            with guest_a("busy01", rounds=64, vcpus=2) as busy:
                busy.finish()
            killed = programmed(stack, guest_a("killed01", stepwise=True))
            killed.kill()
            programmed(stack, guest_a("killed01", stepwise=True))
            found = wait_for_pulls(3)
            assert total(found, "vpmu_leaked_events") == number
            for vm in ("whole01", "partial01", "killed01"):
                assert has_series(found, vm)
            told = leaks_told(running)
            assert len(told) == number
            assert all("ill01, vCPU 1, gp1: " in line and ": for more than " in line for line in told)
            assert running.stop().status == 0
