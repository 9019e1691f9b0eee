"""The command line: arguments in, calls out.

A command imports what it needs when it runs, so that `--help` and `--version` wait for nothing else.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

import click
from click.core import ParameterSource

from vpmu_agent.cli import options, values
from vpmu_agent.cli.errors import CANNOT_RUN, PROBLEM, USAGE, BadInput, CannotRun, Commands, Problem
from vpmu_agent.model.call import CallName
from vpmu_agent.model.predict import STEPS
from vpmu_agent.system.stdout import (
    OutputError,
    UnreadError,
    prepare_streams,
    print_line,
    settle_stdout,
)
from vpmu_agent.system.user import DAEMON_USER

if TYPE_CHECKING:
    from vpmu_agent.counts.guests import Found, Names
    from vpmu_agent.daemon.settings import Settings
    from vpmu_agent.daemon.source import ProbeSource
    from vpmu_agent.probes import Mode
    from vpmu_agent.trace.live import Attach
    from vpmu_agent.trace.printers import Printer
    from vpmu_agent.trace.recording import Recorder
    from vpmu_agent.trace.session import Filters, Session
    from vpmu_agent.vms.names import Vms

CONFIG_FILE = Path("/etc/vpmu-agent/vpmu-agent.toml")
"""Where the Debian package puts it."""


@dataclass(frozen=True, slots=True)
class StandIns:
    """Replacements for this host's probes, VMs and census, which tests give to a command as click's `obj`.

    None stands for the real one.
    """

    attach: Attach | None = None
    source: ProbeSource | None = None
    running: Callable[[], Iterable[int]] | None = None
    guests: Callable[[Names], Found] | None = None
    why_no_vpmu: Callable[[], tuple[str, str] | None] | None = None
    daemon_url: str | None = None
    """Where `top` looks for the daemon of this host."""


# Commands


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="vpmu-agent")
def cli() -> None:
    """Show what KVM does for its guests' virtual performance counters, and check it against a model.

    \b
    Exit status:
      0  success
      1  a problem was found: KVM diverged from the model, a guest's counter does not count, or a
         recording is cut short
      2  wrong usage, a file that is not a recording, or mistakes in the configuration
      3  cannot run here, or cannot go on: the reason is on standard error
    """


@cli.command()
@options.filters
@options.duration
@options.output
@options.quiet
@click.option(
    "--record",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    callback=values.in_a_directory,
    metavar="FILE",
    help="Also write the calls to FILE, for `replay`. Only you can read it; one of yours is overwritten.",
)
@click.option("--wait", is_flag=True, help="Start even if the VM given by --vm is not running yet.")
@options.attach
@click.pass_context
def trace(
    ctx: click.Context,
    /,
    *,
    vm: tuple[str, ...],
    vcpu: tuple[int, ...],
    pmc: tuple[str, ...],
    call: tuple[str, ...],
    duration: float | None,
    output: str,
    quiet: bool,
    record: Path | None,
    wait: bool,
    attach: Mode,
) -> None:
    """Print calls as they happen, each with the model's verdict."""
    from vpmu_agent import probes
    from vpmu_agent.kernel.facts import cpu_vendor
    from vpmu_agent.kernel.kvm import why_no_vpmu
    from vpmu_agent.trace import live
    from vpmu_agent.trace.session import Session
    from vpmu_agent.vms.names import Vms
    from vpmu_agent.vms.process import running

    stand_ins = ctx.ensure_object(StandIns)
    vms = Vms()
    if not wait:
        _require_running(vm, vms, stand_ins.running or running)
    with live.attached(attach, vms, stand_ins.attach or probes.attach) as source:
        session = Session(
            _make_filters(vm, vcpu, pmc, call),
            _printer(output, cpu_vendor()),
            sys.stdout,
            quiet=quiet,
            recorder=_recorder(record, source.mode, vm=vm, vcpu=vcpu, pmc=pmc) if record else None,
        )
        click.echo(source.attached, err=True)
        if why := (stand_ins.why_no_vpmu or why_no_vpmu)():
            click.echo("; ".join(why), err=True)
        live.follow(source, session, duration)
    _exit(session)


@cli.command()
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@options.filters
@options.output
@options.quiet
def replay(
    *,
    file: str,
    vm: tuple[str, ...],
    vcpu: tuple[int, ...],
    pmc: tuple[str, ...],
    call: tuple[str, ...],
    output: str,
    quiet: bool,
) -> None:
    """Check the calls of a recording again, and print them.

    FILE was made by `trace --record FILE`; `-` reads standard input.
    """
    from vpmu_agent.model.check import Checker
    from vpmu_agent.trace.recording import Recording
    from vpmu_agent.trace.session import Session

    with _opened(file) as (stream, name):
        recording = Recording(stream, name)
        printer = _printer(output, recording.header.cpu_vendor)
        session = Session(_make_filters(vm, vcpu, pmc, call), printer, sys.stdout, quiet=quiet)
        observe = Checker().observe
        for calls in recording.batches():
            session.feed(zip(calls, map(observe, calls), strict=True))
            if session.unread:
                _exit(session)
    missing = [name for name in vm if name not in session.seen]
    if not missing or len(missing) < len(vm):
        session.feed_unchecked(recording.unchecked)
        session.end(recording.lost)
    if missing:
        found = ", ".join(sorted(session.seen)) or "none"
        raise BadInput(f"{name}: no VM named {', '.join(missing)} in it; VMs found: {found}")
    if recording.cut_short:
        raise Problem(recording.cut_short)
    _exit(session)


@cli.command()
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read settings from this TOML file (flags win), and again on SIGHUP; see `config check`.",
)
@click.option(
    "--listen",
    callback=values.address,
    metavar="HOST:PORT",
    default="127.0.0.1:9775",
    show_default=True,
    help="Address to serve metrics on; :PORT is all addresses, IPv6 is written [::1]:PORT.",
)
@click.option(
    "--allow-hosts",
    callback=values.hosts,
    metavar="NAME,…",
    help="More host names that browsers may use for the page and its JSON, *.DOMAIN and * included.",
)
@click.option(
    "--web.config.file",
    "web_config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=values.web_config,
    metavar="FILE",
    help="File with TLS and basic authentication, in the format of Prometheus's exporter-toolkit.",
)
@click.option(
    "--per-counter/--no-per-counter",
    default=True,
    show_default=True,
    help="Also export calls and divergences by vCPU and counter.",
)
@click.option(
    "--durations/--no-durations",
    default=True,
    show_default=True,
    help="Measure how long calls take. Off, the probes cost guests less, and their tax is not known.",
)
@click.option(
    "--reads/--no-reads",
    default=True,
    show_default=True,
    help="Also count and time when guests read counters and write them. Off, the tax is without these.",
)
@click.option(
    "--user",
    callback=values.known_user,
    metavar="NAME",
    default=DAEMON_USER,
    show_default=True,
    help="User to switch to when started as root; only the loader of the probes stays root.",
)
@click.option(
    "--wait/--no-wait", default=False, show_default=True, help="Start even if KVM is not loaded yet."
)
@click.option(
    "--compile-only",
    is_flag=True,
    help="As root, compile the probes for later starts unless they are in /var/cache/vpmu-agent, and exit.",
)
@options.duration
@options.attach
@click.pass_context
def run(ctx: click.Context, /, *, duration: float | None, compile_only: bool, **_settings: object) -> None:
    """Watch all VMs and serve metrics to Prometheus."""
    if compile_only:
        from vpmu_agent.loader.main import keep_compiled

        settings = settings_now(ctx)
        keep_compiled(settings.attach, durations=settings.durations, reads=settings.reads)
        return
    from vpmu_agent.daemon.source import ProbeSource
    from vpmu_agent.daemon.start import start

    source = ctx.ensure_object(StandIns).source or ProbeSource()
    start(lambda: settings_now(ctx), duration_s=duration, source=source)


def settings_now(ctx: click.Context) -> Settings:
    """Return the settings of a `run`, given its context: flags win over the file, the file over the defaults.

    Raise ConfigError where the file cannot be used.
    """
    from vpmu_agent.daemon import config_file
    from vpmu_agent.daemon.settings import Settings

    file = ctx.params["config"]
    written = config_file.read(file, ctx.command) if file else {}
    values = {}
    for key in config_file.keys(ctx.command):
        is_flag = ctx.get_parameter_source(key) is not ParameterSource.DEFAULT
        values[key] = written[key].value if key in written and not is_flag else ctx.params[key]
    return Settings(**values)


@cli.group("config")
def config_commands() -> None:
    """Check the configuration file of `run`."""


@config_commands.command()
@click.argument("file", type=click.Path(path_type=Path), default=CONFIG_FILE)
@options.output
def check(*, file: Path, output: str) -> None:
    """Report mistakes in FILE, or print the effective settings.

    These are what `run --config FILE` would use.

    FILE defaults to /etc/vpmu-agent/vpmu-agent.toml.
    """
    from vpmu_agent.daemon import config_file

    as_json = output == "json"
    try:
        settings = config_file.read(file, run)
    except config_file.ConfigError as error:
        listed = config_file.mistakes_json if as_json else config_file.mistakes_text
        for line in listed(file, error.mistakes):
            print_line(line)
        sys.exit(USAGE)
    shown = config_file.settings_json if as_json else config_file.settings_text
    for line in shown(file, settings, run):
        print_line(line)


@cli.command()
@click.option("--events", type=int, default=1, show_default=True, metavar="N", help="Size of the group.")
@click.option("--fail-at", type=int, metavar="I", help="Let the creation of event I fail (counting from 0).")
@click.option(
    "--steps",
    default="program",
    show_default=True,
    metavar="STEP,…",
    help=f"What the guest does with the counter, in order: {', '.join(STEPS)}.",
)
@options.output
def predict(*, events: int, fail_at: int | None, steps: str, output: str) -> None:
    """Print the calls that the model predicts for one counter."""
    from vpmu_agent.cli.prediction import predicted_json, predicted_text
    from vpmu_agent.model import predict as model

    try:
        predicted = list(model.predict(steps.split(","), events=events, fail_at=fail_at))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    for line in predicted_json(predicted) if output == "json" else predicted_text(predicted):
        print_line(line)


@cli.command("list")
@options.vm
@options.output
@click.option("--all", "with_idle", is_flag=True, help="Also print counters that are not in use.")
@click.pass_context
def list_counters(ctx: click.Context, /, *, vm: tuple[str, ...], output: str, with_idle: bool) -> None:
    """Print what every guest's counters do now, and who else uses the host's PMU.

    It looks twice, a tenth of a second apart, and attaches no probes; docs/census.md explains what it prints.
    The exit status is 1 if a counter does not count as its guest asked for.
    """
    from vpmu_agent.cli.listing import Listing, listing_json, listing_text
    from vpmu_agent.counts.guests import guests_now
    from vpmu_agent.kernel.facts import cpu_vendor, nmi_watchdog
    from vpmu_agent.system.stdout import Style
    from vpmu_agent.vms.names import Vms

    found = (ctx.ensure_object(StandIns).guests or guests_now)(Vms())
    if missing := [name for name in vm if name not in found.pmus]:
        there = ", ".join(found.pmus) or "none"
        raise BadInput(f"no VM named {', '.join(missing)} is running; running: {there}")
    shown = [name for name in found.pmus if not vm or name in vm]
    listing = Listing(found, shown, nmi_watchdog(), cpu_vendor(), with_idle=with_idle)
    for line in listing_json(listing) if output == "json" else listing_text(listing, Style(sys.stdout)):
        print_line(line)
    sys.exit(PROBLEM if listing.is_failing else 0)


@cli.command()
@click.option("--once", is_flag=True, help="Print one table and end; needs no terminal.")
@options.output
@click.option(
    "--interval",
    type=click.FloatRange(min=1),
    default=2,
    show_default=True,
    metavar="SECONDS",
    help="Time between two readings.",
)
@click.option(
    "--url",
    callback=values.daemon_url,
    metavar="URL",
    help="The daemon to ask; by default the one at http://127.0.0.1:9775 if it runs, else own probes.",
)
@options.attach
@click.pass_context
def top(
    ctx: click.Context, /, *, once: bool, output: str, interval: float, url: str | None, attach: Mode
) -> None:
    """Show all VMs live, those first that cost the host the most.

    Reads the state of the daemon where one runs, which takes no privileges, and attaches probes of its own
    where none does. JSON is one object for each interval, or with --once, one.

    With --once the exit status is 1 if a counter does not count as its guest asked for, as with `list`.
    """
    from vpmu_agent import probes
    from vpmu_agent.top.run import top as run_top
    from vpmu_agent.top.sources import DEFAULT_URL

    has_screen = not once and output == "text"
    if has_screen and not (
        sys.stdin and sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    ):
        raise click.UsageError("this is no terminal for a full screen: use --once, or --output json")
    stand_ins = ctx.ensure_object(StandIns)
    is_failing = run_top(
        once=once,
        as_json=output == "json",
        interval_s=interval,
        url=url,
        default_url=stand_ins.daemon_url or DEFAULT_URL,
        mode=attach,
        attach=stand_ins.attach or probes.attach,
    )
    sys.exit(PROBLEM if is_failing else 0)


@cli.command()
@options.output
def doctor(*, output: str) -> None:
    """Check whether this host can be traced.

    Where it cannot, or not fully, each check says what to do.
    """
    from vpmu_agent.cli.doctor.examination import run
    from vpmu_agent.cli.doctor.host import Host

    sys.exit(run(Host(), as_json=output == "json"))


def main(stand_ins: StandIns | None = None) -> None:
    """Run the command that the arguments name, and end the process with its status."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    prepare_streams()
    status: str | int | None = 0
    try:
        cli(prog_name="vpmu-agent", obj=stand_ins)
    except SystemExit as end:
        status = end.code
    except UnreadError:
        pass
    except OutputError as error:  # of what click itself prints: help and version
        click.echo(f"Error: {error}", err=True)
        status = CANNOT_RUN
    settle_stdout()
    sys.exit(status)


# Their parts


def _make_filters(
    vm: tuple[str, ...], vcpu: tuple[int, ...], pmc: tuple[str, ...], call: tuple[str, ...]
) -> Filters:
    from vpmu_agent.trace.session import Filters

    return Filters(frozenset(vm), frozenset(vcpu), frozenset(pmc), frozenset(CallName(name) for name in call))


def _printer(output: str, vendor: str) -> Printer:
    from vpmu_agent.trace.printers import JsonPrinter, TextPrinter

    return JsonPrinter() if output == "json" else TextPrinter(sys.stdout, vendor)


def _require_running(names: tuple[str, ...], vms: Vms, running: Callable[[], Iterable[int]]) -> None:
    """Refuse names of VMs that are not running, if this user can know that."""
    if not names or os.geteuid() != 0:
        return
    there = sorted(vms.name(tgid) for tgid in running())
    missing = [name for name in names if name not in there]
    if missing:
        raise BadInput(
            f"no VM named {', '.join(missing)} is running; running: {', '.join(there) or 'none'} "
            "(--wait starts without it)"
        )


def _recorder(path: Path, mode: str, **filters: Iterable[str | int]) -> Recorder:
    from importlib.metadata import version

    from vpmu_agent.kernel.facts import cpu_vendor
    from vpmu_agent.trace.recording import Header, Recorder

    about = {name: list(values) for name, values in filters.items()}
    return Recorder(path, Header(version("vpmu-agent"), os.uname().release, mode, about, cpu_vendor()))


@contextmanager
def _opened(file: str) -> Iterator[tuple[BinaryIO, str]]:
    if file == "-":
        if sys.stdin is None:
            raise CannotRun("standard input is closed: there is nothing to replay")
        yield sys.stdin.buffer, "standard input"
        return
    try:
        # The block's own errors are not those of opening.
        stream = Path(file).open("rb")  # noqa: SIM115
    except OSError as error:
        raise BadInput(f"{file}: cannot be opened: {error.strerror}") from error
    with stream:
        yield stream, file


def _exit(session: Session) -> NoReturn:
    sys.exit(PROBLEM if session.tally.divergences else 0)
