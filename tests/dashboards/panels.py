"""The queries of the dashboards' JSON, as files on disk have them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILES = sorted((Path(__file__).parents[2] / "dashboards").glob("*.json"))


@dataclass(frozen=True, slots=True)
class PanelQuery:
    """One query of one panel."""

    dashboard: str
    row: str
    panel: str
    ref_id: str
    expr: str
    is_instant: bool
    variables: tuple[Any, ...]
    """Of the dashboard."""

    def __str__(self) -> str:
        return f"{self.dashboard} / {self.row} / {self.panel} {self.ref_id}"


def queries() -> Iterator[PanelQuery]:
    """Yield all of them."""
    for path in FILES:
        dashboard = json.loads(path.read_text())
        row = ""
        for panel in dashboard["panels"]:
            if panel["type"] == "row":
                row = panel["title"]
                continue
            for target in panel["targets"]:
                yield PanelQuery(
                    path.stem,
                    row,
                    panel["title"],
                    target["refId"],
                    target["expr"],
                    target["instant"],
                    tuple(dashboard["templating"]["list"]),
                )
