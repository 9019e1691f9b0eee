"""The rules for the calls of one pmc, as data.

`make generate` writes three files from them: compiled_rules.py (the check in Python), bpf/monitor.h (the same
check in BPF) and docs/model.md (for people).

Every pmc is followed on its own, in a few registers. A call is either *due* (the model has already said that
it must come next) or it opens something new (a program, a pause, a resume, a release), which only the guest
can decide. The rules are those of `mechanism.py`, read the other way round: from a call to what may have made
it.

After a divergence the check goes on from what was really seen, so that what follows is judged as well; but a
kind is reported once in a program, and what can only be a consequence is called unknown: one fault in the
kernel gives one or two divergences, not one for every call after it.

Guards and effects are written in a subset of Python that means the same in C (generate/language.py). They use
REGISTERS, INPUTS, FUNCTIONS and EFFECTS, all explained below.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vpmu_agent.model.call import CallName


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
        """Return whether the model could have predicted the call, and did not."""
        return self not in (Kind.PREDICTED, Kind.UNKNOWN)

    @property
    def meaning(self) -> str:
        """Return what the kind means, in a sentence."""
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

    UNKNOWN = "unknown"
    EMPTY = "empty"
    CREATING = "creating"
    ENABLING = "enabling"
    RUNNING = "running"
    PAUSED = "paused"
    PARTIAL = "partial"
    RELEASING = "releasing"

    @property
    def meaning(self) -> str:
        """Return what the state means, in a sentence."""
        return _STATE_MEANINGS[self]


_STATE_MEANINGS = {
    State.UNKNOWN: "the pmc's past is not known: it is older than the agent, or records were lost",
    State.EMPTY: "the pmc holds no events",
    State.CREATING: "from the first create of a group to the last",
    State.ENABLING: "of a group: from the last create to the last enable",
    State.RUNNING: "every event was created, and of a group every event was enabled",
    State.PAUSED: "the single event was paused",
    State.PARTIAL: "a create failed; the members before it are held, disabled",
    State.RELEASING: "from the first release to the last",
}

# A create without event 0 would have begun a program, and a release would have led to another state.
_HAS_EVENT_0 = {"members": True, "(members | orphans) & below(n)": True, "released()": False}

INVARIANTS = {
    State.EMPTY: {"members": False},
    State.CREATING: {**_HAS_EVENT_0, "size > 1": True},
    State.ENABLING: {**_HAS_EVENT_0, "size > 1": True},
    State.RUNNING: _HAS_EVENT_0,
    State.PAUSED: _HAS_EVENT_0,
    State.PARTIAL: _HAS_EVENT_0,
    State.RELEASING: {"walk": True},
}
"""What holds in a state whatever KVM does. Without it, docs/model.md would have impossible cases."""


class Expected(StrEnum):
    """What was expected in place of a divergence, with `at` a number that says more."""

    NOTHING = ""
    CREATE = "create(event={at}, leader={leader}, disabled={disabled})"
    CREATE_SUCCEEDS = "create(event={at}, leader={leader}, disabled={disabled}) to succeed"
    PROGRAM = "create(leader=None)"
    PROGRAM_OF = "a program of {at} events"
    ENABLE = "enable(event={at})"
    PAUSE_OR_RELEASE = "pause(event=0) or release(event=0)"
    ENABLE_OR_RELEASE = "enable(event=0) or release(event=0)"
    RELEASE = "release(event={at})"
    RELEASES = "{releases} to follow"  # `at` is a mask
    EVENT_COUNT = "event_count={at}, not {event_count}"


SLOTS = 32
"""Members of a group that are followed; of a larger group the model says nothing (unknown)."""

REGISTERS = {
    "state": "where the group stands",
    "size": "its N: `max_nr_events` when it was programmed",
    "members": "bit i: `perf_events[i]` is held",
    "enabled": "bit i: `perf_events[i]` is enabled",
    "orphans": (
        "bit i: `perf_events[i]` is there, but a release passed it by; one with a larger N may still find it"
    ),
    "gone": "bit i: `perf_events[i]` was released in this program",
    "walk": "while releasing, bit i: `perf_events[i]` is still to be released",
    "left": "how many events no entry of `perf_events` holds any more, so that nobody will release them",
    "paused": "`is_paused`",
    "faults": "one bit for each kind of divergence that this program has had",
}
"""What is kept of one pmc."""

INPUTS = {
    "event": "address of the event that is created, enabled, paused or released; 0 if its creation failed",
    "leader": "address that a create was given as `group_leader`, 0 if none",
    "failed": "whether the call returned an error",
    "disabled": "of a create: the `disabled` of its attributes",
    "n": "`max_nr_events`, at least 1: as it is now where N_IS_READ says so, else `size`",
    "index": "which entry of `perf_events` holds `event`, -1 if none does",
    "leader_index": "the same of `leader`",
}
"""What a call brings."""

N_IS_READ = {
    CallName.CREATE: "True",
    CallName.ENABLE: "state == UNKNOWN or size > 1 and paused",
    CallName.PAUSE: "state == UNKNOWN or size > 1",
    CallName.RELEASE: "state != RELEASING and (state == UNKNOWN or size > 1 or orphans)",
}
"""When a call is held against KVM's `max_nr_events` as it is now; otherwise N is what it was at the program.

To read it costs the guest as much as a third of all that the check does. What is lost by not reading it: that
KVM pauses or resumes a single event of a pmc that is to have a group by now.
"""

FUNCTIONS = {
    "bit(i)": "a mask of bit i",
    "below(i)": "a mask of all bits below bit i",
    "lowest(mask)": "the lowest bit of a mask, as a mask",
    "low(mask)": "the index of its lowest bit, 0 if it has none",
    "width(mask)": "one more than the index of its highest bit, 0 if it has none",
    "count(mask)": "how many bits it has",
    "fault(kind)": "the bit of a kind of divergence in `faults`",
    "released()": "whether `event` was released in this program",
    "left_behind()": "whether `event` is one of those that `left` counts",
}
"""What guards and effects can ask."""

EFFECTS = {
    "put(i)": "`perf_events[i]` is `event` from now on",
    "leave(i)": "`perf_events[i]` is overwritten: what it held is left behind",
    "leave_all(mask)": "the same for every bit of a mask",
    "found()": "`event` was not left behind after all",
}
"""What effects can do, apart from assignments to registers."""


@dataclass(frozen=True, slots=True)
class Says:
    """A verdict and where it holds. `at` and `size` (its group's N) go with what was expected."""

    kind: Kind
    when: str = "True"
    expected: Expected | None = None
    """None: what may come next in this state (NEXT)."""
    at: str = "0"
    size: str = "size"


@dataclass(frozen=True, slots=True)
class Rule:
    """What a call in one of `states` means, if `when` holds: of several rules the first one counts.

    The first of `says` that holds is the verdict; it sees the registers as they were before the effects.
    `let` are values worked out before both. `event` and `leader` are indices, -1 where not known. `predicted`
    are the calls that the model predicts on seeing this one, itself included where it opened something new.
    `note` says in a sentence what the rule is about; it goes into all that is generated.
    """

    call: CallName
    states: tuple[State, ...]
    says: tuple[Says, ...]
    when: str = "True"
    let: tuple[tuple[str, str], ...] = ()
    effects: str = ""
    event: str = "-1"
    leader: str = "-1"
    predicted: tuple[tuple[CallName, str], ...] = ()
    note: str = ""


NEXT = (
    Says(Kind.UNKNOWN, "state == CREATING", Expected.CREATE, "count(members)"),
    Says(Kind.UNKNOWN, "state == ENABLING", Expected.ENABLE, "low(members & ~enabled)"),
    Says(Kind.UNKNOWN, "state == RUNNING and size == 1", Expected.PAUSE_OR_RELEASE),
    Says(Kind.UNKNOWN, "state == PAUSED", Expected.ENABLE_OR_RELEASE),
    Says(Kind.UNKNOWN, "state == RELEASING", Expected.RELEASE, "low(walk)"),
    Says(Kind.UNKNOWN, "state == RUNNING or state == PARTIAL", Expected.RELEASE, "low(members)"),
    Says(Kind.UNKNOWN, "True", Expected.PROGRAM),
)
"""What may come next; the kind means nothing here."""

_CREATE = CallName.CREATE
_ENABLE = CallName.ENABLE
_PAUSE = CallName.PAUSE
_RELEASE = CallName.RELEASE
_STATES = tuple(State)
_KNOWN = tuple(state for state in State if state is not State.UNKNOWN)
_PREDICTED = Says(Kind.PREDICTED, expected=Expected.NOTHING)
_UNKNOWN = Says(Kind.UNKNOWN, expected=Expected.NOTHING)
_UNEXPECTED = Says(Kind.UNEXPECTED_CALL)

# The create of member `at` succeeded.
_ADD = """
if orphans & bit(at):
    leave(at)
found()
orphans &= ~bit(at)
gone &= ~bit(at)
members |= bit(at)
enabled = enabled & ~bit(at) if disabled else enabled | bit(at)
put(at)
if at + 1 < size:
    state = CREATING
else:
    state = ENABLING if size > 1 else RUNNING
    paused = 0
"""


def _indented(block: str) -> str:
    return "".join(f"    {line}\n" for line in block.strip().splitlines())


# The first create of a program.
_PROGRAM = f"""
if state == UNKNOWN:
    orphans = 0
else:
    leave_all(members)
members = 0
enabled = 0
gone = 0
faults = 0
size = n
if failed:
    state = EMPTY
else:
{_indented(_ADD)}"""
_PROGRAM_PREDICTS = ((_CREATE, "1 if failed or n == 1 else 2"),)

# Keep an event that nobody has seen the creation of.
_ADOPT = """
if not failed and index < 0 and free < SLOTS:
    members |= bit(free)
    enabled |= bit(free)
    put(free)
"""
_FREE = ("free", "width(members | orphans)")
# There is this one event and nothing else.
_ADOPT_SINGLE = """
members = 1
orphans = 0
gone = 0
faults = 0
put(0)
"""
_IS_SINGLE = "size == 1 and n == 1"
_TELLS_THE_STATE = "Of a single event, this call tells the state."
_OF_AN_UNKNOWN_GROUP = "A member of a group whose state is not known."
_NO_MEMBER = "The event is none that the pmc holds."

_STRANGER = (Says(Kind.MISSING_MEMBER, "state == CREATING"), _UNEXPECTED)
_LEFT_TOO_SOON = (
    Says(Kind.MISSING_MEMBER, "state == CREATING"),
    Says(Kind.NOT_ENABLED, "state == ENABLING"),
)


def _beyond(call: CallName) -> Rule:
    """A group of more members than are followed."""
    return Rule(
        call,
        _STATES,
        (_UNKNOWN,),
        when="n > SLOTS",
        effects="state = UNKNOWN\nmembers = 0\norphans = 0\ngone = 0",
        note="The group has more members than are followed.",
    )


_CREATES = (
    _beyond(_CREATE),
    Rule(
        _CREATE,
        (State.CREATING,),
        (Says(Kind.EXTRA_MEMBER, expected=Expected.CREATE, at="count(members)"),),
        when="index >= 0",
        event="index",
        leader="leader_index",
        note="The event is a member already.",
    ),
    Rule(
        _CREATE,
        (State.CREATING,),
        (
            Says(Kind.WRONG_LEADER, "leader_index != 0", Expected.CREATE, "at"),
            Says(Kind.ENABLED_EARLY, "not disabled", Expected.CREATE, "at"),
            Says(Kind.PARTIAL_GROUP, "failed", Expected.CREATE_SUCCEEDS, "at"),
            _PREDICTED,
        ),
        let=(("at", "count(members)"),),
        effects=f"if failed:\n    state = PARTIAL\nelse:\n{_indented(_ADD)}",
        event="at",
        leader="leader_index",
        predicted=(
            (_CREATE, "1 if not failed and at + 1 < size else 0"),
            (_ENABLE, "size if not failed and at + 1 == size else 0"),
        ),
        note="The next member of the group.",
    ),
    Rule(
        _CREATE,
        _STATES,
        (
            Says(Kind.WRONG_LEADER, "leader", Expected.CREATE, size="n"),
            Says(Kind.NOT_ENABLED, "members and state == ENABLING"),
            Says(Kind.ORPHANED_MEMBER, "members and state != UNKNOWN"),
            Says(
                Kind.DEGRADED_GROUP, "size > 1 and n == 1 and state != UNKNOWN", Expected.PROGRAM_OF, "size"
            ),
            Says(Kind.ENABLED_EARLY, "not disabled and n > 1", Expected.CREATE, size="n"),
            Says(Kind.NOT_ENABLED, "disabled and n == 1", Expected.CREATE, size="n"),
            _PREDICTED,
        ),
        when="not leader or state == EMPTY",
        let=(("at", "0"),),
        effects=_PROGRAM,
        event="0",
        predicted=_PROGRAM_PREDICTS,
        note=(
            "A program begins: a create without a leader opens one, whatever went before. "
            "If it names a leader and the pmc holds no events, that leader was never created; "
            "the calls that follow show whether a member is missing."
        ),
    ),
    Rule(
        _CREATE,
        (State.UNKNOWN,),
        (_UNKNOWN,),
        let=(_FREE,),
        effects=_ADOPT,
        note="A member of a group whose beginning was not seen.",
    ),
    Rule(
        _CREATE,
        (State.ENABLING, State.RUNNING, State.PAUSED, State.PARTIAL, State.RELEASING),
        (Says(Kind.EXTRA_MEMBER, "leader_index == 0"), Says(Kind.WRONG_LEADER)),
        let=(_FREE,),
        effects=_ADOPT,
        leader="leader_index",
        note="One member too many: nothing says that it should be enabled, and no release will come to it.",
    ),
)

_ENABLES = (
    _beyond(_ENABLE),
    Rule(
        _ENABLE,
        (State.UNKNOWN,),
        (_UNKNOWN,),
        when=_IS_SINGLE,
        effects=f"{_ADOPT_SINGLE}enabled = 1\nstate = RUNNING\npaused = 0",
        event="0",
        note=_TELLS_THE_STATE,
    ),
    Rule(
        _ENABLE,
        (State.UNKNOWN,),
        (_UNKNOWN,),
        let=(_FREE,),
        effects=_ADOPT,
        note=_OF_AN_UNKNOWN_GROUP,
    ),
    Rule(_ENABLE, _KNOWN, _STRANGER, when="index < 0", note=_NO_MEMBER),
    Rule(
        _ENABLE,
        (State.PAUSED, State.PARTIAL),
        (_PREDICTED,),
        when="index == 0 and paused and n == 1",
        effects="enabled |= 1\npaused = 0\nif state == PAUSED:\n    state = RUNNING",
        event="0",
        predicted=((_ENABLE, "1"),),
        note="The guest's counter resumes: pmc_resume_counter().",
    ),
    Rule(
        _ENABLE,
        (State.ENABLING,),
        (Says(Kind.ENABLED_OUT_OF_ORDER, "members & ~enabled & below(index)"), _PREDICTED),
        when="not enabled & bit(index)",
        effects="enabled |= bit(index)\nif not members & ~enabled:\n    state = RUNNING",
        event="index",
        note="The members of a group are enabled in order, once the last one was created.",
    ),
    Rule(
        _ENABLE,
        (State.CREATING,),
        (Says(Kind.MISSING_MEMBER),),
        when="faults & fault(ENABLED_EARLY)",
        effects="enabled |= bit(index)\nstate = ENABLING if members & ~enabled else RUNNING",
        event="index",
        note="The second enable that comes too early: no create is to come any more.",
    ),
    Rule(
        _ENABLE,
        (State.CREATING, State.PARTIAL),
        (Says(Kind.ENABLED_EARLY),),
        effects="enabled |= bit(index)",
        event="index",
        note="Not all members were created.",
    ),
    Rule(
        _ENABLE,
        _KNOWN,
        (_UNEXPECTED,),
        effects="enabled |= bit(index)",
        event="index",
        note="Nothing is to be enabled.",
    ),
)

_PAUSES = (
    _beyond(_PAUSE),
    Rule(
        _PAUSE,
        (State.UNKNOWN,),
        (_UNKNOWN,),
        when=_IS_SINGLE,
        effects=f"{_ADOPT_SINGLE}enabled = 0\nstate = PAUSED\npaused = 1",
        event="0",
        note=_TELLS_THE_STATE,
    ),
    Rule(
        _PAUSE,
        (State.UNKNOWN,),
        (_UNKNOWN,),
        let=(_FREE,),
        effects=_ADOPT,
        note=_OF_AN_UNKNOWN_GROUP,
    ),
    Rule(
        _PAUSE,
        (State.RUNNING, State.PARTIAL),
        (_PREDICTED,),
        when="index == 0 and not paused and n == 1",
        effects="paused = 1\nif state == RUNNING:\n    state = PAUSED",
        event="0",
        predicted=((_PAUSE, "1"),),
        note=(
            "pmc_pause_counter() stops a group and pauses only a single event; "
            "but what was a group may have become a single event since."
        ),
    ),
    Rule(
        _PAUSE,
        _KNOWN,
        (*_LEFT_TOO_SOON, _UNEXPECTED),
        event="index",
        note="Nothing is to be paused.",
    ),
)

# The event is released, and what the walk has passed by is left behind when it ends.
_TAKE = """
members &= ~bit(index)
orphans &= ~bit(index)
gone |= bit(index)
walk = ahead & ~bit(index)
if walk:
    state = RELEASING
else:
    state = EMPTY
    orphans |= members
    members = 0
"""
_WALKS = (
    Says(Kind.RELEASED_OUT_OF_ORDER, "ahead and lowest(ahead) != bit(index)", Expected.RELEASE, "low(ahead)"),
    Says(Kind.RELEASED_OUT_OF_ORDER, "not ahead", Expected.PROGRAM),
    Says(
        Kind.ORPHANED_MEMBER,
        "ahead == bit(index) and members & ~bit(index)",
        Expected.RELEASES,
        "members & ~bit(index)",
    ),
    _PREDICTED,
)

_RELEASES = (
    _beyond(_RELEASE),
    Rule(
        _RELEASE,
        (State.UNKNOWN,),
        (_UNKNOWN,),
        when=_IS_SINGLE,
        effects="members = 0\norphans = 0\ngone = 0\nfaults = 0\npaused = 0\nstate = EMPTY",
        event="0",
        note=_TELLS_THE_STATE,
    ),
    Rule(
        _RELEASE,
        (State.UNKNOWN,),
        (_UNKNOWN,),
        effects="if index >= 0:\n    members &= ~bit(index)\n    orphans &= ~bit(index)",
        note=_OF_AN_UNKNOWN_GROUP,
    ),
    Rule(
        _RELEASE,
        _KNOWN,
        (Says(Kind.RELEASED_OUT_OF_ORDER),),
        when="index < 0 and left_behind()",
        effects="found()",
        note="The event was left behind, and is released after all.",
    ),
    Rule(
        _RELEASE,
        _KNOWN,
        (Says(Kind.RELEASED_TWICE, "released()"), *_STRANGER),
        when="index < 0",
        note=_NO_MEMBER,
    ),
    Rule(
        _RELEASE,
        (State.RELEASING,),
        _WALKS,
        let=(("ahead", "walk"),),
        effects=_TAKE,
        event="index",
        note="The next release of pmc_release_perf_event().",
    ),
    Rule(
        _RELEASE,
        _KNOWN,
        (*_LEFT_TOO_SOON, *_WALKS),
        let=(("ahead", "(members | orphans) & below(n)"),),
        effects=_TAKE,
        event="index",
        predicted=((_RELEASE, "count(ahead)"),),
        note=(
            "The first release: pmc_release_perf_event() goes on to release "
            "what exists among i < max_nr_events, as that is now."
        ),
    ),
)

RULES = (*_CREATES, *_ENABLES, *_PAUSES, *_RELEASES)
"""All of it, in the order in which they are tried."""
