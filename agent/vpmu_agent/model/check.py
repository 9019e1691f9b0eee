"""The check: observed calls in, one verdict for each out.

Every pmc is followed on its own. A call is either *due* (the model has already said that it must come next)
or it opens something new (a program, a pause, a resume, a release), which only the guest can decide. The
rules are those of `mechanism.py`, read the other way round: from a call to what may have made it.

After a divergence the check goes on from what was really seen, so that what follows is judged as well; but a
kind is reported once in a program, and what can only be a consequence is called unknown: one fault in the
kernel gives one or two divergences, not one for every call after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from vpmu_agent.model.call import Call, CallName


class Kind(StrEnum):
    """What the model says of one call; everything but the first two is a divergence."""

    PREDICTED = "predicted"
    UNKNOWN = "unknown"
    PARTIAL_GROUP = "partial_group"
    DEGRADED_GROUP = "degraded_group"
    ORPHANED_MEMBER = "orphaned_member"
    MISSING_MEMBER = "missing_member"
    EXTRA_MEMBER = "extra_member"
    WRONG_LEADER = "wrong_leader"
    ENABLED_EARLY = "enabled_early"
    ENABLED_OUT_OF_ORDER = "enabled_out_of_order"
    NOT_ENABLED = "not_enabled"
    RELEASED_OUT_OF_ORDER = "released_out_of_order"
    RELEASED_TWICE = "released_twice"
    EVENT_COUNT_MISMATCH = "event_count_mismatch"
    UNEXPECTED_CALL = "unexpected_call"

    @property
    def is_divergence(self) -> bool:
        """True for everything that the model did not predict and could have."""
        return self not in (Kind.PREDICTED, Kind.UNKNOWN)

    @property
    def meaning(self) -> str:
        """The kind in a sentence, for people."""
        return _MEANINGS[self]


_MEANINGS = {
    Kind.PREDICTED: "the call that the model said would come, or one that only the guest decides on",
    Kind.UNKNOWN: "from before the agent came, or records were lost, or it can be a consequence of a fault",
    Kind.PARTIAL_GROUP: "a member could not be created: those before it stay, disabled, until a release",
    Kind.DEGRADED_GROUP: "a counter that had a group was programmed with a single event",
    Kind.ORPHANED_MEMBER: "events were left behind that nobody will release any more",
    Kind.MISSING_MEMBER: "the group was enabled, paused or released before all its members were created",
    Kind.EXTRA_MEMBER: "more events were created than the group's size",
    Kind.WRONG_LEADER: "group_leader is not event 0, or event 0 was given one",
    Kind.ENABLED_EARLY: "a member was enabled before the last one was created",
    Kind.ENABLED_OUT_OF_ORDER: "a member was enabled before one with a lower index",
    Kind.NOT_ENABLED: "the program ended before all its members were enabled",
    Kind.RELEASED_OUT_OF_ORDER: "a member was released before one with a lower index",
    Kind.RELEASED_TWICE: "an event was released that had been released already",
    Kind.EVENT_COUNT_MISMATCH: "KVM's own count of the vCPU's events is not what its calls add up to",
    Kind.UNEXPECTED_CALL: "nothing that KVM may do with this counter in the state it is in",
}


class State(StrEnum):
    """Where the group of one pmc stands."""

    EMPTY = "empty"  # holds no events
    CREATING = "creating"  # from the first create to the last
    ENABLING = "enabling"  # of a group: from the last create to the last enable
    RUNNING = "running"
    PAUSED = "paused"
    PARTIAL = "partial"  # a create failed; the members before it are held, disabled
    RELEASING = "releasing"  # from the first release to the last
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the model says of one call.

    `event` and `leader` are indices within the pmc's group, None where there is none or it is not known.
    `expected` says in words what was expected instead, and is empty unless this is a divergence.
    `predicted` holds the calls that the model predicts on seeing this one (itself included where it opened
    something new): their running total equals that of the observed calls as long as KVM does as predicted.
    """

    kind: Kind
    event: int | None
    leader: int | None
    expected: str = ""
    predicted: tuple[CallName, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """A pmc that holds events now, or has left some behind.

    `size` is `max_nr_events` as it was when the pmc was programmed, `events` how many it holds, `orphans` how
    many of those it once held were never released and cannot be any more.
    """

    vm: str
    tgid: int
    vcpu: int
    pmc: str
    state: State
    size: int
    events: int
    orphans: int


@dataclass(slots=True)
class _Member:
    event: int
    enabled: bool
    alive: bool = True


@dataclass(slots=True)
class _Pmc:
    """What is known of one `struct kvm_pmc`."""

    vm: str
    tgid: int
    vcpu: int
    name: str
    state: State = State.UNKNOWN
    size: int = 1
    members: list[_Member] = field(default_factory=list)
    walk: int = 0  # while releasing: max_nr_events as the release began
    orphans: int = 0
    released: frozenset[int] = frozenset()  # since the last program began
    faults: set[Kind] = field(default_factory=set)  # in this program

    def index_of(self, event: int) -> int | None:
        for i, member in enumerate(self.members):
            if member.event == event and member.alive:
                return i
        return None

    def fault(self, kind: Kind) -> Kind:
        """`kind`, or unknown where it tells nothing new."""
        if kind in self.faults or (kind is Kind.UNEXPECTED_CALL and self.faults):
            return Kind.UNKNOWN
        self.faults.add(kind)
        return kind

    def first(self, *, alive: bool = True, enabled: bool | None = None) -> int | None:
        """The lowest index of a member like that."""
        for i, member in enumerate(self.members):
            if member.alive is alive and enabled in (None, member.enabled):
                return i
        return None


class Monitor:
    """Follows every pmc it sees a call of, by its address."""

    def __init__(self) -> None:
        self._pmcs: dict[int, _Pmc] = {}
        self._event_counts: dict[tuple[int, int], int] = {}

    def observe(self, call: Call) -> Verdict:
        """Says what the model makes of the next call, and moves on."""
        if call.lost:
            self._forget_state()
        # The guest-LBR event belongs to no pmc: it is one of its own.
        key = call.pmc or call.event
        pmc = self._pmcs.get(key)
        if pmc is None or pmc.tgid != call.tgid:
            pmc = self._pmcs[key] = _Pmc(call.vm, call.tgid, call.vcpu, call.pmc_name)
        verdict = _HANDLERS[call.name](pmc, call)
        if not call.pmc and pmc.state is State.EMPTY:
            del self._pmcs[key]
        counted = self._count(call)
        if counted is not None and not verdict.kind.is_divergence:
            return Verdict(
                Kind.EVENT_COUNT_MISMATCH, verdict.event, verdict.leader, counted, verdict.predicted
            )
        return verdict

    def groups(self) -> Iterator[Group]:
        """The pmcs that hold events now, or have left some behind."""
        for pmc in self._pmcs.values():
            events = sum(member.alive for member in pmc.members)
            if events or pmc.orphans:
                yield Group(pmc.vm, pmc.tgid, pmc.vcpu, pmc.name, pmc.state, pmc.size, events, pmc.orphans)

    def forget(self, tgid: int) -> None:
        """Drops all that is known of a VM that is gone."""
        self._pmcs = {key: pmc for key, pmc in self._pmcs.items() if pmc.tgid != tgid}
        self._event_counts = {key: n for key, n in self._event_counts.items() if key[0] != tgid}

    def _forget_state(self) -> None:
        """Records were lost, and nobody knows whose."""
        for pmc in self._pmcs.values():
            pmc.state = State.UNKNOWN
        self._event_counts.clear()

    def _count(self, call: Call) -> str | None:
        """Holds the vCPU's count of events against KVM's; says what was expected where they differ.

        KVM counts an event once it was created, and no more after it was released: at the entry of either
        call its count is still without it, or with it (pmc_reprogram_counter, pmc_release_perf_event).
        """
        if call.event_count < 0:
            return None
        key = call.tgid, call.vcpu
        expected = self._event_counts.get(key, call.event_count)
        change = {CallName.CREATE: call.result == 0, CallName.RELEASE: -1}.get(call.name, 0)
        self._event_counts[key] = (call.event_count + change) & 0xFF  # u8 event_count
        if expected == call.event_count:
            return None
        return f"event_count={expected}, not {call.event_count}"


def _create(pmc: _Pmc, call: Call) -> Verdict:
    leader = pmc.index_of(call.leader) if call.leader else None
    match pmc.state:
        case State.CREATING:
            return _create_member(pmc, call, leader)
        case _ if not call.leader:
            return _program(pmc, call)
        case State.UNKNOWN:
            _add_member(pmc, call)
            return Verdict(Kind.UNKNOWN, None, leader)
        case State.EMPTY:
            # Its leader was never created. What follows shows whether a member is missing.
            verdict = _program(pmc, call)
            return Verdict(pmc.fault(Kind.WRONG_LEADER), 0, None, _created(0, pmc.size), verdict.predicted)
        case _:
            kind = pmc.fault(Kind.EXTRA_MEMBER if leader == 0 else Kind.WRONG_LEADER)
            expected = _expected(pmc)
            return Verdict(kind, _add_member(pmc, call), leader, expected)


def _program(pmc: _Pmc, call: Call) -> Verdict:
    """The first create of a program; a create without a leader opens one, whatever went before."""
    expected = _expected(pmc)
    former_size, former_state = pmc.size, pmc.state
    abandoned = sum(member.alive for member in pmc.members) if pmc.state is not State.UNKNOWN else 0
    pmc.orphans += abandoned
    pmc.size, pmc.members = max(1, call.max_nr_events), []
    pmc.released, pmc.faults = frozenset(), set()
    if call.result < 0:
        pmc.state = State.EMPTY
    else:
        _add_member(pmc, call)
        pmc.state = State.CREATING if pmc.size > 1 else State.RUNNING
    kind, predicted = Kind.PREDICTED, (CallName.CREATE, *_due_after_create(pmc))
    if abandoned:
        kind = Kind.NOT_ENABLED if former_state is State.ENABLING else Kind.ORPHANED_MEMBER
    elif former_size > 1 == pmc.size and former_state is not State.UNKNOWN:
        kind, expected = Kind.DEGRADED_GROUP, f"a program of {former_size} events"
    elif call.attr.disabled != (pmc.size > 1):
        kind = Kind.ENABLED_EARLY if pmc.size > 1 else Kind.NOT_ENABLED
        expected = _created(0, pmc.size)
    if kind is Kind.PREDICTED:
        return Verdict(kind, 0, None, predicted=predicted)
    return Verdict(pmc.fault(kind), 0, None, expected, predicted)


def _create_member(pmc: _Pmc, call: Call, leader: int | None) -> Verdict:
    index = len(pmc.members)
    expected = _created(index, pmc.size)
    if pmc.index_of(call.event) is not None:
        return Verdict(pmc.fault(Kind.EXTRA_MEMBER), pmc.index_of(call.event), leader, expected)
    if call.result < 0:
        pmc.state = State.PARTIAL
    else:
        _add_member(pmc, call)
        if len(pmc.members) == pmc.size:
            pmc.state = State.ENABLING
    predicted = _due_after_create(pmc)
    if leader != 0:
        kind = Kind.WRONG_LEADER
    elif not call.attr.disabled:
        kind = Kind.ENABLED_EARLY
    elif call.result < 0:
        kind = Kind.PARTIAL_GROUP
    else:
        return Verdict(Kind.PREDICTED, index, leader, predicted=predicted)
    return Verdict(pmc.fault(kind), index, leader, expected, predicted)


def _add_member(pmc: _Pmc, call: Call) -> int | None:
    """Returns the new member's index, None if it could not be created."""
    if call.result < 0:
        return None
    pmc.members.append(_Member(call.event, enabled=not call.attr.disabled))
    return len(pmc.members) - 1


def _due_after_create(pmc: _Pmc) -> tuple[CallName, ...]:
    match pmc.state:
        case State.CREATING:
            return (CallName.CREATE,)
        case State.ENABLING:
            return (CallName.ENABLE,) * pmc.size
        case _:
            return ()


def _enable(pmc: _Pmc, call: Call) -> Verdict:
    if pmc.state is State.UNKNOWN:
        return _adopt(pmc, call, State.RUNNING)
    index = pmc.index_of(call.event)
    expected = _expected(pmc)
    if index is None:
        return Verdict(pmc.fault(_stranger(pmc, call)), None, None, expected)
    was_enabled, pmc.members[index].enabled = pmc.members[index].enabled, True
    match pmc.state:
        case State.PAUSED if pmc.size == 1:
            pmc.state = State.RUNNING
            return Verdict(Kind.PREDICTED, index, None, predicted=(CallName.ENABLE,))
        case State.ENABLING if not was_enabled:
            before = pmc.first(enabled=False)
            if before is None:
                pmc.state = State.RUNNING
            elif before < index:
                return Verdict(pmc.fault(Kind.ENABLED_OUT_OF_ORDER), index, None, expected)
            return Verdict(Kind.PREDICTED, index, None)
        case State.CREATING if Kind.ENABLED_EARLY in pmc.faults:
            # The second enable in a row: no create is to come any more.
            pmc.state = State.ENABLING if pmc.first(enabled=False) is not None else State.RUNNING
            return Verdict(pmc.fault(Kind.MISSING_MEMBER), index, None, expected)
        case State.CREATING | State.PARTIAL:
            return Verdict(pmc.fault(Kind.ENABLED_EARLY), index, None, expected)
        case _:
            return Verdict(pmc.fault(Kind.UNEXPECTED_CALL), index, None, expected)


def _pause(pmc: _Pmc, call: Call) -> Verdict:
    if pmc.state is State.UNKNOWN:
        return _adopt(pmc, call, State.PAUSED)
    index = pmc.index_of(call.event)
    # A group is stopped, never paused (pmc_pause_counter of the RFC).
    if pmc.state is State.RUNNING and pmc.size == 1 and index == 0:
        pmc.state = State.PAUSED
        return Verdict(Kind.PREDICTED, 0, None, predicted=(CallName.PAUSE,))
    return Verdict(pmc.fault(_left_too_soon(pmc) or Kind.UNEXPECTED_CALL), index, None, _expected(pmc))


def _release(pmc: _Pmc, call: Call) -> Verdict:
    index = pmc.index_of(call.event)
    if pmc.state is State.UNKNOWN:
        verdict = _adopt(pmc, call, State.EMPTY)
        pmc.members = [member for member in pmc.members if member.event != call.event]
        return verdict
    expected = _expected(pmc)
    if index is None:
        return Verdict(pmc.fault(_stranger(pmc, call)), None, None, expected)
    kind = Kind.PREDICTED
    predicted: tuple[CallName, ...] = ()
    if pmc.state is not State.RELEASING:
        kind = _left_too_soon(pmc) or Kind.PREDICTED
        predicted = _open_release(pmc, call.max_nr_events)
    if kind is Kind.PREDICTED and index != pmc.first():
        kind, expected = Kind.RELEASED_OUT_OF_ORDER, f"release(event={pmc.first()})"
    pmc.members[index].alive = False
    pmc.released |= {call.event}
    left = [i for i, member in enumerate(pmc.members) if member.alive]
    if not left or left[0] >= pmc.walk:
        pmc.state, pmc.members = State.EMPTY, []
        pmc.orphans += len(left)
        if left and kind is Kind.PREDICTED:
            kind = Kind.ORPHANED_MEMBER
            expected = " and ".join(f"release(event={i})" for i in left) + " to follow"
    if kind is Kind.PREDICTED:
        return Verdict(kind, index, None, predicted=predicted)
    return Verdict(pmc.fault(kind), index, None, expected, predicted)


def _open_release(pmc: _Pmc, max_nr_events: int) -> tuple[CallName, ...]:
    """pmc_release_perf_event() releases what exists among i < max_nr_events, as that is *now*."""
    pmc.state, pmc.walk = State.RELEASING, max(1, max_nr_events)
    return (CallName.RELEASE,) * sum(member.alive for member in pmc.members[: pmc.walk])


def _adopt(pmc: _Pmc, call: Call, then: State) -> Verdict:
    """A call of a pmc whose past is not known; with a single event, the call tells the state."""
    if pmc.size == 1 >= call.max_nr_events:
        pmc.state, pmc.members = then, [_Member(call.event, enabled=then is State.RUNNING)]
        pmc.released, pmc.faults = frozenset(), set()
        return Verdict(Kind.UNKNOWN, 0, None)
    if pmc.index_of(call.event) is None:
        pmc.members.append(_Member(call.event, enabled=call.name is CallName.ENABLE))
    return Verdict(Kind.UNKNOWN, None, None)


def _left_too_soon(pmc: _Pmc) -> Kind | None:
    return {State.CREATING: Kind.MISSING_MEMBER, State.ENABLING: Kind.NOT_ENABLED}.get(pmc.state)


def _stranger(pmc: _Pmc, call: Call) -> Kind:
    """What an event is that the pmc does not hold."""
    if call.name is CallName.RELEASE and call.event in pmc.released:
        return Kind.RELEASED_TWICE
    return Kind.MISSING_MEMBER if pmc.state is State.CREATING else Kind.UNEXPECTED_CALL


_HANDLERS = {
    CallName.CREATE: _create,
    CallName.ENABLE: _enable,
    CallName.PAUSE: _pause,
    CallName.RELEASE: _release,
}


def _created(index: int, size: int) -> str:
    leader = 0 if index else None
    return f"create(event={index}, leader={leader}, disabled={int(size > 1)})"


def _expected(pmc: _Pmc) -> str:
    """What may come next, in words."""
    match pmc.state:
        case State.CREATING:
            return _created(len(pmc.members), pmc.size)
        case State.ENABLING:
            return f"enable(event={pmc.first(enabled=False)})"
        case State.RUNNING if pmc.size == 1:
            return "pause(event=0) or release(event=0)"
        case State.PAUSED:
            return "enable(event=0) or release(event=0)"
        case State.RUNNING | State.PARTIAL | State.RELEASING:
            return f"release(event={pmc.first()})"
        case _:
            return "create(leader=None)"
