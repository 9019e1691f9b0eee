"""Groups that are whole, groups that lack members, and counters without any, in a census."""

from __future__ import annotations

import errno
from contextlib import ExitStack

import pytest

from .. import pmu
from ..guests import guest_a
from ..listed import listed, programmed
from ..vendor import CONFIGS, FIXED
from . import control


@pytest.mark.intel
def test_a_group_that_lacks_members_is_partial_and_no_other_is() -> None:
    control.define_groups(4, 1, 2)
    with ExitStack() as stack:
        whole = programmed(stack, guest_a("whole01", counters=3, stepwise=True))
        control.fail_create(2, errno.ENOSPC)
        partial = programmed(stack, guest_a("partial01", counters=3, stepwise=True))
        found = listed()
        counts = {guest.tgid: pmu.kvm_counts(guest.tgid) for guest in (whole, partial)}
    assert found.counters() == {
        "whole01": {"gp0": "descheduled", "gp1": "descheduled", "gp2": "descheduled"},
        "partial01": {"gp0": "partial", "gp1": "descheduled", "gp2": "descheduled"},
    }
    sizes = {
        (line["vm"], line["pmc"]): (len(line["events"]), line["group_size"]) for line in found.of("counter")
    }
    assert sizes == {
        ("whole01", "gp0"): (4, 4),
        ("whole01", "gp1"): (1, 1),
        ("whole01", "gp2"): (2, 2),
        ("partial01", "gp0"): (2, 4),
        ("partial01", "gp1"): (1, 1),
        ("partial01", "gp2"): (2, 2),
    }
    assert found.events("whole01") == counts[whole.tgid].alive == 7
    assert found.events("partial01") == counts[partial.tgid].alive == 5
    assert found.status == 1


@pytest.mark.intel
def test_every_counter_begins_with_one_event() -> None:
    """Whatever its size is to be: a counter that may not count has never had one."""
    control.define_groups(4, 4, 4, 4)
    control.define_fixed_groups(4, 4, 4)
    with ExitStack() as stack:
        programmed(stack, guest_a("filtered01", fixed=FIXED, stepwise=True, filtered=True))
        whole = programmed(stack, guest_a("whole01", fixed=FIXED, stepwise=True))
        found = listed()
        alive = pmu.kvm_counts(whole.tgid).alive
    sizes = {(line["vm"], line["pmc"]): line["group_size"] for line in found.of("counter")}
    assert sizes == {("filtered01", counter): 1 for counter in CONFIGS} | {
        ("whole01", counter): 4 for counter in CONFIGS
    }
    assert alive == 4 * len(CONFIGS)
