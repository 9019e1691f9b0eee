"""A web file as it is in force: what clients meet, and what happens when it changes."""

from __future__ import annotations

import getpass
import http.client
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support.commands import read_until, started
from tests.support.places import ROOT
from tests.support.web import ALICE, BOB, TLS, client_tls, get, serving_file, written
from vpmu_agent.web import config, web_file
from vpmu_agent.web import server as http_server
from vpmu_agent.web.config import Stamp, WebConfig
from vpmu_agent.web.errors import WebConfigError
from vpmu_agent.web.server import Server
from vpmu_agent.web.web_file import WebFile


@pytest.mark.parametrize("text", ["{}", "basic_auth_users: {}", "http_server_config: {http2: true}"])
def test_a_file_that_asks_for_nothing_changes_nothing(folder: Path, text: str) -> None:
    with serving_file(folder, text) as (server, _):
        assert get(server).status == 200
        assert server.url.startswith("http://")


# TLS


def test_tls(folder: Path) -> None:
    with serving_file(folder, TLS + "}") as (server, _):
        assert server.url == f"https://{server.address}"
        answer = get(server, "/metrics", tls=client_tls(folder))
        assert answer.status == 200
        assert "vpmu_agent_build_info" in answer.text


def test_who_speaks_no_tls_is_told_so(folder: Path) -> None:
    with serving_file(folder, TLS + "}") as (server, _):
        answer = get(server)
        assert (answer.status, answer.reason) == (400, "this port speaks TLS: use https://")
        with pytest.raises(ssl.SSLCertVerificationError):
            get(server, tls=ssl.create_default_context())
        assert get(server, tls=client_tls(folder)).status == 200


@pytest.mark.parametrize(
    ("text", "version", "accepted"),
    [
        ("", ssl.TLSVersion.TLSv1_2, True),
        (", min_version: TLS13", ssl.TLSVersion.TLSv1_2, False),
        (", max_version: TLS12", ssl.TLSVersion.TLSv1_3, False),
        (", min_version: TLS12, max_version: TLS12", ssl.TLSVersion.TLSv1_2, True),
    ],
)
def test_versions(folder: Path, text: str, version: ssl.TLSVersion, *, accepted: bool) -> None:
    context = client_tls(folder)
    context.minimum_version = context.maximum_version = version
    with serving_file(folder, TLS + text + "}") as (server, _):
        if accepted:
            assert get(server, tls=context).status == 200
        else:
            with pytest.raises(ssl.SSLError):
                get(server, tls=context)


def test_suites_their_order_and_curves(folder: Path) -> None:
    mine = ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"]
    theirs = "[TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]"
    context = client_tls(folder)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(":".join(mine))
    text = f"{TLS}, curve_preferences: [CurveP384], cipher_suites: {theirs}"
    for prefers_own, suite in ("true", mine[1]), ("false", mine[0]):
        with serving_file(folder, f"{text}, prefer_server_cipher_suites: {prefers_own}}}") as (server, _):
            assert chosen(server, context) == suite
    context.set_ecdh_curve("prime256v1")
    with serving_file(folder, text + "}") as (server, _), pytest.raises(ssl.SSLError):
        chosen(server, context)


def chosen(server: Server, context: ssl.SSLContext) -> str:
    """The cipher suite of a connection."""
    with (
        socket.create_connection((server.address.host, server.address.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=server.address.host) as connection,
    ):
        cipher = connection.cipher()
        assert cipher
        return cipher[0]


@pytest.mark.parametrize(
    ("text", "identity", "accepted"),
    [
        ("RequireAndVerifyClientCert", "", False),
        ("RequireAndVerifyClientCert", "stranger", False),
        ("RequireAndVerifyClientCert", "client", True),
        ("VerifyClientCertIfGiven", "", True),
        ("VerifyClientCertIfGiven", "stranger", False),
        ("RequireAndVerifyClientCert, client_allowed_sans: [a, prometheus.example]", "client", True),
        ("RequireAndVerifyClientCert, client_allowed_sans: [192.0.2.7]", "client", True),
        ('RequireAndVerifyClientCert, client_allowed_sans: ["2001:db8::1"]', "client", True),
        ("RequireAndVerifyClientCert, client_allowed_sans: [ops@example.org]", "client", True),
        ("RequireAndVerifyClientCert, client_allowed_sans: [example, client]", "client", False),
    ],
)
def test_client_certificates(folder: Path, text: str, identity: str, *, accepted: bool) -> None:
    with serving_file(folder, f"{TLS}, client_ca_file: ca.crt, client_auth_type: {text}}}") as (server, _):
        if accepted:
            assert get(server, tls=client_tls(folder, identity=identity)).status == 200
        else:
            with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
                get(server, tls=client_tls(folder, identity=identity))


@pytest.mark.parametrize(
    ("trusted", "identity", "accepted"),
    [
        ("middle", "below", True),  # an intermediate authority, whose own is not in the file
        ("middle", "client", False),
        ("client", "client", True),  # a client's own certificate
        ("client", "below", False),
        ("ca", "client", True),
    ],
)
def test_authorities_need_no_root(folder: Path, trusted: str, identity: str, *, accepted: bool) -> None:
    text = f"{TLS}, client_ca_file: {trusted}.crt, client_auth_type: RequireAndVerifyClientCert}}"
    with serving_file(folder, text) as (server, _):
        if accepted:
            assert get(server, tls=client_tls(folder, identity=identity)).status == 200
        else:
            with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
                get(server, tls=client_tls(folder, identity=identity))


@pytest.mark.parametrize("sent", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"])
def test_a_handshake_takes_its_time_and_nobody_elses(
    folder: Path, sent: bytes, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(http_server, "REQUEST_S", 1.0)
    with serving_file(folder, TLS + "}") as (server, _):
        with socket.create_connection((server.address.host, server.address.port), timeout=10) as slow:
            start = time.monotonic()
            slow.sendall(sent)
            assert get(server, tls=client_tls(folder)).status == 200
            assert time.monotonic() - start < 0.9
            assert slow.recv(100) == b""
            assert 0.9 < time.monotonic() - start < 5
        assert get(server, tls=client_tls(folder)).status == 200
    assert capfd.readouterr().err == ""


# Users


def test_everything_is_for_users_only(folder: Path) -> None:
    with serving_file(folder, f"basic_auth_users: {{alice: {ALICE}, bob: {BOB}}}") as (server, _):
        for path in ("/", "/metrics", "/-/healthy", "/-/ready", "/nothing"):
            for user in ("", "alice:", "alice:other", "carol:secret", ":secret", "alice:secret\0"):
                answer = get(server, path, user=user)
                assert answer.status == 401
                assert answer.headers["WWW-Authenticate"].startswith("Basic realm=")
        assert get(server, method="POST").status == 401
        head = get(server, method="HEAD")
        assert (head.status, head.text) == (401, "")
        assert get(server, user="alice:secret").status == 200
        assert get(server, user="bob:other").status == 200
        assert get(server, "/nothing", user="bob:other").status == 404


def test_the_example_of_the_package(folder: Path) -> None:
    text = (ROOT / "debian" / "examples" / "web.yml").read_text().replace("/etc/vpmu-agent/tls", "server")
    with serving_file(folder, text) as (server, _):
        tls = client_tls(folder)
        assert get(server, tls=tls, user="prometheus:change me").status == 200
        assert get(server, tls=tls).status == 401


# What changes


def test_users_and_certificates_change_without_a_restart(folder: Path) -> None:
    with serving_file(folder, f"{TLS}}}\nbasic_auth_users: {{alice: {ALICE}}}") as (server, reports):
        context = client_tls(folder)
        first = peer(server, context)
        assert get(server, tls=context, user="alice:secret").status == 200
        written(folder, f"{TLS}}}\nbasic_auth_users: {{alice: {BOB}}}")
        assert get(server, tls=context, user="alice:secret").status == 401
        assert get(server, tls=context, user="alice:other").status == 200
        for kind in ("key", "crt"):
            (folder / f"next.{kind}").replace(folder / f"server.{kind}")
        assert peer(server, context) != first
        assert get(server, tls=context, user="alice:other").status == 200
    assert reports == []


def peer(server: Server, context: ssl.SSLContext) -> bytes | None:
    """The certificate that the server shows."""
    with (
        socket.create_connection((server.address.host, server.address.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=server.address.host) as connection,
    ):
        return connection.getpeercert(binary_form=True)


def test_what_cannot_be_used_is_said_once_and_what_was_before_stays(folder: Path) -> None:
    with serving_file(folder, f"{TLS}}}\nbasic_auth_users: {{alice: {ALICE}}}") as (server, reports):
        context = client_tls(folder)
        key = (folder / "server.key").read_bytes()
        (folder / "server.key").write_bytes((folder / "next.key").read_bytes())
        for _ in range(3):
            assert get(server, tls=context, user="alice:secret").status == 200
            assert get(server, tls=context).status == 401
        assert [line.partition("server.key is not")[2] for line in reports] == [
            f" the key of the certificate {folder}/server.crt; the previous configuration stays in effect"
        ]
        # Mended, though not the file itself.
        (folder / "server.key").write_bytes(key)
        assert get(server, tls=context, user="alice:secret").status == 200
        for text in ("", f"{TLS}}}\nbasic_auth_users: [\n"):  # somebody is writing it
            written(folder, text)
            assert get(server, tls=context).status == 401
        (folder / "web.yml").unlink()
        assert get(server, tls=context).status == 401
        assert [line.partition("web.yml:")[2].split(";")[0] for line in reports[1:]] == [
            " is empty",
            "3: is not YAML: expected the node content, but found '<stream end>'",
            f" cannot be read by user {getpass.getuser()}: No such file or directory",
        ]


def test_nobody_waits_long_for_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, free = config.read, threading.Event()

    def read_slowly(path: Path, seen: dict[Path, Stamp]) -> WebConfig:
        free.wait(20)
        return read(path, seen)

    with serving_file(folder, f"basic_auth_users: {{alice: {ALICE}}}") as (server, _):
        assert get(server, user="alice:secret").status == 200
        monkeypatch.setattr(web_file, "read", read_slowly)
        monkeypatch.setattr(web_file, "RELOAD_S", 0.2)
        written(folder, f"basic_auth_users: {{alice: {BOB}}}")
        start = time.monotonic()
        assert [get(server, user="alice:secret").status for _ in range(2)] == [200, 200]
        assert time.monotonic() - start < 5
        free.set()
        time.sleep(0.2)
        assert get(server, user="alice:secret").status == 401


def test_a_bug_in_reading_keeps_nobody_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: Path, seen: dict[Path, Stamp]) -> WebConfig:
        seen[folder / "web.yml"] = config.stamp(folder / "web.yml")
        raise ZeroDivisionError("a bug")

    with serving_file(folder, f"basic_auth_users: {{alice: {ALICE}}}") as (server, reports):
        monkeypatch.setattr(web_file, "read", fail)
        written(folder, f"basic_auth_users: {{alice: {BOB}}}")
        assert [get(server, user="alice:secret").status for _ in range(2)] == [200, 200]
        assert reports == [
            f"{folder}/web.yml: ZeroDivisionError: a bug; please report this; the previous configuration "
            "stays in effect"
        ]


def test_a_reload_says_what_cannot_be_used_and_what_was_before_stays(folder: Path) -> None:
    web = WebFile(written(folder, f"{TLS}}}"), pytest.fail)
    before = web.current()
    key = (folder / "server.key").read_bytes()
    (folder / "server.key").write_bytes((folder / "next.key").read_bytes())
    with pytest.raises(WebConfigError, match="is not the key"):
        web.reload()
    assert web.current() is before
    (folder / "server.key").write_bytes(key)
    web.reload()
    assert web.current() is not before


def test_while_one_client_has_the_file_reloaded_no_other_waits_for_that(folder: Path) -> None:
    is_reading, may_go_on = threading.Event(), threading.Event()

    def report(_error: str) -> None:
        is_reading.set()
        assert may_go_on.wait(10)

    web = WebFile(written(folder, f"basic_auth_users: {{alice: {ALICE}}}"), report)
    before = web.current()
    written(folder, "nothing of that kind")
    reader = threading.Thread(target=web.current)
    reader.start()
    try:
        assert is_reading.wait(10)
        written(folder, "nor of this")  # something new to see for whoever comes
        start = time.monotonic()
        assert web.current() is before
        assert time.monotonic() - start < 1
    finally:
        may_go_on.set()
        reader.join()
    written(folder, "http_server_config: {}")
    assert web.current().users is None


# Headers


def test_headers_of_the_file_are_on_every_answer(folder: Path) -> None:
    text = (
        'http_server_config: {http2: false, headers: {X-Frame-Options: sameorigin, X-XSS-Protection: "", '
        "Strict-Transport-Security: max-age=5}}\n"
        f"basic_auth_users: {{alice: {ALICE}}}"
    )
    with serving_file(folder, text) as (server, _):
        for user, status in ("", 401), ("alice:secret", 200):
            answer = get(server, "/", user=user)
            assert answer.status == status
            assert answer.headers.get_all("X-Frame-Options") == ["sameorigin"]
            assert answer.headers["Strict-Transport-Security"] == "max-age=5"
            assert answer.headers["X-XSS-Protection"] is None


# With the client that operators have


def test_curl_is_refused_without_credentials(folder: Path) -> None:
    text = f"{TLS}}}\nbasic_auth_users: {{alice: {ALICE}}}"
    with serving_file(folder, text) as (server, _):
        quiet = ["curl", "--silent", "--show-error", "--output", "answer", "--write-out", "%{http_code}"]
        for options, status in (
            ([], "401"),
            (["--user", "alice:wrong"], "401"),
            (["--user", "alice:secret"], "200"),
        ):
            command = [*quiet, "--cacert", "ca.crt", *options, f"{server.url}/metrics"]
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=20, check=False
            )
            assert (done.stdout, done.stderr, done.returncode) == (status, "", 0)
            assert ("vpmu_agent_build_info" in (folder / "answer").read_text()) == (status == "200")


# The daemon and its users


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone becomes somebody else")
def test_it_must_be_readable_for_the_user_that_the_daemon_becomes(public: Path) -> None:
    path = written(public, TLS + "}")
    (public / "server.key").chmod(0o600)
    with started("run", "--listen", "127.0.0.1:0", "--web.config.file", str(path)) as process:
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert errors.decode() == (
        f"Error: {path}:1: tls_server_config.key_file: {public}/server.key cannot be read by user nobody: "
        "Permission denied; give that user read access, or run as a user that has it (--user)\n"
    )


def test_the_daemon_serves_as_the_file_says(public: Path) -> None:
    path = written(public, f"{TLS}}}\nbasic_auth_users: {{alice: {ALICE}}}")
    with started("run", "--listen", "127.0.0.1:0", "--web.config.file", str(path)) as process:
        url = read_until(process.stderr, b"serving https://").decode().split()[1]
        for who, status in ((), "401"), (("--user", "alice:secret"), "200"):
            command = ["curl", "-sS", "--cacert", "ca.crt", *who, "-w", "%{http_code}", url]
            done = subprocess.run(command, cwd=public, capture_output=True, text=True, timeout=20, check=True)
            assert done.stdout.endswith(status)
            assert ("vpmu_agent_build_info" in done.stdout) == (status == "200")


def test_only_who_has_a_file_pays_for_reading_it() -> None:
    code = "import sys, vpmu_agent.daemon.run; sys.exit(bool({'bcrypt', 'yaml'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
