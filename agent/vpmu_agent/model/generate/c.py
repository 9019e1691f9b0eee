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
    is_true,
    parse_effects,
    parse_value,
    printed,
    simplified_says,
)
from vpmu_agent.model.rules import NEXT, REGISTERS, RULES, Expected, Kind, Rule, Says, State

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
        *_next_call(),
        *_FAULT,
        *(line for call in CallName for line in _check(call)),
        *_dispatch(),
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
    """Which of the buckets with these inclusive upper bounds a value falls into."""
    return [
        f"/* {comment} */",
        f"static __always_inline u32 {name}(u64 value)",
        "{",
        *(f"if (value <= {bound})\nreturn {i};" for i, bound in enumerate(bounds)),
        f"return {len(bounds)};",
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
        "/* What may come next, by the registers as they were before the effects. */",
        "static __always_inline void next_call(const struct vpmu_pmc *pmc, struct vpmu_inflight *call)",
        "{",
        "call->size = pmc->size;",
        *_ladder(NEXT, with_kind=False),
        "}",
        "",
    ]


def _check(name: CallName) -> Iterator[str]:
    yield f"static __always_inline void vpmu_check_{name}("
    yield "struct vpmu_pmc *pmc, const struct vpmu_pmc_key *key, struct vpmu_inflight *call,"
    yield "struct vpmu_vcpu *vcpu)"
    yield "{"
    yield "u64 event = call->event, leader = call->leader;"
    yield "u32 failed = call->failed, disabled = call->disabled, n = call->n;"
    yield "u32 from = BIT(pmc->state);"
    yield f"u64 {', '.join(f'{register}_before = pmc->{register}' for register in _BEFORE)};"
    yield "s32 index = index_of(pmc, event), leader_index = index_of(pmc, leader);"
    yield ""
    rules = [rule for rule in RULES if rule.call is name]
    for i, rule in enumerate(rules):
        yield from _rule(rule, is_first=i == 0)
    yield "}"
    yield "if (call->expected == VPMU_EXPECTED_NEXT && call->kind > VPMU_KIND_UNKNOWN) {"
    yield "struct vpmu_pmc before = {};"
    yield ""
    yield from (f"before.{register} = {register}_before;" for register in _BEFORE)
    yield "next_call(&before, call);"
    yield "}"
    yield "report_once(pmc, call);"
    yield "}"
    yield ""


_FAULT = [
    "/* A divergence that tells nothing new is unknown. */",
    "static __always_inline void report_once(struct vpmu_pmc *pmc, struct vpmu_inflight *call)",
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
    guards: list[ast.expr] = []
    if set(rule.states) != set(State):
        guards.append(ast.BinOp(ast.Name("from"), ast.BitAnd(), ast.Name(_states(rule.states))))
    if rule.when != "True":
        guard = parse_value(rule.when)
        guards += guard.values if _is_and(guard) else [guard]
    test = guards[0] if len(guards) == 1 else ast.BoolOp(ast.And(), guards)
    yield f"{'' if is_first else '} else '}if ({value(test)}) {{"
    yield from _comment(rule.note)
    for name, text in rule.let:
        yield f"u64 {name} = {value(parse_value(text))};"
    if rule.let:
        yield ""
    yield f"call->event_index = {value(parse_value(rule.event))};"
    yield f"call->leader_index = {value(parse_value(rule.leader))};"
    for name, text in rule.predicted:
        yield f"vcpu->predicted[VPMU_{name.name}] += {value(parse_value(text))};"
    yield from _ladder(rule.says, with_kind=True)
    yield from effects(parse_effects(rule.effects))


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


def _dispatch() -> list[str]:
    lines = ["#define VPMU_CHECK(name, ...)", "do {"]
    for i, call in enumerate(CallName):
        opening = "else if" if i else "if"
        lines += [f"{opening} ((name) == VPMU_{call.name})", f"vpmu_check_{call}(__VA_ARGS__);"]
    lines.append("} while (0)")
    return [" \\\n".join(lines)]


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
    "left_behind": ("pmc", "key", "event"),
    "found": ("pmc", "key", "event"),
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
            arguments = [ast.Name("pmc"), ast.Name("key"), *arguments]
        elif name in _ABOUT_THE_EVENT:
            arguments = [ast.Name(each) for each in _ABOUT_THE_EVENT[name]]
        return _call(_FUNCTIONS[name], arguments)


def _call(name: str, arguments: list[ast.expr]) -> ast.expr:
    return ast.Call(ast.Name(name), arguments, [])
