"""The BPF monitor's C, made from the automaton: `vpmu_check_*()` for bpf/vpmu.bpf.c."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vpmu_agent.model.buckets import DURATION_BOUNDS_NS, SIZE_BOUNDS
from vpmu_agent.model.call import CallName
from vpmu_agent.model.generate.language import Language, c, expression, statements
from vpmu_agent.model.rules import NEXT, RULES, Expected, Kind, Rule, Says, State

_NEXT = len(Expected)  # stands for "what may come next", until that is worked out


def source(slots: int) -> str:
    """The C text, for a monitor that follows so many members of a group."""
    to = c(slots)
    lines = [
        *_enum("VPMU_STATE", (state.name for state in State)),
        *_enum("VPMU_KIND", (kind.name for kind in Kind)),
        *_enum("VPMU_EXPECTED", (*(expected.name for expected in Expected), "NEXT")),
        '#pragma clang diagnostic ignored "-Wparentheses-equality"',
        f"#define VPMU_KINDS_MASK {(1 << (len(Kind) - 1).bit_length()) - 1}",
        *_bucket("duration_bucket", DURATION_BOUNDS_NS),
        *_bucket("size_bucket", SIZE_BOUNDS),
        *_next_call(to),
        *(line for call in CallName for line in _check(call, to)),
        "#define VPMU_CHECK(call, ...) do { \\",
        *(
            f"    {'else ' * bool(i)}if ((call) == VPMU_{call.name}) vpmu_check_{call}(__VA_ARGS__); \\"
            for i, call in enumerate(CallName)
        ),
        "} while (0)",
    ]
    return "\n".join(lines) + "\n"


def _enum(prefix: str, names: Iterable[str]) -> list[str]:
    return ["enum {", *(f"    {prefix}_{name}," for name in names), "};"]


def _bucket(name: str, bounds: Sequence[int]) -> list[str]:
    """Which of the buckets with these inclusive upper bounds a value falls into."""
    return [
        f"static __always_inline u32 {name}(u64 value)",
        "{",
        *(f"    if (value <= {bound}) return {i};" for i, bound in enumerate(bounds)),
        f"    return {len(bounds)};",
        "}",
    ]


def _next_call(to: Language) -> list[str]:
    """What may come next, of the registers as they were before the effects."""
    return [
        "static __always_inline void next_call(const struct vpmu_pmc *p, struct vpmu_inflight *c)",
        "{",
        "    c->size = p->size;",
        *_ladder(NEXT, to, "    ", with_kind=False),
        "}",
    ]


_BEFORE = ("state", "size", "members", "enabled", "walk")  # what NEXT looks at


def _check(call: CallName, to: Language) -> list[str]:
    head = (
        f"static __always_inline void vpmu_check_{call}(struct vpmu_pmc *p, const struct vpmu_pmc_key *key,\n"
        "    struct vpmu_inflight *c, struct vpmu_vcpu *v)"
    )
    lines = [
        head,
        "{",
        "    u64 event = c->event, leader = c->leader;",
        "    u32 failed = c->failed, disabled = c->disabled, n = c->n;",
        "    u32 from = 1U << p->state;",
        f"    u64 {', '.join(f'{name}_before = p->{name}' for name in _BEFORE)};",
        "    s32 index = index_of(p, event), leader_index = index_of(p, leader);",
        "",
    ]
    rules = [rule for rule in RULES if rule.call is call]
    for i, rule in enumerate(rules):
        lines += _rule(rule, to, first=i == 0)
    return [*lines, "    }", *_FAULT, "}"]


_FAULT = [
    f"    if (c->expected == {_NEXT} && c->kind > VPMU_KIND_UNKNOWN) {{",
    "        struct vpmu_pmc before = {};",
    *(f"        before.{name} = {name}_before;" for name in _BEFORE),
    "        next_call(&before, c);",
    "    }",
    "    if (c->kind > VPMU_KIND_UNKNOWN) {",
    "        if (p->faults >> c->kind & 1 || (c->kind == VPMU_KIND_UNEXPECTED_CALL && p->faults))",
    "            c->kind = VPMU_KIND_UNKNOWN;",
    "        else",
    "            p->faults |= 1U << c->kind;",
    "    }",
]


def _rule(rule: Rule, to: Language, *, first: bool) -> list[str]:
    states = sum(1 << i for i, state in enumerate(State) if state in rule.states)
    when = [] if len(rule.states) == len(State) else [f"(from & {states:#x})"]
    when += [] if rule.when == "True" else [expression(rule.when, to)]
    indent = "        "
    counts = {name: expression(value, to) for name, value in rule.predicted}
    return [
        f"    {'' if first else '} else '}if ({' && '.join(when) or '1'}) {{",
        *(f"{indent}u64 {name} = {expression(value, to)};" for name, value in rule.let),
        f"{indent}c->event_index = {expression(rule.event, to)};",
        f"{indent}c->leader_index = {expression(rule.leader, to)};",
        *(f"{indent}v->predicted[VPMU_{name.name}] += {value};" for name, value in counts.items()),
        *_ladder(rule.says, to, indent, with_kind=True),
        *statements(rule.effects, to, indent),
    ]


def _ladder(says: Sequence[Says], to: Language, indent: str, *, with_kind: bool) -> list[str]:
    lines = []
    for i, say in enumerate(says):
        always = say.when == "True"
        opening = "" if always else f"if ({expression(say.when, to)}) "
        lines.append(f"{indent}{'else ' * bool(i)}{opening}{{")
        if with_kind:
            lines.append(f"{indent}    c->kind = VPMU_KIND_{say.kind.name};")
        if say.expected is None:
            lines.append(f"{indent}    c->expected = {_NEXT};")
        else:
            lines.append(f"{indent}    c->expected = VPMU_EXPECTED_{say.expected.name};")
            lines.append(f"{indent}    c->at = {expression(say.at, to)};")
            if with_kind:
                lines.append(f"{indent}    c->size = {expression(say.size, to)};")
        lines.append(f"{indent}}}")
        if always:
            break
    return lines
