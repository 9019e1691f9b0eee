"""What `make generate` writes is as fresh as the rules, and the document is true to what they do."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from tests.support.mutations import duplicate
from tests.support.sequences import any_calls
from tests.support.world import World
from tools import generate
from vpmu_agent.model import check
from vpmu_agent.model.call import Call, CallName
from vpmu_agent.model.check import Checker
from vpmu_agent.model.generate.document import diagram_transitions, transitions
from vpmu_agent.model.predict import STEPS
from vpmu_agent.model.registers import Registers
from vpmu_agent.model.rules import SLOTS, Kind, State


@pytest.fixture(scope="module")
def generated() -> dict[Path, str]:
    return generate.generated()


@pytest.mark.parametrize(
    "path", [generate.MONITOR, generate.RULES, generate.DOCUMENT, generate.DIAGRAM], ids=str
)
def test_it_is_what_the_rules_make(path: Path, generated: dict[Path, str]) -> None:
    assert (generate.ROOT / path).read_text() == generated[path], "run `make generate`"


def test_the_picture_has_every_state() -> None:
    picture = (generate.ROOT / generate.PICTURE).read_text()
    for state in State:
        assert (f">{state}<" in picture) == (state is not State.UNKNOWN)


def test_the_generator_is_not_needed_at_run_time() -> None:
    rooms = "vpmu_agent.cli.main, vpmu_agent.daemon.run, vpmu_agent.loader.program, vpmu_agent.model.check"
    code = f"import sys, {rooms}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "vpmu_agent.model.compiled_rules" in loaded.split()
    assert "vpmu_agent.model.generate" not in loaded


# The table and the diagram, by what is seen of random hosts


def seen(calls: list[Call], *, forgets: bool = False) -> Iterator[tuple[CallName, State, Kind, State]]:
    """What each call meant and led to; without those that are unknown because they tell nothing new.

    With `forgets`, a divergence tells something new whatever went before.
    """
    checker = Checker()
    pmcs: dict[tuple[int, int], Registers] = vars(checker)["_pmcs"]
    for call in calls:
        known = pmcs.get((call.tgid, call.pmc))
        before = known.state if known and known.epoch == vars(checker)["_epoch"] and not call.lost else None
        if known and forgets:
            known.faults = 0
        kind = checker.observe(call).kind
        if call.max_nr_events <= SLOTS and (kind is not Kind.UNKNOWN or before in (None, State.UNKNOWN)):
            yield call.name, before or State.UNKNOWN, kind, pmcs[call.tgid, call.pmc].state


def test_the_table_has_what_can_happen_and_nothing_else() -> None:
    table = {(one.call, one.before, one.kind, one.after) for one in transitions()}
    met = {one for seed in range(8000) for one in seen(any_calls(seed, 60), forgets=seed % 2 == 0)}
    assert met == table


def conforming() -> Iterator[list[Call]]:
    """Every short life of a counter, as the mechanism has it; creations may fail."""
    for steps in product(STEPS, repeat=3):
        for size in (1, 2, 3):
            for fail_at in (None, *range(size)):
                world = World(random.Random(0), sizes=(size,), vcpus=1, pmcs=1)
                for step in ("program", "release", *steps):
                    world.step(world.counters[0], step, size=size, fail_at=fail_at)
                yield [replace(call, event_count=-1) for call in world.calls]


def test_the_diagram_is_what_kvm_does() -> None:
    drawn = {(one.call, one.before, one.after) for one in diagram_transitions()}
    met = {
        (call, before, after)
        for calls in conforming()
        for call, before, _, after in seen(calls)
        if before is not State.UNKNOWN
    }
    assert met == drawn


# Each is a fault that a generator, or a person, could make.
MUTANTS = {
    "another state": ("pmc.state = STATE_PAUSED", "pmc.state = STATE_RUNNING"),
    "another index": ("verdict(kind, index, -1)", "verdict(kind, 0, -1)"),
    "another kind": ("kind, instead = KIND_RELEASED_TWICE", "kind, instead = KIND_UNEXPECTED_CALL"),
    "a count too few": ("counts = (0, 0, 0, ahead.bit_count())", "counts = (0, 0, 0, 1)"),
    "an orphan forgotten": ("pmc.orphans |= pmc.members", "pass"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_fault_in_the_compiled_rules_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, wrong = MUTANTS[name]
    text = (generate.ROOT / generate.RULES).read_text()
    assert right in text
    path = tmp_path / "mutant.py"
    path.write_text(text.replace(right, wrong))
    spec = importlib.util.spec_from_file_location("mutant", path)
    assert spec is not None
    assert spec.loader is not None
    mutant = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutant)
    monkeypatch.setattr(check, "STEPS", mutant.STEPS)
    with pytest.raises(AssertionError):
        agrees_with_the_mechanism()


def test_the_compiled_rules_agree_with_the_mechanism() -> None:
    agrees_with_the_mechanism()


def agrees_with_the_mechanism() -> None:
    for seed in range(100):
        conforming = World(random.Random(seed), sizes=(1, 2, 3), vcpus=1, reuses_addresses=False)
        conforming.run(30, hazards=False)
        checker = Checker()
        predicted = Counter[CallName]()
        indices: dict[int, int] = {}
        last: dict[int, int] = {}
        for call in conforming.calls:
            verdict = checker.observe(call)
            assert verdict.kind is Kind.PREDICTED
            predicted.update(verdict.predicted)
            if call.name is CallName.CREATE:
                last[call.pmc] = indices[call.event] = last[call.pmc] + 1 if call.leader else 0
            assert verdict.event == indices[call.event]
        assert predicted == Counter(call.name for call in conforming.calls)
        releases = [i for i, call in enumerate(conforming.calls) if call.name is CallName.RELEASE]
        if releases:
            calls = [replace(call, event_count=-1) for call in duplicate(conforming.calls, releases[-1])]
            checker = Checker()
            kinds = [kind for call in calls if (kind := checker.observe(call).kind).is_divergence]
            assert kinds == [Kind.RELEASED_TWICE]

        hazardous = World(random.Random(seed), sizes=(1, 2, 3))
        hazardous.run(60, hazards=True)
        checker = Checker()
        kinds = [checker.observe(call).kind for call in hazardous.calls]
        assert Counter(kind for kind in kinds if kind is not Kind.PREDICTED) == +hazardous.hazards
        held = sum(group.events + group.orphans for group in checker.groups())
        pmus = {counter.vcpu: counter.pmc.pmu for counter in hazardous.counters}
        assert held == sum(pmu.event_count for pmu in pmus.values())
