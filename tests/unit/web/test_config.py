"""A file in the exporter-toolkit's format: what is refused in it, and what clients meet."""

from __future__ import annotations

import base64
import getpass
import http.client
import os
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import bcrypt
import pytest

from tests.support import pki
from tests.support.commands import invoke, read_until, started
from tests.support.counted import Maps, Processes
from tests.support.places import ROOT
from vpmu_agent.counts.recent import Recent
from vpmu_agent.counts.watch import Watch
from vpmu_agent.web import config as web_config
from vpmu_agent.web import server
from vpmu_agent.web.config import Users, WebFile
from vpmu_agent.web.metrics import Exporter
from vpmu_agent.web.server import Address, Server, WebConfigError
from vpmu_agent.web.state import Overview

ALICE, BOB = (bcrypt.hashpw(password, bcrypt.gensalt(4)).decode() for password in (b"secret", b"other"))
TLS = "tls_server_config: {cert_file: server.crt, key_file: server.key"


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pki.py has made some."""
    folder = tmp_path_factory.mktemp("pki")
    pki.make(folder)
    return folder


@pytest.fixture
def folder(certificates: Path, tmp_path: Path) -> Path:
    """A place for a file, with all of these beside it."""
    for file in certificates.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def written(folder: Path, text: str) -> Path:
    path = folder / "web.yml"
    path.write_text(text)
    return path


@contextmanager
def served(folder: Path, text: str) -> Iterator[tuple[Server, list[str]]]:
    """A server with such a file, and what it reports."""
    said: list[str] = []
    web = WebFile(written(folder, text), said.append)
    with closing(Server(Address("127.0.0.1", 0), web)) as made:
        watch = Watch(Maps(), Processes())
        made.start(Exporter(watch), Overview(watch, Recent(), str))
        yield made, said


def client_tls(folder: Path, *, identity: str = "") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=folder / "ca.crt")
    if identity:
        context.load_cert_chain(folder / f"{identity}.crt", folder / f"{identity}.key")
    return context


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, all of it."""

    status: int
    reason: str
    headers: http.client.HTTPMessage
    text: str


def get(
    of: Server,
    path: str = "/-/healthy",
    *,
    tls: ssl.SSLContext | None = None,
    user: str = "",
    method: str = "GET",
    **headers: str,
) -> Answer:
    where = of.address.host, of.address.port
    connection = (
        http.client.HTTPSConnection(*where, timeout=10, context=tls)
        if tls
        else http.client.HTTPConnection(*where, timeout=10)
    )
    if user:
        headers["Authorization"] = basic(user)
    with closing(connection):
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return Answer(answer.status, answer.reason, answer.headers, answer.read().decode())


def basic(user: str) -> str:
    return f"Basic {base64.b64encode(user.encode()).decode()}"


# What is refused

BAD_FILES = {
    "": r"web\.yml: is empty; to serve everybody, leave --web\.config\.file out",
    "# nothing\n": r"web\.yml: is empty",
    "[": r"web\.yml:\d: is no YAML: ",
    "a: b\n--- \nc: d": r"web\.yml:2: is no YAML: ",
    "- a": r"web\.yml:1: must have keys of its own",
    "\n\ntls: {}": r"web\.yml:3: tls: is not known; known are tls_server_config, http_server_config",
    "basic_auth_users: {}\nbasic_auth_users: {}": r"web\.yml:2: basic_auth_users: is there twice",
    "basic_auth_users:\n  bob: other": r"web\.yml:2: basic_auth_users\.bob: is no bcrypt hash; make one: ht",
    f"basic_auth_users: {{bob: {ALICE[:-1]}}}": r"bob: is no bcrypt hash",
    f'basic_auth_users: {{"a:b": {ALICE}}}': r"a:b: is no name for a user",
    f'basic_auth_users: {{"": {ALICE}}}': r"is no name for a user",
    "rate_limit: {burst: 1}": r"web\.yml:1: rate_limit: is not supported: .* leave it out",
    "http_server_config: {http2: perhaps}": r"http_server_config\.http2: must be true or false",
    "http_server_config: {headers: {Server: x}}": r"headers\.Server: is not known; known are Content-Sec",
    "http_server_config: {headers: {X-Frame-Options: never}}": r"Options: must be deny or sameorigin",
    'http_server_config: {headers: {X-XSS-Protection: "0\\r\\nA: b"}}': r"must be printable ASCII",
    "tls_server_config:": r"web\.yml:1: tls_server_config: must have keys of its own",
    "tls_server_config: {key_file: x}": r"tls_server_config: needs cert_file",
    "tls_server_config: {cert_file: x}": r"tls_server_config: needs key_file",
    "tls_server_config: {cert: x}": r"cert: is not supported: Python's ssl reads files",
    "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n  min_version: TLS11": (
        r"web\.yml:4: tls_server_config\.min_version: TLS11 is not supported: RFC 8996 .* TLS12"
    ),
}
BAD_PAIRS = {
    ("none", "server.key"): r"cert_file: \S+none cannot be read by user \w+: No such file",
    ("server.crt", ""): r"key_file: must be a string, and not empty",
    ("server.crt", "5"): r"key_file: must be a string",
    ("server.key", "server.key"): r"cert_file: \S+ has no certificate in PEM",
    ("server.crt", "server.crt"): r"key_file: \S+ has no private key in PEM",
    ("server.crt", "next.key"): r"next\.key is not the key of the certificate",
    ("server.crt", "locked.key"): r"locked\.key has a passphrase",
    ("broken.crt", "server.key"): r"cannot be used: ",
}
VERIFIED = "client_auth_type: RequireAndVerifyClientCert"
BAD_TLS = {
    "min_version: SSL30": r"min_version: 'SSL30' is not known; known are TLS12, TLS13",
    "max_version: TLS10": r"max_version: TLS10 is not supported",
    "min_version: TLS13, max_version: TLS12": r"max_version: is lower than min_version",
    "cipher_suites: []": r"cipher_suites: must be a list, and not empty",
    "cipher_suites: [RC4]": r"cipher_suites: 'RC4' is not known; known are TLS_ECDHE_ECDSA_WITH",
    "cipher_suites: [TLS_AES_128_GCM_SHA256]": r"cipher_suites: TLS_AES_128_GCM_SHA256 is of TLS 1\.3",
    "prefer_server_cipher_suites: 1": r"prefer_server_cipher_suites: must be true or false",
    "curve_preferences: [X25519, CurveP256]": r"curve_preferences: Python's ssl takes one curve",
    "curve_preferences: [X25519MLKEM768]": r"curve_preferences: X25519MLKEM768 is not supported",
    "curve_preferences: [P-256]": r"curve_preferences: 'P-256' is not known; known are CurveP256",
    "client_auth_type: RequestClientCert": r"RequestClientCert is not supported: .*RequireAndVerify",
    "client_auth_type: RequireAnyClientCert": r"RequireAnyClientCert is not supported",
    "client_auth_type: [NoClientCert]": r"client_auth_type: must be a string",
    VERIFIED: r"client_auth_type: needs client_ca_file",
    "client_ca_file: ca.crt": r"client_ca_file: has no effect without client_auth_type",
    f"client_ca_file: none.crt, {VERIFIED}": r"none\.crt cannot be read",
    f"client_ca_file: ca.key, {VERIFIED}": r"ca\.key has no certificate",
    "client_ca_file: ca.crt, client_auth_type: VerifyClientCertIfGiven, client_allowed_sans: [a]": (
        r"client_allowed_sans: needs client_auth_type: RequireAndVerifyClientCert"
    ),
    "client_allowed_sans: a": r"client_allowed_sans: needs",
}
ALL_BAD = [
    *BAD_FILES.items(),
    *((f"tls_server_config: {{cert_file: {c}, key_file: {k}}}", why) for (c, k), why in BAD_PAIRS.items()),
    *((f"{TLS}, {text}}}", why) for text, why in BAD_TLS.items()),
]


@pytest.mark.parametrize(("text", "why"), ALL_BAD)
def test_what_cannot_be_done_is_refused_with_its_place(folder: Path, text: str, why: str) -> None:
    (folder / "broken.crt").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(WebConfigError, match=why) as refused:
        WebFile(written(folder, text), pytest.fail)
    assert str(refused.value).startswith(str(folder / "web.yml"))


def test_the_command_line_says_so_and_starts_nothing(folder: Path) -> None:
    done = invoke("run", "--web.config.file", str(written(folder, "tls: {}")))
    assert done.exit_code == 2
    assert f"'--web.config.file': {folder}/web.yml:1: tls: is not known; " in done.stderr
    done = invoke("run", "--web.config.file", str(folder / "none.yml"))
    assert done.exit_code == 2
    assert "none.yml: cannot be read by user " in done.stderr


@pytest.fixture
def public(certificates: Path) -> Iterator[Path]:
    """The same where other users look: pytest's own folders are for one alone."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        for name in ("ca.crt", "server.crt", "server.key"):
            (folder / name).write_bytes((certificates / name).read_bytes())
        yield folder


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone becomes somebody else")
def test_it_must_be_readable_for_the_user_that_the_daemon_becomes(public: Path) -> None:
    path = written(public, TLS + "}")
    (public / "server.key").chmod(0o600)
    with started("run", "--listen", "127.0.0.1:0", "--web.config.file", str(path)) as process:
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert errors.decode() == (
        f"Error: {path}:1: tls_server_config.key_file: {public}/server.key cannot be read by user nobody: "
        "Permission denied; let that user read it, or run as one that may (--user)\n"
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


@pytest.mark.parametrize("text", ["{}", "basic_auth_users: {}", "http_server_config: {http2: true}"])
def test_a_file_that_asks_for_nothing_changes_nothing(folder: Path, text: str) -> None:
    with served(folder, text) as (made, _):
        assert get(made).status == 200
        assert made.url.startswith("http://")


def test_only_who_has_a_file_pays_for_reading_it() -> None:
    code = "import sys, vpmu_agent.daemon.run; sys.exit(bool({'bcrypt', 'yaml'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_the_example_of_the_readme_is_one(folder: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/web.md").read_text(), re.DOTALL)
    config = WebFile(written(folder, example), pytest.fail).current()
    assert config.tls
    assert config.users


# TLS


def test_tls(folder: Path) -> None:
    with served(folder, TLS + "}") as (made, _):
        assert made.url == f"https://{made.address}"
        answer = get(made, "/metrics", tls=client_tls(folder))
        assert answer.status == 200
        assert "vpmu_agent_build_info" in answer.text


def test_who_speaks_no_tls_is_told_so(folder: Path) -> None:
    with served(folder, TLS + "}") as (made, _):
        answer = get(made)
        assert (answer.status, answer.reason) == (400, "this port speaks TLS: ask for https://")
        with pytest.raises(ssl.SSLCertVerificationError):
            get(made, tls=ssl.create_default_context())
        assert get(made, tls=client_tls(folder)).status == 200


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
    with served(folder, TLS + text + "}") as (made, _):
        if accepted:
            assert get(made, tls=context).status == 200
        else:
            with pytest.raises(ssl.SSLError):
                get(made, tls=context)


def test_suites_their_order_and_curves(folder: Path) -> None:
    mine = ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"]
    theirs = "[TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]"
    context = client_tls(folder)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(":".join(mine))
    text = f"{TLS}, curve_preferences: [CurveP384], cipher_suites: {theirs}"
    for prefers_own, suite in ("true", mine[1]), ("false", mine[0]):
        with served(folder, f"{text}, prefer_server_cipher_suites: {prefers_own}}}") as (made, _):
            assert chosen(made, context) == suite
    context.set_ecdh_curve("prime256v1")
    with served(folder, text + "}") as (made, _), pytest.raises(ssl.SSLError):
        chosen(made, context)


def chosen(of: Server, context: ssl.SSLContext) -> str:
    """The cipher suite of a connection."""
    with (
        socket.create_connection((of.address.host, of.address.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=of.address.host) as connection,
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
    with served(folder, f"{TLS}, client_ca_file: ca.crt, client_auth_type: {text}}}") as (made, _):
        if accepted:
            assert get(made, tls=client_tls(folder, identity=identity)).status == 200
        else:
            with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
                get(made, tls=client_tls(folder, identity=identity))


@pytest.mark.parametrize("sent", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"])
def test_a_handshake_takes_its_time_and_nobody_elses(
    folder: Path, sent: bytes, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server, "REQUEST_S", 1.0)
    with served(folder, TLS + "}") as (made, _):
        with socket.create_connection((made.address.host, made.address.port), timeout=10) as slow:
            start = time.monotonic()
            slow.sendall(sent)
            assert get(made, tls=client_tls(folder)).status == 200
            assert time.monotonic() - start < 0.9
            assert slow.recv(100) == b""
            assert 0.9 < time.monotonic() - start < 5
        assert get(made, tls=client_tls(folder)).status == 200
    assert capfd.readouterr().err == ""


# Users


def test_everything_is_for_users_only(folder: Path) -> None:
    with served(folder, f"basic_auth_users: {{alice: {ALICE}, bob: {BOB}}}") as (made, _):
        for path in ("/", "/metrics", "/-/healthy", "/-/ready", "/nothing"):
            for user in ("", "alice:", "alice:other", "carol:secret", ":secret", "alice:secret\0"):
                answer = get(made, path, user=user)
                assert answer.status == 401
                assert answer.headers["WWW-Authenticate"].startswith("Basic realm=")
        assert get(made, method="POST").status == 401
        head = get(made, method="HEAD")
        assert (head.status, head.text) == (401, "")
        assert get(made, user="alice:secret").status == 200
        assert get(made, user="bob:other").status == 200
        assert get(made, "/nothing", user="bob:other").status == 404


def test_the_example_of_the_package(folder: Path) -> None:
    text = (ROOT / "debian" / "examples" / "web.yml").read_text().replace("/etc/vpmu-agent/tls", "server")
    with served(folder, text) as (made, _):
        tls = client_tls(folder)
        assert get(made, tls=tls, user="prometheus:change me").status == 200
        assert get(made, tls=tls).status == 401


@pytest.mark.parametrize(
    "value",
    ["Basic", "Basic !", "Basic YTpi=", "Basic /w==", "Bearer YWxpY2U6c2VjcmV0", "basic \xff", "x" * 999],
)
def test_an_authorization_that_is_none(value: str) -> None:
    assert not Users({"alice": ALICE.encode()}).admits(value)


class Bcrypt:
    """The real one, which counts how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def checkpw(self, password: bytes, hashed: bytes) -> bool:
        self.asked.append(hashed)
        return bcrypt.checkpw(password, hashed)


def test_bcrypt_is_asked_once_for_a_right_password_and_always_for_a_wrong_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = Bcrypt()
    monkeypatch.setattr(web_config, "bcrypt", counted)
    users = Users({"alice": ALICE.encode(), "bob": BOB.encode()})
    assert [users.admits(basic("alice:secret")) for _ in range(3)] == [True] * 3
    assert len(counted.asked) == 1
    for wrong in ("alice:other", "alice:other", "bob:secret", "carol:secret", "carol:secret"):
        assert not users.admits(basic(wrong))
    assert len(counted.asked) == 6
    assert users.admits(basic("alice:secret"))
    assert len(counted.asked) == 6


def test_a_stranger_costs_what_the_dearest_user_does(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Bcrypt()
    monkeypatch.setattr(web_config, "bcrypt", counted)
    dear = bcrypt.hashpw(b"secret", bcrypt.gensalt(5))
    users = Users({"alice": ALICE.encode(), "dear": dear, "bob": BOB.encode()})
    assert not users.admits(basic("carol:secret"))  # though that is the password of the hash
    assert counted.asked == [dear]


def test_of_a_password_bcrypt_sees_72_bytes() -> None:
    hashed = bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4))
    users = Users({"alice": hashed})
    assert users.admits(basic("alice:" + "x" * 90))
    assert not users.admits(basic("alice:" + "x" * 71))


def test_passwords_are_looked_at_one_by_one_and_nobody_waits_for_ever(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Bcrypt):
        def checkpw(self, password: bytes, hashed: bytes) -> bool:
            free.wait(10)
            return super().checkpw(password, hashed)

    free, slow = threading.Event(), Slow()
    monkeypatch.setattr(web_config, "PASSWORD_S", 0.3)
    with served(folder, f"basic_auth_users: {{alice: {ALICE}, bob: {BOB}}}") as (made, _):
        assert get(made, user="bob:other").status == 200
        monkeypatch.setattr(web_config, "bcrypt", slow)
        with ThreadPoolExecutor(4) as pool:
            wrong = [pool.submit(get, made, user=f"alice:{i}") for i in range(4)]
            time.sleep(0.1)
            assert get(made, user="bob:other").status == 200  # who is known need not wait
            time.sleep(0.6)
            free.set()
            assert sorted(each.result().status for each in wrong) == [401, 503, 503, 503]
    assert len(slow.asked) == 1


# What changes


def test_users_and_certificates_change_without_a_restart(folder: Path) -> None:
    with served(folder, f"{TLS}}}\nbasic_auth_users: {{alice: {ALICE}}}") as (made, said):
        context = client_tls(folder)
        first = peer(made, context)
        assert get(made, tls=context, user="alice:secret").status == 200
        written(folder, f"{TLS}}}\nbasic_auth_users: {{alice: {BOB}}}")
        assert get(made, tls=context, user="alice:secret").status == 401
        assert get(made, tls=context, user="alice:other").status == 200
        for kind in ("key", "crt"):
            (folder / f"next.{kind}").replace(folder / f"server.{kind}")
        assert peer(made, context) != first
        assert get(made, tls=context, user="alice:other").status == 200
    assert said == []


def peer(of: Server, context: ssl.SSLContext) -> bytes | None:
    """The certificate that the server shows."""
    with (
        socket.create_connection((of.address.host, of.address.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=of.address.host) as connection,
    ):
        return connection.getpeercert(binary_form=True)


def test_what_cannot_be_used_is_said_once_and_what_was_before_stays(folder: Path) -> None:
    with served(folder, f"{TLS}}}\nbasic_auth_users: {{alice: {ALICE}}}") as (made, said):
        context = client_tls(folder)
        key = (folder / "server.key").read_bytes()
        (folder / "server.key").write_bytes((folder / "next.key").read_bytes())
        for _ in range(3):
            assert get(made, tls=context, user="alice:secret").status == 200
            assert get(made, tls=context).status == 401
        assert [line.partition("server.key is not")[2] for line in said] == [
            f" the key of the certificate {folder}/server.crt; what was read before stays"
        ]
        # Mended, though not the file itself.
        (folder / "server.key").write_bytes(key)
        assert get(made, tls=context, user="alice:secret").status == 200
        for text in ("", f"{TLS}}}\nbasic_auth_users:\n"):  # somebody is writing it
            written(folder, text)
            assert get(made, tls=context).status == 401
        (folder / "web.yml").unlink()
        assert get(made, tls=context).status == 401
        assert [line.partition("web.yml:")[2].split(";")[0] for line in said[1:]] == [
            " is empty",
            "2: basic_auth_users: must have keys of its own, each on a line and further to the right",
            f" cannot be read by user {getpass.getuser()}: No such file or directory",
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


# Headers


def test_headers_of_the_file_are_on_every_answer(folder: Path) -> None:
    text = (
        'http_server_config: {http2: false, headers: {X-Frame-Options: sameorigin, X-XSS-Protection: "", '
        "Strict-Transport-Security: max-age=5}}\n"
        f"basic_auth_users: {{alice: {ALICE}}}"
    )
    with served(folder, text) as (made, _):
        for user, status in ("", 401), ("alice:secret", 200):
            answer = get(made, "/", user=user)
            assert answer.status == status
            assert answer.headers.get_all("X-Frame-Options") == ["sameorigin"]
            assert answer.headers["Strict-Transport-Security"] == "max-age=5"
            assert answer.headers["X-XSS-Protection"] is None


# With the client that operators have


def test_curl_is_refused_without_credentials(folder: Path) -> None:
    text = f"{TLS}}}\nbasic_auth_users: {{alice: {ALICE}}}"
    with served(folder, text) as (made, _):
        quiet = ["curl", "--silent", "--show-error", "--output", "answer", "--write-out", "%{http_code}"]
        for options, status in (
            ([], "401"),
            (["--user", "alice:wrong"], "401"),
            (["--user", "alice:secret"], "200"),
        ):
            command = [*quiet, "--cacert", "ca.crt", *options, f"{made.url}/metrics"]
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=20, check=False
            )
            assert (done.stdout, done.stderr, done.returncode) == (status, "", 0)
            assert ("vpmu_agent_build_info" in (folder / "answer").read_text()) == (status == "200")
