"""The check in Python, model/compiled_rules.py: a function for each call and states that are alike."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy

from vpmu_agent.model.call import CallName
from vpmu_agent.model.generate.language import (
    KINDS,
    PYTHON,
    STATES,
    Known,
    alike,
    in_states,
    is_false,
    is_true,
    names_in,
    parse_effects,
    parse_value,
    possible_rules,
    printed,
    simplified,
    simplified_effects,
    simplified_says,
)
from vpmu_agent.model.rules import N_IS_READ, NEXT, REGISTERS, Expected, Kind, Rule, Says, State

_HEAD = '''\
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
'''


def source() -> str:
    """Return the text of model/compiled_rules.py; its lines are not broken yet."""
    groups = {call: alike(call) for call in CallName}
    steps = [_step(call, states) for call in CallName for states in groups[call]]
    body = [*_next_call(), *(line for step in steps for line in ["", "", *step])]
    text = "\n".join(body)
    used = set(re.findall(r"\w+", text))
    members = [
        f"{name} = {enum.__name__}.{member.name}"
        for enum in (State, Kind, Expected)
        for member in enum
        if (name := f"{enum.__name__.upper()}_{member.name}") in used
    ]
    table = ["STEPS: Mapping[CallName, Mapping[State, Step]] = {"]
    for call in CallName:
        table += [f"    CallName.{call.name}: {{"]
        names = {state: _name(call, states) for states in groups[call] for state in states}
        table += [f"        State.{state.name}: {names[state]}," for state in State]
        table += ["    },"]
    table += ["}", '"""What to do with a call in a state."""']
    return "\n".join([_HEAD + "\n".join(members), "", "", text, "", "", *table, ""])


def _name(call: CallName, states: Sequence[State]) -> str:
    """The function for a call in these states; there is one group of many."""
    return f"{call}_otherwise" if len(states) > _MANY else f"{call}_{'_or_'.join(states)}"


_MANY = 2


def _next_call() -> list[str]:
    return [
        "def next_call(pmc: Registers) -> Instead:",
        '    """What may come next in the state that the pmc is in."""',
        *_indented(_next_ladder()),
    ]


def _next_ladder() -> Iterator[str]:
    for say in NEXT:
        returned = f"return {_instead(say)}"
        if say.when == "True":
            yield returned
        else:
            yield f"if {value(parse_value(say.when))}:"
            yield f"    {returned}"


def _step(call: CallName, states: Sequence[State]) -> list[str]:
    parameters = "pmc: Registers, event: int, leader: int, failed: bool, disabled: bool, n: int"
    lines = _n_as_it_was(call, states)
    # What only a later rule asks for is not worked out for an earlier one.
    found: set[str] = set()
    for when, rule, known in possible_rules(call, states):
        body = list(_rule(rule, known))
        asked = _mentioned([f"if {value(when)}: pass", *body]) & {"index", "leader_index"}
        for name in sorted(asked - found):
            address = "leader" if name == "leader_index" else "event"
            lines.append(f"{name} = pmc.index_of({address})")
        found |= asked
        if is_true(when):
            lines += [*_note(rule), *body]
        else:
            lines += [f"if {value(when)}:", *_indented([*_note(rule), *body])]
    return [
        f"def {_name(call, states)}({parameters}) -> Verdict:",
        f'    """{call.capitalize()}, in the state {" or ".join(states)}."""',
        *_indented(lines),
    ]


def _n_as_it_was(call: CallName, states: Sequence[State]) -> list[str]:
    """Where `max_nr_events` is not read, it is taken to be what it was when the pmc was programmed."""
    is_read = simplified(parse_value(N_IS_READ[call]), in_states(states))
    if is_true(is_read):
        return []
    if is_false(is_read):
        return ["n = pmc.size"]
    return [f"if not ({value(is_read)}):", "    n = pmc.size"]


def _mentioned(lines: Iterable[str]) -> set[str]:
    return names_in([ast.parse("def f():\n" + "\n".join(_indented(lines)))])


def _note(rule: Rule) -> list[str]:
    return textwrap.wrap(rule.note, 90, initial_indent="# ", subsequent_indent="# ")


def _rule(rule: Rule, known: Known) -> Iterator[str]:
    """One rule: its values, its verdict, its effects."""
    for name, text in rule.let:
        yield f"{name} = {value(parse_value(text))}"
    counts = dict(rule.predicted)
    predicted = [value(simplified(parse_value(counts.get(name, "0")), known)) for name in CallName]
    has_counts = any(count != "0" for count in predicted)
    changes = list(effects(simplified_effects(parse_effects(rule.effects), known)))
    if has_counts:
        yield f"counts = ({', '.join(predicted)})"
    says = simplified_says(rule.says, known)
    place = f"{value(parse_value(rule.event))}, {value(parse_value(rule.leader))}"
    more = ", counts" if has_counts else ""
    if len(says) == 1:
        say = says[0][1]
        kind = f"KIND_{say.kind.name}"
        if not say.kind.is_divergence:
            yield from changes
            yield f"return verdict({kind}, {place}{more})"
            return
        instead = _instead(say)
        if changes:
            yield f"instead = {instead}"
            yield from changes
            instead = "instead"
        yield f"return pmc.diverged({kind}, {place}, {instead}{more})"
        return
    yield from _ladder(says)
    yield from changes
    last = says[-1][1].kind
    if not last.is_divergence:
        yield f"if kind is KIND_{last.name}:"
        yield f"    return verdict(kind, {place}{more})"
    yield f"return pmc.diverged(kind, {place}, instead{more})"


def _ladder(says: Sequence[tuple[ast.expr, Says, Known]]) -> Iterator[str]:
    """Which of the verdicts it is; each sees the registers as they were before the effects."""
    for i, (when, say, _) in enumerate(says):
        if is_true(when):
            yield "else:"
        else:
            yield f"{'elif' if i else 'if'} {value(when)}:"
        instead = _instead(say) if say.kind.is_divergence else "NOTHING"
        yield f"    kind, instead = KIND_{say.kind.name}, {instead}"


def _instead(say: Says) -> str:
    if say.expected is None:
        return "next_call(pmc)"
    at, size = (value(parse_value(part)) for part in (say.at, say.size))
    return f"(EXPECTED_{say.expected.name}, {at}, {size})"


# The language


def value(node: ast.expr) -> str:
    """Return a guard or a value in Python."""
    return printed(_Names().visit(deepcopy(node)), PYTHON)


def effects(body: Iterable[ast.stmt]) -> Iterator[str]:
    """Yield the lines of effects in Python."""
    for node in body:
        match node:
            case ast.Assign(targets=[target], value=assigned):
                yield f"{value(target)} = {value(assigned)}"
            case ast.AugAssign(target=target, op=operator, value=assigned):
                sign = {ast.BitAnd: "&", ast.BitOr: "|"}[type(operator)]
                yield f"{value(target)} {sign}= {value(assigned)}"
            case ast.Expr(value=call):
                yield value(call)
            case ast.If(test=test, body=then, orelse=orelse):
                yield f"if {value(test)}:"
                yield from _indented(effects(then))
                if orelse:
                    yield "else:"
                    yield from _indented(effects(orelse))


class _Names(ast.NodeTransformer):
    """Writes registers as attributes of `pmc`, and the functions as what they are in Python."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """Return the register, the state, or the name as it is."""
        if node.id in REGISTERS:
            return ast.Attribute(ast.Name("pmc"), node.id)
        return ast.Name(f"STATE_{node.id}") if node.id in STATES else node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        """Return the comparison; of states, by identity."""
        compared = self.generic_visit(node)
        assert isinstance(compared, ast.Compare)
        if isinstance(compared.left, ast.Attribute) and compared.left.attr == "state":
            operator = ast.Is() if isinstance(compared.ops[0], ast.Eq) else ast.IsNot()
            return ast.Compare(compared.left, [operator], compared.comparators)
        return compared

    def visit_Call(self, node: ast.Call) -> ast.expr:
        """Return what the function is in Python."""
        assert isinstance(node.func, ast.Name)
        name = node.func.id
        if name == "fault":
            (kind,) = node.args
            assert isinstance(kind, ast.Name)
            assert kind.id in KINDS
            return _call("fault", ast.Name(f"KIND_{kind.id}"))
        arguments = [self.visit(argument) for argument in node.args]
        match name, arguments:
            case "bit", [index]:
                return _bit(index)
            case "below", [index]:
                return ast.BinOp(_bit(index), ast.Sub(), ast.Constant(1))
            case "lowest", [mask]:
                return ast.BinOp(mask, ast.BitAnd(), ast.UnaryOp(ast.USub(), mask))
            case "low", [mask]:
                return _call("low", mask)
            case "width", [mask]:
                return ast.Call(ast.Attribute(mask, "bit_length"), [], [])
            case "count", [mask]:
                return ast.Call(ast.Attribute(mask, "bit_count"), [], [])
            case "released", []:
                return _method("released", _EVENT)
            case "left_behind", []:
                return _method("is_left_behind", _EVENT)
            case "found", []:
                return _method("find_again", _EVENT)
            case "put", [index]:
                return _method("put", index, _EVENT)
            case "leave", [index]:
                return _method("leave", _bit(index))
        (mask,) = arguments
        return _method("leave", mask)


_EVENT = ast.Name("event")


def _bit(index: ast.expr) -> ast.expr:
    return ast.BinOp(ast.Constant(1), ast.LShift(), index)


def _call(name: str, *arguments: ast.expr) -> ast.expr:
    return ast.Call(ast.Name(name), list(arguments), [])


def _method(name: str, *arguments: ast.expr) -> ast.expr:
    return ast.Call(ast.Attribute(ast.Name("pmc"), name), list(arguments), [])


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"    {line}" if line else "" for line in lines]
