"""`--help` and `--version` come at once: no command's imports are made for another's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

ROUNDS = 15
MOST = 1.5
"""Times the processor time that click itself takes."""

# What only some commands need, of the packages and of the standard library.
HEAVY = ("bcrypt", "prometheus_client", "psutil", "yaml", "ctypes", "ssl", "tomllib", "urwid", "wsgiref")

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


def cpu_seconds(program: Path, option: str) -> float:
    """Of a process from its start to its end. The clock would also tell what else this machine does."""
    command = [sys.executable, str(program), option]
    silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    child = os.posix_spawn(command[0], command, os.environ, file_actions=silent)
    _, status, usage = os.wait4(child, 0)
    assert status == 0
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_it_takes_little_longer_than_a_program_of_click_that_does_nothing(
    option: str, tmp_path: Path
) -> None:
    bare, ours = tmp_path / "bare.py", tmp_path / "ours.py"
    bare.write_text(BARE)
    ours.write_text(OURS)
    for program in (bare, ours):  # their modules are compiled by then
        cpu_seconds(program, option)
    # In pairs, so that both meet the same processor: a busy one may run at half its speed.
    ratios = sorted(cpu_seconds(ours, option) / cpu_seconds(bare, option) for _ in range(ROUNDS))
    assert median(ratios) <= MOST, f"{option} takes this many times as long as click itself: {ratios}"


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
