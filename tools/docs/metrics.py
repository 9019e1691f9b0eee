"""Writes docs/metrics.md, the table of all metrics: `python -m tools.docs.metrics`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector

from vpmu_agent.web.metrics import FAMILIES

FILE = Path(__file__).parents[2] / "docs" / "metrics.md"

_HEAD = """\
# Metrics

The metrics that `vpmu-agent run` exports. `make docs` writes this file from the code that declares them.

The samples of a histogram end in `_bucket` (with an additional label `le`), `_count` and `_sum`.

| Name | Type | Unit | Labels | Help |
| --- | --- | --- | --- | --- |
"""


def text() -> str:
    """Return the contents of the file."""
    rows = [_row(family.name, family.type, family.labels, family.help) for family in FAMILIES]
    for metric in ProcessCollector(registry=CollectorRegistry()).collect():
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        rows.append(_row(name, metric.type, (), metric.documentation))
    return _HEAD + "".join(rows)


def unit(name: str) -> str:
    """Return a metric's unit, which ends its name by Prometheus's convention; empty where that is 0 or 1."""
    *_, last = name.removesuffix("_total").split("_")
    return "" if last in ("info", "enabled", "up") else last


def _row(name: str, kind: str, labels: Iterable[str], help: str) -> str:
    cells = f"`{name}`", kind, unit(name), ", ".join(f"`{label}`" for label in labels), help
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    FILE.write_text(text())
    print(FILE)
