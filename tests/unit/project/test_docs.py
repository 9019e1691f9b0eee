"""What is written for users is what the code does."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from tests.support.counted import Maps, Processes
from tests.support.scenes import Guest
from tools.docs import failures, manpage, metrics
from vpmu_agent.cli.main import cli
from vpmu_agent.counts.watch import Watch
from vpmu_agent.daemon import report
from vpmu_agent.model.create_errors import CAUSES
from vpmu_agent.model.event_names import AMD, INTEL
from vpmu_agent.web.metrics import Exporter


def test_the_table_of_metrics_is_what_the_code_makes() -> None:
    assert metrics.FILE.read_text() == metrics.text(), "make docs"


def test_the_tables_of_failures_are_what_the_code_says() -> None:
    written = failures.FILE.read_text()
    assert failures.text(written) == written, "make docs"
    assert len(re.findall(r"^\| `E[A-Z]+` \|", written, re.MULTILINE)) == len(CAUSES)
    assert len(re.findall(r"^\| `r[0-9a-f]+` \|", written, re.MULTILINE)) == len(AMD) + len(INTEL)


def test_a_scrape_has_the_families_of_the_table_and_no_others() -> None:
    watch = Watch(Maps(Guest("web01", 4242).life()), Processes(web01=4242), per_counter=True)
    scraped = b"".join(Exporter(watch).scrape(openmetrics=False)).decode()
    exported = re.findall(r"^# TYPE (\w+) (\w+)$", scraped, re.MULTILINE)
    assert re.findall(r"^\| `(\w+)` \| (\w+) \|", metrics.text(), re.MULTILINE) == exported


def test_a_unit_is_the_end_of_the_name() -> None:
    assert metrics.unit("vpmu_call_duration_seconds") == "seconds"
    assert metrics.unit("vpmu_divergences_total") == "divergences"
    assert metrics.unit("vpmu_vm_info") == ""


def man(commands: click.Group = cli) -> str:
    return manpage.page(commands, version="1.2", date="2026-11-23")


def test_the_man_page_has_each_command_with_its_options() -> None:
    page = man()
    for name, command in cli.commands.items():
        if isinstance(command, click.Group):
            continue  # its commands have their own
        section = re.search(rf"^\.SS {name}\n(.*?)^\.S[SH]", page, re.MULTILINE | re.DOTALL)
        assert section, name
        written = set(re.findall(r"--?[a-z.-]+", section[1].replace("\\-", "-")))
        options = [param for param in command.params if isinstance(param, click.Option)]
        assert written >= {name for param in options for name in (*param.opts, *param.secondary_opts)}


def test_the_man_page_has_nested_commands() -> None:
    @click.group()
    def commands() -> None:
        """Does it."""

    @commands.group()
    def config() -> None:
        """Does more."""

    @config.command()
    @click.argument("file")
    @click.option("-d", "--deep", is_flag=True, help="All of `it`, at 5 % or \\n.")
    def check(file: str, deep: bool) -> None:
        """Look."""

    page = man(commands)
    assert "\n\\fBvpmu\\-agent config check\\fR \\fI[OPTIONS] FILE\\fR\n" in page
    assert "\n.SS config check\nLook.\n.TP\n\\fB\\-d\\fR, \\fB\\-\\-deep\\fR\n" in page
    assert "\nAll of \\fBit\\fR, at 5 % or \\en.\n" in page


def test_the_man_page_has_the_fields_of_the_journal() -> None:
    (section,) = re.findall(r"^\.SH JOURNAL\n(.*?)^\.SH", man(), re.MULTILINE | re.DOTALL)
    used = set(re.findall(r"(VPMU_\w+)=", Path(report.__file__).read_text()))
    assert used == set(re.findall(r"VPMU_\w+", section))


def test_the_man_page_has_the_exit_statuses() -> None:
    (table,) = re.findall(r"^\.SH EXIT STATUS\n(.*?)^\.SH", man(), re.MULTILINE | re.DOTALL)
    assert re.findall(r"^\\fB(\d)", table, re.MULTILINE) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("line", manpage.EXAMPLES.values())
def test_an_example_is_right_usage(line: str) -> None:
    """Up to the point where the command would be run."""
    name, *arguments = shlex.split(line)
    assert name == "vpmu-agent"
    command: click.Command = cli
    while isinstance(command, click.Group):
        command = command.commands[arguments.pop(0)]
    command.make_context(command.name, arguments)  # raises UsageError
