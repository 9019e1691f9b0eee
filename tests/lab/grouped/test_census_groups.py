"""Groups that are whole, and groups that lack members, in a census."""

from __future__ import annotations

import errno
from contextlib import ExitStack

from .. import pmu
from ..guests import guest_a
from ..listed import listed, programmed
from . import control


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
