"""What PromQL asks for, as a parser reads it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from promql_parser import (
    AggModifierType,
    AggregateExpr,
    BinaryExpr,
    Call,
    Expr,
    MatrixSelector,
    VectorSelector,
    parse,
    walk,
)

RATE_INTERVAL = timedelta(hours=1, minutes=7)
"""What `$__rate_interval` is read as, which nobody writes as a number."""


@dataclass(frozen=True, slots=True)
class Selector:
    """A series that is asked for, by name and labels."""

    name: str
    matchers: frozenset[str]
    """As they are written: `job=~"$job"`."""
    window: timedelta | None
    """The length of its range, if it is a range vector."""
    function: str
    """What it is the argument of; empty if that is no function."""


def selectors(expr: str) -> list[Selector]:
    """Return all of them. Raise ValueError if `expr` is no PromQL."""
    found: list[Selector] = []
    parents: list[Expr] = []

    def enter(node: Expr) -> None:
        if isinstance(node, VectorSelector):
            ranged = parents[-1] if parents and isinstance(parents[-1], MatrixSelector) else None
            above = parents[:-1] if ranged else parents
            call = above[-1] if above else None
            found.append(
                Selector(
                    node.name or "",
                    frozenset(str(matcher) for matcher in node.matchers.matchers),
                    ranged.range if ranged else None,
                    call.func.name if isinstance(call, Call) else "",
                )
            )
        parents.append(node)

    def leave(_: Expr) -> None:
        parents.pop()

    walk(_read(expr), enter, leave)
    return found


def operators(expr: str) -> set[str]:
    """Return the names of its functions, aggregations and binary operators."""
    found: set[str] = set()

    def enter(node: Expr) -> None:
        if isinstance(node, Call):
            found.add(node.func.name)
        elif isinstance(node, AggregateExpr | BinaryExpr):
            found.add(str(node.op))

    walk(_read(expr), enter)
    return found


def kept(expr: str) -> list[set[str]]:
    """Return the labels that each aggregation `by` keeps, and none for one without labels."""
    found: list[set[str]] = []

    def enter(node: Expr) -> None:
        if isinstance(node, AggregateExpr):
            if node.modifier is None:
                found.append(set())
            elif node.modifier.type == AggModifierType.By:
                found.append(set(node.modifier.labels))

    walk(_read(expr), enter)
    return found


def _read(expr: str) -> Expr:
    tree: Expr = parse(expr.replace("$__rate_interval", f"{int(RATE_INTERVAL.total_seconds())}s"))
    return tree
