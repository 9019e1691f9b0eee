"""`python -m tests.bench`: every part, the table, the JSON line and the plots."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench import (
    attach,
    census,
    daemon_cpu,
    history,
    loss,
    memory,
    plots,
    profile,
    replay_speed,
    run_time,
    scrape_growth,
    size,
    start,
)
from tests.bench.errors import BenchError
from tests.bench.progress import say
from tests.bench.report import Figure, json_line, table
from tests.lab.places import lab_dir

PARTS = {
    "run_time": run_time.measure,
    "size": size.measure,
    "attach": attach.measure,
    "profile": profile.measure,
    "daemon_cpu": daemon_cpu.measure,
    "loss": loss.measure,
    "start": start.measure,
    "memory": memory.measure,
    "census": census.measure,
    "scrape": scrape_growth.measure,
    "replay": replay_speed.measure,
}
# What a part can meet here; anything else is a bug of its own and shows its traceback.
_TROUBLE = BenchError, ModuleNotFoundError, OSError, RuntimeError, subprocess.SubprocessError


def main() -> int:
    """Exit status: 0 if all was measured, 1 if a part could not be, or with --strict if a goal is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="Measures what the monitor costs."
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"only these of: {', '.join(PARTS)}")
    parser.add_argument("--strict", action="store_true", help="a missed goal is a failure")
    parser.add_argument(
        "--record",
        action="store_true",
        help=f"append a line to {history.HISTORY.name}, if all could be measured",
    )
    parser.add_argument("--plots", type=Path, default=lab_dir().with_name("bench"), help="where the PNGs go")
    arguments = parser.parse_args()
    if wrong := set(arguments.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(wrong))}")
    if arguments.record and arguments.parts:
        parser.error("a line of the history has all parts: give --record without any")

    figures: list[Figure] = []
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="vpmu-bench-") as folder:
        for name in arguments.parts or PARTS:
            try:
                figures += PARTS[name](Path(folder))
            except _TROUBLE as error:
                missing[name] = str(error)
                say(f"{name} could not be measured: {error}")
    arguments.plots.mkdir(parents=True, exist_ok=True)
    drawn = list(plots.draw({figure.key: figure.value for figure in figures}, arguments.plots))

    for line in (*table(figures), "", *run_time.table(figures), ""):
        print(line)
    if then := history.last():
        for line in (*history.comparison(figures, then), ""):
            print(line)
    if arguments.record and not missing:
        history.record(figures)
        print(f"recorded in {history.HISTORY}")
    for name, why in missing.items():
        print(f"not measured: {name}: {why}")
    print(f"plots in {arguments.plots}: {', '.join(path.name for path in drawn) or 'none'}")
    print(json_line(figures, arguments.plots, missing), flush=True)
    missed = any(figure.met is False for figure in figures)
    return 1 if missing or (arguments.strict and missed) else 0


if __name__ == "__main__":
    sys.exit(main())
