"""The language of the rules' guards and effects: parsed, simplified by what is known, and printed.

It is the part of Python that means the same in C: names, integers, `and or not`, comparisons, `& | ~ + - <<`,
a choice (`a if c else b`), calls of the rules' own functions, assignments, `if`. Everything is an unsigned
number of 64 bits, but for indices, which can be -1.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vpmu_agent.model.call import CallName
from vpmu_agent.model.rules import EFFECTS, FUNCTIONS, RULES, Kind, Rule, Says, State

_BITWISE: dict[type[ast.AST], str] = {ast.BitAnd: "&", ast.BitOr: "|", ast.LShift: "<<"}
_ARITHMETIC: dict[type[ast.AST], str] = {ast.Add: "+", ast.Sub: "-"}
_COMPARISONS: dict[type[ast.AST], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.LtE: "<=",
}
_OPERATORS = {**_BITWISE, **_ARITHMETIC, **_COMPARISONS}
_OPPOSITE = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
_MIRRORED = {"<": ">", "<=": ">="}

_FUNCTIONS = {called.split("(")[0] for called in (*FUNCTIONS, *EFFECTS)}

STATES = {state.name: state for state in State}
KINDS = {kind.name: kind for kind in Kind}


class LanguageError(ValueError):
    """A guard or an effect uses something that the language does not have."""


# Parsing


def parse_value(source: str) -> ast.expr:
    """Return a guard or a value as a tree. Raise LanguageError."""
    node = ast.parse(source.strip(), mode="eval").body
    _check_value(node)
    return node


def parse_effects(source: str) -> list[ast.stmt]:
    """Return effects as trees. Raise LanguageError."""
    body = ast.parse(source.strip()).body
    _check_effects(body)
    return body


def names_in(nodes: Iterable[ast.AST]) -> set[str]:
    """Return the names that guards, values or effects mention."""
    return {each.id for node in nodes for each in ast.walk(node) if isinstance(each, ast.Name)}


def _check_value(node: ast.expr) -> None:
    match node:
        case ast.Name() | ast.Constant(value=bool() | int()):
            return
        case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=operand):
            parts = [operand]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int())):
            return
        case ast.BoolOp(values=values):
            parts = values
        case ast.BinOp(left=left, op=operator, right=right):
            _check_operator(operator)
            parts = [left, right]
        case ast.Compare(left=left, ops=[operator], comparators=[right]):
            _check_operator(operator)
            parts = [left, right]
        case ast.IfExp(test=test, body=body, orelse=orelse):
            parts = [test, body, orelse]
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            parts = arguments
        case _:
            raise LanguageError(f"the rules' language has no {ast.unparse(node)!r}")
    for part in parts:
        _check_value(part)


def _check_operator(operator: ast.AST) -> None:
    if type(operator) not in _OPERATORS:
        raise LanguageError(f"the rules' language has no operator {type(operator).__name__}")


def _check_effects(body: Iterable[ast.stmt]) -> None:
    for node in body:
        match node:
            case ast.Assign(targets=[ast.Name()], value=value):
                _check_value(value)
            case ast.AugAssign(target=ast.Name(), op=operator, value=value):
                _check_operator(operator)
                _check_value(value)
            case ast.Expr(value=ast.Call() as call):
                _check_value(call)
            case ast.If(test=test, body=then, orelse=orelse):
                _check_value(test)
                _check_effects(then)
                _check_effects(orelse)
            case _:
                raise LanguageError(f"the rules' language has no {ast.unparse(node)!r}")


# Simplifying


@dataclass(frozen=True)
class Known:
    """What is known where a guard stands: which comparisons and names are true, and which are false."""

    truths: Mapping[str, bool]

    def of(self, node: ast.expr) -> bool | None:
        """Whether the value is true, None if that is not known."""
        if isinstance(node, ast.Constant):
            return bool(node.value)
        return self.truths.get(canonical(node))

    def assuming(self, node: ast.expr, truth: bool) -> Known:
        """What is known where this value is true, or false."""
        match node:
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return self.assuming(operand, not truth)
            case ast.BoolOp(op=ast.And(), values=values) if truth:
                return self._assuming_all(values, truth)
            case ast.BoolOp(op=ast.Or(), values=values) if not truth:
                return self._assuming_all(values, truth)
        more = {canonical(node): truth}
        if isinstance(node, ast.Compare):
            operator = _OPPOSITE[_OPERATORS[type(node.ops[0])]]
            opposite = f"{ast.unparse(node.left)} {operator} {ast.unparse(node.comparators[0])}"
            more[canonical(parse_value(opposite))] = not truth
        return Known({**self.truths, **more})

    def after(self, written: set[str]) -> Known:
        """What is still known once these names were written to."""
        return Known({text: is_so for text, is_so in self.truths.items() if not _words(text) & written})

    def _assuming_all(self, values: Iterable[ast.expr], truth: bool) -> Known:
        known = self
        for value in values:
            known = known.assuming(value, truth)
        return known


NOTHING = Known({})


def in_states(states: Collection[State]) -> Known:
    """Return what is known in all of these states."""
    known = NOTHING
    for name, state in STATES.items():
        if state not in states:
            known = known.assuming(parse_value(f"state == {name}"), False)
        elif len(states) == 1:
            known = known.assuming(parse_value(f"state == {name}"), True)
    return known


def possible_rules(
    call: CallName, states: Collection[State], known: Known | None = None
) -> list[tuple[ast.expr, Rule, Known]]:
    """Return the rules for a call in these states, with when each holds and what is known where it does.

    `known` is what is known of the states, by default that it is one of them. The states must have the same
    rules. The last rule always holds.
    """
    known = known or in_states(states)
    possible: list[tuple[ast.expr, Rule, Known]] = []
    for rule in RULES:
        if rule.call is not call or not set(states) & set(rule.states):
            continue
        when = simplified(parse_value(rule.when), known)
        if is_true(when):
            return [*possible, (when, rule, known)]
        if not is_false(when):
            possible.append((when, rule, known.assuming(when, True)))
            known = known.assuming(when, False)
    raise LanguageError(f"no rule for {call} in {', '.join(states)} is the last word")


def alike(call: CallName) -> list[tuple[State, ...]]:
    """Return all states, those together in which the same rules are for a call."""
    groups: dict[tuple[int, ...], list[State]] = {}
    for state in State:
        rules = tuple(id(rule) for _, rule, _ in possible_rules(call, [state]))
        groups.setdefault(rules, []).append(state)
    return [tuple(states) for states in groups.values()]


def simplified(node: ast.expr, known: Known) -> ast.expr:
    """Return the value without what is known of it."""
    truth = known.of(node)
    if truth is not None:
        return ast.Constant(truth) if not isinstance(node, ast.Constant) else node
    match node:
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            inner = simplified(operand, known)
            if isinstance(inner, ast.Constant):
                return ast.Constant(not inner.value)
            return ast.UnaryOp(ast.Not(), inner)
        case ast.BoolOp(op=operator, values=values):
            return _joined(operator, [simplified(value, known) for value in values])
        case ast.IfExp(test=test, body=body, orelse=orelse):
            test = simplified(test, known)
            if isinstance(test, ast.Constant):
                return simplified(body if test.value else orelse, known)
            return ast.IfExp(
                test,
                simplified(body, known.assuming(test, True)),
                simplified(orelse, known.assuming(test, False)),
            )
    return node


def _joined(operator: ast.boolop, values: Sequence[ast.expr]) -> ast.expr:
    decides = isinstance(
        operator, ast.Or
    )  # `or` is true as soon as one is, `and` false as soon as one is not
    if any(isinstance(value, ast.Constant) and bool(value.value) is decides for value in values):
        return ast.Constant(decides)
    open_ones = [value for value in values if not isinstance(value, ast.Constant)]
    if not open_ones:
        return ast.Constant(not decides)
    return open_ones[0] if len(open_ones) == 1 else ast.BoolOp(operator, open_ones)


def simplified_effects(body: Iterable[ast.stmt], known: Known) -> list[ast.stmt]:
    """Return the effects without what is known where they begin."""
    return _simplified_effects(body, known)[0]


def _simplified_effects(body: Iterable[ast.stmt], known: Known) -> tuple[list[ast.stmt], Known]:
    left: list[ast.stmt] = []
    for node in body:
        match node:
            case ast.If(test=test, body=then, orelse=orelse):
                test = simplified(test, known)
                if isinstance(test, ast.Constant):
                    branch, known = _simplified_effects(then if test.value else orelse, known)
                    left += branch
                    continue
                before = known
                then, _ = _simplified_effects(then, before.assuming(test, True))
                orelse, _ = _simplified_effects(orelse, before.assuming(test, False))
                known = before.after(written([*then, *orelse]))
                if then or orelse:
                    left.append(ast.If(test, then, orelse))
            case ast.Assign(targets=[target], value=value):
                left.append(ast.Assign([target], simplified(value, known), lineno=0))
                known = known.after(written([node]))
            case ast.Expr(value=call) if _does_nothing(call, known):
                continue
            case _:
                left.append(node)
                known = known.after(written([node]))
    return left, known


def _does_nothing(call: ast.expr, known: Known) -> bool:
    """Whether an effect has nothing to leave behind, or nothing was left behind that it could find."""
    match call:
        case ast.Call(func=ast.Name(id="leave_all"), args=[mask]):
            return known.of(mask) is False
        case ast.Call(func=ast.Name(id="found")):
            return known.of(ast.Name("left")) is False
    return False


def simplified_says(says: Iterable[Says], known: Known) -> list[tuple[ast.expr, Says, Known]]:
    """Return the verdicts that are possible, with when each holds and what is known where it does.

    The last one always holds.
    """
    possible: list[tuple[ast.expr, Says, Known]] = []
    for say in says:
        when = simplified(parse_value(say.when), known)
        if isinstance(when, ast.Constant):
            if when.value:
                return [*possible, (when, say, known)]
            continue
        possible.append((when, say, known.assuming(when, True)))
        known = known.assuming(when, False)
    raise LanguageError(f"none of {says} is the last word")


def written(body: Iterable[ast.stmt]) -> set[str]:
    """Return the names that effects may write to."""
    return set(_written(body))


def _written(body: Iterable[ast.stmt]) -> Iterator[str]:
    for statement in body:
        for node in ast.walk(statement):
            match node:
                case ast.Assign(targets=[ast.Name(id=name)]) | ast.AugAssign(target=ast.Name(id=name)):
                    yield name


def is_true(node: ast.expr) -> bool:
    """Return whether this is the guard that always holds."""
    return isinstance(node, ast.Constant) and bool(node.value)


def is_false(node: ast.expr) -> bool:
    """Return whether this is a guard that never holds."""
    return isinstance(node, ast.Constant) and not node.value


def canonical(node: ast.expr) -> str:
    """Return the text of a value; `a < b` is written as `b > a`."""
    match node:
        case ast.Compare(left=left, ops=[operator], comparators=[right]):
            sign = _OPERATORS[type(operator)]
            if sign in _MIRRORED:
                return f"{ast.unparse(right)} {_MIRRORED[sign]} {ast.unparse(left)}"
    return ast.unparse(node)


def _words(text: str) -> set[str]:
    return names_in([ast.parse(text, mode="eval")])


# Printing


@dataclass(frozen=True)
class Notation:
    """What two languages write differently."""

    conjunction: str
    disjunction: str
    negation: str
    is_c: bool = False

    def choice(self, test: str, then: str, orelse: str) -> str:
        """Return `then` if `test` holds, else `orelse`."""
        return f"{test} ? {then} : {orelse}" if self.is_c else f"{then} if {test} else {orelse}"


PYTHON = Notation("and", "or", "not ")
C = Notation("&&", "||", "!", is_c=True)


def printed(node: ast.expr, notation: Notation) -> str:
    """Return a value as text, with parentheses wherever two different operators meet."""
    match node:
        case ast.Constant(value=bool(value)):
            return str(int(value)) if notation.is_c else str(value)
        case ast.Constant(value=value):
            return str(value)
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name):
            return f"{_nested(value, node, notation)}.{name}"
        case ast.Call(func=function, args=arguments):
            joint = ", ".join(printed(argument, notation) for argument in arguments)
            return f"{printed(function, notation)}({joint})"
        case ast.UnaryOp(op=operator, operand=operand):
            sign = {ast.Not: notation.negation, ast.Invert: "~", ast.USub: "-"}[type(operator)]
            return f"{sign}{_nested(operand, node, notation)}"
        case ast.BoolOp(op=operator, values=values):
            word = notation.conjunction if isinstance(operator, ast.And) else notation.disjunction
            return f" {word} ".join(_nested(value, node, notation) for value in values)
        case ast.BinOp(left=left, op=operator, right=right):
            sign = _OPERATORS[type(operator)]
            return f"{_nested(left, node, notation)} {sign} {_nested(right, node, notation)}"
        case ast.Compare(left=left, ops=[operator], comparators=[right]):
            sign = _sign(operator)
            return f"{_nested(left, node, notation)} {sign} {_nested(right, node, notation)}"
        case ast.IfExp(test=test, body=body, orelse=orelse):
            parts = (_nested(part, node, notation) for part in (test, body, orelse))
            return notation.choice(*parts)
    raise LanguageError(f"cannot print {ast.unparse(node)!r}")


def _sign(operator: ast.cmpop) -> str:
    if isinstance(operator, ast.Is):
        return "is"
    return "is not" if isinstance(operator, ast.IsNot) else _OPERATORS[type(operator)]


def _nested(node: ast.expr, parent: ast.expr, notation: Notation) -> str:
    text = printed(node, notation)
    return f"({text})" if _needs_parentheses(node, parent) else text


def _needs_parentheses(node: ast.expr, parent: ast.expr) -> bool:
    if isinstance(node, ast.Name | ast.Constant | ast.Attribute | ast.Call):
        return False
    if isinstance(node, ast.UnaryOp):
        return isinstance(parent, ast.Attribute | ast.UnaryOp)
    match parent:
        case ast.BoolOp():
            return not isinstance(node, ast.Compare)
        case ast.Compare():
            return not (isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC)
        case ast.BinOp(op=operator, left=left):
            is_same = isinstance(node, ast.BinOp) and type(node.op) is type(operator)
            return not (is_same and node is left)
        case ast.IfExp():
            return not isinstance(node, ast.Compare)
    return True
