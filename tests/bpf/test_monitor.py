"""The BPF monitor says what the Python check says, call for call and in its counts."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bpf import fuzz
from tests.bpf.twins import Twins
from tests.support.sequences import sequence
from tests.support.world import World
from vpmu_agent.loader import program
from vpmu_agent.model.call import Call, CallName
from vpmu_agent.model.check import Checker
from vpmu_agent.model.rules import Kind
from vpmu_agent.probes.layout import SIZES
from vpmu_agent.probes.sources import bpf_folder


def test_some_thousands_of_random_sequences() -> None:
    calls, kinds, different = fuzz.run(range(3000))
    assert different == []
    assert calls > 50_000
    assert set(kinds) == set(Kind)


# Each is a fault that a generator, or a person, could make.
MUTANTS = {
    "another state": ("pmc->state = VPMU_STATE_PAUSED;", "pmc->state = VPMU_STATE_RUNNING;"),
    "another index": ("call->event_index = index;", "call->event_index = 0;"),
    "another kind": ("say_next(call, RELEASED_TWICE);", "say_next(call, UNKNOWN);"),
    "another expectation": ("say(call, ORPHANED_MEMBER, RELEASES,", "say(call, ORPHANED_MEMBER, RELEASE,"),
    "a count too few": (
        "vcpu->predicted[VPMU_RELEASE] += mask_count(ahead);",
        "vcpu->predicted[VPMU_RELEASE]++;",
    ),
    "an orphan forgotten": ("pmc->orphans |= pmc->members;", ";"),
    "a repetition reported": ("pmc->faults |= BIT(call->kind);", ";"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_fault_in_the_generated_monitor_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, wrong = MUTANTS[name]
    folder = shutil.copytree(bpf_folder(), tmp_path / "bpf")
    text = (folder / "monitor.h").read_text()
    assert right in text
    (folder / "monitor.h").write_text(text.replace(right, wrong))
    monkeypatch.setattr(program, "bpf_folder", lambda: folder)
    twins = Twins(grouped=True, vcpus=2, pmcs=3, events=8192)
    sequences = (sequence(seed, grouped=True) for seed in range(2000))
    assert any(list(fuzz.differences(calls, twins)) for calls in sequences)


def test_what_is_conforming_sends_nothing_and_is_counted() -> None:
    world = World(random.Random(1), sizes=(1, 2, 4), vcpus=1)
    world.run(200, hazards=False)
    twins = Twins(grouped=True)
    twins.stream(on=False)
    check = Checker()
    for call in world.calls:
        twins.make(call)
        check.observe(call)
    assert twins.received() == []
    counted = twins.vcpu(0)
    assert sum(counted["calls"]) == counted["verdicts"][0] == len(world.calls)
    assert counted["predicted"] == counted["calls"]
    buckets = counted["duration_buckets"]
    width = SIZES["VPMU_BUCKETS"]
    by_call = tuple(sum(buckets[i * width : (i + 1) * width]) for i in range(len(CallName)))
    assert by_call == counted["calls"]


def test_a_full_ring_loses_no_count() -> None:
    calls = [call for seed in range(40) for call in sequence(seed, grouped=True)]
    twins = Twins(grouped=True, vcpus=2, pmcs=3, events=8192, ring_pages=1)
    check = Checker()
    said = [check.observe(call).kind for call in calls]
    for call in calls:
        twins.make(call)
    divergences = sum(kind.is_divergence for kind in said)
    counted = sum(sum(twins.vcpu(vcpu)["verdicts"][2:]) for vcpu in (0, 1))
    assert counted == divergences > 0
    assert twins.lost()["ring_full"] > 0


def first_calls() -> list[Call]:
    """A program of one counter, and what follows on it."""
    world = World(random.Random(3), sizes=(1,), vcpus=1, pmcs=1)
    world.run(20, hazards=False)
    return world.calls


def test_a_call_that_returns_after_the_end_is_judged_as_ever() -> None:
    twins = Twins(grouped=False)
    before, last = first_calls()[:2]
    twins.make(before)
    twins.enter(last)
    twins.end()
    twins.leave(last)
    twins.make(first_calls()[2])
    assert [verdict.kind for _, verdict in twins.received()] == [Kind.PREDICTED] * 2
    assert sum(twins.vcpu(0)["calls"]) == 2


def test_a_thread_belongs_to_the_process_that_calls() -> None:
    twins = Twins(grouped=False)
    twins.begun_before(tgid=1)
    twins.make(first_calls()[0])
    assert twins.whose_thread() == os.getpid()


def test_an_errno_too_many_is_counted() -> None:
    twins = Twins(grouped=False, max_entries={"errors": 1})
    create = first_calls()[0]
    for error in (12, 28, 28):
        twins.make(replace(create, result=-error, event=0))
    assert twins.lost()["errors_full"] == 2
    assert twins.vcpu(0)["calls"][0] == 3
