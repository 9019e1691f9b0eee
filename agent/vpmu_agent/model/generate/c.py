"""The check in C, bpf/monitor.h: `vpmu_check_*()` for bpf/vpmu.bpf.c."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from typing import TypeGuard

from vpmu_agent.model.buckets import DURATION_BOUNDS_NS, SIZE_BOUNDS
from vpmu_agent.model.call import CallName
from vpmu_agent.model.generate.language import (
    KINDS,
    NOTHING,
    STATES,
    C,
    Known,
    in_states,
    is_false,
    is_true,
    parse_effects,
    parse_value,
    possible_rules,
    printed,
    simplified,
    simplified_effects,
    simplified_says,
)
from vpmu_agent.model.rules import (
    INVARIANTS,
    N_IS_READ,
    NEXT,
    REGISTERS,
    RULES,
    Expected,
    Kind,
    Rule,
    Says,
    State,
)

_HEAD = """\
/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Generated from agent/vpmu_agent/model/rules.py by `make generate`. Do not edit.
 *
 * The check of one call, a function for each of the four: model/compiled_rules.py in C. vpmu.bpf.c has the
 * structs, and the functions on masks and events that stand here.
 */
#ifndef VPMU_MONITOR_H
#define VPMU_MONITOR_H
"""

_BEFORE = ("state", "size", "members", "enabled", "walk")  # what NEXT looks at


def source() -> str:
    """Return the text of bpf/monitor.h; its lines are not broken yet."""
    lines = [
        _HEAD,
        *_enum("Where the group of a pmc stands.", "VPMU_STATE", State),
        *_enum("What the model says of a call.", "VPMU_KIND", Kind),
        *_enum("What was expected in place of a divergence.", "VPMU_EXPECTED", Expected, "NEXT"),
        f'_Static_assert(VPMU_STATES == {len(State)}, "these are all states");',
        f'_Static_assert(VPMU_KINDS == {len(Kind)}, "these are all kinds");',
        "",
        "/* For the verifier: an index of a kind that it knows to be in bounds. */",
        f"#define VPMU_KINDS_MASK {(1 << (len(Kind) - 1).bit_length()) - 1:#x}",
        "",
        "#define STATES_ALL (BIT(VPMU_STATES) - 1)",
        "#define STATES_KNOWN (STATES_ALL & ~BIT(VPMU_STATE_UNKNOWN))",
        "",
        *_bucket("duration_bucket", "Of a duration in nanoseconds.", DURATION_BOUNDS_NS),
        *_bucket("size_bucket", "Of the size of a group.", SIZE_BOUNDS),
        *_n_is_read(),
        *_next_call(),
        *_FAULT,
        *(line for call in CallName for line in _check(call)),
        *_dispatch("VPMU_CHECK", "vpmu_check", tuple(CallName)),
        "",
        *_ADD_DUE,
        *(line for call in _USUAL for line in _usual(call)),
        *_usual_create(),
        *_dispatch("VPMU_IS_USUAL", "vpmu_is_usual", _USUAL, "0"),
        "",
        "#endif",
    ]
    return "\n".join(lines) + "\n"


def _enum(comment: str, prefix: str, members: Iterable[State | Kind | Expected], *more: str) -> list[str]:
    names = [*(member.name for member in members), *more]
    return [
        f"/* {comment} */",
        f"enum {prefix.lower()} {{",
        *(f"{prefix}_{name}," for name in names),
        "};",
        "",
    ]


def _bucket(name: str, comment: str, bounds: Sequence[int]) -> list[str]:
    """Which of the buckets with these inclusive upper bounds a value below 1 << 63 falls into."""
    return [
        f"/* {comment} Without branches: above a bound, the sign bit of the difference is set. */",
        f"static __always_inline u32 {name}(u64 value)",
        "{",
        "u32 bucket = 0;",
        "",
        *(f"bucket += ({bound}ULL - value) >> 63;" for bound in bounds),
        "return bucket;",
        "}",
        "",
    ]


_SAY = """\
/* Macros, for a function would be compiled to other code than the assignments alone. */
#define say_expected(call, what, where) \\
do { \\
(call)->expected = VPMU_EXPECTED_##what; \\
(call)->at = (where); \\
} while (0)

#define say(call, what, instead, where, of) \\
do { \\
(call)->kind = VPMU_KIND_##what; \\
say_expected(call, instead, where); \\
(call)->size = (of); \\
} while (0)

/* Instead of this call was expected what next_call() finds, which is asked at the end. */
#define say_next(call, what) \\
do { \\
(call)->kind = VPMU_KIND_##what; \\
(call)->expected = VPMU_EXPECTED_NEXT; \\
} while (0)
"""


def _next_call() -> list[str]:
    return [
        _SAY,
        "/* What NEXT looks at, as it was before the effects. */",
        "struct vpmu_before {",
        f"u64 {', '.join(_BEFORE)};",
        "};",
        "",
        "static __always_inline void next_call(const struct vpmu_before *pmc, struct vpmu_thread *call)",
        "{",
        "call->size = pmc->size;",
        *_ladder(NEXT, with_kind=False),
        "}",
        "",
    ]


def _check(name: CallName) -> Iterator[str]:
    yield f"static __always_inline void vpmu_check_{name}("
    yield "struct vpmu_pmc *pmc, struct vpmu_thread *call, s64 *due)"
    yield "{"
    yield "u64 event = call->event, leader = call->leader;"
    yield "u32 failed = call->failed, disabled = call->disabled, n = call->n;"
    yield "u32 from = BIT(pmc->state);"
    yield "struct vpmu_before before = {"
    yield from (f".{register} = pmc->{register}," for register in _BEFORE)
    yield "};"
    yield "s32 index = index_of(pmc, event), leader_index = index_of(pmc, leader);"
    yield ""
    rules = [rule for rule in RULES if rule.call is name]
    for i, rule in enumerate(rules):
        yield from _rule(rule, is_first=i == 0)
    yield "}"
    yield "if (call->expected == VPMU_EXPECTED_NEXT && call->kind > VPMU_KIND_UNKNOWN)"
    yield "next_call(&before, call);"
    yield "report_once(pmc, call);"
    yield "}"
    yield ""


_ADD_DUE = [
    "/* Leaves the cache line alone where there is nothing to add, as for a single event. */",
    "static __always_inline void add_due(struct vpmu_pmc *pmc, u32 name, s64 more)",
    "{",
    "if (more)",
    "pmc->due[name] += more;",
    "}",
    "",
]


_FAULT = [
    "/* A divergence that tells nothing new is unknown. */",
    "static __always_inline void report_once(struct vpmu_pmc *pmc, struct vpmu_thread *call)",
    "{",
    "if (call->kind > VPMU_KIND_UNKNOWN) {",
    "if (((pmc->faults >> call->kind) & 1) || (call->kind == VPMU_KIND_UNEXPECTED_CALL && pmc->faults))",
    "call->kind = VPMU_KIND_UNKNOWN;",
    "else",
    "pmc->faults |= BIT(call->kind);",
    "}",
    "}",
    "",
]


def _rule(rule: Rule, *, is_first: bool) -> Iterator[str]:
    """One rule: its values, its verdict, its effects."""
    yield f"{'' if is_first else '} else '}if ({_guard(rule, parse_value(rule.when))}) {{"
    yield from _comment(rule.note)
    for name, text in rule.let:
        yield f"u64 {name} = {value(parse_value(text))};"
    if rule.let:
        yield ""
    yield f"call->event_index = {value(parse_value(rule.event))};"
    yield f"call->leader_index = {value(parse_value(rule.leader))};"
    for name, text in rule.predicted:
        yield f"due[VPMU_{name.name}] += {value(parse_value(text))};"
    yield from _ladder(rule.says, with_kind=True)
    yield from effects(parse_effects(rule.effects))


def _guard(rule: Rule, when: ast.expr) -> str:
    """Whether the pmc is in one of the rule's states, and `when` holds."""
    guards: list[ast.expr] = []
    if set(rule.states) != set(State):
        guards.append(ast.BinOp(ast.Name("from"), ast.BitAnd(), ast.Name(_states(rule.states))))
    if not is_true(when):
        guards += when.values if _is_and(when) else [when]
    return value(guards[0] if len(guards) == 1 else ast.BoolOp(ast.And(), guards))


def _is_and(node: ast.expr) -> TypeGuard[ast.BoolOp]:
    return isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And)


def _states(states: Sequence[State]) -> str:
    if set(states) == set(State) - {State.UNKNOWN}:
        return "STATES_KNOWN"
    bits = [f"BIT(VPMU_STATE_{state.name})" for state in states]
    return bits[0] if len(bits) == 1 else f"({' | '.join(bits)})"


def _comment(text: str) -> list[str]:
    lines = textwrap.wrap(text, 80)
    if len(lines) == 1:
        return [f"/* {lines[0]} */"]
    return ["/*", *(f" * {line}" for line in lines), " */"]


def _ladder(says: Sequence[Says], *, with_kind: bool) -> Iterator[str]:
    """Which of the verdicts it is."""
    for i, (when, say, _) in enumerate(simplified_says(says, NOTHING)):
        if is_true(when):
            opening = "else" if i else ""
        else:
            opening = f"else if ({value(when)})" if i else f"if ({value(when)})"
        if opening:
            yield opening
        at, size = (value(parse_value(part)) for part in (say.at, say.size))
        if say.expected is None:
            yield f"say_next(call, {say.kind.name});"
        elif with_kind:
            yield f"say(call, {say.kind.name}, {say.expected.name}, {at}, {size});"
        else:
            yield f"say_expected(call, {say.expected.name}, {at});"


def _dispatch(macro: str, function: str, calls: Sequence[CallName], otherwise: str = "") -> list[str]:
    """A macro, for `name` is a constant where it is used, and one function is left of all."""
    if otherwise:
        chosen = "".join(
            f"(name) == VPMU_{call.name} ? {function}_{call}(__VA_ARGS__) : \\\n" for call in calls
        )
        return [f"#define {macro}(name, ...) \\\n({chosen}{otherwise})"]
    lines = [f"#define {macro}(name, ...)", "do {"]
    for i, call in enumerate(calls):
        opening = "else if" if i else "if"
        lines += [f"{opening} ((name) == VPMU_{call.name})", f"{function}_{call}(__VA_ARGS__);"]
    lines.append("} while (0)")
    return [" \\\n".join(lines)]


def _n_is_read() -> Iterator[str]:
    yield "/* Whether a call is held against max_nr_events as it is now; otherwise N is the size. */"
    yield "static __always_inline bool vpmu_n_is_read(u32 name, const struct vpmu_pmc *pmc)"
    yield "{"
    for name, when in N_IS_READ.items():
        yield f"if (name == VPMU_{name.name})"
        yield f"return {value(parse_value(when))};"
    yield "return 1;"
    yield "}"
    yield ""


# The usual calls

_USUAL = (CallName.ENABLE, CallName.PAUSE, CallName.RELEASE)

_HELD = NOTHING.assuming(parse_value("index < 0"), False)
"""What whoever asks has seen already: the pmc holds the event."""

_PLAIN_CREATE = {"failed": False, "left": False, "orphans": False, "orphans & bit(at)": False}
"""What whoever asks of a create has seen: it succeeded, and nothing was ever left behind."""


def _usual_create() -> Iterator[str]:
    """The same for a create, of a pmc that holds nothing or part of a group."""
    yield "/*"
    yield " * Whether a create that succeeded is predicted, of a pmc that has left no event behind."
    yield " * If so, it does what vpmu_check_create() does; if not, it changes nothing."
    yield " */"
    yield "static __always_inline bool vpmu_is_usual_create("
    yield "struct vpmu_pmc *pmc, u64 event, u64 leader, u32 disabled, u64 n, u64 *index_of_event)"
    yield "{"
    yield from _unusual("n > VPMU_SLOTS")
    for state in (State.EMPTY, State.CREATING):
        known = in_states([state]).assuming(parse_value("n > SLOTS"), False)
        for text, truth in (INVARIANTS[state] | _PLAIN_CREATE).items():
            known = known.assuming(parse_value(text), truth)
        yield from _in_one_state(state, known)
    yield "return 0;"
    yield "}"
    yield ""


def _in_one_state(state: State, known: Known) -> Iterator[str]:
    is_of_groups = INVARIANTS[state].get("size > 1", False)
    if is_of_groups:
        yield "#if VPMU_SLOTS > 1"
    yield f"if (pmc->state == VPMU_STATE_{state.name}) {{"
    if state is State.CREATING:
        yield "s32 index = index_of(pmc, event), leader_index = index_of(pmc, leader);"
        yield ""
    for when, rule, there in possible_rules(CallName.CREATE, [state], known):
        if not _can_be_predicted(rule):
            yield from _unusual(value(when))
            continue
        if not is_true(when):
            yield from _unusual(f"!({value(when)})")
        yield from _opened(rule)
        yield from _unless_predicted(rule, there)
        yield f"*index_of_event = {value(parse_value(rule.event))};"
        yield from _due(rule, there)
        yield from effects(simplified_effects(parse_effects(rule.effects), there))
        yield "return 1;"
        break
    yield "}"
    if is_of_groups:
        yield "#endif"


def _usual(name: CallName) -> Iterator[str]:
    """The rules for a call, as far as they lead to `predicted`: no other verdict is written down."""
    yield "/*"
    yield f" * Whether {_ARTICLES[name]} {name} of the event that the pmc holds at `index` is predicted."
    yield f" * If so, it does what vpmu_check_{name}() does; if not, it changes nothing."
    yield " */"
    yield f"static __always_inline bool vpmu_is_usual_{name}(struct vpmu_pmc *pmc, u64 index, u64 n)"
    yield "{"
    yield "u32 from = BIT(pmc->state);"
    yield ""
    rules = [rule for rule in RULES if rule.call is name]
    for i, rule in enumerate(rules):
        when = simplified(parse_value(rule.when), _HELD)
        if is_false(when):
            continue
        if _can_be_predicted(rule):
            yield from _usual_rule(rule, when)
        elif any(_can_be_predicted(later) and set(rule.states) & set(later.states) for later in rules[i:]):
            yield from _unusual(_guard(rule, when))
    yield "return 0;"
    yield "}"
    yield ""


def _usual_rule(rule: Rule, when: ast.expr) -> Iterator[str]:
    is_of_groups = all(INVARIANTS[state].get("size > 1") for state in rule.states)
    if is_of_groups:
        yield "#if VPMU_SLOTS > 1"
    known = _HELD.assuming(when, True)
    yield f"if ({_guard(rule, when)}) {{"
    yield from _opened(rule)
    yield from _unless_predicted(rule, known)
    yield from _due(rule, known)
    yield from effects(parse_effects(rule.effects))
    yield "return 1;"
    yield "}"
    if is_of_groups:
        yield "#endif"


def _opened(rule: Rule) -> Iterator[str]:
    yield from _comment(rule.note)
    for name, text in rule.let:
        yield f"u64 {name} = {value(parse_value(text))};"
    if rule.let:
        yield ""


def _unless_predicted(rule: Rule, known: Known) -> Iterator[str]:
    for when, say, _ in simplified_says(rule.says, known):
        if say.kind is Kind.PREDICTED:
            return
        yield from _unusual(value(when))


def _unusual(when: str) -> list[str]:
    """Away from the straight line that the compiler makes of a usual call (unlikely() in vpmu.bpf.c)."""
    return [f"if (unlikely({when}))", "return 0;"]


_ARTICLES = {CallName.ENABLE: "an", CallName.PAUSE: "a", CallName.RELEASE: "a"}


def _can_be_predicted(rule: Rule) -> bool:
    return any(say.kind is Kind.PREDICTED for say in rule.says)


def _due(rule: Rule, known: Known) -> Iterator[str]:
    """What the call adds to what is due; it was due itself."""
    counts = {name: value(simplified(parse_value(text), known)) for name, text in rule.predicted}
    for name in CallName:
        count = counts.get(name)
        if name is rule.call:
            if count is None:
                yield f"pmc->due[VPMU_{name.name}]--;"
            elif count != "1":
                yield f"add_due(pmc, VPMU_{name.name}, (s64)({count}) - 1);"
        elif count is not None:
            yield f"add_due(pmc, VPMU_{name.name}, {count});"


# The language


def value(node: ast.expr) -> str:
    """Return a guard or a value in C."""
    return printed(_Names().visit(deepcopy(node)), C)


def effects(body: Iterable[ast.stmt]) -> Iterator[str]:
    """Yield the lines of effects in C, not indented."""
    for node in body:
        match node:
            case ast.Assign(targets=[target], value=assigned):
                yield f"{value(target)} = {value(assigned)};"
            case ast.AugAssign(target=target, op=operator, value=assigned):
                sign = {ast.BitAnd: "&", ast.BitOr: "|"}[type(operator)]
                yield f"{value(target)} {sign}= {value(assigned)};"
            case ast.Expr(value=call):
                yield f"{value(call)};"
            case ast.If(test=test, body=then, orelse=orelse):
                yield from _if(value(test), list(effects(then)), list(effects(orelse)))


def _if(test: str, then: Sequence[str], orelse: Sequence[str]) -> Iterator[str]:
    """With braces where the kernel's style has them: where either branch has more than one line."""
    has_braces = len(then) > 1 or len(orelse) > 1
    yield f"if ({test}) {{" if has_braces else f"if ({test})"
    yield from then
    if orelse:
        yield "} else {" if has_braces else "else"
        yield from orelse
    if has_braces:
        yield "}"


_FUNCTIONS = {
    "bit": "BIT_ULL",
    "below": "BELOW",
    "lowest": "LOWEST",
    "low": "mask_low",
    "width": "mask_width",
    "count": "mask_count",
    "released": "was_released",
    "left_behind": "is_left_behind",
    "put": "put_event",
    "leave": "leave_event",
    "leave_all": "leave_events",
    "found": "find_again",
}
_ABOUT_THE_EVENT = {
    "released": ("pmc", "event"),
    "left_behind": ("pmc", "event"),
    "found": ("pmc", "event"),
}


class _Names(ast.NodeTransformer):
    """Writes registers as fields of `pmc`, and the functions as those of bpf/vpmu.bpf.c."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """Return the register, the state, or the name as it is."""
        if node.id in REGISTERS:
            return ast.Name(f"pmc->{node.id}")
        if node.id == "SLOTS":
            return ast.Name("VPMU_SLOTS")
        return ast.Name(f"VPMU_STATE_{node.id}") if node.id in STATES else node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        """Return the call with what the function is given in C."""
        assert isinstance(node.func, ast.Name)
        name = node.func.id
        if name == "fault":
            (kind,) = node.args
            assert isinstance(kind, ast.Name)
            assert kind.id in KINDS
            return _call("BIT", [ast.Name(f"VPMU_KIND_{kind.id}")])
        arguments = [self.visit(argument) for argument in node.args]
        if name == "put":
            arguments = [ast.Name("pmc"), *arguments, ast.Name("event")]
        elif name in ("leave", "leave_all"):
            arguments = [ast.Name("pmc"), *arguments]
        elif name in _ABOUT_THE_EVENT:
            arguments = [ast.Name(each) for each in _ABOUT_THE_EVENT[name]]
        return _call(_FUNCTIONS[name], arguments)


def _call(name: str, arguments: list[ast.expr]) -> ast.expr:
    return ast.Call(ast.Name(name), arguments, [])
