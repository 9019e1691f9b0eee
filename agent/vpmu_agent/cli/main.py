"""The command line: arguments in, calls out."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, NoReturn

import click
from click.core import ParameterSource

from vpmu_agent.cli.prediction import predicted_json, predicted_text
from vpmu_agent.daemon import config_file as configuration
from vpmu_agent.daemon.config_file import ConfigError
from vpmu_agent.kernel.errors import KernelError
from vpmu_agent.model.call import CallName
from vpmu_agent.model.check import Checker
from vpmu_agent.model.predict import STEPS
from vpmu_agent.model.predict import predict as predictions
from vpmu_agent.system.notify import NotifyError
from vpmu_agent.system.privileges import USER, User, find_user
from vpmu_agent.system.stdout import OutputError, print_line, settle_stdout
from vpmu_agent.trace import live
from vpmu_agent.trace.call_json import PMC_NAMES
from vpmu_agent.trace.printers import JsonPrinter, Printer, TextPrinter
from vpmu_agent.trace.recording import Header, Recorder, Recording, RecordingError
from vpmu_agent.trace.session import Filters, Session
from vpmu_agent.vms.names import Vms
from vpmu_agent.vms.process import running
from vpmu_agent.web.address import Address, ListenError, parse_address
from vpmu_agent.web.errors import WebConfigError

if TYPE_CHECKING:
    from vpmu_agent.probes import Mode

PROBLEM, USAGE, CANNOT_RUN = 1, 2, 3  # exit statuses; 0 is fine


class _Problem(click.ClickException):
    exit_code = PROBLEM


class _BadInput(click.ClickException):
    exit_code = USAGE


class _BadConfig(_BadInput):
    """A line for each mistake, as compilers write them."""

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(self.message, file, err=True)


class _CannotRun(click.ClickException):
    exit_code = CANNOT_RUN


class _Commands(click.Group):
    """Turns what can go wrong outside of this program into a sentence and a status."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (KernelError, ListenError, NotifyError) as error:
            raise _CannotRun(str(error)) from error
        except OutputError as error:
            settle_stdout()
            raise _CannotRun(str(error)) from error
        except (RecordingError, WebConfigError) as error:
            raise _BadInput(str(error)) from error
        except ConfigError as error:
            raise _BadConfig(str(error)) from error


# Parameters


def _known_pmcs(_ctx: click.Context, _param: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in PMC_NAMES:
            raise click.BadParameter(f"{name!r} is no counter: write gp0, gp1, …, fixed0, fixed1, … or lbr")
    return names


def _in_a_folder(_ctx: click.Context, _param: click.Parameter, path: Path | None) -> Path | None:
    """The file itself is made only when the probes are live."""
    if path and not path.parent.is_dir():
        raise click.BadParameter(f"there is no folder {str(path.parent)!r}")
    return path


def _address(_ctx: click.Context, _param: click.Parameter, text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _web_config(_ctx: click.Context, _param: click.Parameter, path: Path | None) -> Path | None:
    """What is wrong with the file shows with what is wrong with the other settings."""
    if path:
        from vpmu_agent.web import config as web_config

        try:
            web_config.check(path)
        except WebConfigError as error:
            raise click.BadParameter(str(error)) from error
    return path


def _known_user(_ctx: click.Context, _param: click.Parameter, name: str) -> User:
    try:
        return find_user(name)
    except KeyError as error:
        raise click.BadParameter(f"there is no user {name!r}") from error


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that pick calls; the command gets them as `vm`, `vcpu`, `pmc` and `call`."""
    return _vm(_vcpu(_pmc(_call(command))))


_vm = click.option("--vm", multiple=True, metavar="NAME", help="Only this VM (as all filters, repeatable).")
_vcpu = click.option("--vcpu", multiple=True, type=click.IntRange(min=0), metavar="N", help="Only this vCPU.")
_pmc = click.option(
    "--pmc", multiple=True, callback=_known_pmcs, metavar="PMC", help="Only this counter: gp0, fixed1."
)
_call = click.option(
    "--call",
    multiple=True,
    type=click.Choice([str(name) for name in CallName]),
    metavar="|".join(CallName),
    help="Show only these calls; the others are still checked, counted and recorded.",
)
_output = click.option(
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Text for people, or a JSON object a line.",
)
_quiet = click.option("--quiet", "-q", is_flag=True, help="Only the summary.")
_attach = click.option(
    "--attach",
    type=click.Choice(["auto", "fexit", "kprobe"]),
    default="auto",
    show_default=True,
    help="How to attach the probes; auto takes fexit where the kernel has it.",
)
_duration = click.option(
    "--duration",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End after this time; otherwise at Ctrl-C or SIGTERM.",
)


# Commands


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="vpmu-agent")
def cli() -> None:
    """Shows what KVM does for its guests' virtual performance counters, and checks it against a model.

    \b
    Exit status:
      0  fine
      1  a problem was found: KVM diverged from the model, or a recording is cut short
      2  wrong usage, a file that is no recording, or mistakes in the configuration
      3  cannot run here, or cannot go on: the reason is on standard error
    """


@cli.command()
@_filters
@_duration
@_output
@_quiet
@click.option(
    "--record",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    callback=_in_a_folder,
    metavar="FILE",
    help="Write the calls to FILE, for `replay`; an existing file is overwritten.",
)
@click.option("--wait", is_flag=True, help="Start even if the VM of --vm does not run yet.")
@_attach
def trace(
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
    """Show the calls as they happen, each with the model's verdict."""
    vms = Vms()
    if not wait:
        _check_running(vm, vms)
    with live.attached(attach, vms) as source:
        session = Session(
            _make_filters(vm, vcpu, pmc, call),
            _printer(output),
            sys.stdout,
            quiet=quiet,
            recorder=_recorder(record, source.mode, vm=vm, vcpu=vcpu, pmc=pmc) if record else None,
        )
        click.echo(source.attached, err=True)
        live.follow(source, session, duration)
    _exit(session)


@cli.command()
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@_filters
@_output
@_quiet
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
    """Show the calls of a recording, checked anew.

    FILE was made by `trace --record FILE`; `-` reads standard input.
    """
    with _opened(file) as (stream, name):
        recording = Recording(stream, name)
        session = Session(_make_filters(vm, vcpu, pmc, call), _printer(output), sys.stdout, quiet=quiet)
        observe = Checker().observe
        for calls in recording.batches():
            session.feed(zip(calls, map(observe, calls), strict=True))
            if session.unread:
                _exit(session)
    missing = [name for name in vm if name not in session.seen]
    if not missing or len(missing) < len(vm):
        session.end(recording.lost)
    if missing:
        there = ", ".join(sorted(session.seen)) or "none at all"
        raise _BadInput(f"{name}: no VM named {', '.join(missing)} in it; there is {there}")
    if recording.cut_short:
        raise _Problem(recording.cut_short)
    _exit(session)


@cli.command()
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Take what no flag says from this TOML file, and again on SIGHUP; see `config check`.",
)
@click.option(
    "--listen",
    callback=_address,
    metavar="HOST:PORT",
    default="127.0.0.1:9775",
    show_default=True,
    help="Where to serve the metrics; :PORT is every address, IPv6 is written [::1]:PORT.",
)
@click.option(
    "--web.config.file",
    "web_config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_web_config,
    metavar="FILE",
    help="TLS and basic authentication, in the format of Prometheus's exporter-toolkit.",
)
@click.option(
    "--per-counter/--no-per-counter",
    default=True,
    show_default=True,
    help="Also count calls and divergences by vCPU and counter.",
)
@click.option(
    "--user",
    callback=_known_user,
    metavar="NAME",
    default=USER,
    show_default=True,
    help="Whom to become where it was started as root; only the loader of the probes stays root.",
)
@click.option(
    "--wait/--no-wait", default=False, show_default=True, help="Start even if KVM is not loaded yet."
)
@_duration
@_attach
@click.pass_context
def run(ctx: click.Context, /, *, config: Path | None, duration: float | None, **params: Any) -> None:
    """Watch all VMs and serve metrics to Prometheus."""
    from vpmu_agent.daemon import run as daemon

    flags = {
        key: value
        for key, value in params.items()
        if ctx.get_parameter_source(key) is not ParameterSource.DEFAULT
    }

    def settings() -> daemon.Settings:
        """As they are now: flags win over the file, and the file over the defaults."""
        in_file = configuration.read(config, ctx.command) if config else {}
        values = {key: setting.value for key, setting in in_file.items()}
        return daemon.Settings(**params | values | flags)

    daemon.run(settings, duration_s=duration)


@cli.group("config")
def config_commands() -> None:
    """Look at the configuration file of `run`."""


@config_commands.command()
@click.argument("file", type=click.Path(path_type=Path), default=configuration.DEFAULT)
@_output
def check(*, file: Path, output: str) -> None:
    """Say what is wrong with FILE, or what `run --config FILE` would use.

    FILE is /etc/vpmu-agent/vpmu-agent.toml if none is named.
    """
    as_json = output == "json"
    try:
        settings = configuration.read(file, run)
    except ConfigError as error:
        listed = configuration.mistakes_json if as_json else configuration.mistakes_text
        for line in listed(file, error.mistakes):
            print_line(line)
        sys.exit(USAGE)
    shown = configuration.settings_json if as_json else configuration.settings_text
    for line in shown(file, settings, run):
        print_line(line)


@cli.command()
@click.option("--events", type=int, default=1, show_default=True, metavar="N", help="Size of the group.")
@click.option("--fail-at", type=int, metavar="I", help="The creation of event I fails (they count from 0).")
@click.option(
    "--steps",
    default="program",
    show_default=True,
    metavar="STEP,…",
    help=f"What the guest does with the counter, in order: {', '.join(STEPS)}.",
)
@_output
def predict(*, events: int, fail_at: int | None, steps: str, output: str) -> None:
    """Print the calls that the model says KVM will make for one counter."""
    try:
        predicted = list(predictions(steps.split(","), events=events, fail_at=fail_at))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    for line in predicted_json(predicted) if output == "json" else predicted_text(predicted):
        print_line(line)


@cli.command()
@_output
def doctor(*, output: str) -> None:
    """Say what works on this host, what does not, and what to do."""
    from vpmu_agent.cli import doctor as checks

    sys.exit(checks.run(as_json=output == "json"))


def main() -> None:
    """The entry point."""
    # Until a command watches for it, Ctrl-C ends the process at once: nothing is open that it could harm.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 has no µ
    cli(prog_name="vpmu-agent")


# Their parts


def _make_filters(
    vm: tuple[str, ...], vcpu: tuple[int, ...], pmc: tuple[str, ...], call: tuple[str, ...]
) -> Filters:
    return Filters(frozenset(vm), frozenset(vcpu), frozenset(pmc), frozenset(CallName(name) for name in call))


def _printer(output: str) -> Printer:
    return JsonPrinter() if output == "json" else TextPrinter(sys.stdout)


def _check_running(names: tuple[str, ...], vms: Vms) -> None:
    """Refuses names of VMs that do not run, if this user can know."""
    if not names or os.geteuid() != 0:
        return
    there = sorted(vms.name(tgid) for tgid in running())
    missing = [name for name in names if name not in there]
    if missing:
        raise _BadInput(
            f"no VM named {', '.join(missing)} runs here; running: {', '.join(there) or 'none'} "
            "(--wait starts without it)"
        )


def _recorder(path: Path, mode: str, **filters: Iterable[str | int]) -> Recorder:
    about = {name: list(values) for name, values in filters.items()}
    return Recorder(path, Header(version("vpmu-agent"), os.uname().release, mode, about))


@contextmanager
def _opened(file: str) -> Iterator[tuple[BinaryIO, str]]:
    if file == "-":
        yield sys.stdin.buffer, "standard input"
        return
    try:
        # The block's own errors are not those of opening.
        stream = Path(file).open("rb")  # noqa: SIM115
    except OSError as error:
        raise _BadInput(f"{file}: cannot be opened: {error.strerror}") from error
    with stream:
        yield stream, file


def _exit(session: Session) -> NoReturn:
    settle_stdout()
    sys.exit(PROBLEM if session.tally.divergences else 0)
