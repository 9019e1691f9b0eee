"""The check in Python: observed calls in, one verdict for each out. Its code is made from the automaton."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vpmu_agent.model.call import Call, CallName
from vpmu_agent.model.generate.language import NAMES, expression, names_in, python, statements
from vpmu_agent.model.rules import NEXT, RULES, Expected, Kind, Rule, Says, State
from vpmu_agent.model.verdict import Verdict, verdict


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


_KINDS, _EXPECTED, _STATES = tuple(Kind), tuple(Expected), tuple(State)


class _Pmc:
    """The registers of one `struct kvm_pmc`, and the events that its entries hold."""

    __slots__ = (
        *(
            "enabled",
            "epoch",
            "events",
            "faults",
            "gone",
            "left",
            "left_events",
            "members",
            "name",
            "orphans",
        ),
        *("paused", "size", "state", "tgid", "vcpu", "vm", "walk"),
    )

    def __init__(self, call: Call, epoch: int) -> None:
        self.epoch = epoch
        self.vm, self.tgid, self.vcpu, self.name = call.vm, call.tgid, call.vcpu, call.pmc_name
        self.state, self.size = _UNKNOWN_STATE, 1
        self.members = self.enabled = self.orphans = self.gone = self.walk = 0
        self.left = self.paused = self.faults = 0
        self.events: list[int] = []
        self.left_events: set[int] = set()

    def index_of(self, event: int) -> int:
        """Where the event is held, -1 if it is not."""
        return self._find(event, self.members | self.orphans)

    def released(self, event: int) -> bool:
        """Whether the event was released in this program."""
        return self._find(event, self.gone & ~(self.members | self.orphans)) >= 0

    def left_behind(self, event: int) -> bool:
        """Whether the event was overwritten, and so will not be released."""
        return event in self.left_events

    def put(self, index: int, event: int) -> None:
        """perf_events[index] is the event."""
        self.events += [0] * (index + 1 - len(self.events))
        self.events[index] = event

    def leave(self, mask: int) -> None:
        """These entries are overwritten."""
        while mask:
            self.left_events.add(self.events[mask.bit_length() - 1])
            mask &= ~(1 << mask.bit_length() - 1)
        self.left = len(self.left_events)

    def found(self, event: int) -> None:
        """The event was not left behind after all."""
        self.left_events.discard(event)
        self.left = len(self.left_events)

    def _find(self, event: int, mask: int) -> int:
        return next((i for i, held in enumerate(self.events) if held == event and mask >> i & 1), -1)


_UNKNOWN_STATE, _EMPTY = NAMES["UNKNOWN"], NAMES["EMPTY"]
_UNKNOWN_KIND = _KINDS.index(Kind.UNKNOWN)
_UNEXPECTED_CALL, _EVENT_COUNT_MISMATCH = NAMES["UNEXPECTED_CALL"], NAMES["EVENT_COUNT_MISMATCH"]
_Step = Callable[[_Pmc, int, int, bool, bool, int], Verdict]
"""What to do with one call in one state: (pmc, event, leader, failed, disabled, n)."""


class Monitor:
    """Follows every pmc it sees a call of, by its VM's process and its address."""

    def __init__(self) -> None:
        self._pmcs: dict[tuple[int, int], _Pmc] = {}
        self._event_counts: dict[tuple[int, int], int] = {}
        self._epoch = 0

    def observe(self, call: Call) -> Verdict:
        """Says what the model makes of the next call, and moves on."""
        if call.lost:
            # Nobody knows whose calls they were: nothing is known of any pmc, nor of a vCPU's count.
            self._epoch += 1
            self._event_counts.clear()
        # The guest-LBR event belongs to no pmc: it is one of its own.
        key = call.tgid, call.pmc or call.event
        pmc = self._pmcs.get(key)
        if pmc is None:
            pmc = self._pmcs[key] = _Pmc(call, self._epoch)
        elif pmc.epoch != self._epoch:
            pmc.epoch, pmc.state, pmc.left = self._epoch, _UNKNOWN_STATE, 0
            pmc.left_events.clear()
        name, event_count = call.name, call.event_count
        said = _STEPS[name][pmc.state](
            pmc, call.event, call.leader, call.result < 0, call.attr.disabled, call.max_nr_events or 1
        )
        if not call.pmc and pmc.state == _EMPTY:
            del self._pmcs[key]
        if event_count < 0:
            return said
        # KVM counts an event once it was created, and no more after it was released: at the entry of either
        # call its count is still without it, or with it (pmc_reprogram_counter, pmc_release_perf_event).
        vcpu = call.tgid, call.vcpu
        expected = self._event_counts.get(vcpu, event_count)
        if name is CallName.CREATE:
            self._event_counts[vcpu] = event_count + (call.result == 0) & 0xFF  # u8 event_count
        elif name is CallName.RELEASE:
            self._event_counts[vcpu] = event_count - 1 & 0xFF
        elif expected != event_count or vcpu not in self._event_counts:
            self._event_counts[vcpu] = event_count
        if expected == event_count or said.kind.is_divergence:
            return said
        event, leader = (-1 if index is None else index for index in (said.event, said.leader))
        return verdict(
            *(_EVENT_COUNT_MISMATCH, event, leader, _EXPECTED.index(Expected.EVENT_COUNT)),
            *(expected, 1, said.counts, event_count),
        )

    def groups(self) -> Iterator[Group]:
        """The pmcs that hold events now, or have left some behind."""
        for pmc in self._pmcs.values():
            events = pmc.members.bit_count()
            orphans = pmc.left + pmc.orphans.bit_count()
            if events or orphans:
                state = _STATES[pmc.state]
                yield Group(pmc.vm, pmc.tgid, pmc.vcpu, pmc.name, state, pmc.size, events, orphans)

    def forget(self, tgid: int) -> None:
        """Drops all that is known of a VM that is gone."""
        self._pmcs = {key: pmc for key, pmc in self._pmcs.items() if key[0] != tgid}
        self._event_counts = {key: n for key, n in self._event_counts.items() if key[0] != tgid}


# The code


def _low(mask: int) -> int:
    return (mask & -mask).bit_length() - 1 if mask else 0


def _diverged(
    pmc: _Pmc, kind: int, event: int, leader: int, says: tuple[int, int, int], counts: tuple[int, ...]
) -> Verdict:
    """The verdict for `kind`, which is unknown where it tells nothing new."""
    if kind != _UNKNOWN_KIND:
        if pmc.faults >> kind & 1 or (kind == _UNEXPECTED_CALL and pmc.faults):
            kind = _UNKNOWN_KIND
        else:
            pmc.faults |= 1 << kind
    return verdict(kind, event, leader, *says, counts)


def source() -> str:
    """The Python code of the automaton: a function for each call in each state."""
    lines = ["def next_call(p):", *_ladder(NEXT, "    return {says}")]
    for call in CallName:
        for i, state in enumerate(State):
            rules = [rule for rule in RULES if rule.call is call and state in rule.states]
            lines += ["", f"def {call}_{i}(p, event, leader, failed, disabled, n):"]
            # What only a later rule asks for is not worked out for an earlier one.
            known: set[str] = set()
            for rule in rules:
                for name in sorted(_mentioned(rule) & {"index", "leader_index"} - known):
                    of = "leader" if name == "leader_index" else "event"
                    lines.append(f"    {name} = p.index_of({of}) if {of} else -1")
                    known.add(name)
                lines += _rule(rule)
    return "\n".join(lines)


def _mentioned(rule: Rule) -> set[str]:
    says = [part for say in rule.says for part in (say.when, say.at, say.size)]
    values = [value for _, value in (*rule.let, *rule.predicted)]
    return names_in(rule.when, rule.event, rule.leader, rule.effects, *says, *values)


def _rule(rule: Rule) -> list[str]:
    to = python()
    when = expression(rule.when, to)
    indent = "    " if when == "1" else "        "
    lines = [] if when == "1" else [f"    if {when}:"]
    lines += [f"{indent}{name} = {expression(value, to)}" for name, value in rule.let]
    counts = dict(rule.predicted)
    predicted = ", ".join(expression(counts.get(name, "0"), to) for name in CallName)
    lines.append(f"{indent}counts = ({predicted})")
    lines += [indent + line for line in _ladder(rule.says, "kind, says = {kind}, {says}")]
    lines += statements(rule.effects, to, indent)
    place = f"{expression(rule.event, to)}, {expression(rule.leader, to)}"
    if any(say.kind is Kind.PREDICTED for say in rule.says):
        lines += [f"{indent}if not kind:", f"{indent}    return verdict(0, {place}, 0, 0, 1, counts)"]
    lines.append(f"{indent}return diverged(p, kind, {place}, says, counts)")
    return lines


def _ladder(says: tuple[Says, ...], line: str) -> list[str]:
    """What the first of `says` that holds comes to; without `if` where nothing is asked."""
    to = python()
    lines = []
    for i, say in enumerate(says):
        expected = (
            "next_call(p)"
            if say.expected is None
            else f"({_EXPECTED.index(say.expected)}, {expression(say.at, to)}, {expression(say.size, to)})"
        )
        made = line.strip().format(kind=_KINDS.index(say.kind), says=expected)
        indent = line[: len(line) - len(line.lstrip())]
        when = expression(say.when, to)
        if when == "1":
            lines += [f"{indent}else:", f"{indent}    {made}"] if i else [f"{indent}{made}"]
            break
        lines += [f"{indent}{'elif' if i else 'if'} {when}:", f"{indent}    {made}"]
    return lines


def _compiled() -> dict[CallName, tuple[_Step, ...]]:
    names: dict[str, object] = {"_low": _low, "verdict": verdict, "diverged": _diverged}
    exec(compile(source(), "<the automaton>", "exec"), names)  # our own text, from rules.py
    return {call: tuple(names[f"{call}_{i}"] for i in range(len(State))) for call in CallName}  # type: ignore[misc]


_STEPS = _compiled()
