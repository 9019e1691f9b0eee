"""The configuration file: what is in it, what is wrong with it, and what SIGHUP changes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import commands
from tests.support.commands import invoke, read_until, started
from tests.support.counted import Maps
from tests.support.growth import assert_linear
from tests.support.places import ROOT
from vpmu_agent.cli.main import CONFIG_FILE, check, run, settings_now
from vpmu_agent.counts.watch import Watch
from vpmu_agent.daemon import config_file
from vpmu_agent.daemon.config_file import ConfigError
from vpmu_agent.daemon.settings import Configuration, Settings
from vpmu_agent.system.signals import reload_requests
from vpmu_agent.system.user import find_user
from vpmu_agent.vms.names import Vms
from vpmu_agent.web.address import Address
from vpmu_agent.web.web_file import WebFile

SHIPPED = ROOT / "systemd" / "vpmu-agent.toml"
KEYS = [
    "listen",
    "allow_hosts",
    "web_config_file",
    "per_counter",
    "durations",
    "reads",
    "user",
    "wait",
    "attach",
]
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="root alone may become somebody else")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "vpmu-agent.toml"


@pytest.fixture
def public() -> Iterator[Path]:
    """A file that everyone may read; what pytest makes is for its own user."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "vpmu-agent.toml"


def mistakes(file: Path, command: click.Command = run) -> list[str]:
    """The lines of the error, without the path."""
    with pytest.raises(ConfigError) as raised:
        config_file.read(file, command)
    lines = str(raised.value).splitlines()
    assert all(line.startswith(str(file)) for line in lines)
    return [line.removeprefix(str(file)) for line in lines]


# Keys and flags


def test_every_flag_is_a_key_and_every_key_a_flag_and_a_setting() -> None:
    flags = {flag for param in run.params for flag in param.opts} - {
        "--config",
        "--duration",
        "--compile-only",
    }
    assert {re.sub("[-.]", "_", flag.removeprefix("--")) for flag in flags} == set(config_file.keys(run))
    assert {field.name for field in fields(Settings)} == set(config_file.keys(run)) == set(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_a_flag_can_take_back_whatever_the_file_says(key: str) -> None:
    param = config_file.keys(run)[key]
    assert not isinstance(param.default, bool) or param.secondary_opts


def used(*arguments: str) -> Settings:
    """What `run` with these arguments would use."""
    with run.make_context("run", list(arguments)) as context:
        return settings_now(context)


@pytest.mark.parametrize(
    ("written", "flags", "key", "value"),
    [
        ("", [], "listen", Address("127.0.0.1", 9775)),
        ('listen = "[::1]:1"', [], "listen", Address("::1", 1)),
        ('listen = "[::1]:1"', ["--listen", ":2"], "listen", Address("", 2)),
        ('listen = "[::1]:1"', ["--listen", "127.0.0.1:9775"], "listen", Address("127.0.0.1", 9775)),
        ("", [], "per_counter", True),
        ("per_counter = false", [], "per_counter", False),
        ("per_counter = false", ["--per-counter"], "per_counter", True),
        ("per_counter = true", ["--no-per-counter"], "per_counter", False),
        ("", [], "durations", True),
        ("durations = false", [], "durations", False),
        ("durations = false", ["--durations"], "durations", True),
        ("", ["--no-durations"], "durations", False),
        ("", [], "reads", True),
        ("reads = false", [], "reads", False),
        ("reads = false", ["--reads"], "reads", True),
        ("", ["--no-reads"], "reads", False),
        ("", [], "wait", False),
        ("wait = true", [], "wait", True),
        ("wait = true", ["--no-wait"], "wait", False),
        ("", [], "user", find_user("nobody")),
        ('user = "daemon"', [], "user", find_user("daemon")),
        ('user = "daemon"', ["--user", "bin"], "user", find_user("bin")),
        ("", [], "attach", "auto"),
        ('attach = "kprobe"', [], "attach", "kprobe"),
        ('attach = "kprobe"', ["--attach", "fexit"], "attach", "fexit"),
    ],
)
def test_flags_win_over_the_file_and_the_file_over_defaults(
    file: Path, written: str, flags: list[str], key: str, value: object
) -> None:
    file.write_text(written)
    assert getattr(used("--config", str(file), *flags), key) == value


def test_without_a_file_there_are_flags_and_defaults() -> None:
    assert used("--no-per-counter") == Settings(
        listen=Address("127.0.0.1", 9775),
        allow_hosts=frozenset(),
        web_config_file=None,
        per_counter=False,
        durations=True,
        reads=True,
        user=find_user("nobody"),
        wait=False,
        attach="auto",
    )


# Mistakes


def test_all_mistakes_are_told_each_with_its_line(file: Path) -> None:
    file.write_text(
        "# comment\n"
        "per_conter = false\n"
        "\n"
        'listen = "localhost"  # no port\n'
        "user = 1000\n"
        'wait = "true"\n'
        'attach = """\n'
        'magic"""\n'
        '"\\u001b[2J" = 1\n'
        'web.config_file.file = "web.yml"\n'
        "web.config_file.other = [\n"
        "    1,\n"
        "]\n"
        "[run]\n"
        'listen = ":1"\n'
        "mode = 1\n"
        "[mode]\n"
    )
    said = [
        f"{file}:2: per_conter: unknown key; did you mean per_counter?",
        f"{file}:4: listen: 'localhost' has no port: write HOST:PORT",
        f"{file}:5: user: found a number; write a string in quotes",
        f"{file}:6: wait: found a string; write true or false",
        f"{file}:7: attach: 'magic' is not one of 'auto', 'fexit', 'kprobe'",
        f"{file}:9: '\\x1b[2J': unknown key; the keys are {', '.join(KEYS)}",
        f"{file}:10: web: unknown table; the keys are {', '.join(KEYS)}",
        f"{file}:14: run: unknown table; the keys are {', '.join(KEYS)}",
        f"{file}:17: mode: unknown table; the keys are {', '.join(KEYS)}",
    ]
    ran = invoke("run", "--config", str(file))
    assert (ran.exit_code, ran.stdout, ran.stderr.splitlines()) == (2, "", said)
    checked = invoke("config", "check", str(file))
    assert (checked.exit_code, checked.stdout.splitlines(), checked.stderr) == (2, said, "")
    as_json = invoke("config", "check", str(file), "--output", "json")
    assert as_json.exit_code == 2
    first, *_, last = found = commands.lines(as_json)
    assert len(found) == len(said)
    assert first == {
        **{"schema": 1, "kind": "mistake", "file": str(file), "line": 2, "key": "per_conter"},
        "message": "unknown key; did you mean per_counter?",
    }
    assert (last["line"], last["key"]) == (17, "mode")


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("per-counter = false", "per-counter: unknown key; did you mean per_counter?"),
        ("Listen = ':1'", "Listen: unknown key; did you mean listen?"),
        ("duration = 5", "duration: unknown key; did you mean durations?"),
        ('config = "x"', f"config: unknown key; the keys are {', '.join(KEYS)}"),
        ("wait = 1", "wait: found a number; write true or false"),
        ("wait = 1.0", "wait: found a number; write true or false"),
        ("wait = [true]", "wait: found an array; write true or false"),
        ("wait = {}", "wait: found a table; write true or false"),
        ("wait = 07:32:00", "wait: found a date or time; write true or false"),
        ("listen = true", "listen: found a boolean; write a string in quotes"),
        ("listen = 9775", "listen: found a number; write a string in quotes"),
        ("listen = ''", "listen: '' has no port: write HOST:PORT"),
        ("user = 'no-such-user'", "user: there is no user 'no-such-user'"),
        (
            r'user = "a\u0000b"',
            r"user: found control characters in 'a\x00b'; write it without them",
        ),
    ],
)
def test_a_mistake(file: Path, written: str, said: str) -> None:
    file.write_text(f"\n{written}\n")
    assert mistakes(file) == [f":2: {said}"]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("wait = True", ":1: not TOML: Invalid value; "),
        ("wait =", ":1: not TOML: Invalid value; "),
        ("\n\nlisten = 127.0.0.1:9775\n\n", ":3: not TOML: Expected newline or end of document "),
        ("listen: ':1'", ":1: not TOML: Expected '=' after a key "),
        ("wait = true\r\n\r\nwait = false", ":3: not TOML: Cannot overwrite a value; "),
        ("wait = true\nuser = '''\nnobody\n", ":4: not TOML: "),
        ("a = " + 2000 * "[", ": not TOML: "),
        ("a = " + 5000 * "1", ": not TOML: Exceeds the limit "),
    ],
)
def test_what_is_not_toml(file: Path, written: str, said: str) -> None:
    file.write_text(written, newline="")
    (mistake,) = mistakes(file)
    assert mistake.startswith(said)
    assert mistake.endswith("; write each key once, strings in quotes, and true or false in small letters")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"wait = true\nuser = '\xff'", ":2: not UTF-8: found the byte 0xff; save the file as UTF-8"),
        (
            b"#" * (config_file.MAX_SIZE + 1),
            ": cannot be read: longer than 16 KiB; check that this is a configuration file",
        ),
    ],
)
def test_what_is_not_text_of_that_kind(file: Path, data: bytes, said: str) -> None:
    file.write_bytes(data)
    assert mistakes(file) == [said]


def test_a_byte_order_mark_is_no_mistake(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfwait = true\n")
    assert config_file.read(file, run)["wait"].value is True
    file.write_bytes(b"\xef\xbb\xbfwait = 1\n")
    assert mistakes(file) == [":1: wait: found a number; write true or false"]


GROWING: dict[str, Callable[[int], str]] = {
    "an array of many lines": lambda n: "wait = [\n" + n * "1,\n" + "]\n",
    "a string of many lines": lambda n: 'user = """\n' + n * "x\n" + '"""\n',
    "comments": lambda n: n * "#\n" + "wait = 1\n",
    "unknown keys": lambda n: "".join(f"k{i} = 1\n" for i in range(n // 4)),
    "unknown tables": lambda n: "".join(f"[t{i}]\n" for i in range(n // 4)),
    "a dotted key": lambda n: ".".join(n * "a") + " = 1\n",
    "keys in a deep table": lambda n: f"[{'.'.join(n // 2 * 'a')}]\n" + n // 8 * "b = 1\n",
    "brackets": lambda n: "wait = " + n * "[",
    "quotes": lambda n: "user = " + n * "'",
    "backslashes": lambda n: 'user = "' + n * "\\",
}


@pytest.mark.parametrize("growing", GROWING)
def test_the_time_grows_as_the_length_does(file: Path, growing: str) -> None:
    """15 KB of an array once took 20 s, while the daemon did nothing else."""

    def prepare(size: int) -> Callable[[], None]:
        path = file.with_name(f"{size}.toml")
        path.write_text(GROWING[growing](size))

        def read() -> None:
            with suppress(ConfigError):
                config_file.read(path, run)

        return read

    assert_linear(prepare, 7000, limit_s=0.5)


def test_a_key_of_many_parts_is_refused_before_it_costs_anything(file: Path) -> None:
    file.write_text(f"\nwait = true\n{'.'.join(40 * 'a')} = 1\n")
    assert mistakes(file) == [f":3: a key of 40 parts is no setting; the keys are {', '.join(KEYS)}"]
    file.write_text(f"user = '{'.'.join(40 * 'a')}'  # {40 * '.'}\n")
    assert mistakes(file) == [f":1: user: there is no user '{'.'.join(40 * 'a')}'"]


def test_what_nobody_thought_of_is_a_mistake_too(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.touch()
    monkeypatch.setattr(config_file, "_lines", lambda _statements: 1 // 0)
    assert mistakes(file) == [
        ": cannot be used: ZeroDivisionError: integer division or modulo by zero; please report this"
    ]


def test_a_file_that_cannot_be_read(tmp_path: Path, file: Path) -> None:
    assert mistakes(file) == [": cannot be read: No such file or directory"]
    assert mistakes(tmp_path) == [": cannot be read: Is a directory"]
    os.mkfifo(file)
    assert mistakes(file) == [": cannot be read: it is a FIFO, not a regular file"]
    assert mistakes(Path("/dev/zero")) == [": cannot be read: it is a character device, not a regular file"]


@AS_ROOT
def test_a_file_that_this_user_may_not_read(file: Path) -> None:
    file.touch(0o600)
    os.seteuid(65534)
    try:
        (said,) = mistakes(file)
    finally:
        os.seteuid(0)
    assert said == ": cannot be read: Permission denied; make it readable for uid 65534, which this runs as"


@click.command()
@click.option("--count", type=click.IntRange(max=9), default=1)
@click.option("--seconds", type=float, default=1.5)
@click.option("--name")
def numbers(**_: Any) -> None: ...


def test_numbers_are_numbers(file: Path) -> None:
    file.write_text("count = 2\nseconds = 3\n")
    assert {key: setting.value for key, setting in config_file.read(file, numbers).items()} == {
        **{"count": 2, "seconds": 3.0},
    }
    file.write_text("count = 2.0\nseconds = true\n")
    assert mistakes(file, numbers) == [
        ":1: count: found a number; write a whole number",
        ":2: seconds: found a boolean; write a number",
    ]
    file.write_text("count = 10\nseconds = '3'\n")
    assert mistakes(file, numbers) == [
        ":1: count: 10 is not in the range x<=9",
        ":2: seconds: found a string; write a number",
    ]


STATEMENTS = [
    "# a comment",
    "",
    "K = 1  # [x]",
    " 'K' = 'v'",
    "K.a = 1\nK.b = 2",
    'K = """\n[x]\nx = 1\n\\"""\n"""',
    "K = '''\n\"\"\"\n[x]'''",
    "K = [ # ]\n  1, '''\n]''',\n\n]",
    "K = [\n[1]\n,[2]]",
]
TABLES = ["# a comment", "", "[K]", "  [K.sub]\nx = [\n]\n'[y]' = 1", "[[K]]\nx = 1\n[[K]]\nx = '''\n[z]'''"]


@given(
    st.lists(st.sampled_from(STATEMENTS), max_size=8),
    st.lists(st.sampled_from(TABLES), max_size=4),
    st.sampled_from(["\n", "\r\n"]),
)
def test_a_key_is_found_where_it_begins(
    tmp_path_factory: pytest.TempPathFactory, statements: list[str], tables: list[str], newline: str
) -> None:
    file = tmp_path_factory.getbasetemp() / "lines.toml"
    text, expected = "", {}
    for i, statement in enumerate(statements + tables):
        if "K" in statement:
            expected[f"key{i}"] = text.count("\n") + 1
        text += statement.replace("K", f"key{i}") + "\n"
    file.write_text(text, newline=newline)
    if expected:
        with pytest.raises(ConfigError) as raised:
            config_file.read(file, run)
        assert {mistake.key: mistake.line for mistake in raised.value.mistakes} == expected
    else:
        assert config_file.read(file, run) == {}


# config check


def test_check_prints_what_run_would_use_as_toml(file: Path) -> None:
    file.write_text('# mine\nuser = "bin"\n\nper_counter = false\n')
    result = invoke("config", "check", str(file))
    assert (result.exit_code, result.stderr) == (0, "")
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["listen", "=", '"127.0.0.1:9775"', "#", "default"],
        ["#", "allow_hosts", "=", "#", "default"],
        ["#", "web_config_file", "=", "#", "default"],
        ["per_counter", "=", "false", "#", f"{file}:4"],
        ["durations", "=", "true", "#", "default"],
        ["reads", "=", "true", "#", "default"],
        ["user", "=", '"bin"', "#", f"{file}:2"],
        ["wait", "=", "false", "#", "default"],
        ["attach", "=", '"auto"', "#", "default"],
    ]
    file.write_text(result.stdout)
    assert {key: setting.written for key, setting in config_file.read(file, run).items()} == {
        **{"listen": "127.0.0.1:9775", "per_counter": False, "durations": True, "reads": True, "user": "bin"},
        **{"wait": False, "attach": "auto"},
    }


def test_check_as_json(file: Path) -> None:
    file.write_text('listen = "[::]:1"\n')
    result = invoke("config", "check", str(file), "--output", "json")
    assert result.exit_code == 0
    listen, _, _, per_counter, *_ = found = commands.lines(result)
    assert listen == {
        **{"schema": 1, "kind": "setting", "key": "listen", "value": "[::]:1"},
        **{"from": "file", "file": str(file), "line": 1},
    }
    assert per_counter == {
        **{"schema": 1, "kind": "setting", "key": "per_counter", "value": True},
        **{"from": "default", "file": None, "line": None},
    }
    assert [line["key"] for line in found] == KEYS


def test_what_has_no_default_is_shown_as_not_set(file: Path) -> None:
    assert [line.split() for line in config_file.settings_text(file, {}, numbers)] == [
        ["count", "=", "1", "#", "default"],
        ["seconds", "=", "1.5", "#", "default"],
        ["#", "name", "=", "#", "default"],
    ]
    *_, name = config_file.settings_json(file, {}, numbers)
    assert '"key":"name","value":null,' in name


def test_check_looks_at_the_installed_file_if_none_is_named() -> None:
    assert check.params[0].default == CONFIG_FILE
    assert str(CONFIG_FILE) in invoke("config", "check", "--help").stdout


# The file that is installed


def test_the_installed_file_shows_every_default_and_explains_it() -> None:
    shown = re.findall(r"^# .+[.:]\n# ((\w+) = .+)$", SHIPPED.read_text(), re.MULTILINE)
    assert [key for _, key in shown] == list(config_file.keys(run))
    values = tomllib.loads("\n".join(line for line, _ in shown))
    assert values.pop("allow_hosts")  # examples: there is no default
    assert values.pop("web_config_file")
    assert values == {key: param.default for key, param in config_file.keys(run).items() if key in values}


def test_the_installed_file_is_without_mistakes_as_it_is_and_uncommented(file: Path) -> None:
    assert config_file.read(SHIPPED, run) == {}
    text = re.sub(r"^# (\w+ = )", r"\1", SHIPPED.read_text(), flags=re.MULTILINE)
    web = file.with_name("web.yml")
    web.write_text("http_server_config: {http2: true}")
    file.write_text(text.replace("/etc/vpmu-agent/web.yml", str(web)))
    assert list(config_file.read(file, run)) == KEYS


# SIGHUP


@pytest.fixture
def watch() -> Watch:
    return Watch(Maps(), Vms())


@pytest.fixture
def configuration(file: Path) -> Configuration:
    """Of a `run --config FILE --attach kprobe`, with series by counter."""
    file.write_text('user = "bin"\n')
    return Configuration(lambda: used("--config", str(file), "--attach", "kprobe"))


@pytest.mark.parametrize(
    ("written", "said", "again"),
    [
        ('# other words\nuser = "bin"', "nothing changed", "nothing changed"),
        ('user = "bin"\nattach = "fexit"', "nothing changed", "nothing changed"),  # the flag wins
        ('user = "bin"\nper_counter = false', "per_counter is now false", "nothing changed"),
        ("", "restart to change user", "restart to change user"),
        (
            'user = "bin"\ndurations = false',
            "restart to change durations",
            "restart to change durations",
        ),
        (
            "per_counter = false\nwait = true\nlisten = ':1'",
            "per_counter is now false; restart to change listen, user, wait",
            "restart to change listen, user, wait",
        ),
    ],
)
def test_a_reload_does_what_it_can_and_tells_the_rest(
    configuration: Configuration, watch: Watch, file: Path, written: str, said: str, again: str
) -> None:
    before = configuration.settings
    file.write_text(written)
    assert (configuration.reload(watch, None), configuration.reload(watch, None)) == (said, again)
    per_counter = "per_counter = false" not in written
    assert watch.scrape().per_counter == per_counter
    assert configuration.settings == replace(before, per_counter=per_counter)


def test_a_reload_of_a_bad_file_changes_nothing(
    configuration: Configuration, watch: Watch, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text("per_counter = false\nlisten = 1\nuser = 2\n")
    before = configuration.settings
    assert configuration.reload(watch, None) == "rejected, the previous settings stay in force"
    assert capsys.readouterr().err.splitlines() == [
        f"{file}:2: listen: found a number; write a string in quotes",
        f"{file}:3: user: found a number; write a string in quotes",
    ]
    assert watch.scrape().per_counter
    assert configuration.settings is before
    file.unlink()
    assert configuration.reload(watch, None) == "rejected, the previous settings stay in force"
    assert capsys.readouterr().err == f"{file}: cannot be read: No such file or directory\n"


def test_a_reload_that_fails_as_nobody_thought_changes_nothing_either(
    configuration: Configuration, watch: Watch, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text("per_counter = false")

    class Failing(WebFile):
        def __init__(self) -> None:
            self.path = file

        def reload(self) -> None:
            raise RuntimeError("no such luck")

    before = configuration.settings
    assert configuration.reload(watch, Failing()) == "rejected, the previous settings stay in force"
    assert capsys.readouterr().err == "RuntimeError: no such luck; please report this\n"
    assert configuration.settings is before
    assert watch.scrape().per_counter


def test_a_reload_reads_the_web_configuration_too(
    configuration: Configuration, watch: Watch, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file.with_name("web.yml")
    path.write_text("http_server_config: {http2: true}")
    web = WebFile(path, report=pytest.fail)
    assert configuration.reload(watch, web).startswith(f"{path} too")
    path.write_text("basic_auth_user:\n")
    file.write_text("per_counter = false")
    assert configuration.reload(watch, web) == "rejected, the previous settings stay in force"
    assert capsys.readouterr().err.startswith(f"{path}:1: basic_auth_user: is not a known key")
    assert watch.scrape().per_counter


def test_each_sighup_is_acted_on_once_and_not_by_the_handler(
    configuration: Configuration, watch: Watch, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with reload_requests() as requested:
        configuration.reload_if(requested(), watch, None)
        file.write_text("per_counter = false")
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert watch.scrape().per_counter
        assert capsys.readouterr().err == ""
        for _ in range(2):
            configuration.reload_if(requested(), watch, None)
    assert not watch.scrape().per_counter
    assert capsys.readouterr().err == (
        "configuration reload: per_counter is now false; restart to change user\n"
    )


def test_a_daemon_that_runs_takes_what_sighup_brings(public: Path) -> None:
    public.write_text('listen = "127.0.0.1:0"\n')
    with commands.daemon(["run", "--config", str(public)]) as (process, address):
        assert b"vpmu_pmc_calls_total" in metrics(address)
        for written, said in (
            ("per_counter = false", "per_counter is now false; restart to change listen"),
            ("per_counter = 0", "rejected, the previous settings stay in force"),
            ('listen = "127.0.0.1:0"', "per_counter is now true"),
        ):
            public.write_text(written)
            process.send_signal(signal.SIGHUP)
            line = read_until(process.stderr, b"configuration reload: ")
            assert line.decode() == f"configuration reload: {said}\n"
            assert (b"vpmu_pmc_calls_total" in metrics(address)) == ("true" in said)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


@AS_ROOT
def test_the_daemon_says_so_if_it_may_not_read_the_file_again(file: Path) -> None:
    file.write_text('listen = "127.0.0.1:0"\n')  # in a folder that is root's
    with commands.daemon(["run", "--config", str(file)]) as (process, _):
        process.send_signal(signal.SIGHUP)
        nobody = find_user("nobody").uid
        assert read_until(process.stderr, str(file).encode()).decode() == (
            f"{file}: cannot be read: Permission denied; "
            f"make it readable for uid {nobody}, which this runs as\n"
        )
        assert read_until(process.stderr, b"configuration").endswith(
            b": rejected, the previous settings stay in force\n"
        )


def test_sighup_ends_no_process_that_is_on_its_way_nor_without_a_file() -> None:
    with started("run", "--listen", "127.0.0.1:0") as process:
        while not catches_sighup(process):
            time.sleep(0.01)
        process.send_signal(signal.SIGHUP)
        read_until(process.stderr, b"serving http://")
        assert read_until(process.stderr, b"configuration") == b"configuration reload: nothing changed\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def catches_sighup(process: subprocess.Popen[bytes]) -> bool:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(caught >> (signal.SIGHUP - 1) & 1)


def metrics(address: str) -> bytes:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        body: bytes = answer.read()
    return body
