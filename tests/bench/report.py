"""Figures and their goals: a table for people, one JSON line for programs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

SCHEMA = 1
WIDTH = 100
_WHAT, _MEASURED, _GOAL = 57, 16, 17


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should be."""

    relation: Literal["<=", "<", ">=", "=="]
    limit: float

    def is_met(self, value: float) -> bool:
        """Whether a measured value is as it should be."""
        return {
            "<=": value <= self.limit,
            "<": value < self.limit,
            ">=": value >= self.limit,
            "==": value == self.limit,
        }[self.relation]


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number. `key` names it in the JSON line; `row` is false if it is left out of the table."""

    key: str
    what: str
    value: float
    unit: str = ""
    goal: Goal | None = None
    row: bool = True

    @property
    def met(self) -> bool | None:
        """Whether the goal is met, None if there is none."""
        return self.goal.is_met(self.value) if self.goal else None


def amount(value: float, unit: str) -> str:
    """A number with its unit, as many digits as matter."""
    digits = 0 if value == int(value) or abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f} {unit}".rstrip()


def table(figures: Iterable[Figure]) -> Iterator[str]:
    """The lines of the table: what, measured, goal, met or missed."""
    yield f"{'WHAT':<{_WHAT}} {'MEASURED':>{_MEASURED}}  {'GOAL':<{_GOAL}} RESULT"
    for figure in figures:
        if not figure.row:
            continue
        goal = f"{figure.goal.relation} {amount(figure.goal.limit, figure.unit)}" if figure.goal else ""
        result = {True: "met", False: "MISSED", None: ""}[figure.met]
        measured = amount(figure.value, figure.unit)
        yield f"{figure.what:<{_WHAT}} {measured:>{_MEASURED}}  {goal:<{_GOAL}} {result}".rstrip()


def json_line(figures: Iterable[Figure], plots: Path, missing: Mapping[str, str]) -> str:
    """Everything on one line; `missing` has the parts that were not measured, and why."""
    return json.dumps(
        {
            "schema": SCHEMA,
            "kind": "bench",
            "kernel": os.uname().release,
            "cpus": os.cpu_count(),
            "figures": {figure.key: _as_json(figure) for figure in figures},
            "missing": dict(missing),
            "plots": str(plots),
        },
        separators=(",", ":"),
    )


def _as_json(figure: Figure) -> dict[str, Any]:
    told: dict[str, Any] = {"value": round(figure.value, 4), "unit": figure.unit}
    if figure.goal:
        told["goal"] = {"relation": figure.goal.relation, "limit": round(figure.goal.limit, 4)}
        told["met"] = figure.met
    return told
