"""Files that are no files, and files that say what nobody thought of."""

from __future__ import annotations

import http.client
import os
import random
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import Result

from tests.faults.conftest import Attack
from tests.support import pki
from tests.support.commands import daemon_of, invoke, read_until, started
from tests.support.counted import Maps
from tests.support.places import ROOT
from tests.support.web import ALICE, TLS, documented
from vpmu_agent.cli.main import run, settings_now
from vpmu_agent.counts.watch import Watch
from vpmu_agent.daemon import config_file
from vpmu_agent.daemon.config_file import ConfigError
from vpmu_agent.daemon.settings import Configuration
from vpmu_agent.vms.names import Vms
from vpmu_agent.web import config as web_config
from vpmu_agent.web.errors import WebConfigError
from vpmu_agent.web.web_file import WebFile

LONGEST_S = 2.0
"""For any file, on a busy machine; one that is right takes some milliseconds."""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    pki.make(folder)
    return folder


@pytest.fixture
def place(certificates: Path) -> Iterator[Path]:
    """A folder that every user may read, with certificates in it."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        for file in certificates.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        yield folder


@contextmanager
def in_time() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < LONGEST_S, "it took too long"


def checked(file: Path) -> Result:
    """What `config check` said of it; nothing but its statuses and sentences is right."""
    with in_time():
        result = invoke("config", "check", str(file))
    assert result.exit_code in (0, 2), result.exception
    assert isinstance(result.exception, SystemExit | None)
    assert "please report" not in result.output
    if result.exit_code == 2:
        assert all(line.startswith(str(file)) for line in result.stdout.splitlines()), result.stdout[:200]
    return result


# Not files


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def link_to_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def text_of(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


NOT_FILES: Mapping[str, Callable[[Path], object]] = {
    "FIFO": fifo,
    "link to a FIFO": link_to_fifo,
    "socket": unix_socket,
    "directory": Path.mkdir,
    "nothing": lambda _path: None,
    "link to itself": lambda path: path.symlink_to(path.name),
    "empty": text_of(b""),
    "NUL bytes": text_of(bytes(9999)),
    "not UTF-8": text_of(b"\xff\xfe\x00"),
    "sparse and huge": lambda path: path.open("wb").truncate(1 << 40),
    **{
        name: link(name)
        for name in (
            "/dev/zero",
            "/dev/full",
            "/dev/null",
            "/dev/random",
            "/dev/tty",
            "/dev/ptmx",
            "/proc/kmsg",
            "/proc/self/mem",
            "/proc/self/environ",
            "/proc/self/fd/0",
            "/proc/kcore",
            "/sys/kernel/notes",
            "/proc",
        )
    },
}
READ = ("vpmu-agent.toml", "web.yml", "server.crt", "server.key", "ca.crt")


def test_no_file(attack: Attack, place: Path) -> None:
    """What the agent is to read is a FIFO, a device, endless, or nothing"""
    right = {name: (place / name).read_bytes() for name in READ[2:]}
    right["vpmu-agent.toml"] = f'web_config_file = "{place}/web.yml"\n'.encode()
    text = f"{TLS}, client_ca_file: ca.crt, client_auth_type: RequireAndVerifyClientCert}}"
    right["web.yml"] = text.encode()
    for name in READ:
        for what, make in NOT_FILES.items():
            for other, data in right.items():
                (place / other).unlink(missing_ok=True)
                (place / other).write_bytes(data)
            (place / name).unlink()
            with attack.once(f"{name}: {what}"):
                make(place / name)
                # Without any settings all have their defaults.
                is_right = name == "vpmu-agent.toml" and what == "empty"
                assert checked(place / "vpmu-agent.toml").exit_code == (0 if is_right else 2)
            if (place / name).is_dir() and not (place / name).is_symlink():
                (place / name).rmdir()
            (place / name).unlink(missing_ok=True)
            (place / "pipe").unlink(missing_ok=True)


def test_no_recording(attack: Attack, place: Path) -> None:
    """What `replay` is to read is a device, endless, or nothing"""
    for what, make in NOT_FILES.items():
        if "FIFO" in what or what in ("/dev/tty", "/dev/ptmx", "/proc/kmsg", "/proc/self/fd/0"):
            continue  # a recording may come through a pipe, and then whoever reads it waits
        with attack.once(what):
            make(place / "file")
            with in_time():
                result = invoke("replay", str(place / "file"))
            assert result.exit_code == 2, result.output
            assert isinstance(result.exception, SystemExit)
        if (place / "file").is_dir() and not (place / "file").is_symlink():
            (place / "file").rmdir()
        (place / "file").unlink(missing_ok=True)


# Files that say what nobody thought of


def nested(n: int) -> str:
    """Anchors by which each line has ten times what the one before has."""
    lines = ["http_server_config:", "  headers:", "    a0: &a0 {X-XSS-Protection: 1}"]
    lines += [f"    a{i}: &a{i} {{<<: [{', '.join(10 * [f'*a{i - 1}'])}]}}" for i in range(1, n)]
    return "\n".join(lines)


WEB_FILES: dict[str, str | bytes] = {
    "a curve that Python's ssl may not have": f"{TLS}, curve_preferences: [X25519]}}",
    "a NUL in a path": r'tls_server_config: {cert_file: "a\0b", key_file: server.key}',
    "half a surrogate in a path": r'tls_server_config: {cert_file: "a\ud800b", key_file: server.key}',
    "half a surrogate in a key": r'"a\ud800b": 1',
    "half a surrogate in a user": rf'basic_auth_users: {{"a\ud800b": {ALICE}}}',
    "a terminal's commands in a key": r'"\e[2J": 1',
    "a path of 60,000 characters": f"tls_server_config: {{cert_file: {60000 * 'x'}, key_file: x}}",
    "a path of 60,000 folders": f"tls_server_config: {{cert_file: {30000 * 'x/'}, key_file: x}}",
    "a key in place of its path": r'tls_server_config: {cert_file: "-----BEGIN\nKEY", key_file: server.key}',
    "2,000 brackets": 2000 * "[",
    "60,000 brackets": 60000 * "[",
    "2,000 braces": 2000 * "{a: ",
    "2,000 levels of lists": 2000 * "- ",
    "2,000 question marks": 2000 * "? ",
    "an anchor within itself": "http_server_config: &a [*a]",
    "a mapping that merges itself": "http_server_config: &a {<<: *a, headers: &b {<<: [*b, *a]}}",
    "an alias of nothing": "http_server_config: *a",
    "merges of merges": nested(20),
    "aliases of aliases": "a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]",
    "a number of 60,000 digits": f"rate_limit: {{interval: {60000 * '9'}}}",
    "a burst of 60,000 digits": f"rate_limit: {{interval: 0, burst: {60000 * '9'}}}",
    "a date": "http_server_config: 2001-12-14t21:59:43.10-05:00",
    "a date that is none": "http_server_config: {headers: {X-XSS-Protection: 2001-99-99}}",
    "a base of 60": "http_server_config: {http2: 190:20:30}",
    "a key that is a list": "? [a]\n: b",
    "a key that is null": "~: b",
    "a key that is a date": "2001-12-14: b",
    "a merge of words": "<<: words",
    "a value that is =": "http_server_config: {http2: =}",
    "words that are a boolean by their tag": "http_server_config: {http2: !!bool words}",
    "two documents": "http_server_config:\n---\nhttp_server_config:\n",
    "a directive": "%YAML 9.9\n---\nhttp_server_config:\n",
    "UTF-16": "http_server_config:\n".encode("utf-16"),
    "a byte order mark": "\ufeffhttp_server_config:\n",
    "keys twice": "http_server_config:\nhttp_server_config:\n",
    "tabs": "http_server_config:\n\theaders:\n",
    "C1 controls": "http_server_config: \u0085\u009b",
    "a certificate with words in other alphabets": f"{TLS}, client_ca_file: words.crt, "
    "client_auth_type: RequireAndVerifyClientCert}",
}
OWN_TAGS = ["!", "!x", "!!python/object:os.system", "!<y>"]
KINDS = ["int", "float", "bool", "timestamp", "binary", "null", "str", "merge", "value", "map", "seq", "set"]
TAGS = [*OWN_TAGS, *(f"!!{kind}" for kind in KINDS)]
PLACES = (
    "VALUE",
    "http_server_config: VALUE",
    "http_server_config: {http2: VALUE}",
    "http_server_config: {headers: {X-XSS-Protection: VALUE}}",
    "tls_server_config: {cert_file: VALUE, key_file: server.key}",
    f"{TLS}, cipher_suites: VALUE}}",
    f"{TLS}, client_auth_type: VALUE}}",
    "rate_limit: {interval: VALUE}",
    "basic_auth_users: {alice: VALUE}",
    "VALUE: x",
)
TAGGED = [
    place.replace("VALUE", f"{tag} {value}")
    for place in PLACES
    for tag in TAGS
    for value in ("x", "''", "1", "[]", "{}")
]

TOML_FILES: dict[str, str | bytes] = {
    "2,000 brackets": "wait = " + 2000 * "[",
    "16,000 brackets": 16000 * "[",
    "2,000 braces": "wait = " + 2000 * "{a = ",
    "a key of 8,000 parts": ".".join(8000 * "a") + " = 1",
    "a header of 8,000 parts": f"[{'.'.join(8000 * 'a')}]",
    "a number of 15,000 digits": f"wait = {15000 * '9'}",
    "a hexadecimal number of 15,000 digits": f"wait = 0x{15000 * 'f'}",
    "a number that is none": "wait = nan",
    "a date": "listen = 1979-05-27T07:32:00Z",
    "a date that is none": "listen = 1979-99-27",
    "a time": "user = 07:32:00",
    "keys twice": "wait = true\nwait = true",
    "a table twice": "[a]\n[a]",
    "a NUL": r'web_config_file = "a\u0000b"',
    "half a surrogate": r'web_config_file = "a\ud800b"',
    "a path of 15,000 characters": f'web_config_file = "{15000 * "x"}"',
    "a user of 15,000 characters": f'user = "{15000 * "x"}"',
    "no user": 'user = ""',
    "an address of 15,000 characters": f'listen = "{15000 * "x"}:1"',
    "a port of 15,000 digits": f'listen = ":{15000 * "9"}"',
    "a port in other digits": 'listen = ":٣٣"',
    "no web file": 'web_config_file = ""',
    "a string without an end": 'user = """' + 8000 * "x\n",
    "5,000 keys": "".join(f"{i} = 1\n" for i in range(2000)),
    "a key without a name": '"" = 1',
    "a byte order mark": b"\xef\xbb\xbfwait = true",
    "two byte order marks": 2 * b"\xef\xbb\xbf",
    "UTF-16": "wait = true".encode("utf-16"),
    "old line ends": "wait = true\rwait = true\r",
    "a NUL byte": "wait = true\0",
    "a terminal's commands": r'"\u001b[2J" = 1',
}


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
    return path


def test_nasty_settings(attack: Attack, place: Path) -> None:
    """A configuration file says what nobody thought of"""
    for what, text in TOML_FILES.items():
        with attack.once(what):
            checked(write(place / "vpmu-agent.toml", text))


def test_nasty_web_files(attack: Attack, place: Path) -> None:
    """A web file says what nobody thought of"""
    words = "# Autorité de certification\n" + (place / "ca.crt").read_text()
    write(place / "words.crt", words)
    settings = write(place / "vpmu-agent.toml", f'web_config_file = "{place}/web.yml"\n')
    for what, text in WEB_FILES.items():
        with attack.once(what):
            write(place / "web.yml", text)
            result = checked(settings)
            assert "\x1b" not in result.output
            assert "BEGIN" not in result.output
    with attack.once("the certificate of an authority with a name in another alphabet"):
        write(place / "web.yml", WEB_FILES["a certificate with words in other alphabets"])
        assert checked(settings).exit_code == 0


def test_wrong_tags(attack: Attack, place: Path) -> None:
    """A web file has tags that do not fit their values (slim)"""
    try_texts(attack, place, TAGGED[::7])


@pytest.mark.slow
def test_all_wrong_tags(attack: Attack, place: Path) -> None:
    """A web file has tags that do not fit their values"""
    try_texts(attack, place, TAGGED)


def try_texts(attack: Attack, place: Path, texts: list[str]) -> None:
    for text in texts:
        with attack.once(text), in_time():
            accepted_or_refused(write(place / "web.yml", text))


def accepted_or_refused(file: Path) -> None:
    """Read a configuration or a web file. If it raises, then its own error."""
    said = str(file)
    try:
        if file.suffix == ".toml":
            config_file.read(file, run)
        else:
            web_config.check(file)
    except (ConfigError, WebConfigError) as error:
        said = str(error)
    assert said.startswith(str(file))
    assert "please report" not in said


def test_reloads(attack: Attack, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A reload finds a file that is wrong"""
    settings, web = place / "vpmu-agent.toml", write(place / "web.yml", "http_server_config: {}")
    good = f'user = "bin"\nweb_config_file = "{web}"\n'
    write(settings, good)

    def used() -> Any:
        with run.make_context("run", ["--config", str(settings)]) as context:
            return settings_now(context)

    configuration, watch = Configuration(used), Watch(Maps(), Vms())
    web_file = WebFile(web, lambda _error: None)
    before = configuration.settings, web_file.current()
    for name, texts in (settings, TOML_FILES), (web, {**WEB_FILES, **{text: text for text in TAGGED[::67]}}):
        for what, text in texts.items():
            write(settings, f"{good}per_counter = false\n")
            write(web, "http_server_config: {}")
            write(name, text)
            with attack.once(f"{name.name}: {what}"), in_time():
                said = configuration.reload(watch, web_file)
                if said.startswith("rejected"):
                    assert (configuration.settings, web_file._config) == before
                    assert watch.scrape().per_counter
                else:
                    before = configuration.settings, web_file.current()
                    watch.count_per_counter(True)
                    configuration.settings = before[0]
                assert "please report" not in capsys.readouterr().err


# Right files with faults


PIECES = [b"&a ", b"*a", b"!!int ", b"<<: ", *(bytes([each]) for each in b"\n[]{}\"'#=.:-")]


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Return the text with one to four faults."""
    text = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(text) + 1)
        end = min(len(text), at + chance.choice((1, 1, 2, 5, 20, 200)))
        match chance.randrange(6):
            case 0:
                text[at:end] = b""
            case 1:
                text[at:at] = text[at:end] * chance.choice((1, 2, 50))
            case 2:
                text[at:at] = chance.choice(
                    (
                        b"\n",
                        b"[",
                        b"{",
                        b'"',
                        b"'",
                        b"#",
                        b"=",
                        b".",
                        b"&a ",
                        b"*a",
                        b"!!int ",
                        b"<<: ",
                        b"- ",
                    )
                )
            case 3:
                text[at:end] = bytes(chance.randrange(256) for _ in range(end - at))
            case 4:
                text = text[:at]
            case _:
                start = chance.randrange(len(text) + 1)
                text[at:at] = text[start : start + 30]
        text = text or bytearray(b"x")
    return bytes(text[:60000])


def settings_texts() -> list[bytes]:
    shipped = (ROOT / "systemd" / "vpmu-agent.toml").read_text()
    used = re.sub(r"^# (\w+ = )", r"\1", shipped, flags=re.MULTILINE)
    short = 'listen = "[::1]:1"\nuser = """\nbin"""\nwait = true\n[a.b]\nc = [\n1, # ]\n]\n'
    return [used.encode(), re.sub(r"^#.*\n", "", used, flags=re.MULTILINE).encode(), short.encode()]


def web_texts() -> list[bytes]:
    example = (ROOT / "debian" / "examples" / "web.yml").read_text().replace("/etc/vpmu-agent/tls", "server")
    full = (
        f"{TLS}, client_ca_file: ca.crt, client_auth_type: VerifyClientCertIfGiven, min_version: TLS12, "
        "cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256], curve_preferences: [CurveP256]}\n"
        "http_server_config: {http2: true, headers: {X-Frame-Options: deny, X-XSS-Protection: 1}}\n"
        f"basic_auth_users: &u {{alice: {ALICE}, <<: *u}}\nrate_limit: {{interval: 0, burst: 1}}\n"
    )
    return [documented().encode(), example.encode(), full.encode()]


def try_mutations(attack: Attack, place: Path, settings: int, web: int) -> None:
    chance = random.Random(13)
    for i in range(settings):
        data = mutated(chance.choice(settings_texts()), chance)
        with attack.once(f"settings {i}: {data!r}"), in_time():
            accepted_or_refused(write(place / "vpmu-agent.toml", data))
    for i in range(web):
        data = mutated(chance.choice(web_texts()), chance)
        with attack.once(f"web file {i}: {data!r}"), in_time():
            accepted_or_refused(write(place / "web.yml", data))


def test_mutations(attack: Attack, place: Path) -> None:
    """Right files with one to four random faults (slim)"""
    try_mutations(attack, place, 250, 50)


@pytest.mark.slow
def test_more_mutations(attack: Attack, place: Path) -> None:
    """Right files with one to four random faults"""
    try_mutations(attack, place, 20_000, 5_000)


# A daemon that runs


@contextmanager
def daemon(place: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, str]]:
    """The parent, the daemon's process ID and its address."""
    for name in "web.yml", "vpmu-agent.toml":
        (place / name).unlink(missing_ok=True)
    web = write(place / "web.yml", f"basic_auth_users: {{alice: {ALICE}}}")
    settings = f'listen = "127.0.0.1:0"\nweb_config_file = "{web}"\n'
    config = write(place / "vpmu-agent.toml", settings)
    with started("run", "--config", str(config)) as process:
        line = read_until(process.stderr, b"serving http://").decode()
        read_until(process.stderr, b"attached ")
        yield process, daemon_of(process), line.split("/")[2]


def answer(address: str) -> int:
    connection = http.client.HTTPConnection(address, timeout=LONGEST_S)
    connection.request("GET", "/-/healthy")
    status = connection.getresponse().status
    connection.close()
    return status


def wait_gone(pid: int, within_s: float) -> None:
    end = time.monotonic() + within_s
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "it stayed"
        time.sleep(0.02)


def test_files_become_fifos(attack: Attack, place: Path) -> None:
    """The files of a daemon that runs become FIFOs (slim)"""
    become_fifos(attack, place, "web.yml", "vpmu-agent.toml")


@pytest.mark.slow
def test_each_file_becomes_a_fifo(attack: Attack, place: Path) -> None:
    """The files of a daemon that runs become FIFOs"""
    for _ in range(5):
        for name in "web.yml", "vpmu-agent.toml":
            become_fifos(attack, place, name)


def become_fifos(attack: Attack, place: Path, *names: str) -> None:
    with daemon(place) as (process, _, address), attack.once(f"{names}"):
        replace_by_fifos(place, *names)
        assert [answer(address) for _ in range(20)] == 20 * [401]
        process.send_signal(signal.SIGHUP)
        assert b"rejected" in read_until(process.stderr, b"configuration reload")
        assert answer(address) == 401
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0


def replace_by_fifos(place: Path, *names: str) -> None:
    for name in names:
        (place / name).unlink()
        os.mkfifo(place / name)


def test_the_parent_is_killed(attack: Attack, place: Path) -> None:
    """SIGKILL for the parent of a daemon whose files are FIFOs (slim)"""
    kill_parents(attack, place, 1)


@pytest.mark.slow
def test_more_parents_are_killed(attack: Attack, place: Path) -> None:
    """SIGKILL for the parent of a daemon whose files are FIFOs"""
    kill_parents(attack, place, 10)


def kill_parents(attack: Attack, place: Path, times: int) -> None:
    for _ in range(times):
        with daemon(place) as (process, pid, address), attack.once():
            replace_by_fifos(place, "web.yml", "vpmu-agent.toml")
            process.send_signal(signal.SIGHUP)
            assert answer(address) == 401
            process.kill()
            wait_gone(pid, 5)


def test_hangups_at_the_end(attack: Attack, place: Path) -> None:
    """SIGHUP again and again while the daemon ends (slim)"""
    hang_up(attack, place, 1)


@pytest.mark.slow
def test_more_hangups_at_the_end(attack: Attack, place: Path) -> None:
    """SIGHUP again and again while the daemon ends"""
    hang_up(attack, place, 40)


def hang_up(attack: Attack, place: Path, times: int) -> None:
    chance = random.Random(13)
    for i in range(times):
        with daemon(place) as (process, pid, _), attack.once(f"try {i}"):
            process.send_signal(signal.SIGTERM)
            while process.poll() is None:
                for each in process.pid, pid:
                    try:
                        os.kill(each, signal.SIGHUP)
                    except ProcessLookupError:
                        continue
                time.sleep(chance.random() / 200)
            assert process.returncode == 0
