"""`--help` and `--version` come at once: no command's imports are made for another's."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROUNDS = 15
MOST = 1.5
"""Times what click itself takes."""

# What only some commands need, of the packages and of the standard library.
HEAVY = ("bcrypt", "prometheus_client", "psutil", "yaml", "ctypes", "ssl", "tomllib", "wsgiref")

BARE = """
import click

@click.group()
@click.version_option(package_name="vpmu-agent")
def cli():
    "Does nothing."

@cli.command()
@click.option("--option")
def command(option):
    "Nothing."

cli(prog_name="bare")
"""
OURS = "from vpmu_agent.cli.main import main; main()"


def seconds(program: Path, option: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, program, option], check=True, capture_output=True, timeout=60)
    return time.perf_counter() - began


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_it_takes_little_longer_than_a_program_of_click_that_does_nothing(
    option: str, tmp_path: Path
) -> None:
    programs = {"bare": tmp_path / "bare.py", "ours": tmp_path / "ours.py"}
    programs["bare"].write_text(BARE)
    programs["ours"].write_text(OURS)
    for program in programs.values():  # whose modules are compiled by then
        seconds(program, option)
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(ROUNDS):  # in turn, so that both meet what else this machine does
        for name, program in programs.items():
            taken[name].append(seconds(program, option))
    ratio = min(taken["ours"]) / min(taken["bare"])
    assert ratio <= MOST, f"{option} takes {ratio:.2f} times as long as click itself: {taken}"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["trace", "--help"]])
def test_nothing_heavy_is_imported_for_help(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "from vpmu_agent.cli.main import cli\n"
        f"cli({arguments!r}, standalone_mode=False)\n"
        "print(*sorted(set(sys.modules) - before), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    imported = done.stderr.split()
    assert not {*HEAVY} & {*imported}
    rooms = {name.split(".")[1] for name in imported if name.startswith("vpmu_agent.")}
    assert rooms == {"cli", "model", "system"}
