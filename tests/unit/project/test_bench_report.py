"""What `make bench` prints of its figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.report import WIDTH, Figure, Goal, amount, json_line, table

FIGURES = [
    Figure("cpu", "daemon's CPU", 0.4, "%", Goal("<", 1)),
    Figure(
        "run_time.grouped.hot.release.counts_only.by_count",
        "release, group of 4, back to back, counts only, by (b)",
        1.428,
        goal=Goal("<=", 0.7),
    ),
    Figure("rate", "calls/s at full speed", 180_000, "calls/s"),
    Figure("net", "not for people", 1.0, row=False),
]


def test_the_table_fits_and_says_what_is_missed() -> None:
    head, *lines = table(FIGURES)
    assert max(len(line) for line in (head, *lines)) <= WIDTH
    assert head.split() == ["WHAT", "MEASURED", "GOAL", "RESULT"]
    assert [line.split()[-1] for line in lines] == ["met", "MISSED", "calls/s"]
    assert lines[1].split()[-4:] == ["1.43", "<=", "0.70", "MISSED"]


def test_the_json_line_has_everything() -> None:
    told = json.loads(json_line(FIGURES, Path("/plots"), {"replay": "No module named 'tests.bench.replay'"}))
    assert (told["schema"], told["kind"], told["plots"]) == (1, "bench", "/plots")
    assert told["figures"]["cpu"] == {
        "value": 0.4,
        "unit": "%",
        "goal": {"relation": "<", "limit": 1},
        "met": True,
    }
    assert told["figures"]["net"] == {"value": 1.0, "unit": ""}
    assert told["figures"].keys() == {figure.key for figure in FIGURES}
    assert told["missing"].keys() == {"replay"}


@pytest.mark.parametrize(
    ("relation", "below", "at", "above"),
    [
        ("<", True, False, False),
        ("<=", True, True, False),
        (">=", False, True, True),
        ("==", False, True, False),
    ],
)
def test_a_goal(relation: str, below: bool, at: bool, above: bool) -> None:
    goal = Goal(relation, 10)  # type: ignore[arg-type] # the parameters are str
    assert (goal.is_met(9), goal.is_met(10), goal.is_met(11)) == (below, at, above)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.5123, "s", "0.51 s"), (12.34, "ms", "12.3 ms"), (1234.5, "ns", "1,234 ns"), (0, "", "0")],
)
def test_an_amount_has_the_digits_that_matter(value: float, unit: str, text: str) -> None:
    assert amount(value, unit) == text
