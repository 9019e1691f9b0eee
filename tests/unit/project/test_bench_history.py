"""What `make bench` keeps of a version, and what it says when the next one is worse."""

from __future__ import annotations

from pathlib import Path

from tests.bench import history
from tests.bench.report import Figure

ENABLE = "run_time.stock.hot.enable.monitor"


def figures(ratio: float, code: int) -> list[Figure]:
    return [
        Figure(ENABLE, "enable: the monitor", 200, "ns"),
        Figure(f"{ENABLE}.by_count", "enable, by (b)", ratio),
        Figure("size.stock.enable.code", "enable: machine code", code, "bytes"),
        Figure("start.daemon", "start to attached", 1.2, "s"),
    ]


def test_a_line_has_what_can_be_compared(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    assert history.last(path) is None
    history.record(figures(3.5, 6000), path)
    history.record(figures(1.5, 2000), path)
    newest = history.last(path)
    assert newest is not None
    assert newest["figures"] == {f"{ENABLE}.by_count": 1.5, "size.stock.enable.code": 2000}
    assert newest.keys() == {"schema", "version", "date", "commit", "kernel", "cpu", "figures"}


def test_a_regression_shows() -> None:
    then = history.line(figures(1.5, 2000))
    head, *changed, same = history.comparison(figures(1.8, 2050), then)
    assert head.startswith(f"SINCE {then['version']} (")
    assert [line.split() for line in changed] == [["enable,", "by", "(b)", "1.50", "->", "1.80", "WORSE"]]
    assert same == "the same within 10%: 1 of 2 figures"


def test_an_improvement_is_no_regression() -> None:
    then = history.line(figures(3.5, 6000))
    _, *changed, _ = history.comparison(figures(1.5, 2000), then)
    assert [line.split()[-1] for line in changed] == ["better", "better"]


def test_the_history_in_the_tree_can_be_read() -> None:
    newest = history.last()
    assert newest is not None
    assert newest["figures"]
