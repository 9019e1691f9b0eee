"""Random sequences of calls by their seeds: the life of a host's counters, with faults, or any calls."""

from __future__ import annotations

import errno
import random
from dataclasses import replace

from tests.support.mutations import a_leader, drop, duplicate, flip, lead, swap
from tests.support.world import World
from vpmu_agent.model.call import Call, CallName
from vpmu_agent.model.rules import SLOTS


def sequence(seed: int, *, grouped: bool) -> list[Call]:
    """The calls of one sequence."""
    rng = random.Random(seed)
    choices = (*(1, 1, 2, 2, 3, 3, 4) * 4, 8, 16, SLOTS, SLOTS + 1) if grouped else (1,)
    sizes = tuple(rng.choice(choices) for _ in range(rng.randint(1, 3)))
    world = World(
        rng,
        sizes=sizes,
        vcpus=rng.randint(1, 2),
        reuses_addresses=rng.random() < 0.5,
        lbr=rng.random() < 0.2,
    )
    world.run(rng.randint(2, 12), hazards=rng.random() < 0.6)
    calls = world.calls
    if rng.random() < 0.3:  # events of guest LBR are older than the agent
        calls = [call for call in calls if call.pmc or call.name is not CallName.CREATE]
    if rng.random() < 0.75:
        for _ in range(rng.randint(1, 5)):
            if calls:
                calls = _broken(calls, rng.randrange(len(calls)), rng)
    if rng.random() < 0.2:
        calls = calls[rng.randrange(len(calls) + 1) :]
    return calls


def any_calls(seed: int, count: int) -> list[Call]:
    """Calls for one pmc, as no KVM would make them: everything about them is random, in a small world."""
    rng = random.Random(seed)
    one = World(rng, sizes=(1,), vcpus=1, pmcs=1)
    one.step(one.counters[0], "program", size=1)
    made = replace(one.calls[0], event_count=-1)
    attrs = [replace(made.attr, disabled=disabled) for disabled in (False, True)]
    calls = []
    for _ in range(count):
        name = rng.choice((*CallName, CallName.RELEASE))
        failed = name is CallName.CREATE and rng.random() < 0.3
        attr = attrs[rng.random() < 0.5]
        event = 0 if failed else rng.randint(1, 4)
        leader = rng.randint(0, 3) if name is CallName.CREATE else 0
        result = -errno.ENOSPC if failed else 0
        size = rng.randint(1, 3)
        calls.append(
            replace(
                made,
                name=name,
                event=event,
                leader=leader,
                result=result,
                attr=attr,
                max_nr_events=size,
            )
        )
    return calls


def possible(calls: list[Call]) -> list[Call]:
    """The calls without those that no kernel can make.

    No event is created at the address of one that is still there, and an event belongs to the pmc for which
    it was created: a call that names another one for it, as a fault can, never comes.
    """
    owners: dict[int, int] = {}
    live: set[int] = set()
    left = []
    for call in calls:
        event, pmc = call.event, call.pmc
        owner = owners.get(event, pmc)
        if call.name is CallName.CREATE:
            if event in live and owner != pmc:
                continue
            owner = pmc
        if event and owner != pmc:
            continue
        if event:
            owners[event] = pmc
            if call.name is CallName.RELEASE:
                live.discard(event)
            else:
                live.add(event)
        left.append(call)
    return left


def _broken(calls: list[Call], at: int, rng: random.Random) -> list[Call]:
    call = calls[at]
    faults = ["drop", "duplicate", "swap", "lost"]
    if call.pmc:
        faults += ["count", "size"]
    if call.name is CallName.CREATE:
        faults += ["flip", "fail", *(["lead"] if call.pmc else [])]
    match rng.choice(faults):
        case "drop":
            return drop(calls, at)
        case "duplicate":
            return duplicate(calls, at)
        case "swap":
            return swap(calls, at)
        case "lead":
            return lead(calls, at, a_leader(calls, at, rng))
        case "flip":
            return flip(calls, at)
        case "lost":
            changed = replace(call, lost=1)
        case "count":
            changed = replace(call, event_count=rng.randrange(256))
        case "size":
            changed = replace(call, max_nr_events=rng.choice((0, 1, 2, 5, SLOTS, SLOTS + 1, 255)))
        case _:
            changed = replace(call, result=-rng.choice((1, 12, 28, 4095)), event=0)
    return [*calls[:at], changed, *calls[at + 1 :]]


def without_groups(calls: list[Call]) -> list[Call]:
    """The same calls on a kernel that has none: no leaders, and one event each."""
    return [replace(call, leader=0, max_nr_events=1) for call in calls]
