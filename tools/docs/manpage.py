"""Prints the man page, vpmu-agent(1), made from the commands themselves: `python -m tools.docs.manpage`."""

from __future__ import annotations

import os
import re
import time
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from vpmu_agent.cli.main import CONFIG_FILE, cli

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"

NAME = "vpmu-agent"

DESCRIPTION = """
KVM gives its guests performance counters by creating perf events on the host. vpmu-agent follows these events
with BPF, per VM, vCPU and counter, without touching the guest, and checks every call that KVM makes against a
model of what it should do.

`run` is the daemon that serves metrics to Prometheus; once the probes are attached, it needs no privileges.
`trace` prints the calls as they happen, and `list` what every guest's counters do now. `top` shows all VMs
live, from the daemon where one runs. `doctor` reports what a host lacks for these; `replay` and `predict`
work on any machine.
"""

JOURNAL = """
As a service, `run` logs divergences and failed creations to the journal, for each VM and kind the first few
in a minute, with fields to search by: `journalctl -u vpmu-agent VPMU_VM=web01`. It also logs VMs that have
nothing to trace.
"""

FILES = {
    f"{CONFIG_FILE}": "The configuration of the service; each key is an option of `run`.",
    "/usr/share/vpmu-agent/dashboards/": "Grafana dashboards.",
    "/usr/share/vpmu-agent/rules/": "Recording and alerting rules for Prometheus.",
    "/usr/share/doc/vpmu-agent/dashboards/README.md": "The runbooks of the alerts.",
    "/usr/share/doc/vpmu-agent/docs/metrics.md": "All metrics.",
    "/usr/share/doc/vpmu-agent/docs/census.md": "What `list` prints, and its JSON.",
    "/usr/share/doc/vpmu-agent/docs/top.md": "What `top` shows, its keys, and its JSON.",
    "~/.netrc": "The user and password for a daemon that `top` asks, if it wants any.",
    "/usr/share/doc/vpmu-agent/examples/web.yml": "An example for `--web.config.file`.",
}

FIELDS = {
    "VPMU_VM, VPMU_VCPU, VPMU_PMC": "The counter that the call was for.",
    "VPMU_CALL, VPMU_EVENT": "The call, and the event of the counter's group that it was for.",
    "VPMU_KIND, VPMU_EXPECTED": "How the call diverged from the model, and what was expected instead.",
    "VPMU_ERRNO": "Why an event could not be created.",
    "VPMU_MODE, VPMU_REASON": "The vPMU of a VM that has nothing to trace, and why it is off.",
    "VPMU_HELD_BACK": "How many more of this VM, kind and errno were not logged one by one.",
}

EXAMPLES = {
    "Check whether this host can be traced:": "vpmu-agent doctor",
    "Print what every guest's counters do now:": "vpmu-agent list",
    "Show all VMs live, from the daemon of another host:": "vpmu-agent top --url http://node7:9775",
    "Print the state of all VMs every ten seconds, as JSON:": "vpmu-agent top --output json --interval 10",
    "Print all calls for one VM for a minute, and keep them for later:": (
        "vpmu-agent trace --vm web01 --duration 60 --record web01.jsonl"
    ),
    "Check these calls again, and print them as JSON:": "vpmu-agent replay --output json web01.jsonl",
    "Serve metrics to Prometheus on all addresses:": "vpmu-agent run --listen :9775",
    "Check the service's configuration, and print the effective settings:": "vpmu-agent config check",
    "Print what KVM should do for a group of four whose third event cannot be created:": (
        "vpmu-agent predict --events 4 --fail-at 2"
    ),
}

SEE_ALSO = {"perf": 1, "bpf": 2, "perf_event_open": 2}


def page(commands: click.Group, *, version: str, date: str) -> str:
    """Return the page in roff, with the macros of man(7)."""
    return "\n".join(_lines(commands, version, date)) + "\n"


def _lines(commands: click.Group, version: str, date: str) -> Iterator[str]:
    top = _context(commands, NAME)
    leaves = list(_leaves(top))
    summary, *_ = _paragraphs(commands.help)
    yield f'.TH {NAME.upper()} 1 {date} "{NAME} {version}" "User Commands"'
    yield from (".SH NAME", rf"{roff(NAME)} \- {roff(summary[0].lower() + summary[1:].rstrip('.'))}")
    yield from (".SH SYNOPSIS", "\n.br\n".join(map(_usage, leaves)))
    yield from (".SH DESCRIPTION", *_prose(DESCRIPTION))
    yield ".SH COMMANDS"
    for context in leaves:
        yield from (f".SS {roff(_path(context))}", *_prose(context.command.help))
        yield from _options(context, context.command.params)
    yield from (".SH OPTIONS", *_options(top, commands.get_params(top)))
    yield ".SH EXIT STATUS"
    for status, meaning in re.findall(r"^ +(\d)  (.+)$", commands.help or "", re.MULTILINE):
        yield from (".TP", rf"\fB{status}\fR", roff(meaning))
    yield ".SH FILES"
    for path, meaning in FILES.items():
        yield from (".TP", rf"\fI{roff(path)}\fR", roff(meaning))
    yield from (".SH JOURNAL", *_prose(JOURNAL))
    for names, meaning in FIELDS.items():
        yield from (".TP", rf"\fB{roff(names)}\fR", roff(meaning))
    yield ".SH EXAMPLES"
    for purpose, line in EXAMPLES.items():
        yield from (".TP", roff(purpose), rf"\fB{roff(line)}\fR")
    yield ".SH SEE ALSO"
    yield ",\n".join(rf"\fB{roff(name)}\fR({section})" for name, section in SEE_ALSO.items())


def _context(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    return click.Context(command, info_name=name, parent=parent, **command.context_settings)


def _leaves(context: click.Context) -> Iterator[click.Context]:
    """Yield the contexts of the commands that can be run, those of nested groups too."""
    group = context.command
    if not isinstance(group, click.Group):
        yield context
        return
    for name in group.list_commands(context):
        if (command := group.get_command(context, name)) and not command.hidden:
            yield from _leaves(_context(command, name, context))


def _path(context: click.Context) -> str:
    return context.command_path.removeprefix(f"{NAME} ")


def _usage(context: click.Context) -> str:
    words = " ".join(context.command.collect_usage_pieces(context))
    return rf"\fB{roff(NAME)} {roff(_path(context))}\fR \fI{roff(words)}\fR"


def _options(context: click.Context, params: Iterable[click.Parameter]) -> Iterator[str]:
    for param in params:
        # Newer versions of click have a help record for arguments, too, with nothing in it.
        if isinstance(param, click.Option) and (record := param.get_help_record(context)):
            usage, help = record
            yield from (".TP", " ".join(map(_option_word, usage.split())), roff(help))


def _option_word(word: str) -> str:
    if word.startswith("-"):
        name = word.rstrip(",")
        return rf"\fB{roff(name)}\fR{word.removeprefix(name)}"
    return word if word == "/" else rf"\fI{roff(word)}\fR"


def _paragraphs(text: str | None) -> list[str]:
    """Return the paragraphs but those that click must not rewrap: that is the table of exit statuses."""
    return [" ".join(each.split()) for each in (text or "").split("\n\n") if not each.startswith("\b")]


def _prose(text: str | None) -> Iterator[str]:
    yield "\n.PP\n".join(map(roff, _paragraphs(text)))


def roff(text: str) -> str:
    """Return plain text as roff; what stands between backquotes is bold."""
    text = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq")
    text = "".join(char if char.isascii() else rf"\[u{ord(char):04X}]" for char in text)
    text = re.sub(r"`([^`]+)`", r"\\fB\1\\fR", text)
    return rf"\&{text}" if text.startswith(".") else text


if __name__ == "__main__":
    now = time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())))
    version = tomllib.loads(PYPROJECT.read_text())["project"]["version"]
    print(page(cli, version=version, date=time.strftime("%Y-%m-%d", now)), end="")
