"""The agent against a KVM that makes groups: as predicted, but for what the lab makes go wrong."""

from __future__ import annotations

import errno
import json
import subprocess
from collections import Counter
from collections.abc import Callable
from itertools import product

import pytest

from vpmu_agent.model.rules import Kind

from .. import agent, pmu
from ..agent import COMMAND, Line, Seen
from ..checks import assert_agrees, assert_as_predicted
from ..guests import guest_a, guest_b
from ..vendor import FIXED, IS_INTEL
from . import control
from .misbehaviour import MISBEHAVIOUR


def divergences(seen: Seen, vm: str, counter: str | None = None) -> Counter[str]:
    """The divergences in the calls for `vm`; of one of its counters."""
    return Counter(
        line["verdict"]
        for line in seen.calls(vm)
        if counter in (None, line["pmc"]) and Kind(line["verdict"]).is_divergence
    )


def places(lines: list[Line]) -> set[tuple[str, int, str]]:
    return {(line["vm"], line["vcpu"], line["pmc"]) for line in lines}


@pytest.mark.intel
def test_groups_of_one_to_four_are_as_predicted() -> None:
    sizes = {"gp0": 4, "gp1": 1, "gp2": 2, "gp3": 3}
    control.define_groups(*sizes.values())
    if IS_INTEL:
        sizes |= {"fixed0": 3, "fixed1": 1, "fixed2": 4}
        control.define_fixed_groups(3, 1, 4)
    with agent.trace() as tracing, guest_a("grouped01", fixed=FIXED, rounds=3, vcpus=2) as guest:
        guest.finish()
        counts = pmu.kvm_counts(guest.tgid)
        seen = tracing.stop()
    assert_agrees(seen, "grouped01", counts)
    assert_as_predicted(seen, "grouped01")
    assert {line["pmc"] for line in seen.calls("grouped01", "create")} == sizes.keys()
    for line in seen.calls("grouped01", "create"):
        assert line["max_nr_events"] == sizes[line["pmc"]]
        assert line["leader"] == (0 if line["event"] else None)
        assert line["attr"]["disabled"] == (sizes[line["pmc"]] > 1)
        assert line["attr"]["pinned"]


def test_the_agents_event_count_is_kvms_own() -> None:
    control.define_groups(4, 1, 2, 3)
    with agent.trace() as tracing, guest_a("grouped01", rounds=2, vcpus=2) as guest:
        guest.finish()
        seen = tracing.stop()
    held: Counter[int] = Counter()
    for line in seen.calls("grouped01"):
        # It is read when an event is created, and then only.
        assert line["event_count"] == (held[line["vcpu"]] if line["call"] == "create" else -1)
        held[line["vcpu"]] += (line["call"] == "create") - (line["call"] == "release")
    assert sum(line["call"] == "create" for line in seen.calls("grouped01")) > 10
    assert not +held


def test_a_linux_guest_with_grouped_counters() -> None:
    control.define_groups(4, 3, 2, 1)
    with agent.trace() as tracing, guest_b("web01") as guest:
        guest.wait_for("done")
        guest.finish()
        counts = pmu.kvm_counts(guest.tgid)
        seen = tracing.stop()
    assert counts.initialised > 4
    assert_agrees(seen, "web01", counts)
    assert_as_predicted(seen, "web01")


HAZARDS: dict[Kind, Callable[[], None]] = {
    Kind.PARTIAL_GROUP: lambda: control.fail_create(2, errno.ENOSPC),
    Kind.DEGRADED_GROUP: lambda: control.define_groups(4, 4, once=True),
    Kind.ORPHANED_MEMBER: lambda: control.shrink_to(2),
}
ILL = {"gp1": 1} | ({"fixed1": 33} if IS_INTEL else {})
"""Counters that a hazard happens at, with KVM's numbers of them."""


@pytest.mark.intel
def test_each_hazard_is_named_where_it_happens() -> None:
    """Two VMs of two vCPUs and some counters: the hazard is at one counter of one vCPU of one VM."""
    with agent.trace() as tracing:
        for kind, counter in product(HAZARDS, ILL):
            control.define_groups(4, 4)
            control.define_fixed_groups(4, 4)
            HAZARDS[kind]()
            names = f"ill_{kind}_{counter}", f"well_{kind}_{counter}"
            ill, well = (guest_a(name, counters=2, fixed=FIXED, vcpus=2, stepwise=True) for name in names)
            with ill, well:
                control.hazards_at(tgid=ill.tgid, vcpu=1, counter=ILL[counter])
                for guest in (ill, well):
                    for _ in range(3):
                        guest.wait_for("stage")
                        guest.go_on()
                    guest.finish()
            control.reset()
        seen = tracing.stop()
    assert seen.status == 1
    for kind, counter in product(HAZARDS, ILL):
        name = f"ill_{kind}_{counter}"
        found = [line for line in seen.calls(name) if line["verdict"] != Kind.PREDICTED]
        assert {line["verdict"] for line in found} == {kind}
        assert places(found) == {(name, 1, counter)}
        assert all(line["expected"] for line in found)
        assert not divergences(seen, f"well_{kind}_{counter}")


# What KVM is made to do, and what it is to be called.
@pytest.mark.intel
def test_what_kvm_should_never_do_is_named() -> None:
    control.define_groups(3)
    control.define_fixed_groups(3)
    fixed = min(FIXED, 1)
    with agent.trace() as tracing:
        for how in MISBEHAVIOUR:
            control.misbehave(how)
            with guest_a(how, counters=1, fixed=fixed) as guest:
                guest.finish()
        seen = tracing.stop()
    for counter in ["gp0", "fixed0"][: 1 + fixed]:
        assert {how: set(divergences(seen, how, counter)) for how in MISBEHAVIOUR} == {
            how: {str(kind) for kind in kinds} for how, kinds in MISBEHAVIOUR.items()
        }


@pytest.mark.parametrize("bits", [8, 16])
def test_four_events_read_with_one_rdmsr(bits: int) -> None:
    control.define_groups(4)
    control.define_members(0xC0, 0xC2, 0xC3)
    control.splice(bits)
    with agent.trace() as tracing, guest_a("allinone01", counters=1) as guest:
        (((value,),),) = guest.wait_for("vcpus")["vcpus"]
        guest.finish()
        counts = pmu.kvm_counts(guest.tgid)
        seen = tracing.stop()
    assert all(value >> i * bits & (1 << bits) - 1 for i in range(4))
    assert_agrees(seen, "allinone01", counts)
    assert_as_predicted(seen, "allinone01")
    configs = [line["attr"]["config"] for line in seen.calls("allinone01", "create")]
    assert configs == [0x76, 0xC0, 0xC2, 0xC3] * 2
    assert seen.summary("allinone01")["calls"] == {"create": 8, "enable": 8, "pause": 0, "release": 8}


def test_doctor_knows_this_kernels_groups() -> None:
    done = subprocess.run(
        [*COMMAND, "doctor", "--output", "json"], capture_output=True, text=True, check=False
    )
    checks = {line["check"]: line for line in map(json.loads, done.stdout.splitlines()) if "check" in line}
    assert checks["groups"]["status"] == "ok"
    assert checks["groups"]["found"] == f"grouped events, up to {control.MAX_GROUP_SIZE} per counter"
    assert checks["types"]["found"].endswith("6 arguments")
