# SPDX-License-Identifier: GPL-2.0-only
# Generated from agent/vpmu_agent/model/rules.py by `make generate`. Do not edit.
"""The check of one call: a function for each call, and for the states in which the same rules apply.

It is bpf/monitor.h in Python. Each function is given the pmc's registers, the addresses of the event and of
its leader, whether the call failed, whether it asked for a disabled event, and `max_nr_events`, which counts
only where the monitor reads it (rules.N_IS_READ). It returns the verdict, and changes the registers as the
call changes the pmc.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from vpmu_agent.model.call import CallName
from vpmu_agent.model.registers import NOTHING, Instead, Registers, fault, low
from vpmu_agent.model.rules import SLOTS, Expected, Kind, State
from vpmu_agent.model.verdict import Verdict, verdict

Step: TypeAlias = Callable[[Registers, int, int, bool, bool, int], Verdict]

# To look a member up in its enum takes several times as long as to look up a name of the module.
STATE_UNKNOWN = State.UNKNOWN
STATE_EMPTY = State.EMPTY
STATE_CREATING = State.CREATING
STATE_ENABLING = State.ENABLING
STATE_RUNNING = State.RUNNING
STATE_PAUSED = State.PAUSED
STATE_PARTIAL = State.PARTIAL
STATE_RELEASING = State.RELEASING
KIND_PREDICTED = Kind.PREDICTED
KIND_UNKNOWN = Kind.UNKNOWN
KIND_PARTIAL_GROUP = Kind.PARTIAL_GROUP
KIND_DEGRADED_GROUP = Kind.DEGRADED_GROUP
KIND_ORPHANED_MEMBER = Kind.ORPHANED_MEMBER
KIND_MISSING_MEMBER = Kind.MISSING_MEMBER
KIND_EXTRA_MEMBER = Kind.EXTRA_MEMBER
KIND_WRONG_LEADER = Kind.WRONG_LEADER
KIND_ENABLED_EARLY = Kind.ENABLED_EARLY
KIND_ENABLED_OUT_OF_ORDER = Kind.ENABLED_OUT_OF_ORDER
KIND_NOT_ENABLED = Kind.NOT_ENABLED
KIND_RELEASED_OUT_OF_ORDER = Kind.RELEASED_OUT_OF_ORDER
KIND_RELEASED_TWICE = Kind.RELEASED_TWICE
KIND_UNEXPECTED_CALL = Kind.UNEXPECTED_CALL
EXPECTED_CREATE = Expected.CREATE
EXPECTED_CREATE_SUCCEEDS = Expected.CREATE_SUCCEEDS
EXPECTED_PROGRAM = Expected.PROGRAM
EXPECTED_PROGRAM_OF = Expected.PROGRAM_OF
EXPECTED_ENABLE = Expected.ENABLE
EXPECTED_PAUSE_OR_RELEASE = Expected.PAUSE_OR_RELEASE
EXPECTED_ENABLE_OR_RELEASE = Expected.ENABLE_OR_RELEASE
EXPECTED_RELEASE = Expected.RELEASE
EXPECTED_RELEASES = Expected.RELEASES


def next_call(pmc: Registers) -> Instead:
    """What may come next in the state that the pmc is in."""
    if pmc.state is STATE_CREATING:
        return (EXPECTED_CREATE, pmc.members.bit_count(), pmc.size)
    if pmc.state is STATE_ENABLING:
        return (EXPECTED_ENABLE, low(pmc.members & ~pmc.enabled), pmc.size)
    if pmc.state is STATE_RUNNING and pmc.size == 1:
        return (EXPECTED_PAUSE_OR_RELEASE, 0, pmc.size)
    if pmc.state is STATE_PAUSED:
        return (EXPECTED_ENABLE_OR_RELEASE, 0, pmc.size)
    if pmc.state is STATE_RELEASING:
        return (EXPECTED_RELEASE, low(pmc.walk), pmc.size)
    if pmc.state is STATE_RUNNING or pmc.state is STATE_PARTIAL:
        return (EXPECTED_RELEASE, low(pmc.members), pmc.size)
    return (EXPECTED_PROGRAM, 0, pmc.size)


def create_unknown(pmc: Registers, event: int, leader: int, failed: bool, disabled: bool, n: int) -> Verdict:
    """Create, in the state unknown."""
    if n > SLOTS:
        # The group has more members than are followed.
        pmc.state = STATE_UNKNOWN
        pmc.members = 0
        pmc.orphans = 0
        pmc.gone = 0
        return verdict(KIND_UNKNOWN, -1, -1)
    if not leader:
        # A program begins: a create without a leader opens one, whatever went before. If it names
        # a leader and the pmc holds no events, that leader was never created; the calls that
        # follow show whether a member is missing.
        at = 0
        counts = (1 if (failed or n == 1) else 2, 0, 0, 0)
        if not disabled and n > 1:
            kind, instead = KIND_ENABLED_EARLY, (EXPECTED_CREATE, 0, n)
        elif disabled and n == 1:
            kind, instead = KIND_NOT_ENABLED, (EXPECTED_CREATE, 0, n)
        else:
            kind, instead = KIND_PREDICTED, NOTHING
        pmc.orphans = 0
        pmc.members = 0
        pmc.enabled = 0
        pmc.gone = 0
        pmc.faults = 0
        pmc.size = n
        if failed:
            pmc.state = STATE_EMPTY
        else:
            if pmc.orphans & (1 << at):
                pmc.leave(1 << at)
            pmc.find_again(event)
            pmc.orphans &= ~(1 << at)
            pmc.gone &= ~(1 << at)
            pmc.members |= 1 << at
            pmc.enabled = (pmc.enabled & ~(1 << at)) if disabled else (pmc.enabled | (1 << at))
            pmc.put(at, event)
            if at + 1 < pmc.size:
                pmc.state = STATE_CREATING
            else:
                pmc.state = STATE_ENABLING if pmc.size > 1 else STATE_RUNNING
                pmc.paused = 0
        if kind is KIND_PREDICTED:
            return verdict(kind, 0, -1, counts)
        return pmc.diverged(kind, 0, -1, instead, counts)
    index = pmc.index_of(event)
    # A member of a group whose beginning was not seen.
    free = (pmc.members | pmc.orphans).bit_length()
    if not failed and index < 0 and free < SLOTS:
        pmc.members |= 1 << free
        pmc.enabled |= 1 << free
        pmc.put(free, event)
    return verdict(KIND_UNKNOWN, -1, -1)


def create_empty(pmc: Registers, event: int, leader: int, failed: bool, disabled: bool, n: int) -> Verdict:
    """Create, in the state empty."""
    if n > SLOTS:
        # The group has more members than are followed.
        pmc.state = STATE_UNKNOWN
        pmc.members = 0
        pmc.orphans = 0
        pmc.gone = 0
        return verdict(KIND_UNKNOWN, -1, -1)
    # A program begins: a create without a leader opens one, whatever went before. If it names
    # a leader and the pmc holds no events, that leader was never created; the calls that
    # follow show whether a member is missing.
    at = 0
    counts = (1 if (failed or n == 1) else 2, 0, 0, 0)
    if leader:
        kind, instead = KIND_WRONG_LEADER, (EXPECTED_CREATE, 0, n)
    elif pmc.members:
        kind, instead = KIND_ORPHANED_MEMBER, next_call(pmc)
    elif pmc.size > 1 and n == 1:
        kind, instead = KIND_DEGRADED_GROUP, (EXPECTED_PROGRAM_OF, pmc.size, pmc.size)
    elif not disabled and n > 1:
        kind, instead = KIND_ENABLED_EARLY, (EXPECTED_CREATE, 0, n)
    elif disabled and n == 1:
        kind, instead = KIND_NOT_ENABLED, (EXPECTED_CREATE, 0, n)
    else:
        kind, instead = KIND_PREDICTED, NOTHING
    pmc.leave(pmc.members)
    pmc.members = 0
    pmc.enabled = 0
    pmc.gone = 0
    pmc.faults = 0
    pmc.size = n
    if failed:
        pmc.state = STATE_EMPTY
    else:
        if pmc.orphans & (1 << at):
            pmc.leave(1 << at)
        pmc.find_again(event)
        pmc.orphans &= ~(1 << at)
        pmc.gone &= ~(1 << at)
        pmc.members |= 1 << at
        pmc.enabled = (pmc.enabled & ~(1 << at)) if disabled else (pmc.enabled | (1 << at))
        pmc.put(at, event)
        if at + 1 < pmc.size:
            pmc.state = STATE_CREATING
        else:
            pmc.state = STATE_ENABLING if pmc.size > 1 else STATE_RUNNING
            pmc.paused = 0
    if kind is KIND_PREDICTED:
        return verdict(kind, 0, -1, counts)
    return pmc.diverged(kind, 0, -1, instead, counts)


def create_creating(pmc: Registers, event: int, leader: int, failed: bool, disabled: bool, n: int) -> Verdict:
    """Create, in the state creating."""
    if n > SLOTS:
        # The group has more members than are followed.
        pmc.state = STATE_UNKNOWN
        pmc.members = 0
        pmc.orphans = 0
        pmc.gone = 0
        return verdict(KIND_UNKNOWN, -1, -1)
    index = pmc.index_of(event)
    leader_index = pmc.index_of(leader)
    if index >= 0:
        # The event is a member already.
        return pmc.diverged(
            KIND_EXTRA_MEMBER, index, leader_index, (EXPECTED_CREATE, pmc.members.bit_count(), pmc.size)
        )
    # The next member of the group.
    at = pmc.members.bit_count()
    counts = (
        1 if (not failed and at + 1 < pmc.size) else 0,
        pmc.size if (not failed and at + 1 == pmc.size) else 0,
        0,
        0,
    )
    if leader_index != 0:
        kind, instead = KIND_WRONG_LEADER, (EXPECTED_CREATE, at, pmc.size)
    elif not disabled:
        kind, instead = KIND_ENABLED_EARLY, (EXPECTED_CREATE, at, pmc.size)
    elif failed:
        kind, instead = KIND_PARTIAL_GROUP, (EXPECTED_CREATE_SUCCEEDS, at, pmc.size)
    else:
        kind, instead = KIND_PREDICTED, NOTHING
    if failed:
        pmc.state = STATE_PARTIAL
    else:
        if pmc.orphans & (1 << at):
            pmc.leave(1 << at)
        pmc.find_again(event)
        pmc.orphans &= ~(1 << at)
        pmc.gone &= ~(1 << at)
        pmc.members |= 1 << at
        pmc.enabled = (pmc.enabled & ~(1 << at)) if disabled else (pmc.enabled | (1 << at))
        pmc.put(at, event)
        if at + 1 < pmc.size:
            pmc.state = STATE_CREATING
        else:
            pmc.state = STATE_ENABLING if pmc.size > 1 else STATE_RUNNING
            pmc.paused = 0
    if kind is KIND_PREDICTED:
        return verdict(kind, at, leader_index, counts)
    return pmc.diverged(kind, at, leader_index, instead, counts)


def create_otherwise(
    pmc: Registers, event: int, leader: int, failed: bool, disabled: bool, n: int
) -> Verdict:
    """Create, in the state enabling or running or paused or partial or releasing."""
    if n > SLOTS:
        # The group has more members than are followed.
        pmc.state = STATE_UNKNOWN
        pmc.members = 0
        pmc.orphans = 0
        pmc.gone = 0
        return verdict(KIND_UNKNOWN, -1, -1)
    if not leader:
        # A program begins: a create without a leader opens one, whatever went before. If it names
        # a leader and the pmc holds no events, that leader was never created; the calls that
        # follow show whether a member is missing.
        at = 0
        counts = (1 if (failed or n == 1) else 2, 0, 0, 0)
        if pmc.members and pmc.state is STATE_ENABLING:
            kind, instead = KIND_NOT_ENABLED, next_call(pmc)
        elif pmc.members:
            kind, instead = KIND_ORPHANED_MEMBER, next_call(pmc)
        elif pmc.size > 1 and n == 1:
            kind, instead = KIND_DEGRADED_GROUP, (EXPECTED_PROGRAM_OF, pmc.size, pmc.size)
        elif not disabled and n > 1:
            kind, instead = KIND_ENABLED_EARLY, (EXPECTED_CREATE, 0, n)
        elif disabled and n == 1:
            kind, instead = KIND_NOT_ENABLED, (EXPECTED_CREATE, 0, n)
        else:
            kind, instead = KIND_PREDICTED, NOTHING
        pmc.leave(pmc.members)
        pmc.members = 0
        pmc.enabled = 0
        pmc.gone = 0
        pmc.faults = 0
        pmc.size = n
        if failed:
            pmc.state = STATE_EMPTY
        else:
            if pmc.orphans & (1 << at):
                pmc.leave(1 << at)
            pmc.find_again(event)
            pmc.orphans &= ~(1 << at)
            pmc.gone &= ~(1 << at)
            pmc.members |= 1 << at
            pmc.enabled = (pmc.enabled & ~(1 << at)) if disabled else (pmc.enabled | (1 << at))
            pmc.put(at, event)
            if at + 1 < pmc.size:
                pmc.state = STATE_CREATING
            else:
                pmc.state = STATE_ENABLING if pmc.size > 1 else STATE_RUNNING
                pmc.paused = 0
        if kind is KIND_PREDICTED:
            return verdict(kind, 0, -1, counts)
        return pmc.diverged(kind, 0, -1, instead, counts)
    index = pmc.index_of(event)
    leader_index = pmc.index_of(leader)
    # One member too many: nothing says that it should be enabled, and no release will come to
    # it.
    free = (pmc.members | pmc.orphans).bit_length()
    if leader_index == 0:
        kind, instead = KIND_EXTRA_MEMBER, next_call(pmc)
    else:
        kind, instead = KIND_WRONG_LEADER, next_call(pmc)
    if not failed and index < 0 and free < SLOTS:
        pmc.members |= 1 << free
        pmc.enabled |= 1 << free
        pmc.put(free, event)
    return pmc.diverged(kind, -1, leader_index, instead)


def enable_unknown(pmc: Registers, event: int, leader: int, failed: bool, disabled: bool, n: int) -> Verdict:
    """Enable, in the state unknown."""
    if n > SLOTS:
        # The group has more members than are followed.
        pmc.state = STATE_UNKNOWN
        pmc.members = 0
        pmc.orphans = 0
        pmc.gone = 0
        return verdict(KIND_UNKNOWN, -1, -1)
    if pmc.size == 1 and n == 1:
        # Of a single event, this call tells the state.
        pmc.members = 1
        pmc.orphans = 0
        pmc.gone = 0
        pmc.faults = 0
        pmc.put(0, event)
        pmc.enabled = 1
        pmc.state = STATE_RUNNING
        pmc.paused = 0
        return verdict(KIND_UNKNOWN, 0, -1)
    index = pmc.index_of(event)
    # A member of a group whose state is not known.
    free = (pmc.members | pmc.orphans).bit_length()
    if not failed and index < 0 and free < SLOTS:
        pmc.members |= 1 << free
        pmc.enabled |= 1 << free
        pmc.put(free, event)
    return verdict(KIND_UNKNOWN, -1, -1)


def enable_otherwise(
    pmc: Registers, event: int, leader: int, failed: bool, disabled: bool, n: int
) -> Verdict:
    """Enable, in the state empty or running or releasing."""
    if not (pmc.size > 1 and pmc.paused):
        n = pmc.size
    if n > SLOTS:
        # The group has more members than are followed.
        pmc.state = STATE_UNKNOWN
        pmc.members = 0
        pmc.orphans = 0
        pmc.gone = 0
        return verdict(KIND_UNKNOWN, -1, -1)
    index = pmc.index_of(event)
    if index < 0:
        # The event is none that the pmc holds.
        return pmc.diverged(KIND_UNEXPECTED_CALL, -1, -1, next_call(pmc))
    # Nothing is to be enabled.
    instead = next_call(pmc)
    pmc.enabled |= 1 << index
    return pmc.diverged(KIND_UNEXPECTED_CALL, index, -1, instead)


def enable_creating(pmc: Registers, event: int, leader: int, failed: bool, disabled: bool, n: int) -> Verdict:
    """Enable, in the state creating."""
    if not (pmc.size > 1 and pmc.paused):
        n = pmc.size
    if n > SLOTS:
        # The group has more members than are followed.
        pmc.state = STATE_UNKNOWN
        pmc.members = 0
        pmc.orphans = 0
        pmc.gone = 0
        return verdict(KIND_UNKNOWN, -1, -1)
    index = pmc.index_of(event)
    if index < 0:
        # The event is none that the pmc holds.
        return pmc.diverged(KIND_MISSING_MEMBER, -1, -1, next_call(pmc))
    if pmc.faults & fault(KIND_ENABLED_EARLY):
        # The second enable that comes too early: no create is to come any more.
        instead = next_call(pmc)
        pmc.enabled |= 1 << index
        pmc.state = STATE_ENABLING if (pmc.members & ~pmc.enabled) else STATE_RUNNING
        return pmc.diverged(KIND_MISSING_MEMBER, index, -1, instead)
    # Not all members were created.
    instead = next_call(pmc)
    pmc.enabled |= 1 << index
    return pmc.diverged(KIND_ENABLED_EARLY, index, -1, instead)


def enable_enabling(pmc: Registers, event: int, leader: int, failed: bool, disabled: bool, n: int) -> Verdict:
    """Enable, in the state enabling."""
    if not (pmc.size > 1 and pmc.paused):
        n = pmc.size
    if n > SLOTS:
        # The group has more members than are followed.
        pmc.state = STATE_UNKNOWN
        pmc.members = 0
        pmc.orphans = 0
        pmc.gone = 0
        return verdict(KIND_UNKNOWN, -1, -1)
    index = pmc.index_of(event)
    if index < 0:
        # The event is none that the pmc holds.
        return pmc.diverged(KIND_UNEXPECTED_CALL, -1, -1, next_call(pmc))
    if not (pmc.enabled & (1 << index)):
        # The members of a group are enabled in order, once the last one was created.
        if pmc.members & ~pmc.enabled & ((1 << index) - 1):
            kind, instead = KIND_ENABLED_OUT_OF_ORDER, next_call(pmc)
        else:
            kind, instead = KIND_PREDICTED, NOTHING
        pmc.enabled |= 1 << index
        if not (pmc.members & ~pmc.enabled):
            pmc.state = STATE_RUNNING
        if kind is KIND_PREDICTED:
            return verdict(kind, index, -1)
        return pmc.diverged(kind, index, -1, instead)
    # Nothing is to be enabled.
    instead = next_call(pmc)
    pmc.enabled |= 1 << index
    return pmc.diverged(KIND_UNEXPECTED_CALL, index, -1, instead)


def enable_paused(pmc: Registers, event: int, leader: int, failed: bool, disabled: bool, n: int) -> Verdict:
    """Enable, in the state paused."""
    if not (pmc.size > 1 and pmc.paused):
        n = pmc.size
    if n > SLOTS:
        # The group has more members than are followed.
        pmc.state = STATE_UNKNOWN
        pmc.members = 0
        pmc.orphans = 0
        pmc.gone = 0
        return verdict(KIND_UNKNOWN, -1, -1)
    index = pmc.index_of(event)
    if index < 0:
        # The event is none that the pmc holds.
        return pmc.diverged(KIND_UNEXPECTED_CALL, -1, -1, next_call(pmc))
    if index == 0 and pmc.paused and n == 1:
        # The guest's counter resumes: pmc_resume_counter().
        counts = (0, 1, 0, 0)
        pmc.enabled |= 1
        pmc.paused = 0
        pmc.state = STATE_RUNNING
        return verdict(KIND_PREDICTED, 0, -1, counts)
    # Nothing is to be enabled.
    instead = next_call(pmc)
    pmc.enabled |= 1 << index
    return pmc.diverged(KIND_UNEXPECTED_CALL, index, -1, instead)


def enable_partial(pmc: Registers, event: int, leader: int, failed: bool, disabled: bool, n: int) -> Verdict:
    """Enable, in the state partial."""
    if not (pmc.size > 1 and pmc.paused):
        n = pmc.size
    if n > SLOTS:
        # The group has more members than are followed.
        pmc.state = STATE_UNKNOWN
        pmc.members = 0
        pmc.orphans = 0
        pmc.gone = 0
        return verdict(KIND_UNKNOWN, -1, -1)
    index = pmc.index_of(event)
    if index < 0:
        # The event is none that the pmc holds.
        return pmc.diverged(KIND_UNEXPECTED_CALL, -1, -1, next_call(pmc))
    if index == 0 and pmc.paused and n == 1:
        # The guest's counter resumes: pmc_resume_counter().
        counts = (0, 1, 0, 0)
        pmc.enabled |= 1
        pmc.paused = 0
        return verdict(KIND_PREDICTED, 0, -1, counts)
    # Not all members were created.
    instead = next_call(pmc)
    pmc.enabled |= 1 << index
    return pmc.diverged(KIND_ENABLED_EARLY, index, -1, instead)


def pause_unknown(pmc: Registers, event: int, leader: int, failed: bool, disabled: bool, n: int) -> Verdict:
    """Pause, in the state unknown."""
    if n > SLOTS:
        # The group has more members than are followed.
        pmc.state = STATE_UNKNOWN
        pmc.members = 0
        pmc.orphans = 0
        pmc.gone = 0
        return verdict(KIND_UNKNOWN, -1, -1)
    if pmc.size == 1 and n == 1:
        # Of a single event, this call tells the state.
        pmc.members = 1
        pmc.orphans = 0
        pmc.gone = 0
        pmc.faults = 0
        pmc.put(0, event)
        pmc.enabled = 0
        pmc.state = STATE_PAUSED
        pmc.paused = 1
        return verdict(KIND_UNKNOWN, 0, -1)
    index = pmc.index_of(event)
    # A member of a group whose state is not known.
    free = (pmc.members | pmc.orphans).bit_length()
    if not failed and index < 0 and free < SLOTS:
        pmc.members |= 1 << free
        pmc.enabled |= 1 << free
        pmc.put(free, event)
    return verdict(KIND_UNKNOWN, -1, -1)


def pause_otherwise(pmc: Registers, event: int, leader: int, failed: bool, disabled: bool, n: int) -> Verdict:
    """Pause, in the state empty or creating or enabling or paused or releasing."""
    if not (pmc.size > 1):
        n = pmc.size
    if n > SLOTS:
        # The group has more members than are followed.
        pmc.state = STATE_UNKNOWN
        pmc.members = 0
        pmc.orphans = 0
        pmc.gone = 0
        return verdict(KIND_UNKNOWN, -1, -1)
    index = pmc.index_of(event)
    # Nothing is to be paused.
    if pmc.state is STATE_CREATING:
        kind, instead = KIND_MISSING_MEMBER, next_call(pmc)
    elif pmc.state is STATE_ENABLING:
        kind, instead = KIND_NOT_ENABLED, next_call(pmc)
    else:
        kind, instead = KIND_UNEXPECTED_CALL, next_call(pmc)
    return pmc.diverged(kind, index, -1, instead)


def pause_running_or_partial(
    pmc: Registers, event: int, leader: int, failed: bool, disabled: bool, n: int
) -> Verdict:
    """Pause, in the state running or partial."""
    if not (pmc.size > 1):
        n = pmc.size
    if n > SLOTS:
        # The group has more members than are followed.
        pmc.state = STATE_UNKNOWN
        pmc.members = 0
        pmc.orphans = 0
        pmc.gone = 0
        return verdict(KIND_UNKNOWN, -1, -1)
    index = pmc.index_of(event)
    if index == 0 and not pmc.paused and n == 1:
        # pmc_pause_counter() stops a group and pauses only a single event; but what was a group
        # may have become a single event since.
        counts = (0, 0, 1, 0)
        pmc.paused = 1
        if pmc.state is STATE_RUNNING:
            pmc.state = STATE_PAUSED
        return verdict(KIND_PREDICTED, 0, -1, counts)
    # Nothing is to be paused.
    return pmc.diverged(KIND_UNEXPECTED_CALL, index, -1, next_call(pmc))


def release_unknown(pmc: Registers, event: int, leader: int, failed: bool, disabled: bool, n: int) -> Verdict:
    """Release, in the state unknown."""
    if n > SLOTS:
        # The group has more members than are followed.
        pmc.state = STATE_UNKNOWN
        pmc.members = 0
        pmc.orphans = 0
        pmc.gone = 0
        return verdict(KIND_UNKNOWN, -1, -1)
    if pmc.size == 1 and n == 1:
        # Of a single event, this call tells the state.
        pmc.members = 0
        pmc.orphans = 0
        pmc.gone = 0
        pmc.faults = 0
        pmc.paused = 0
        pmc.state = STATE_EMPTY
        return verdict(KIND_UNKNOWN, 0, -1)
    index = pmc.index_of(event)
    # A member of a group whose state is not known.
    if index >= 0:
        pmc.members &= ~(1 << index)
        pmc.orphans &= ~(1 << index)
    return verdict(KIND_UNKNOWN, -1, -1)


def release_otherwise(
    pmc: Registers, event: int, leader: int, failed: bool, disabled: bool, n: int
) -> Verdict:
    """Release, in the state empty or creating or enabling or running or paused or partial."""
    if not (pmc.size > 1 or pmc.orphans):
        n = pmc.size
    if n > SLOTS:
        # The group has more members than are followed.
        pmc.state = STATE_UNKNOWN
        pmc.members = 0
        pmc.orphans = 0
        pmc.gone = 0
        return verdict(KIND_UNKNOWN, -1, -1)
    index = pmc.index_of(event)
    if index < 0 and pmc.is_left_behind(event):
        # The event was left behind, and is released after all.
        instead = next_call(pmc)
        pmc.find_again(event)
        return pmc.diverged(KIND_RELEASED_OUT_OF_ORDER, -1, -1, instead)
    if index < 0:
        # The event is none that the pmc holds.
        if pmc.released(event):
            kind, instead = KIND_RELEASED_TWICE, next_call(pmc)
        elif pmc.state is STATE_CREATING:
            kind, instead = KIND_MISSING_MEMBER, next_call(pmc)
        else:
            kind, instead = KIND_UNEXPECTED_CALL, next_call(pmc)
        return pmc.diverged(kind, -1, -1, instead)
    # The first release: pmc_release_perf_event() goes on to release what exists among i <
    # max_nr_events, as that is now.
    ahead = (pmc.members | pmc.orphans) & ((1 << n) - 1)
    counts = (0, 0, 0, ahead.bit_count())
    if pmc.state is STATE_CREATING:
        kind, instead = KIND_MISSING_MEMBER, next_call(pmc)
    elif pmc.state is STATE_ENABLING:
        kind, instead = KIND_NOT_ENABLED, next_call(pmc)
    elif ahead and (ahead & -ahead) != (1 << index):
        kind, instead = KIND_RELEASED_OUT_OF_ORDER, (EXPECTED_RELEASE, low(ahead), pmc.size)
    elif not ahead:
        kind, instead = KIND_RELEASED_OUT_OF_ORDER, (EXPECTED_PROGRAM, 0, pmc.size)
    elif ahead == (1 << index) and (pmc.members & ~(1 << index)):
        kind, instead = KIND_ORPHANED_MEMBER, (EXPECTED_RELEASES, pmc.members & ~(1 << index), pmc.size)
    else:
        kind, instead = KIND_PREDICTED, NOTHING
    pmc.members &= ~(1 << index)
    pmc.orphans &= ~(1 << index)
    pmc.gone |= 1 << index
    pmc.walk = ahead & ~(1 << index)
    if pmc.walk:
        pmc.state = STATE_RELEASING
    else:
        pmc.state = STATE_EMPTY
        pmc.orphans |= pmc.members
        pmc.members = 0
    if kind is KIND_PREDICTED:
        return verdict(kind, index, -1, counts)
    return pmc.diverged(kind, index, -1, instead, counts)


def release_releasing(
    pmc: Registers, event: int, leader: int, failed: bool, disabled: bool, n: int
) -> Verdict:
    """Release, in the state releasing."""
    n = pmc.size
    if n > SLOTS:
        # The group has more members than are followed.
        pmc.state = STATE_UNKNOWN
        pmc.members = 0
        pmc.orphans = 0
        pmc.gone = 0
        return verdict(KIND_UNKNOWN, -1, -1)
    index = pmc.index_of(event)
    if index < 0 and pmc.is_left_behind(event):
        # The event was left behind, and is released after all.
        instead = next_call(pmc)
        pmc.find_again(event)
        return pmc.diverged(KIND_RELEASED_OUT_OF_ORDER, -1, -1, instead)
    if index < 0:
        # The event is none that the pmc holds.
        if pmc.released(event):
            kind, instead = KIND_RELEASED_TWICE, next_call(pmc)
        else:
            kind, instead = KIND_UNEXPECTED_CALL, next_call(pmc)
        return pmc.diverged(kind, -1, -1, instead)
    # The next release of pmc_release_perf_event().
    ahead = pmc.walk
    if ahead and (ahead & -ahead) != (1 << index):
        kind, instead = KIND_RELEASED_OUT_OF_ORDER, (EXPECTED_RELEASE, low(ahead), pmc.size)
    elif not ahead:
        kind, instead = KIND_RELEASED_OUT_OF_ORDER, (EXPECTED_PROGRAM, 0, pmc.size)
    elif ahead == (1 << index) and (pmc.members & ~(1 << index)):
        kind, instead = KIND_ORPHANED_MEMBER, (EXPECTED_RELEASES, pmc.members & ~(1 << index), pmc.size)
    else:
        kind, instead = KIND_PREDICTED, NOTHING
    pmc.members &= ~(1 << index)
    pmc.orphans &= ~(1 << index)
    pmc.gone |= 1 << index
    pmc.walk = ahead & ~(1 << index)
    if pmc.walk:
        pmc.state = STATE_RELEASING
    else:
        pmc.state = STATE_EMPTY
        pmc.orphans |= pmc.members
        pmc.members = 0
    if kind is KIND_PREDICTED:
        return verdict(kind, index, -1)
    return pmc.diverged(kind, index, -1, instead)


STEPS: Mapping[CallName, Mapping[State, Step]] = {
    CallName.CREATE: {
        State.UNKNOWN: create_unknown,
        State.EMPTY: create_empty,
        State.CREATING: create_creating,
        State.ENABLING: create_otherwise,
        State.RUNNING: create_otherwise,
        State.PAUSED: create_otherwise,
        State.PARTIAL: create_otherwise,
        State.RELEASING: create_otherwise,
    },
    CallName.ENABLE: {
        State.UNKNOWN: enable_unknown,
        State.EMPTY: enable_otherwise,
        State.CREATING: enable_creating,
        State.ENABLING: enable_enabling,
        State.RUNNING: enable_otherwise,
        State.PAUSED: enable_paused,
        State.PARTIAL: enable_partial,
        State.RELEASING: enable_otherwise,
    },
    CallName.PAUSE: {
        State.UNKNOWN: pause_unknown,
        State.EMPTY: pause_otherwise,
        State.CREATING: pause_otherwise,
        State.ENABLING: pause_otherwise,
        State.RUNNING: pause_running_or_partial,
        State.PAUSED: pause_otherwise,
        State.PARTIAL: pause_running_or_partial,
        State.RELEASING: pause_otherwise,
    },
    CallName.RELEASE: {
        State.UNKNOWN: release_unknown,
        State.EMPTY: release_otherwise,
        State.CREATING: release_otherwise,
        State.ENABLING: release_otherwise,
        State.RUNNING: release_otherwise,
        State.PAUSED: release_otherwise,
        State.PARTIAL: release_otherwise,
        State.RELEASING: release_releasing,
    },
}
"""What to do with a call in a state."""
