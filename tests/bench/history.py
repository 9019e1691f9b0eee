"""What each version cost: history.jsonl, one line for each, so that a regression shows.

Kept are the figures that can be compared: ratios in one run, sizes and counts of instructions
anywhere, what the reader's side costs on one machine. Of all of them less is better.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.monitor import REPO
from tests.bench.report import Figure, amount

HISTORY = Path(__file__).with_name("history.jsonl")
SCHEMA = 1
NOISE = 0.1
"""What differs by less than a tenth is taken for the same."""

_KEPT = re.compile(
    r"run_time\..*\.by_\w+|size\..*|attach\.(fexit|kprobe)|memory\.(pss|scrape_cpu)|census\.(look|reader|pss)"
)


def line(figures: Iterable[Figure]) -> dict[str, Any]:
    """What is recorded of one bench run on this machine, for the version that is checked out."""
    return {
        "schema": SCHEMA,
        "version": tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"],
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "kernel": os.uname().release,
        "cpu": _cpu_model(),
        "figures": {f.key: round(f.value, 4) for f in figures if _KEPT.fullmatch(f.key)},
    }


def last(path: Path = HISTORY) -> dict[str, Any] | None:
    """The newest line, None if there is none."""
    lines = path.read_text().splitlines() if path.exists() else []
    newest: dict[str, Any] | None = json.loads(lines[-1]) if lines else None
    return newest


def record(figures: Iterable[Figure], path: Path = HISTORY) -> None:
    """Appends a line."""
    with path.open("a") as file:
        file.write(json.dumps(line(figures), separators=(",", ":")) + "\n")


def comparison(figures: Iterable[Figure], then: dict[str, Any]) -> Iterator[str]:
    """The lines of a table: what differs from a line of the history by more than noise, worst first.

    Of figures that are in the other table, too.
    """
    both = [(f, was) for f in figures if f.row and (was := then["figures"].get(f.key))]
    if not both:
        return
    machine = "" if then["cpu"] == _cpu_model() else f", measured on {then['cpu']}"
    yield f"SINCE {then['version']} ({then['commit']}, {then['date']}{machine})"
    changed = [(f.value / was, f, was) for f, was in both if abs(f.value / was - 1) > NOISE]
    for ratio, figure, was in sorted(changed, key=lambda change: -change[0]):
        values = f"{amount(was, figure.unit)} -> {amount(figure.value, figure.unit)}"
        yield f"{figure.what:<57} {values:>30} {'WORSE' if ratio > 1 else 'better'}"
    yield f"the same within {NOISE:.0%}: {len(both) - len(changed)} of {len(both)} figures"


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=REPO, check=True, capture_output=True, text=True
    ).stdout.strip()


def _cpu_model() -> str:
    model = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return model[1] if model else "an unknown CPU"
