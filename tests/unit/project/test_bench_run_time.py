"""What `make bench` makes of the run times of several runs."""

from __future__ import annotations

import pytest

from tests.bench.report import Figure
from tests.bench.run_time import NAMES, Times, figures

PROGRAMS = {"monitor": 2, "counts_only": 1, "empty": 2, "count": 1, "histogram": 2, "floor": 2}


def run(**whole: float) -> Times:
    others = {"empty": 100, "counts_only": 60, "count": 100, "histogram": 400, "floor": 140}
    return Times(others | whole, PROGRAMS)


def measured(kernel: str, pace: str, call: str, *runs: Times) -> dict[str, Figure]:
    prefix = f"run_time.{kernel}.{pace}.{call}."
    return {
        figure.key.removeprefix(prefix): figure
        for figure in figures(kernel, pace, call, runs)  # type: ignore[arg-type] # kernel is str
    }


def test_goals_are_for_the_median_of_the_runs_ratios() -> None:
    # The machine was half as fast in the second run, and one subject was disturbed in the third.
    runs = run(monitor=150), run(monitor=320, count=200, histogram=800), run(monitor=900)
    found = measured("stock", "hot", "enable", *runs)
    assert found["monitor.by_count"].value == 1.6
    assert found["monitor.by_count"].met
    assert found["monitor.by_histogram"].value == 0.4
    assert found["monitor"].value == 320
    assert found["counts_only.by_count"].value == 0.6
    assert found["counts_only.by_count"].met


def test_times_are_also_told_without_empty_programs() -> None:
    found = measured("stock", "cold", "enable", run(monitor=250))
    assert {name: found[f"{name}.net"].value for name in NAMES} == {
        "monitor": 150,
        "counts_only": 10,
        "empty": 0,
        "count": 50,
        "histogram": 300,
        "floor": 40,
    }


def test_the_least_that_a_call_takes_stands_beside_the_goals_and_has_none() -> None:
    runs = [run(monitor=250, floor=floor) for floor in (140, 150, 190)]
    least = measured("stock", "hot", "pause", *runs)["floor.by_count"]
    assert (least.value, least.goal, least.row) == (1.5, None, True)


@pytest.mark.parametrize(
    ("kernel", "pace", "call", "by_count", "by_histogram", "counts_only"),
    [
        ("stock", "hot", "pause", 1.6, 0.5, 0.7),
        ("stock", "cold", "release", 1.25, 0.6, 0.7),
        ("stock", "hot", "create", None, 1.35, None),
        ("grouped", "cold", "create", None, 1.1, None),
        ("grouped", "hot", "enable", 1.6, 0.5, 0.7),
        ("grouped", "hot", "release", 1.8, 0.5, 0.7),
        ("grouped", "cold", "release", 1.25, 0.6, 0.7),
    ],
)
def test_the_goals(
    kernel: str,
    pace: str,
    call: str,
    by_count: float | None,
    by_histogram: float | None,
    counts_only: float | None,
) -> None:
    found = measured(kernel, pace, call, run(monitor=100))
    limits = [
        figure.goal.limit if (figure := found.get(key)) and figure.goal else None
        for key in ("monitor.by_count", "monitor.by_histogram", "counts_only.by_count")
    ]
    assert limits == [by_count, by_histogram, counts_only]
