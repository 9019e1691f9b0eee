"""The model for people, docs/model.md: a diagram, a table of states and calls, and every rule."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

from vpmu_agent.model.call import CallName
from vpmu_agent.model.generate.language import (
    NOTHING,
    PYTHON,
    STATES,
    Known,
    LanguageError,
    canonical,
    in_states,
    is_true,
    parse_effects,
    parse_value,
    possible_rules,
    printed,
    simplified,
    simplified_effects,
    simplified_says,
)
from vpmu_agent.model.predict import Prediction, predict
from vpmu_agent.model.rules import (
    EFFECTS,
    FUNCTIONS,
    INPUTS,
    INVARIANTS,
    REGISTERS,
    RULES,
    SLOTS,
    Kind,
    Rule,
    State,
)

KERNEL_FUNCTIONS = {
    CallName.CREATE: "perf_event_create_kernel_counter()",
    CallName.ENABLE: "perf_event_enable()",
    CallName.PAUSE: "perf_event_pause()",
    CallName.RELEASE: "perf_event_release_kernel()",
}


@dataclass(frozen=True)
class Transition:
    """One verdict that a call can get in a state, and a state that it can lead to, under some conditions."""

    call: CallName
    before: State
    kind: Kind
    after: State
    conditions: tuple[str, ...] = ()


def transitions() -> list[Transition]:
    """Return all that can happen to a pmc; of a group of more than SLOTS members, nothing.

    A divergence that tells nothing new is reported as unknown (Registers.diverged), and stands here by its
    own name.
    """
    return [
        Transition(call, state, say.kind, after, conditions)
        for state in State
        for call in CallName
        for _, rule, known in possible_rules(call, [state], _in(state))
        if rule.when != "n > SLOTS"
        for _, say, known_there in simplified_says(rule.says, _with_values(rule, known))
        for conditions, after in _outcomes(rule, _implied(known_there), state)
    ]


def markdown() -> str:
    """Return the text of docs/model.md."""
    return "\n".join([_INTRODUCTION, *_steps(), *_diagram(), *_matrix(), *_rules(), *_language(), *_kinds()])


def dot() -> str:
    """Return the diagram in Graphviz's language."""
    lines = [
        "// Generated from agent/vpmu_agent/model/rules.py by `make generate`. Do not edit.",
        "digraph model {",
        '\tgraph [fontname="sans-serif", rankdir=TB, nodesep=0.7, ranksep=0.7]',
        '\tnode [fontname="sans-serif", shape=box, style=rounded]',
        '\tedge [fontname="sans-serif", fontsize=11]',
    ]
    lines += [f"\t{state}" for state in _DRAWN]
    for (before, after), labels in _edges().items():
        style = ", style=dashed" if before is State.CREATING and after is State.PARTIAL else ""
        text = "\\n".join(labels)
        lines.append(f'\t{before} -> {after} [label="{text}"{style}]')
    return "\n".join([*lines, "}", ""])


_DRAWN = tuple(state for state in State if state is not State.UNKNOWN)


# What can come of a rule


def _in(state: State) -> Known:
    known = in_states([state])
    for text, truth in INVARIANTS.get(state, {}).items():
        known = known.assuming(parse_value(text), truth)
    return known


def _with_values(rule: Rule, known: Known) -> Known:
    """What is known with the values of a rule."""
    for name, value in rule.let:
        truth = known.of(parse_value(value))
        if truth is not None:
            known = known.assuming(ast.Name(name), truth)
    return _implied(known)


def _implied(known: Known) -> Known:
    """What follows from what is known, where that takes more than a look at the text."""
    for text, truth, follows, is_so in _IMPLICATIONS:
        if known.of(parse_value(text)) is truth:
            known = known.assuming(parse_value(follows), is_so)
    return known


_IMPLICATIONS = (
    ("ahead == bit(index)", True, "ahead & ~bit(index)", False),
    ("ahead", False, "ahead & ~bit(index)", False),
    # An enable sets a bit that is not below itself.
    ("lowest(ahead) != bit(index)", True, "ahead & ~bit(index)", True),
    ("n == 1", True, "n > 1", False),
    ("members", False, "members & ~bit(index)", False),
    ("members & ~enabled & below(index)", True, "members & ~(enabled | bit(index))", True),
)


def _effects(rule: Rule) -> list[ast.stmt]:
    """The effects of a rule, with `if` in place of a choice between states."""

    class WithoutChoices(ast.NodeTransformer):
        def visit_Assign(self, node: ast.Assign) -> ast.stmt:
            match node:
                case ast.Assign(targets=[ast.Name(id="state")], value=ast.IfExp() as choice):
                    then, orelse = (
                        ast.Assign(node.targets, value, lineno=0) for value in (choice.body, choice.orelse)
                    )
                    return ast.If(choice.test, [then], [orelse])
            return node

    return [WithoutChoices().visit(node) for node in parse_effects(rule.effects)]


def _outcomes(rule: Rule, known: Known, state: State) -> list[tuple[tuple[str, ...], State]]:
    values = {name: parse_value(value) for name, value in rule.let}
    values = {name: value for name, value in values.items() if isinstance(value, ast.Constant)}
    body = simplified_effects(_effects(rule), known)
    return list(dict.fromkeys(_followed(body, known, values, (), state)))


def _followed(
    body: Sequence[ast.stmt],
    known: Known,
    values: dict[str, ast.expr],
    conditions: tuple[str, ...],
    state: State,
) -> Iterator[tuple[tuple[str, ...], State]]:
    """Every way through the effects: the conditions on it, and the state at its end.

    `values` are names and registers whose value is known, as the names and registers of before.
    """
    if not body:
        yield conditions, state
        return
    node, *rest = body
    match node:
        case ast.If(test=test, body=then, orelse=orelse):
            yield from _branches(test, [*then, *rest], [*orelse, *rest], known, values, conditions, state)
            return
        case ast.Assign(targets=[ast.Name(id="state")], value=ast.Name(id=name)):
            state = STATES[name]
        case ast.Assign() | ast.AugAssign():
            values = _assigned(node, values)
    yield from _followed(rest, known, values, conditions, state)


def _assigned(node: ast.Assign | ast.AugAssign, values: dict[str, ast.expr]) -> dict[str, ast.expr]:
    """The values after an assignment to a register."""
    match node:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return {**values, name: _substituted(value, values)}
        case ast.AugAssign(target=ast.Name(id=name), op=operator, value=value):
            before = values.get(name, ast.Name(name))
            return {**values, name: ast.BinOp(before, operator, _substituted(value, values))}
    raise LanguageError(f"no assignment to a register: {ast.unparse(node)}")


def _branches(
    test: ast.expr,
    then: Sequence[ast.stmt],
    orelse: Sequence[ast.stmt],
    known: Known,
    values: dict[str, ast.expr],
    conditions: tuple[str, ...],
    state: State,
) -> Iterator[tuple[tuple[str, ...], State]]:
    test = simplified(_substituted(test, values), known)
    if isinstance(test, ast.Constant):
        yield from _followed(then if test.value else orelse, known, values, conditions, state)
        return
    ways = [
        list(_followed(way, known.assuming(test, truth), values, (), state))
        for truth, way in ((True, then), (False, orelse))
    ]
    if ways[0] == ways[1]:
        yield from ((conditions + more, after) for more, after in ways[0])
        return
    for condition, way in zip((_condition(test), _condition(_opposite(test))), ways, strict=True):
        yield from (((*conditions, condition, *more), after) for more, after in way)


def _opposite(node: ast.expr) -> ast.expr:
    match node:
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return operand
    return ast.UnaryOp(ast.Not(), node)


def _condition(node: ast.expr) -> str:
    match node:
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return f"not {canonical(operand)}"
    return canonical(node)


def _substituted(node: ast.expr, values: dict[str, ast.expr]) -> ast.expr:
    class Substitute(ast.NodeTransformer):
        def visit_Name(self, name: ast.Name) -> ast.expr:
            return deepcopy(values.get(name.id, name))

        def visit_BinOp(self, sum_: ast.BinOp) -> ast.AST:
            self.generic_visit(sum_)
            match sum_:
                case ast.BinOp(
                    left=ast.Constant(value=int(a)), op=ast.Add(), right=ast.Constant(value=int(b))
                ):
                    return ast.Constant(a + b)
            return sum_

    changed = Substitute().visit(deepcopy(node))
    assert isinstance(changed, ast.expr)
    return changed


# The diagram


def _diagram() -> list[str]:
    mermaid = [
        f"    {before} --> {after}: {', '.join(labels)}" for (before, after), labels in _edges().items()
    ]
    return [
        "## What KVM does, as a diagram",
        "",
        "Every edge is a call that is as predicted, except for the dashed one: a create that fails and "
        "leaves a partial group. Other divergences are not drawn, nor is what can only follow one. From "
        "*unknown*, a create without a leader leads where it leads from *empty*, and any call on a single "
        "event tells the state.",
        "",
        "![The states of a counter and the calls that lead from one to another](model.svg)",
        "",
        "<details><summary>The same in Mermaid</summary>",
        "",
        "```mermaid",
        "stateDiagram-v2",
        "    [*] --> empty",
        *mermaid,
        "```",
        "",
        "</details>",
        "",
    ]


def diagram_transitions() -> list[Transition]:
    """Return what is drawn: what KVM does, and the create that fails and leaves a partial group."""
    return [
        one
        for one in transitions()
        if one.before is not State.UNKNOWN
        and one.kind in (Kind.PREDICTED, Kind.PARTIAL_GROUP)
        and one.after not in _AFTER_A_DIVERGENCE.get((one.before, one.call), ())
    ]


def _edges() -> dict[tuple[State, State], list[str]]:
    edges: dict[tuple[State, State], list[str]] = {}
    for one in diagram_transitions():
        labels = edges.setdefault((one.before, one.after), [])
        label = _label(one)
        if label not in labels:
            labels.append(label)
    return edges


# As predicted, but possible only after a divergence: what the pmc holds then are orphans, or N has changed
# while there was a group.
_AFTER_A_DIVERGENCE = {
    (State.RELEASING, CallName.CREATE): tuple(State),
    (State.EMPTY, CallName.RELEASE): tuple(State),
    (State.PAUSED, CallName.RELEASE): (State.RELEASING,),
    (State.PARTIAL, CallName.PAUSE): tuple(State),
    (State.PARTIAL, CallName.ENABLE): tuple(State),
}


def _label(one: Transition) -> str:
    if one.kind is Kind.PARTIAL_GROUP:
        return "create fails"
    label = str(one.call)
    for condition in one.conditions:
        label = _WORDS[condition].format(label)
    return label


_WORDS = {
    "failed": "{} fails",
    "not failed": "{}",
    "n > 1": "{} (N > 1)",
    "not n > 1": "{} (N = 1)",
    "size > at + 1": "{}",
    "not size > at + 1": "last {}",
    "members & ~(enabled | bit(index))": "{}",
    "not members & ~(enabled | bit(index))": "last {}",
    "ahead & ~bit(index)": "{}",
    "not ahead & ~bit(index)": "last {}",
}


# The table


def _matrix() -> list[str]:
    lines = [
        "## States and calls",
        "",
        "What each call means in each state: the possible verdicts, and the states that each leads to. The "
        "conditions are in the tables below.",
        "",
        f"| state | {' | '.join(CallName)} |",
        f"| --- |{' --- |' * len(CallName)}",
    ]
    found = transitions()
    for state in State:
        cells = []
        for call in CallName:
            kinds: dict[Kind, dict[State, None]] = {}
            for one in found:
                if (one.call, one.before) == (call, state):
                    kinds.setdefault(one.kind, {})[one.after] = None
            cells.append("<br>".join(f"{_kind(kind)} → {_or(after)}" for kind, after in kinds.items()))
        lines.append(f"| **{state}** | {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "Three things are not in the table, for they go by more than one call of one counter:",
        "",
        "- Each kind of divergence is reported once in a program; after that the verdict is *unknown*. After "
        "any divergence, so is what would be an *unexpected_call*.",
        "- A call that is *predicted* or *unknown* becomes an *event_count_mismatch* if KVM's count of the "
        "vCPU's events is not what the calls before it add up to.",
        "- When records were lost, every counter is in the state *unknown* again.",
        "",
        f"Of a group with more than {SLOTS} members (`SLOTS`) every call is *unknown*, in every state.",
        "",
    ]


def _kind(kind: Kind) -> str:
    return f"**{kind}**" if kind is Kind.PREDICTED else str(kind)


def _or(states: Iterable[State]) -> str:
    *most, last = states
    return f"{', '.join(most)} or {last}" if most else str(last)


# The rules


def _rules() -> Iterator[str]:
    yield from (
        "## The rules",
        "",
        "The rules for a call are tried in order: the first one applies whose states and condition fit. The "
        "same goes for the verdicts of a rule, and for the states that it leads to. All conditions are about "
        "the registers as they were before the call. `bpf/monitor.h` has the same rules in the same order, "
        "and shows what each one does to the other registers.",
        "",
    )
    for call in CallName:
        yield f"### {call}: `{KERNEL_FUNCTIONS[call]}`"
        yield ""
        yield "| in state | when | verdict | next state | predicts |"
        yield "| --- | --- | --- | --- | --- |"
        for rule in RULES:
            if rule.call is call:
                yield f"| {' | '.join(_row(rule))} |"
        yield ""


def _row(rule: Rule) -> tuple[str, ...]:
    if set(rule.states) == set(State):
        states = "any"
    elif set(rule.states) == set(_DRAWN):
        states = "any but unknown"
    else:
        states = ", ".join(rule.states)
    when = "" if rule.when == "True" else f"<br>{_code(rule.when)}"
    lets = "".join(
        f"<br>`{name} = {_text(value)}`" for name, value in rule.let if name != "at" or value != "0"
    )
    return (
        states,
        f"{rule.note}{when}{lets}",
        "<br>".join(_verdicts(rule)),
        "<br>".join(_next_states(rule)),
        "<br>".join(_predicts(rule)),
    )


def _verdicts(rule: Rule) -> Iterator[str]:
    for when, say, _ in simplified_says(rule.says, NOTHING):
        yield _kind(say.kind) if is_true(when) else f"{say.kind} if {_code(say.when)}"


def _next_states(rule: Rule) -> Iterator[str]:
    values = {name: parse_value(value) for name, value in rule.let}
    values = {name: value for name, value in values.items() if isinstance(value, ast.Constant)}
    known = _in(rule.states[0]) if len(rule.states) == 1 else NOTHING
    found = list(_ways(_effects(rule), known, values))
    for condition, state in found or [("", "the same")]:
        yield f"{state} if {condition}" if condition else state


def _ways(body: Sequence[ast.stmt], known: Known, values: dict[str, ast.expr]) -> Iterator[tuple[str, str]]:
    """The states that effects lead to, each with the condition on it; the last one is for the rest."""
    values = dict(values)
    for node in body:
        match node:
            case ast.If(test=test, body=then, orelse=orelse):
                yield from _either(test, then, orelse, known, values)
            case ast.Assign(targets=[ast.Name(id="state")], value=ast.Name(id=name)):
                yield "", str(STATES[name])
            case ast.Assign() | ast.AugAssign():
                values = _assigned(node, values)


def _either(
    test: ast.expr,
    then: Sequence[ast.stmt],
    orelse: Sequence[ast.stmt],
    known: Known,
    values: dict[str, ast.expr],
) -> Iterator[tuple[str, str]]:
    test = simplified(_substituted(test, values), known)
    if isinstance(test, ast.Constant):
        yield from _ways(then if test.value else orelse, known, values)
        return
    ways = list(_ways(then, known.assuming(test, True), values))
    others = list(_ways(orelse, known.assuming(test, False), values))
    if ways or others:
        yield from ((condition or f"`{_printed(test)}`", state) for condition, state in ways)
        yield from others or [("", "the same")]


def _predicts(rule: Rule) -> Iterator[str]:
    for call, count in rule.predicted:
        match parse_value(count):
            case ast.IfExp(test=test, body=then, orelse=ast.Constant(value=0)):
                times = "" if ast.unparse(then) == "1" else f" {_code(ast.unparse(then))} times"
                yield f"{call}{times} if {_code(ast.unparse(test))}"
            case ast.Constant(value=1):
                yield str(call)
            case _:
                yield f"{call} {_code(count)} times"


def _code(text: str) -> str:
    return f"`{_text(text)}`"


def _text(text: str) -> str:
    return _printed(parse_value(text))


def _printed(node: ast.expr) -> str:
    if isinstance(node, ast.Compare):
        node = parse_value(canonical(node))
    return printed(node, PYTHON).replace("|", "\\|")


# The words


def _language() -> list[str]:
    return [
        "## Registers, and what a call brings",
        "",
        "The registers of one counter (`struct vpmu_pmc` in `bpf/vpmu.h`):",
        "",
        *_definitions(REGISTERS),
        "A call brings:",
        "",
        *_definitions(INPUTS),
        "The rules ask:",
        "",
        *_definitions(FUNCTIONS),
        "and they change, apart from registers:",
        "",
        *_definitions(EFFECTS),
    ]


def _definitions(words: dict[str, str]) -> list[str]:
    return [
        "| name | what it is |",
        "| --- | --- |",
        *(f"| `{n}` | {what} |" for n, what in words.items()),
        "",
    ]


def _kinds() -> list[str]:
    return [
        "## States and verdicts",
        "",
        "| state | what it means |",
        "| --- | --- |",
        *(f"| {state} | {state.meaning} |" for state in State),
        "",
        "| verdict | what it means |",
        "| --- | --- |",
        *(f"| {kind} | {kind.meaning} |" for kind in Kind),
        "",
    ]


# What KVM does


def _steps() -> Iterator[str]:
    yield from (
        "## What KVM does",
        "",
        "`agent/vpmu_agent/model/mechanism.py` has the kernel's steps as small functions, named after those "
        "of KVM's pmu.c (arch/x86/kvm in Linux). These are the calls that they make; `create 1 → 0` creates "
        "event 1 with event 0 as its group leader.",
        "",
        "| the guest | kernel function | N = 1 | N = 3 |",
        "| --- | --- | --- | --- |",
    )
    for words, function, before, step, fail_at in _STEPS:
        cells = []
        for events in (1, 3):
            if fail_at is not None and fail_at >= events:
                cells.append("cannot be")
                continue
            calls = [
                _call(one)
                for one in list(predict([*before, step], events=events, fail_at=fail_at))
                if isinstance(one, Prediction)
            ]
            skipped = len([one for one in predict(before, events=events) if isinstance(one, Prediction)])
            cells.append(", ".join(calls[skipped:]) or "nothing")
        yield f"| {words} | `{function}` | {' | '.join(cells)} |"
    yield from (
        "",
        "*Global control* is IA32_PERF_GLOBAL_CTRL, and PerfCntrGlobalCtl of AMD's PerfMonV2. A write of it "
        "reprograms each counter whose bit changes, from Linux 6.2 on at the next entry into the guest, in "
        "the order of the bits: general-purpose counters first, then the fixed ones. The guest has not "
        "accessed the counters themselves, so a KVM that learns N only from an access makes a single event "
        "of a group (`degraded_group`).",
        "",
        "A counter whose event was created for PEBS (`attr.precise_ip`) and is to go on without, or the "
        "other way round, gets another event: its release and create take the place of the enable. The event "
        "of guest LBR belongs to no counter: it is created and released, and never paused. KVM counts it "
        "among the vCPU's events, but it does not say which vCPU it belongs to. So in a process that has had "
        "one, a count of events that is off by one is no `event_count_mismatch`.",
        "",
    )


_STEPS: tuple[tuple[str, str, list[str], str, int | None], ...] = (
    ("selects an event", "pmc_reprogram_counter()", [], "program", None),
    ("the same, and the first create fails", "pmc_reprogram_counter()", [], "program", 0),
    ("the same, and the second create fails", "pmc_reprogram_counter()", [], "program", 1),
    ("stops the counter", "pmc_pause_counter()", ["program"], "pause", None),
    ("lets it go on", "pmc_resume_counter()", ["program", "pause"], "resume", None),
    ("no longer uses it", "pmc_release_perf_event()", ["program"], "release", None),
    ("stops all counters at once: global control", "reprogram_counter()", ["program"], "global-off", None),
    ("lets them all go on", "reprogram_counter()", ["program", "global-off"], "global-on", None),
)


def _call(one: Prediction) -> str:
    leader = f" → {one.call.leader}" if one.call.leader is not None else ""
    failed = " fails" if one.result else ""
    return f"{one.call.name} {one.call.event}{leader}{failed}"


_INTRODUCTION = """\
<!-- Generated from agent/vpmu_agent/model/rules.py by `make generate`. Do not edit. -->

# The model

What KVM is meant to do with the host's perf events for one virtual counter, and what vpmu-agent says of \
each call that it makes. This page, `bpf/monitor.h` (the check in the kernel) and \
`agent/vpmu_agent/model/compiled_rules.py` (the same in Python, for recordings) are generated from one list \
of rules, `agent/vpmu_agent/model/rules.py`.

A *counter*, or pmc, is one `struct kvm_pmc`. It has one event on the host, or a *group* of N \
(`max_nr_events`) in a kernel whose KVM groups events. A *program* is all calls from the first create to the \
last enable.
"""
