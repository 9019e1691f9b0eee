"""From the language of the automaton's guards and effects to Python and to C.

The language is the part of Python that means the same in both: names, integers, `and or not`, comparisons,
`& | ~ + - <<`, a choice (`a if c else b`), calls of the functions below, assignments, `if`. Everything is an
unsigned number of 64 bits, but for indices, which can be -1.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from vpmu_agent.model.rules import REGISTERS, SLOTS, Kind, State

NAMES = {
    **{kind.name: i for i, kind in enumerate(Kind)},
    **{state.name: i for i, state in enumerate(State)},  # UNKNOWN is the state's
    "SLOTS": SLOTS,
}
"""The numbers behind the names of states and kinds: their places in the enums."""


@dataclass(frozen=True)
class Language:
    """How to write what differs. `functions` are templates for their argument, where they have one."""

    register: str
    conjunction: str
    disjunction: str
    negation: str
    choice: str
    functions: Mapping[str, str]
    end: str
    opening: Callable[[str], str]
    otherwise: str
    closing: str
    slots: int = SLOTS


def python() -> Language:
    """Registers are attributes of `p`."""
    return Language(
        register="p.{}",
        conjunction=" and ",
        disjunction=" or ",
        negation="not ",
        choice="({then} if {test} else {orelse})",
        functions={
            "bit": "(1 << {0})",
            "below": "((1 << {0}) - 1)",
            "lowest": "({0} & -{0})",
            "low": "_low({0})",
            "width": "({0}).bit_length()",
            "count": "({0}).bit_count()",
            "fault": "(1 << {0})",
            "released": "p.released(event)",
            "left_behind": "p.left_behind(event)",
            "put": "p.put({0}, event)",
            "leave": "p.leave(1 << {0})",
            "leave_all": "p.leave({0})",
            "found": "p.found(event)",
        },
        end="",
        opening=lambda test: f"if {test}:",
        otherwise="else:",
        closing="",
    )


def c(slots: int) -> Language:
    """Registers are fields of `struct vpmu_pmc *p`; the functions are those of bpf/vpmu.bpf.c."""
    return Language(
        register="p->{}",
        conjunction=" && ",
        disjunction=" || ",
        negation="!",
        choice="({test} ? {then} : {orelse})",
        functions={
            "bit": "(1ULL << ({0}))",
            "below": "((1ULL << ({0})) - 1)",
            "lowest": "(({0}) & -({0}))",
            "low": "mask_low({0})",
            "width": "mask_width({0})",
            "count": "mask_count({0})",
            "fault": "(1U << {0})",
            "released": "was_released(p, event)",
            "left_behind": "is_left_behind(p, key, event)",
            "put": "put_event(p, {0}, event)",
            "leave": "leave_event(p, key, {0})",
            "leave_all": "leave_events(p, key, {0})",
            "found": "find_again(p, key, event)",
        },
        end=";",
        opening=lambda test: f"if ({test}) {{",
        otherwise="} else {",
        closing="}",
        slots=slots,
    )


_OPERATORS: dict[type[ast.AST], str] = {
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.Add: "+",
    ast.Sub: "-",
    ast.LShift: "<<",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.LtE: "<=",
}


class LanguageError(ValueError):
    """A guard or an effect uses something that the language does not have."""


def names_in(*sources: str) -> set[str]:
    """The names that guards, values or effects mention."""
    return {
        node.id for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)
    }


def expression(source: str, to: Language) -> str:
    """A guard or a value. Raises LanguageError."""
    return _expression(ast.parse(source.strip(), mode="eval").body, to)


def statements(source: str, to: Language, indent: str = "") -> list[str]:
    """Effects, as lines. Raises LanguageError."""
    return _block(ast.parse(source.strip()).body, to, indent)


def _expression(node: ast.expr, to: Language) -> str:
    match node:
        case ast.Constant(value=bool(value)):
            return str(int(value))
        case ast.Constant(value=int(value)):
            return str(value)
        case ast.Name(id=name):
            if name in REGISTERS:
                return to.register.format(name)
            return str(to.slots if name == "SLOTS" else NAMES.get(name, name))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return f"({to.negation}({_expression(operand, to)}))"
        case ast.UnaryOp(op=ast.Invert(), operand=operand):
            return f"(~{_expression(operand, to)})"
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value))):
            return f"-{value}"
        case ast.BoolOp(op=operator, values=values):
            joint = to.conjunction if isinstance(operator, ast.And) else to.disjunction
            return f"({joint.join(_expression(value, to) for value in values)})"
        case ast.BinOp(left=left, op=operator, right=right):
            return f"({_expression(left, to)} {_operator(operator)} {_expression(right, to)})"
        case ast.Compare(left=left, ops=[operator], comparators=[right]):
            return f"({_expression(left, to)} {_operator(operator)} {_expression(right, to)})"
        case ast.IfExp(test=test, body=body, orelse=orelse):
            parts = {"test": test, "then": body, "orelse": orelse}
            return to.choice.format(**{name: _expression(part, to) for name, part in parts.items()})
        case ast.Call(func=ast.Name(id=name), args=arguments) if name in to.functions:
            return to.functions[name].format(*(_expression(argument, to) for argument in arguments))
    raise LanguageError(f"the automaton's language has no {ast.unparse(node)!r}")


def _operator(operator: ast.AST) -> str:
    try:
        return _OPERATORS[type(operator)]
    except KeyError:
        raise LanguageError(f"the automaton's language has no operator {type(operator).__name__}") from None


def _block(body: Iterable[ast.stmt], to: Language, indent: str) -> list[str]:
    lines = []
    for node in body:
        match node:
            case ast.Assign(targets=[ast.Name() as target], value=value):
                lines.append(f"{indent}{_expression(target, to)} = {_expression(value, to)}{to.end}")
            case ast.AugAssign(target=ast.Name() as target, op=operator, value=value):
                change = f"{_operator(operator)}= {_expression(value, to)}"
                lines.append(f"{indent}{_expression(target, to)} {change}{to.end}")
            case ast.Expr(value=ast.Call() as call):
                lines.append(f"{indent}{_expression(call, to)}{to.end}")
            case ast.If(test=test, body=then, orelse=orelse):
                lines.append(indent + to.opening(_expression(test, to)))
                lines += _block(then, to, indent + "    ")
                if orelse:
                    lines.append(indent + to.otherwise)
                    lines += _block(orelse, to, indent + "    ")
                if to.closing:
                    lines.append(indent + to.closing)
            case _:
                raise LanguageError(f"the automaton's language has no {ast.unparse(node)!r}")
    return lines
