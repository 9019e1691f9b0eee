"""Which counters went on after a reset of their VM: those that kept their events, and no others."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.guests import amd, seen
from tests.support.looks import ENABLED, WEB, Thing, look, pmc
from vpmu_agent.counts.counters import VmCounters
from vpmu_agent.counts.resets import MAX_NAMED, reset_sentence
from vpmu_agent.probes.census import Vcpu

AGAIN_NS = 2 * 10**9


def after_reset(**other: Any) -> Vcpu:
    """The usual vCPU, whose VM's TSC was set again."""
    return amd(tsc_set_ns=AGAIN_NS, **other)


def web(*looks: tuple[Thing, ...]) -> VmCounters:
    return seen({WEB: "web01"}, *(look(*things) for things in looks)).counters["web01"]


def outlived(*looks: tuple[Thing, ...]) -> list[str]:
    """Return the counters that are marked after these looks."""
    counters = web(*looks)
    marked = [counter.pmc for counter in counters.counters if counter.outlived_reset]
    assert len(marked) == counters.outlived_reset
    return marked


def test_counters_that_kept_their_events_are_marked() -> None:
    before, after = (amd(), pmc(0), pmc(1)), (after_reset(), pmc(0), pmc(1))
    assert outlived(before) == outlived(before, before) == []
    assert outlived(before, after) == ["gp0", "gp1"]
    assert outlived(before, after, after, after) == ["gp0", "gp1"]


def test_the_mark_goes_with_the_event() -> None:
    before, after = (amd(), pmc(0), pmc(1)), (after_reset(), pmc(0), pmc(1))
    # At the same place in memory, but another one.
    assert outlived(before, after, (after_reset(), pmc(0, event_id=7), pmc(1))) == ["gp1"]
    assert outlived(before, after, (after_reset(), pmc(0, control=0), pmc(1))) == ["gp1"]
    again = after_reset(), pmc(0, control=ENABLED | 0xC0), pmc(1)
    assert outlived(before, after, again) == ["gp1"]
    assert outlived(before, after, again, after) == ["gp1"]


@pytest.mark.parametrize(
    "after",
    [
        (after_reset(), pmc(0, event_id=7)),  # the guest set it up again
        (
            after_reset(),
            pmc(0, control=0x76),
        ),  # the VMM wrote to its register, and KVM keeps the event for a while
        (after_reset(), pmc(0, event=0, event_id=0)),
        (after_reset(kvmclock_offset=5), pmc(0)),  # it was restored, with its counters
        (amd(tsc_set_ns=None), pmc(0)),
        (amd(tsc_set_ns=0), pmc(0)),  # the host was suspended to disk
        (after_reset(), after_reset(address=0x20, vcpu_id=1), pmc(0)),  # a vCPU was plugged in
        (after_reset(vm=2), pmc(0)),
    ],
)
def test_others_are_not(after: tuple[Thing, ...]) -> None:
    assert outlived((amd(), pmc(0)), after) == []
    assert outlived((amd(), pmc(0)), after, after) == []


def test_a_vm_that_is_new_was_not_reset() -> None:
    assert outlived((), (after_reset(), pmc(0))) == []


def test_a_restore_and_then_a_reset() -> None:
    restored = {"tsc_set_ns": 3 * 10**9, "kvmclock_offset": 5}
    again = after_reset(kvmclock_offset=5), pmc(0)
    assert outlived((amd(), pmc(0)), (amd(**restored), pmc(0)), again) == ["gp0"]


def test_where_the_kernel_does_not_say_nothing_is_marked() -> None:
    assert outlived((amd(tsc_set_ns=None), pmc(0)), (amd(tsc_set_ns=None), pmc(0))) == []


def test_a_vcpu_that_waits_for_its_init_takes_one_look() -> None:
    others = amd(address=0x20, vcpu_id=1, awaits_init=True)
    waiting = pmc(0, vcpu=0x20, vcpu_id=1, state=0, thread_runs=False)
    assert outlived((amd(), others, pmc(0), waiting)) == ["gp0"]
    (first, second) = web((amd(), others, pmc(0), waiting)).counters
    assert (first.outlived_reset, second.outlived_reset) == (False, True)
    assert outlived((others, pmc(0, vcpu=0x20, control=0))) == []
    # It is started, and its guest does not know of the counter.
    started = amd(address=0x20, vcpu_id=1)
    assert outlived((amd(), others, waiting), (amd(), started, waiting)) == ["gp0"]


def test_its_sentence() -> None:
    two = amd(address=0x20, vcpu_id=1)
    assert reset_sentence("web01", web((amd(), pmc(0)))) == ""
    assert reset_sentence("web01", web((amd(), pmc(0)), (after_reset(), pmc(0)))) == (
        "web01 was reset, but its VMM has not reset a counter that goes on as before (gp0 of vCPU 0)"
    )
    things = pmc(0), pmc(3), pmc(1, vcpu=0x20, vcpu_id=1)
    both = amd(), two, *things
    reset = after_reset(), after_reset(address=0x20, vcpu_id=1), *things
    assert reset_sentence("web01", web(both, reset)) == (
        "web01 was reset, but its VMM has not reset 3 counters, which go on as before "
        "(gp0, gp3 of vCPU 0; gp1 of vCPU 1)"
    )
    many = tuple(pmc(index) for index in range(MAX_NAMED + 1))
    said = reset_sentence("web01", web((amd(), *many), (after_reset(), *many)))
    assert said.endswith("5 counters, which go on as before (gp0, gp1, gp2, gp3 of vCPU 0; …)")
