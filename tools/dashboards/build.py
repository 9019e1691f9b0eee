"""Writes dashboards/*.json: `python -m tools.dashboards.build`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from tools.dashboards.fleet import fleet
from tools.dashboards.host import host
from tools.dashboards.vm import vm

FOLDER = Path(__file__).parents[2] / "dashboards"


def texts() -> Mapping[Path, str]:
    """Return the files and their contents."""
    return {
        FOLDER / f"{dashboard.uid}.json": json.dumps(dashboard, cls=JSONEncoder, indent=2, sort_keys=True)
        + "\n"
        for dashboard in (fleet(), host(), vm())
    }


if __name__ == "__main__":
    for path, text in texts().items():
        path.write_text(text)
        print(path)
