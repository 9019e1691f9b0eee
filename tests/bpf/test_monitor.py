"""The BPF monitor says what the Python check says, call for call and in its counts."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from tests.bpf import fuzz
from tests.bpf.twins import Twins
from tests.support import every
from tests.support.scenes import Guest
from tests.support.sequences import possible, sequence, without_groups
from tests.support.world import World
from vpmu_agent.loader import program
from vpmu_agent.model.call import Call, CallName
from vpmu_agent.model.check import Checker
from vpmu_agent.model.rules import Kind
from vpmu_agent.probes.layout import SIZES
from vpmu_agent.probes.sources import bpf_folder

Load = Callable[..., Twins]


@pytest.fixture
def load() -> Iterator[Load]:
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(Twins(**options))


def test_some_thousands_of_random_sequences() -> None:
    came = fuzz.randomly(range(3000))
    assert came.different == []
    assert came.calls > 50_000
    assert set(came.kinds) == set(Kind)


def test_everything_that_guests_can_do_in_two_steps() -> None:
    came = fuzz.exhaustively((2, 0, every.count(2)))
    assert came.different == []
    assert came.sequences == every.count(2) == 646


@pytest.mark.parametrize("grouped", [False, True], ids=["stock", "grouped"])
def test_without_durations_it_says_the_same(load: Load, grouped: bool) -> None:
    twins = load(grouped=grouped, vcpus=2, pmcs=3, events=8192, durations=False)
    for seed in range(1000):
        calls = sequence(seed, grouped=grouped)
        calls = possible(calls if grouped else without_groups(calls))
        assert list(fuzz.differences(calls, twins, traced=seed % 4 == 0)) == []
    assert sum(twins.lost().values()) == 0


def test_without_durations_a_record_has_none(load: Load) -> None:
    measuring, counting = (load(grouped=True, durations=durations) for durations in (True, False))
    calls = list(Guest("web01", os.getpid()).life(size=2))
    for call in calls:
        measured, unmeasured = (twins.observe(call)[0] for twins in (measuring, counting))
        assert measured.duration_ns > 0
        assert measured.time_ns < unmeasured.time_ns < measured.time_ns + 1_000_000_000
        if call.name is not CallName.CREATE:
            assert unmeasured.duration_ns == 0


# Each is a fault that a generator, or a person, could make.
MUTANTS = {
    "another state": ("pmc->state = VPMU_STATE_PAUSED;", "pmc->state = VPMU_STATE_RUNNING;"),
    "another index": ("call->event_index = index;", "call->event_index = 0;"),
    "another kind": ("say_next(call, RELEASED_TWICE);", "say_next(call, UNKNOWN);"),
    "another expectation": ("say(call, ORPHANED_MEMBER, RELEASES,", "say(call, ORPHANED_MEMBER, RELEASE,"),
    "a count too few": ("due[VPMU_RELEASE] += mask_count(ahead);", "due[VPMU_RELEASE]++;"),
    "an orphan forgotten": ("pmc->orphans |= pmc->members;", ";"),
    "a repetition reported": ("pmc->faults |= BIT(call->kind);", ";"),
    "N not asked for": (
        "if (name == VPMU_RELEASE)\n\t\treturn",
        "if (name == VPMU_RELEASE)\n\t\treturn 0 &&",
    ),
}


def is_found(
    text: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    sequences: int = 2000,
    file: str = "monitor.h",
) -> bool:
    """Whether a file with a fault makes the monitor say anything else than the Python check."""
    shutil.copytree(bpf_folder(), folder)
    (folder / file).write_text(text)
    monkeypatch.setattr(program, "bpf_folder", lambda: folder)
    tried = (possible(sequence(seed, grouped=True)) for seed in range(sequences))
    with Twins(grouped=True, vcpus=2, pmcs=3, events=8192) as twins:
        return any(list(fuzz.differences(calls, twins)) for calls in tried)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_fault_in_the_generated_monitor_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, wrong = MUTANTS[name]
    text = (bpf_folder() / "monitor.h").read_text()
    assert right in text
    assert is_found(text.replace(right, wrong), tmp_path / "bpf", monkeypatch)


# What a person could get wrong about the event whose state is read.
STARVATION_MUTANTS = {
    "the member's own state": ("(pmc->members & 1) ? pmc->event : event", "0 ? pmc->event : event"),
    "the first event of a group that is not known": ("pmc->state != VPMU_STATE_UNKNOWN && ", ""),
    "the first event that is gone": (" && (pmc->members & 1) ?", " ?"),
    "a group that is not complete": ("if (pmc->state == VPMU_STATE_ENABLING)", "if (0)"),
    "an event that is created disabled": ("if (!call->failed && !call->disabled)", "if (!call->failed)"),
    "a sibling's own state": ("call->leader ? call->leader : call->event", "call->event"),
    "an errno that stays": ("pmc->error = -result;", "if (result)\n\t\tpmc->error = -result;"),
    "a usual event that is created disabled": ("!(attr.flags & ATTR_DISABLED) && unlikely(", "unlikely("),
    "a usual create without room": ("unlikely(is_starved(event))", "0"),
    "an errno that outlives a usual create": ("pmc->error = 0;\n\tcount_call", "count_call"),
}


@pytest.mark.parametrize("name", STARVATION_MUTANTS)
def test_a_fault_in_what_is_starved_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, wrong = STARVATION_MUTANTS[name]
    text = (bpf_folder() / "vpmu.bpf.c").read_text()
    assert right in text
    assert is_found(text.replace(right, wrong), tmp_path / "bpf", monkeypatch, file="vpmu.bpf.c")


NOTE = "if (!is_kvms)\n\t\tnote_guest_lbr(call->tgid, call->born);\n\t"
# What a person could get wrong about KVM's own count of events, in which that of guest LBR is.
GUEST_LBR_MUTANTS = {
    "a miscount of its event": ("|| !has_guest_lbr(vcpu->tgid)", "|| 1"),
    "any miscount forgiven": ("& 0xff) > 2 ||", "& 0xff) > 255 ||"),
    "a release that nobody noted": (f"{NOTE}if (!find_entries", "if (!find_entries"),
    "a create that nobody noted": (
        "if (unlikely(!is_kvms))\n\t\tnote_guest_lbr(call->tgid, call->born);\n\t",
        "",
    ),
}


@pytest.mark.parametrize("name", GUEST_LBR_MUTANTS)
def test_a_fault_in_what_guest_lbr_explains_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, wrong = GUEST_LBR_MUTANTS[name]
    text = (bpf_folder() / "vpmu.bpf.c").read_text()
    assert right in text
    assert is_found(text.replace(right, wrong), tmp_path / "bpf", monkeypatch, file="vpmu.bpf.c")


def lines_of_usual_calls() -> list[tuple[str, int]]:
    """Each line of vpmu_is_usual_*() that does or refuses something, with its number in monitor.h."""
    function, found = "", []
    lines = (bpf_folder() / "monitor.h").read_text().splitlines()
    for i, line in enumerate(lines):
        if match := re.search(r"bool vpmu_is_usual_(\w+)\(", line):
            function = match[1]
        text = line.strip()
        is_guard = text == "return 0;" and line.startswith("\t\t")
        if function and (is_guard or re.match(r"(pmc->|\*index|add_due|put_event).*;$", text)):
            what = f"unless {lines[i - 1].strip()}" if is_guard else text
            found.append((f"{function}: {what}", i))
    return found


LINES = lines_of_usual_calls()
# What the model's rules say and what cannot be otherwise where the line stands, so that it changes nothing.
IDLE = {
    "enable: unless if (unlikely(n > VPMU_SLOTS))": "only N = 1 is usual, and a group's N was looked at",
    "pause: unless if (unlikely(n > VPMU_SLOTS))": "only N = 1 is usual there",
    "release: unless if (unlikely(!ahead))": "a release goes on only while there is something ahead",
    "release: pmc->state = VPMU_STATE_RELEASING;": "it is already",
    "release: pmc->orphans |= pmc->members;": "no member is left: otherwise the call is not predicted",
    "release: pmc->members = 0;": "no member is left",
    "create: *index_of_event = 0;": "it is 0 before",
    "create: *index_of_event = at;": "of the next member: a hint that is wrong is not followed",
    "create: pmc->enabled = disabled ? (pmc->enabled & ~BIT_ULL(at)) : (pmc->enabled | BIT_ULL(at));": (
        "of the next member: nothing has enabled it yet"
    ),
    "create: pmc->members = 0;": "a pmc that is empty has none",
    "create: pmc->orphans &= ~BIT_ULL(at);": "there are none: the caller has looked",
    "create: pmc->gone &= ~BIT_ULL(at);": "the program has released nothing yet",
    "create: pmc->state = VPMU_STATE_CREATING;": "of the next member: it is already",
    "create: unless if (unlikely(index >= 0))": "KVM's count of events, which the twins have, tells it",
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "at"), LINES, ids=[f"{at}-{name}" for name, at in LINES])
def test_no_line_of_a_usual_call_can_be_left_out(
    name: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (bpf_folder() / "monitor.h").read_text().splitlines(keepends=True)
    lines[at] = ";\n"
    found = is_found("".join(lines), tmp_path / "bpf", monkeypatch, sequences=8000)
    assert found or name in IDLE


@pytest.mark.parametrize("at", [at for _, at in LINES][3::9])
def test_some_lines_of_usual_calls_cannot_be_left_out(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = next(name for name, number in LINES if number == at)
    test_no_line_of_a_usual_call_can_be_left_out(name, at, tmp_path, monkeypatch)


def test_what_is_conforming_sends_nothing_and_is_counted(load: Load) -> None:
    world = World(random.Random(1), sizes=(1, 2, 4), vcpus=1)
    world.run(200, hazards=False)
    twins = load(grouped=True)
    twins.stream(on=False)
    for call in world.calls:
        twins.make(call)
    assert twins.received() == []
    for name in CallName:
        made = sum(call.name is name for call in world.calls)
        index = tuple(CallName).index(name)
        assert sum(pmc["calls"][index] for pmc in twins.pmcs()) == made > 0
        assert sum(sum(pmc[f"{name}_buckets"]) for pmc in twins.pmcs()) == made
        assert sum(pmc[f"{name}_ns"][0] for pmc in twins.pmcs()) > made
    assert not any(any(pmc["verdicts"]) for pmc in twins.pmcs())


def test_a_count_above_32_bits_goes_on(load: Load) -> None:
    twins = load(grouped=False)
    twins.stream(on=False)
    create, pause, enable = _first_calls()[:3]
    twins.make(create)
    name = tuple(CallName).index(CallName.PAUSE)
    twins.write_pmc(
        create.pmc, calls=(0, 0, 2**32 - 1, 0), pause_buckets=(2**32 - 1,) * SIZES["VPMU_BUCKETS"]
    )
    for _ in range(2):
        twins.make(pause)
        twins.make(enable)
    (pmc,) = twins.pmcs()
    assert pmc["calls"][name] + (pmc["calls_high"][name] << 32) == 2**32 + 1
    carries = [pmc["pause_carries"][0] >> 5 * i & 31 for i in range(SIZES["VPMU_BUCKETS"])]
    buckets = [count + (carry << 32) for count, carry in zip(pmc["pause_buckets"], carries, strict=True)]
    assert sum(buckets) == SIZES["VPMU_BUCKETS"] * (2**32 - 1) + 2


def test_a_full_ring_loses_no_count(load: Load) -> None:
    calls = [call for seed in range(40) for call in possible(sequence(seed, grouped=True))]
    twins = load(grouped=True, vcpus=2, pmcs=3, events=8192, ring_pages=1)
    check = Checker()
    said = [check.observe(call).kind for call in calls]
    for call in calls:
        twins.make(call)
    divergences = sum(kind.is_divergence for kind in said)
    assert sum(sum(pmc["verdicts"][2:]) for pmc in twins.pmcs()) == divergences > 0
    assert twins.lost()["ring_full"] > 0


def _first_calls() -> list[Call]:
    """A program of one counter that is paused and resumed, and what follows on it."""
    world = World(random.Random(3), sizes=(1,), vcpus=1, pmcs=1)
    for step in ("program", "pause", "resume", "stop", "program", "stop"):
        world.take(world.counters[0], step, size=1)
    return world.calls


def test_a_create_that_returns_after_the_end_is_judged_as_ever(load: Load) -> None:
    twins = load(grouped=False)
    create, pause = _first_calls()[:2]
    twins.enter(create)
    twins.end()
    twins.leave(create)
    twins.make(pause)
    assert [verdict.kind for _, verdict in twins.received()] == [Kind.PREDICTED]
    (pmc,) = twins.pmcs()
    assert sum(pmc["calls"]) == 1


def test_after_a_create_whose_return_was_missed_nothing_is_known(load: Load) -> None:
    twins = load(grouped=False)
    create, pause, *_, release = _first_calls()
    program = _first_calls()[-2:]
    twins.enter(create)
    twins.make(replace(pause, event=77))
    kinds = [verdict.kind for _, verdict in twins.received()]
    for call in [replace(release, event=77), *program]:
        twins.make(call)
    kinds += [verdict.kind for _, verdict in twins.received()]
    assert kinds == [Kind.UNKNOWN, Kind.PREDICTED, Kind.PREDICTED, Kind.PREDICTED]
    assert twins.lost()["missed_return"] == 1


def test_a_usual_call_whose_return_was_missed_lacks_its_duration_only(load: Load) -> None:
    twins = load(grouped=False)
    twins.stream(on=False)
    create, pause, enable = _first_calls()[:3]
    twins.make(create)
    twins.enter(pause)
    twins.make(enable)
    (pmc,) = twins.pmcs()
    assert pmc["calls"] == (1, 1, 1, 0)
    assert [sum(pmc[f"{name}_buckets"]) for name in ("enable", "pause")] == [1, 0]
    assert not any(pmc["verdicts"])
    assert twins.lost()["missed_return"] == 1


def test_threads_come_and_go_and_need_no_room(load: Load) -> None:
    twins = load(grouped=False)
    twins.stream(on=False)
    calls = _first_calls()
    for call in calls * 20:
        thread = Thread(target=twins.make, args=(call,))
        thread.start()
        thread.join()
    (pmc,) = twins.pmcs()
    assert sum(pmc["calls"]) == 20 * len(calls)
    assert not any(pmc["verdicts"])
    assert sum(twins.lost().values()) == 0


def test_a_process_takes_no_more_than_its_share(load: Load) -> None:
    world = World(random.Random(1), sizes=(1,), vcpus=1, pmcs=3)
    twins = load(grouped=False, max_entries={"pmcs": 2 * SIZES["VPMU_SHARES"]})
    for counter in world.counters:
        world.take(counter, "program", size=1)
        world.take(counter, "stop", size=1)
    for call in world.calls:
        twins.make(call)
    assert [sum(pmc["calls"]) for pmc in twins.pmcs()] == [2, 2]
    assert twins.lost() == {**dict.fromkeys(twins.lost(), 0), "over_share": 2}
    assert twins.refused() == 2


def test_an_errno_too_many_is_counted(load: Load) -> None:
    twins = load(grouped=False, max_entries={"errors": 1})
    create = _first_calls()[0]
    for error in (12, 28, 28):
        twins.make(replace(create, result=-error, event=0))
    assert twins.lost()["errors_full"] == 2
    (pmc,) = twins.pmcs()
    assert pmc["calls"][0] == 3


def test_a_counters_last_errno_goes_with_the_create_that_succeeds(load: Load) -> None:
    twins = load(grouped=False)
    create, pause = _first_calls()[:2]
    errors: list[int] = []
    for call in (replace(create, result=-28, event=0), create, pause):
        twins.make(call)
        errors += twins.pmc(create.pmc)[twins.pmc_fields["error"]]
    assert errors == [28, 0, 0]


def test_nothing_of_it_is_left_once_it_is_closed() -> None:
    with Twins(grouped=False):
        pass
    before = len(list(Path("/proc/self/fd").iterdir()))
    with Twins(grouped=False):
        assert len(list(Path("/proc/self/fd").iterdir())) > before
    assert len(list(Path("/proc/self/fd").iterdir())) == before
