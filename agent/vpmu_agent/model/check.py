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

from vpmu_agent.model.automaton import Kind, State
from vpmu_agent.model.call import Call, CallName


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
    is_orphan: bool = False  # a release passed it by; a later one with a larger N may still find it


@dataclass(slots=True)
class _Pmc:
    """What is known of one `struct kvm_pmc`; `perf_events` holds its entries that are not NULL."""

    vm: str
    tgid: int
    vcpu: int
    name: str
    state: State = State.UNKNOWN
    size: int = 1
    perf_events: dict[int, _Member] = field(default_factory=dict)
    is_paused: bool = False
    walk: list[int] = field(default_factory=list)  # while releasing: the indices still to come
    overwritten: set[int] = field(default_factory=set)  # events that no entry of perf_events holds any more
    released: frozenset[int] = frozenset()  # since the last program began
    faults: set[Kind] = field(default_factory=set)  # in this program

    def index_of(self, event: int) -> int | None:
        for i, member in self.perf_events.items():
            if member.event == event:
                return i
        return None

    def fault(self, kind: Kind) -> Kind:
        """`kind`, or unknown where it tells nothing new."""
        if kind in self.faults or (kind is Kind.UNEXPECTED_CALL and self.faults):
            return Kind.UNKNOWN
        self.faults.add(kind)
        return kind

    def members(self) -> list[int]:
        """The indices of the current group's members."""
        return [i for i, member in self.perf_events.items() if not member.is_orphan]

    def next_to_enable(self) -> int | None:
        return next((i for i in self.members() if not self.perf_events[i].enabled), None)


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
            events = len(pmc.members())
            orphans = len(pmc.overwritten) + len(pmc.perf_events) - events
            if events or orphans:
                yield Group(pmc.vm, pmc.tgid, pmc.vcpu, pmc.name, pmc.state, pmc.size, events, orphans)

    def forget(self, tgid: int) -> None:
        """Drops all that is known of a VM that is gone."""
        self._pmcs = {key: pmc for key, pmc in self._pmcs.items() if pmc.tgid != tgid}
        self._event_counts = {key: n for key, n in self._event_counts.items() if key[0] != tgid}

    def _forget_state(self) -> None:
        """Records were lost, and nobody knows whose."""
        for pmc in self._pmcs.values():
            pmc.state = State.UNKNOWN
            pmc.overwritten.clear()
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
            return _adopt(pmc, call, State.UNKNOWN)
        case State.EMPTY:
            # Its leader was never created. What follows shows whether a member is missing.
            verdict = _program(pmc, call)
            return Verdict(pmc.fault(Kind.WRONG_LEADER), 0, None, _created(0, pmc.size), verdict.predicted)
        case _:
            kind = pmc.fault(Kind.EXTRA_MEMBER if leader == 0 else Kind.WRONG_LEADER)
            expected = _expected(pmc)
            if call.result == 0 and pmc.index_of(call.event) is None:
                # Nothing says that it should be enabled, and no release will come to it.
                pmc.perf_events[_free_index(pmc)] = _Member(call.event, enabled=True)
            return Verdict(kind, None, leader, expected)


def _program(pmc: _Pmc, call: Call) -> Verdict:
    """The first create of a program; a create without a leader opens one, whatever went before."""
    expected = _expected(pmc)
    former_size, former_state = pmc.size, pmc.state
    if former_state is State.UNKNOWN:
        pmc.perf_events.clear()
    abandoned = pmc.members()
    for i in abandoned:
        pmc.overwritten.add(pmc.perf_events.pop(i).event)
    pmc.size = max(1, call.max_nr_events)
    pmc.released, pmc.faults = frozenset(), set()
    if call.result < 0:
        pmc.state = State.EMPTY
    else:
        _add_member(pmc, 0, call)
    predicted = (CallName.CREATE, *_due_after_create(pmc))
    kind = Kind.PREDICTED
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
    index = len(pmc.members())
    expected = _created(index, pmc.size)
    known = pmc.index_of(call.event)
    if known is not None:
        return Verdict(pmc.fault(Kind.EXTRA_MEMBER), known, leader, expected)
    if call.result < 0:
        pmc.state = State.PARTIAL
    else:
        _add_member(pmc, index, call)
    predicted = _due_after_create(pmc)
    if leader != 0:
        kind = Kind.WRONG_LEADER
    elif not call.attr.disabled:
        kind = Kind.ENABLED_EARLY
    elif call.result < 0:
        kind = Kind.PARTIAL_GROUP
        expected += " to succeed"
    else:
        return Verdict(Kind.PREDICTED, index, leader, predicted=predicted)
    return Verdict(pmc.fault(kind), index, leader, expected, predicted)


def _add_member(pmc: _Pmc, index: int, call: Call) -> None:
    """The create of member `index` succeeded."""
    if index in pmc.perf_events:
        pmc.overwritten.add(pmc.perf_events[index].event)
    pmc.overwritten.discard(call.event)
    pmc.perf_events[index] = _Member(call.event, enabled=not call.attr.disabled)
    if index + 1 < pmc.size:
        pmc.state = State.CREATING
    else:
        pmc.state, pmc.is_paused = State.ENABLING if pmc.size > 1 else State.RUNNING, False


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
    was_enabled, pmc.perf_events[index].enabled = pmc.perf_events[index].enabled, True
    match pmc.state:
        case State.PAUSED | State.PARTIAL if index == 0 and pmc.is_paused and call.max_nr_events <= 1:
            pmc.is_paused = False
            if pmc.state is State.PAUSED:
                pmc.state = State.RUNNING
            return Verdict(Kind.PREDICTED, index, None, predicted=(CallName.ENABLE,))
        case State.ENABLING if not was_enabled:
            before = pmc.next_to_enable()
            if before is None:
                pmc.state = State.RUNNING
            elif before < index:
                return Verdict(pmc.fault(Kind.ENABLED_OUT_OF_ORDER), index, None, expected)
            return Verdict(Kind.PREDICTED, index, None)
        case State.CREATING if Kind.ENABLED_EARLY in pmc.faults:
            # The second enable in a row: no create is to come any more.
            pmc.state = State.RUNNING if pmc.next_to_enable() is None else State.ENABLING
            return Verdict(pmc.fault(Kind.MISSING_MEMBER), index, None, expected)
        case State.CREATING | State.PARTIAL:
            return Verdict(pmc.fault(Kind.ENABLED_EARLY), index, None, expected)
        case _:
            return Verdict(pmc.fault(Kind.UNEXPECTED_CALL), index, None, expected)


def _pause(pmc: _Pmc, call: Call) -> Verdict:
    if pmc.state is State.UNKNOWN:
        return _adopt(pmc, call, State.PAUSED)
    index = pmc.index_of(call.event)
    # A group is stopped, never paused; but what was a group may have become a single event since.
    if (
        pmc.state in (State.RUNNING, State.PARTIAL)
        and index == 0
        and not pmc.is_paused
        and call.max_nr_events <= 1
    ):
        pmc.is_paused = True
        if pmc.state is State.RUNNING:
            pmc.state = State.PAUSED
        return Verdict(Kind.PREDICTED, 0, None, predicted=(CallName.PAUSE,))
    return Verdict(pmc.fault(_left_too_soon(pmc) or Kind.UNEXPECTED_CALL), index, None, _expected(pmc))


def _release(pmc: _Pmc, call: Call) -> Verdict:
    index = pmc.index_of(call.event)
    if pmc.state is State.UNKNOWN:
        verdict = _adopt(pmc, call, State.EMPTY)
        pmc.perf_events = {i: member for i, member in pmc.perf_events.items() if member.event != call.event}
        return verdict
    expected = _expected(pmc)
    if call.event in pmc.overwritten:
        pmc.overwritten.remove(call.event)
        return Verdict(pmc.fault(Kind.RELEASED_OUT_OF_ORDER), None, None, expected)
    if index is None:
        return Verdict(pmc.fault(_stranger(pmc, call)), None, None, expected)
    kind = Kind.PREDICTED
    predicted: tuple[CallName, ...] = ()
    if pmc.state is not State.RELEASING:
        kind = _left_too_soon(pmc) or Kind.PREDICTED
        # pmc_release_perf_event() releases what exists among i < max_nr_events, as that is now.
        pmc.walk = sorted(i for i in pmc.perf_events if i < max(1, call.max_nr_events))
        predicted = (CallName.RELEASE,) * len(pmc.walk)
        pmc.state = State.RELEASING
    if kind is Kind.PREDICTED and pmc.walk[:1] != [index]:
        kind = Kind.RELEASED_OUT_OF_ORDER
        expected = f"release(event={pmc.walk[0]})" if pmc.walk else "create(leader=None)"
    if index in pmc.walk:
        pmc.walk.remove(index)
    del pmc.perf_events[index]
    pmc.released |= {call.event}
    if not pmc.walk:
        pmc.state = State.EMPTY
        left = pmc.members()
        for i in left:
            pmc.perf_events[i].is_orphan = True
        if left and kind is Kind.PREDICTED:
            kind = Kind.ORPHANED_MEMBER
            expected = " and ".join(f"release(event={i})" for i in left) + " to follow"
    if kind is Kind.PREDICTED:
        return Verdict(kind, index, None, predicted=predicted)
    return Verdict(pmc.fault(kind), index, None, expected, predicted)


def _adopt(pmc: _Pmc, call: Call, then: State) -> Verdict:
    """A call of a pmc whose past is not known; with a single event, the call tells the state."""
    member = _Member(call.event, enabled=call.name is CallName.ENABLE)
    if pmc.size == 1 >= call.max_nr_events:
        pmc.state, pmc.perf_events, pmc.is_paused = then, {0: member}, then is State.PAUSED
        pmc.released, pmc.faults = frozenset(), set()
        return Verdict(Kind.UNKNOWN, 0, None)
    if pmc.index_of(call.event) is None:
        pmc.perf_events[_free_index(pmc)] = member
    return Verdict(Kind.UNKNOWN, None, None)


def _free_index(pmc: _Pmc) -> int:
    return max(pmc.perf_events, default=-1) + 1


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
            return _created(len(pmc.members()), pmc.size)
        case State.ENABLING:
            return f"enable(event={pmc.next_to_enable()})"
        case State.RUNNING if pmc.size == 1:
            return "pause(event=0) or release(event=0)"
        case State.PAUSED:
            return "enable(event=0) or release(event=0)"
        case State.RELEASING:
            return f"release(event={pmc.walk[0]})"
        case State.RUNNING | State.PARTIAL:
            return f"release(event={min(pmc.members(), default=0)})"
        case _:
            return "create(leader=None)"
