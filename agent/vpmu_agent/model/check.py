"""The check: observed calls in, one verdict for each out.

Every pmc is followed on its own. A call is either *due* (the model has already said that it must come next)
or it opens something new (a program, a pause, a resume, a release), which only the guest can decide. The
rules are those of arch/x86/kvm/pmu.c (pmc_reprogram_counter, pmc_pause_counter, pmc_resume_counter,
pmc_release_perf_event) with groups as in "KVM: x86/pmu: Use flex *event arrays to implement grouped events"
(RFC 7/8, Like Xu, 2022-12-12).

After a divergence a pmc is not guessed at: its calls are *unknown* until the next program begins, so that one
fault gives one divergence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from vpmu_agent.model.call import Call, CallName


class Kind(StrEnum):
    """What the model says of one call; everything but the first two is a divergence."""

    PREDICTED = "predicted"
    UNKNOWN = "unknown"  # it happened before the agent came, or records were lost
    PARTIAL_GROUP = "partial_group"  # a member's creation failed: its elder siblings stay, never enabled
    DEGRADED_GROUP = "degraded_group"  # one event where the same pmc had a group
    ORPHANED_MEMBER = "orphaned_member"  # events that nobody will release any more
    EXTRA_MEMBER = "extra_member"  # more creates than the group's size
    WRONG_LEADER = "wrong_leader"  # group_leader is not event 0, or event 0 was given one
    ENABLED_EARLY = "enabled_early"  # a member counts before the last one exists
    ENABLED_OUT_OF_ORDER = "enabled_out_of_order"
    NOT_ENABLED = "not_enabled"  # the group was left before all its members were enabled
    RELEASED_OUT_OF_ORDER = "released_out_of_order"
    RELEASED_TWICE = "released_twice"
    UNEXPECTED_CALL = "unexpected_call"  # nothing that KVM may do with this pmc now

    @property
    def is_divergence(self) -> bool:
        """True for everything that the model did not predict and could have."""
        return self not in (Kind.PREDICTED, Kind.UNKNOWN)


class State(StrEnum):
    """Where the group of one pmc stands."""

    EMPTY = "empty"  # holds no events
    BUILDING = "building"  # between the first create and the last enable
    RUNNING = "running"
    PAUSED = "paused"
    PARTIAL = "partial"  # a create failed; the members before it are held, disabled
    RELEASING = "releasing"  # between the first release and the last
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
    """A pmc that holds events now; `size` is `max_nr_events` as it was when the pmc was programmed."""

    vm: str
    tgid: int
    vcpu: int
    pmc: str
    state: State
    size: int
    events: int


@dataclass(frozen=True, slots=True)
class _Due:
    """A call that must come next, and the index of its event."""

    name: CallName
    event: int


@dataclass(slots=True)
class _Pmc:
    """What is known of one `struct kvm_pmc`. `events[i]` is member i's address, 0 once released."""

    vm: str
    tgid: int
    vcpu: int
    name: str
    state: State = State.UNKNOWN
    size: int = 1
    events: list[int] = field(default_factory=list)
    released: frozenset[int] = frozenset()  # by the last release of the whole group
    due: deque[_Due] = field(default_factory=deque)

    def index_of(self, event: int) -> int | None:
        return self.events.index(event) if event and event in self.events else None


class Monitor:
    """Follows every pmc it sees a call of, by its address."""

    def __init__(self) -> None:
        self._pmcs: dict[int, _Pmc] = {}

    def observe(self, call: Call) -> Verdict:
        """Says what the model makes of the next call, and moves on."""
        if call.lost:
            # Nobody knows whose calls they were.
            for pmc in self._pmcs.values():
                _lose(pmc)
        # The guest-LBR event belongs to no pmc: it is one of its own.
        key = call.pmc or call.event
        held = self._pmcs.get(key)
        if held is None or held.tgid != call.tgid:
            held = self._pmcs[key] = _Pmc(call.vm, call.tgid, call.vcpu, call.pmc_name)
        verdict = _observe(held, call)
        if not call.pmc and held.state is State.EMPTY:
            del self._pmcs[key]
        return verdict

    def groups(self) -> Iterator[Group]:
        """The pmcs that hold events now."""
        for pmc in self._pmcs.values():
            events = sum(1 for event in pmc.events if event)
            if events:
                yield Group(pmc.vm, pmc.tgid, pmc.vcpu, pmc.name, pmc.state, pmc.size, events)

    def forget(self, tgid: int) -> None:
        """Drops all pmcs of a VM that is gone."""
        self._pmcs = {key: pmc for key, pmc in self._pmcs.items() if pmc.tgid != tgid}


def _observe(pmc: _Pmc, call: Call) -> Verdict:
    match call.name:
        case CallName.CREATE:
            return _create(pmc, call)
        case CallName.ENABLE:
            return _enable(pmc, call)
        case CallName.PAUSE:
            return _pause(pmc, call)
        case CallName.RELEASE:
            return _release(pmc, call)


def _create(pmc: _Pmc, call: Call) -> Verdict:
    leader = pmc.index_of(call.leader)
    if pmc.due and pmc.due[0].name is CallName.CREATE:
        return _create_member(pmc, call, pmc.due[0].event, leader)
    if call.leader:
        if pmc.state is State.UNKNOWN:
            pmc.events.append(call.event)
            return Verdict(Kind.UNKNOWN, None, leader)
        kind = Kind.EXTRA_MEMBER if leader == 0 else Kind.WRONG_LEADER
        expected = _expected(pmc) if leader == 0 else "create(leader=None)"
        verdict = _diverge(pmc, kind, None, leader, expected)
        pmc.events.append(call.event)
        return verdict
    return _create_first(pmc, call)


def _create_first(pmc: _Pmc, call: Call) -> Verdict:
    """A create without a leader opens a program, whatever went before."""
    size = max(1, call.max_nr_events)
    abandoned = pmc.state is not State.UNKNOWN and any(pmc.events)
    not_enabled = bool(pmc.due) and pmc.due[0].name is CallName.ENABLE
    expected = _expected(pmc)
    degraded = size == 1 < pmc.size
    previous_size = pmc.size
    pmc.size, pmc.events, pmc.released = size, [], frozenset()
    pmc.due.clear()
    if call.result < 0:
        pmc.state = State.EMPTY
    else:
        pmc.events = [call.event]
        pmc.state = State.BUILDING if size > 1 else State.RUNNING
    predicted = (CallName.CREATE, *_next_of_program(pmc))
    if abandoned:
        kind = Kind.NOT_ENABLED if not_enabled else Kind.ORPHANED_MEMBER
        return Verdict(kind, 0, None, expected, predicted)
    if degraded:
        return Verdict(Kind.DEGRADED_GROUP, 0, None, f"a program of {previous_size} events", predicted)
    if call.attr.disabled != (size > 1):
        kind = Kind.ENABLED_EARLY if size > 1 else Kind.NOT_ENABLED
        return _diverge(pmc, kind, 0, None, _created(0, size), (CallName.CREATE,))
    return Verdict(Kind.PREDICTED, 0, None, predicted=predicted)


def _create_member(pmc: _Pmc, call: Call, index: int, leader: int | None) -> Verdict:
    pmc.due.popleft()
    pmc.events.append(call.event)
    if call.leader != pmc.events[0]:
        return _diverge(pmc, Kind.WRONG_LEADER, index, leader, _created(index, pmc.size))
    if not call.attr.disabled:
        return _diverge(pmc, Kind.ENABLED_EARLY, index, leader, _created(index, pmc.size))
    if call.result < 0:
        pmc.events.pop()
        pmc.due.clear()
        pmc.state = State.PARTIAL
        return Verdict(Kind.PARTIAL_GROUP, index, leader, f"{_created(index, pmc.size)} = 0")
    return Verdict(Kind.PREDICTED, index, leader, predicted=_next_of_program(pmc))


def _next_of_program(pmc: _Pmc) -> tuple[CallName, ...]:
    """Makes due what must follow the create that just succeeded."""
    held = len(pmc.events)
    if held == 0 or pmc.size == 1:
        return ()
    if held < pmc.size:
        pmc.due.append(_Due(CallName.CREATE, held))
    else:
        pmc.due.extend(_Due(CallName.ENABLE, i) for i in range(pmc.size))
    return tuple(due.name for due in pmc.due)


def _enable(pmc: _Pmc, call: Call) -> Verdict:
    index = pmc.index_of(call.event)
    if pmc.state is State.UNKNOWN:
        return _adopt(pmc, call, State.RUNNING)
    if pmc.due:
        due = pmc.due[0]
        if due.name is CallName.ENABLE and index == due.event:
            pmc.due.popleft()
            if not pmc.due:
                pmc.state = State.RUNNING
            return Verdict(Kind.PREDICTED, index, None)
        kind = {
            CallName.CREATE: Kind.ENABLED_EARLY,
            CallName.ENABLE: Kind.ENABLED_OUT_OF_ORDER,
        }.get(due.name, Kind.UNEXPECTED_CALL)
        return _diverge(pmc, kind, index, None, _expected(pmc))
    if pmc.state is State.PAUSED and index == 0:
        pmc.state = State.RUNNING
        return Verdict(Kind.PREDICTED, 0, None, predicted=(CallName.ENABLE,))
    return _diverge(pmc, Kind.UNEXPECTED_CALL, index, None, _expected(pmc))


def _pause(pmc: _Pmc, call: Call) -> Verdict:
    index = pmc.index_of(call.event)
    if pmc.state is State.UNKNOWN:
        return _adopt(pmc, call, State.PAUSED)
    # A group is stopped, never paused (pmc_pause_counter of the RFC).
    if not pmc.due and pmc.state is State.RUNNING and pmc.size == 1 and index == 0:
        pmc.state = State.PAUSED
        return Verdict(Kind.PREDICTED, 0, None, predicted=(CallName.PAUSE,))
    return _diverge(pmc, _left_in_building(pmc) or Kind.UNEXPECTED_CALL, index, None, _expected(pmc))


def _release(pmc: _Pmc, call: Call) -> Verdict:
    index = pmc.index_of(call.event)
    if pmc.state is State.UNKNOWN:
        verdict = _adopt(pmc, call, State.EMPTY)
        pmc.events = [event for event in pmc.events if event != call.event]
        return verdict
    if index is None:
        kind = Kind.RELEASED_TWICE if call.event in pmc.released else Kind.UNEXPECTED_CALL
        return _diverge(pmc, kind, None, None, _expected(pmc))
    opened = () if pmc.due else _open_release(pmc, call.max_nr_events)
    if not pmc.due or pmc.due[0] != _Due(CallName.RELEASE, index):
        kind = _left_in_building(pmc) or Kind.RELEASED_OUT_OF_ORDER
        expected = _expected(pmc)
        pmc.events[index] = 0
        return _diverge(pmc, kind, index, None, expected, opened)
    pmc.due.popleft()
    pmc.events[index] = 0
    pmc.released |= {call.event}
    if pmc.due:
        return Verdict(Kind.PREDICTED, index, None, predicted=opened)
    if any(pmc.events):
        orphans = " and ".join(f"release(event={i})" for i, event in enumerate(pmc.events) if event)
        return _diverge(pmc, Kind.ORPHANED_MEMBER, index, None, f"{orphans} after it", opened)
    pmc.state, pmc.events = State.EMPTY, []
    return Verdict(Kind.PREDICTED, index, None, predicted=opened)


def _open_release(pmc: _Pmc, max_nr_events: int) -> tuple[CallName, ...]:
    """Makes due what pmc_release_perf_event() will release: i < max_nr_events as it is *now*."""
    pmc.state, pmc.released = State.RELEASING, frozenset()
    walked = range(min(max(1, max_nr_events), len(pmc.events)))
    pmc.due.extend(_Due(CallName.RELEASE, i) for i in walked if pmc.events[i])
    return tuple(due.name for due in pmc.due)


def _adopt(pmc: _Pmc, call: Call, then: State) -> Verdict:
    """The first call of a pmc that was there before the agent: with one event, it tells the state."""
    if max(1, call.max_nr_events) == 1 and pmc.size == 1:
        pmc.state, pmc.events, pmc.released = then, [call.event], frozenset()
        return Verdict(Kind.UNKNOWN, 0, None)
    if call.event not in pmc.events:
        pmc.events.append(call.event)
    return Verdict(Kind.UNKNOWN, None, None)


def _left_in_building(pmc: _Pmc) -> Kind | None:
    return Kind.NOT_ENABLED if pmc.due and pmc.due[0].name is CallName.ENABLE else None


def _diverge(
    pmc: _Pmc,
    kind: Kind,
    event: int | None,
    leader: int | None,
    expected: str,
    predicted: tuple[CallName, ...] = (),
) -> Verdict:
    _lose(pmc)
    return Verdict(kind, event, leader, expected, predicted)


def _lose(pmc: _Pmc) -> None:
    pmc.state = State.UNKNOWN
    pmc.due.clear()


def _created(index: int, size: int) -> str:
    leader = 0 if index else None
    return f"create(event={index}, leader={leader}, disabled={int(size > 1)})"


def _expected(pmc: _Pmc) -> str:
    """What may come next, in words."""
    if pmc.due:
        due = pmc.due[0]
        if due.name is CallName.CREATE:
            return _created(due.event, pmc.size)
        return f"{due.name}(event={due.event})"
    first = next((i for i, event in enumerate(pmc.events) if event), 0)
    match pmc.state:
        case State.RUNNING if pmc.size == 1:
            return "pause(event=0) or release(event=0)"
        case State.PAUSED:
            return "enable(event=0) or release(event=0)"
        case State.RUNNING | State.PARTIAL:
            return f"release(event={first})"
        case _:
            return "create(leader=None)"
