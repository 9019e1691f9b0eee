"""Single faults in a valid sequence of one pmc's calls, and whether what comes out is valid after all."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from vpmu_agent.model.call import Call, CallName

STRANGER = 0xDEAD_0000  # an address that no event has


def drop(calls: Sequence[Call], at: int) -> list[Call]:
    """The call never happened."""
    return [*calls[:at], *calls[at + 1 :]]


def duplicate(calls: Sequence[Call], at: int) -> list[Call]:
    """The call happened twice."""
    return [*calls[: at + 1], *calls[at:]]


def swap(calls: Sequence[Call], at: int) -> list[Call]:
    """The call and the next one happened in the other order."""
    return [*calls[:at], *calls[at : at + 2][::-1], *calls[at + 2 :]]


def lead(calls: Sequence[Call], at: int, leader: int) -> list[Call]:
    """The create was given another leader."""
    return [*calls[:at], replace(calls[at], leader=leader), *calls[at + 1 :]]


def flip(calls: Sequence[Call], at: int) -> list[Call]:
    """The create's `disabled` was the opposite."""
    attr = replace(calls[at].attr, disabled=not calls[at].attr.disabled)
    return [*calls[:at], replace(calls[at], attr=attr), *calls[at + 1 :]]


def a_leader(calls: Sequence[Call], at: int, rng: random.Random) -> int:
    """Any leader but the right one: none, one that nobody knows, or a sibling."""
    siblings = [call.event for call in calls[max(0, at - 3) : at + 3]]
    return rng.choice([other for other in (0, STRANGER, *siblings) if other != calls[at].leader])


def is_valid(calls: Sequence[Call]) -> bool:
    """Whether KVM could have made these calls for one pmc: the rules of the model as a grammar.

        single event    create (pause enable)* pause? release
        group of N      create{N} enable{N} release{N}

    and the last life may end anywhere. Written apart from the check, to be held against it.
    """
    at = 0
    while at < len(calls):
        size = calls[at].max_nr_events
        length = _single(calls[at:]) if size == 1 else _group(calls[at:], size)
        if not length:
            return False
        at += length
    return True


def _single(calls: Sequence[Call]) -> int:
    """The length of one life of a single event, 0 if it is none."""
    first = calls[0]
    if first.name is not CallName.CREATE or first.leader or first.attr.disabled:
        return 0
    turn = {CallName.CREATE: CallName.PAUSE, CallName.PAUSE: CallName.ENABLE, CallName.ENABLE: CallName.PAUSE}
    for i, (before, call) in enumerate(pairwise(calls), start=1):
        if call.event != first.event:
            return 0
        if call.name is CallName.RELEASE:
            return i + 1
        if call.name is not turn[before.name]:
            return 0
    return len(calls)


def _group(calls: Sequence[Call], size: int) -> int:
    names = [name for name in (CallName.CREATE, CallName.ENABLE, CallName.RELEASE) for _ in range(size)]
    events = [call.event for call in calls[:size]]
    length = min(len(calls), 3 * size)
    for i, (call, name) in enumerate(zip(calls[:length], names, strict=False)):
        if call.name is not name or call.event != events[i % size]:
            return 0
        if name is CallName.CREATE and (call.leader != (events[0] if i else 0) or not call.attr.disabled):
            return 0
    return length if len(set(events)) == len(events) else 0
