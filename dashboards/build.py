"""Writes the dashboards' JSON beside this file: `python -m dashboards.build`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards.fleet import fleet
from dashboards.host import host
from dashboards.vm import vm

HERE = Path(__file__).parent


def texts() -> Mapping[Path, str]:
    """What each file has to hold."""
    return {
        HERE / f"{made.uid}.json": json.dumps(made, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"
        for made in (fleet(), host(), vm())
    }


if __name__ == "__main__":
    for path, text in texts().items():
        path.write_text(text)
        print(path)
