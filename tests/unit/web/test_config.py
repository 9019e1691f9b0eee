"""A file in the exporter-toolkit's format: what is refused in it, and how that is told."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.commands import invoke
from tests.support.growth import assert_linear
from tests.support.web import ALICE, TLS, documented, written
from vpmu_agent.web import config
from vpmu_agent.web.config import MAX_PEM_SIZE, check, read
from vpmu_agent.web.errors import WebConfigError

BAD_FILES = {
    "": r"web\.yml: is empty; to serve everybody, run without --web\.config\.file",
    "# nothing\n": r"web\.yml: is empty",
    "[": r"web\.yml:\d: is not YAML: ",
    "a: b\n--- \nc: d": r"web\.yml:2: is not YAML: ",
    "- a": r"web\.yml:1: must be a mapping",
    "\n\ntls: {}": r"web\.yml:3: tls: is not a known key; known are tls_server_config, http_server_config",
    "basic_auth_users: {}\nbasic_auth_users: {}": r"web\.yml:2: basic_auth_users: is set twice",
    "basic_auth_users:\n  bob: other": r"web\.yml:2: basic_auth_users\.bob: is not a bcrypt hash; make one",
    f"basic_auth_users: {{bob: {ALICE[:-1]}}}": r"bob: is not a bcrypt hash",
    f'basic_auth_users: {{"a:b": {ALICE}}}': r"a:b: is not a user name",
    f'basic_auth_users: {{"": {ALICE}}}': r"is not a user name",
    "rate_limit: {interval: 1s, burst: 1}": r"yml:1: rate_limit\.interval: is not supported: .* remove it",
    "rate_limit: {burst: some}": r"rate_limit\.burst: must be a whole number",
    "http_server_config: {http2: perhaps}": r"http_server_config\.http2: must be true or false",
    "http_server_config: {headers: {Server: x}}": r"headers\.Server: is not a known key; known are Cont",
    "http_server_config: {headers: {X-Frame-Options: never}}": r"Options: must be deny or sameorigin",
    'http_server_config: {headers: {X-XSS-Protection: "0\\r\\nA: b"}}': r"must be printable ASCII",
    "tls_server_config: on": r"web\.yml:1: tls_server_config: must be a mapping",
    "~": r"web\.yml: is empty",
    "tls_server_config: {key_file: x}": r"tls_server_config: needs cert_file",
    "tls_server_config: {cert_file: x}": r"tls_server_config: needs key_file",
    "tls_server_config: {cert: x}": r"cert: is not supported: Python's ssl reads it from a file; name one in",
    "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n  min_version: TLS11": (
        r"web\.yml:4: tls_server_config\.min_version: TLS11 is not supported: RFC 8996 .* TLS12"
    ),
}
BAD_PAIRS = {
    ("none", "server.key"): r"cert_file: \S+none cannot be read by user \w+: No such file",
    ("server.crt", ""): r"tls_server_config: needs key_file",
    ("server.crt", "5"): r"key_file: \S+/5 cannot be read by user \w+: No such file",
    ("server.crt", "[server.key]"): r"key_file: must be a string",
    ("server.key", "server.key"): r"cert_file: \S+ contains no certificate in PEM",
    ("server.crt", "server.crt"): r"key_file: \S+ contains no private key in PEM",
    ("server.crt", "next.key"): r"next\.key is not the key of the certificate",
    ("server.crt", "locked.key"): r"locked\.key is protected by a passphrase",
    ("broken.crt", "server.key"): r"cannot be used: ",
}
VERIFIED = "client_auth_type: RequireAndVerifyClientCert"
BAD_TLS = {
    "min_version: SSL30": r"min_version: 'SSL30' is not a known value; known are TLS12, TLS13",
    "max_version: TLS10": r"max_version: TLS10 is not supported",
    "min_version: TLS13, max_version: TLS12": r"max_version: is lower than min_version",
    "cipher_suites: TLS_AES_128_GCM_SHA256": r"cipher_suites: must be a list",
    "cipher_suites: [RC4]": r"cipher_suites: 'RC4' is not a known value; known are TLS_ECDHE_ECDSA_WITH",
    "cipher_suites: [TLS_AES_128_GCM_SHA256]": r"cipher_suites: has only suites of TLS 1.3",
    "prefer_server_cipher_suites: 1": r"prefer_server_cipher_suites: must be true or false",
    "curve_preferences: [X25519, CurveP256]": r"curve_preferences: Python's ssl supports only one curve",
    "curve_preferences: [X25519MLKEM768]": r"curve_preferences: X25519MLKEM768 is not supported",
    "curve_preferences: [P-256]": r"curve_preferences: 'P-256' is not a known value; known are CurveP256",
    "client_auth_type: RequestClientCert": r"RequestClientCert is not supported: .*RequireAndVerify",
    "client_auth_type: RequireAnyClientCert": r"RequireAnyClientCert is not supported",
    "client_auth_type: [NoClientCert]": r"client_auth_type: must be a string",
    VERIFIED: r"client_auth_type: needs client_ca_file",
    "client_ca_file: ca.crt": r"client_ca_file: has no effect without client_auth_type",
    f"client_ca_file: none.crt, {VERIFIED}": r"none\.crt cannot be read",
    f"client_ca_file: ca.key, {VERIFIED}": r"ca\.key contains no usable certificate",
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
        check(written(folder, text))
    assert str(refused.value).startswith(str(folder / "web.yml"))


GROWING: dict[str, Callable[[int], str]] = {
    "users": lambda n: "basic_auth_users:\n" + "".join(f"  user{i}: {ALICE}\n" for i in range(n // 70)),
    "unknown keys": lambda n: "".join(f"k{i}: v\n" for i in range(n // 8)),
    "a list": lambda n: "http_server_config: [" + n // 2 * "a," + "]",
    "lists in lists": lambda n: n * "[",
    "mappings in mappings": lambda n: n // 4 * "{a: ",
    "blocks in blocks": lambda n: n // 2 * "- ",
    "a text of many lines": lambda n: "http_server_config: |\n" + n // 3 * " b\n",
    "comments": lambda n: n // 2 * "#\n",
    "merges": lambda n: "http_server_config: &a {<<: [" + n // 3 * "*a," + "]}",
    "merges of merges": lambda n: (
        "basic_auth_users:\n  a0: &a0 {x: x}\n"
        + "".join(f"  a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, n // 40))
        + f"  <<: *a{n // 40 - 1}\n"
    ),
}


@pytest.mark.parametrize("growing", GROWING)
def test_the_time_grows_as_the_length_does(folder: Path, growing: str) -> None:
    def prepare(size: int) -> Callable[[], None]:
        made = folder / str(size)
        made.mkdir()
        path = written(made, GROWING[growing](size))

        def read_it() -> None:
            with suppress(WebConfigError):
                read(path, {})

        return read_it

    assert_linear(prepare, 10_000, limit_s=0.5)


def test_certificates_and_keys_have_a_size(folder: Path) -> None:
    path = written(folder, f"{TLS}, client_ca_file: ca.crt, {VERIFIED}}}")
    for name in "server.crt", "server.key", "ca.crt":
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(b"\n" * (MAX_PEM_SIZE - len(data)) + data)
        check(path)
        (folder / name).write_bytes(b"\n" * (MAX_PEM_SIZE - len(data) + 1) + data)
        with pytest.raises(WebConfigError, match=rf"{name} cannot be read by user \w+: longer than 1024 KiB"):
            check(path)
        (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (20 * "[", r"web\.yml:1: is not YAML: nested deeper than 10 collections"),
        ("x" * 70_000, r"web\.yml: cannot be read by user \w+: longer than 64 KiB"),
        ('"\\e[2J": x', r"web\.yml:1: '\\x1b\[2J': is not a known key"),
        (r"tls_server_config: {cert_file: 'a b', key_file: x}", r"/a b cannot be read by user"),
        (r'tls_server_config: {cert_file: "a\0b", key_file: x}', r"must be the path of a file: printable"),
        ("http_server_config: {http2: !!bool x}", r"http2: must be true or false"),
        ("tls_server_config: {cert_file: !!int x, key_file: x}", r"cert_file: has a tag that does not fit"),
        ("http_server_config: !!set {headers}", r"http_server_config: must be a mapping"),
        (f"{TLS}, cipher_suites: !!omap [a: b]}}", r"cipher_suites: must be a list"),
        (
            f"{TLS}, client_allowed_sans: [], client_ca_file: ca.crt, {VERIFIED}}}",
            r"sans: must not be an empty",
        ),
        ("? [a]\n: b", r"web\.yml:1: has a key that is not a string"),
        ("\x00", r"web\.yml: is not YAML: special characters are not allowed"),
    ],
)
def test_what_nobody_means_has_its_own_sentence(folder: Path, text: str, why: str) -> None:
    with pytest.raises(WebConfigError, match=why):
        check(written(folder, text))


def test_what_nobody_thought_of_is_an_error_of_the_file_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "_headers", lambda _section: 1 // 0)
    with pytest.raises(WebConfigError, match=r"web\.yml: cannot be used: ZeroDivisionError: .* report"):
        check(written(folder, "http_server_config: {headers: {}}"))


def test_the_command_line_says_so_and_starts_nothing(folder: Path) -> None:
    done = invoke("run", "--web.config.file", str(written(folder, "tls: {}")))
    assert done.exit_code == 2
    assert f"'--web.config.file': {folder}/web.yml:1: tls: is not a known key; " in done.stderr
    done = invoke("run", "--web.config.file", str(folder / "none.yml"))
    assert done.exit_code == 2
    assert "none.yml: cannot be read by user " in done.stderr


def test_the_documented_example_is_one(folder: Path) -> None:
    found = read(written(folder, documented()), {})
    assert found.tls
    assert found.users
