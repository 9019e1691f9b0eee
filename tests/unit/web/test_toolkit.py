"""The exporter-toolkit's own test files: files of the same meaning, taken as there or for a reason not.

Their names are those in its folder web/testdata. Where ours has another outcome, docs/web.md says why.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path

import pytest

from tests.support.places import ROOT
from tests.support.web import ALICE, BOB, TLS, client_tls, get, serving_file, written
from vpmu_agent.web.config import read
from vpmu_agent.web.errors import WebConfigError

OPTIONAL = f"{TLS}, client_auth_type: VerifyClientCertIfGiven"
REQUIRED = f"{TLS}, client_auth_type: RequireAndVerifyClientCert"
ANY = "client_auth_type: RequireAnyClientCert"
OLD_SUITES = [
    f"TLS_ECDHE_{key}_WITH_{rest}"
    for key in ("ECDSA", "RSA")
    for rest in (
        "AES_128_GCM_SHA256",
        "AES_256_GCM_SHA384",
        "CHACHA20_POLY1305_SHA256",
        "AES_128_CBC_SHA",
        "AES_256_CBC_SHA",
    )
]
NEW_SUITES = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"]
RSA = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"


def listed(names: list[str] | tuple[str, ...]) -> str:
    return f"[{', '.join(names)}]"


# A file of the same meaning as theirs, for those that load there. INLINE_… stands for a certificate or a key.
GOOD = {
    "tls_config_noAuth.requireandverifyclientcert.good.yml": f"{REQUIRED}, client_ca_file: ca.crt}}",
    "tls_config_noAuth.requireanyclientcert.good.yml": f"{TLS}, {ANY}, client_ca_file: ca.crt}}",
    "tls_config_noAuth.requireanyclientcertkeyinline.good.yml": (
        f"tls_server_config: {{cert_file: server.crt, key: INLINE_KEY, {ANY}}}"
    ),
    "web_config_auth_client_san.bad.yaml": (
        f"{REQUIRED}, client_ca_file: client.crt, client_allowed_sans: [one.example]}}"
    ),
    "web_config_auth_client_san.good.yaml": (
        f"{REQUIRED}, client_ca_file: client.crt, client_allowed_sans: [one.example, prometheus.example]}}"
    ),
    "web_config_empty.yml": "",
    "web_config_headers.good.yml": (
        "http_server_config: {headers: {X-Frame-Options: deny, X-Content-Type-Options: nosniff, "
        "X-XSS-Protection: 1, Strict-Transport-Security: max-age=600; includeSubDomains, "
        "Content-Security-Policy: \"default-src 'self' *.example.org\"}}"
    ),
    "web_config_noAuth.good.blocking.yml": f"{REQUIRED}}}",
    "web_config_noAuth.good.yml": f"{OPTIONAL}}}",
    "web_config_noAuth_allCiphers.good.yml": (
        f"{OPTIONAL}, cipher_suites: {listed(OLD_SUITES + NEW_SUITES)}}}"
    ),
    "web_config_noAuth_allCurves.good.yml": (
        f"{OPTIONAL}, curve_preferences: [CurveP256, CurveP384, CurveP521, X25519, X25519MLKEM768]}}"
    ),
    "web_config_noAuth_noHTTP2.good.yml": (
        f"{OPTIONAL}, cipher_suites: {listed(RSA[1:])}, max_version: TLS12}}\n"
        "http_server_config: {http2: false}"
    ),
    "web_config_noAuth_someCiphers.good.yml": (
        f"{OPTIONAL}, cipher_suites: {listed(RSA)}, min_version: TLS12, max_version: TLS12}}"
    ),
    "web_config_noAuth_someCiphers_noOrder.good.yml": (
        f"{OPTIONAL}, cipher_suites: {listed(RSA[::-1])}, prefer_server_cipher_suites: false, "
        "min_version: TLS12, max_version: TLS12}"
    ),
    "web_config_noAuth_someCurves.good.yml": (
        f"{OPTIONAL}, min_version: TLS13, curve_preferences: [CurveP521]}}"
    ),
    "web_config_noAuth_tlsInline.good.yml": (
        "tls_server_config: {cert: INLINE_CERT, key: INLINE_KEY, client_auth_type: VerifyClientCertIfGiven}"
    ),
    "web_config_rate_limiter_headers.yaml": (
        "rate_limit: {interval: 1h, burst: 1}\nhttp_server_config: {headers: {X-Frame-Options: deny}}"
    ),
    "web_config_rate_limiter_nonblocking.yaml": "rate_limit: {interval: 0, burst: 0}",
    "web_config_rate_limiter_one_second.yaml": 'rate_limit: {interval: "1s", burst: 0}',
    "web_config_users.good.yml": f"{TLS}}}\nbasic_auth_users: {{alice: {ALICE}, bob: {BOB}}}",
    "web_config_users_noTLS.good.yml": f"basic_auth_users:\n  alice: {ALICE}\n  bob: {BOB}\n",
}
# And for those that are refused there.
BAD = {
    "web_config_auth_clientCAsText_nocerts.bad.yml": f"{REQUIRED}, client_ca: nothing of that kind}}",
    "web_config_auth_clientCAs_invalid.bad.yml": f"{TLS}, client_ca_file: nowhere}}",
    "web_config_auth_clientCAs_nocerts.bad.yml": f"{REQUIRED}, client_ca_file: server.key}}",
    "web_config_auth_client_san_no_client_auth.bad.yaml": f"{TLS}, client_allowed_sans: [one.example]}}",
    "web_config_auth_client_san_optional_cert.bad.yaml": (
        f"{OPTIONAL}, client_ca_file: ca.crt, client_allowed_sans: [one.example]}}"
    ),
    "web_config_auth_user_list_invalid.bad.yml": f"{TLS}}}\nbasic_auth_users: {{carol: secret}}",
    "web_config_headers_content_type_options.bad.yml": (
        "http_server_config: {headers: {X-Content-Type-Options: any}}"
    ),
    "web_config_headers_extra_header.bad.yml": "http_server_config: {headers: {Content-Type: any}}",
    "web_config_headers_frame_options.bad.yml": "http_server_config: {headers: {X-Frame-Options: any}}",
    "web_config_junk.yml": "nothing but words",
    "web_config_junk_key.yml": "tls_server_config: {cert_fille: server.crt}",
    "web_config_noAuth.bad.yml": f"{TLS}, client_ca_file: /dev/null}}",
    "web_config_noAuth_certPath_empty.bad.yml": 'tls_server_config: {cert_file: "", key_file: server.key}',
    "web_config_noAuth_certPath_invalid.bad.yml": (
        "tls_server_config: {cert_file: nowhere, key_file: server.key}"
    ),
    "web_config_noAuth_certPath_keyPath_empty.bad.yml": (
        'tls_server_config: {cert_file: "", key_file: "", client_auth_type: other}'
    ),
    "web_config_noAuth_certPath_keyPath_invalid.bad.yml": (
        "tls_server_config: {cert_file: nowhere, key_file: nowhere}"
    ),
    "web_config_noAuth_cert_empty.bad.yml": 'tls_server_config: {cert: "", key_file: server.key}',
    "web_config_noAuth_inventedCiphers.bad.yml": (
        f"{OPTIONAL}, cipher_suites: [TLS_ECDHE_RSA_WITH_AES_512_GCM_SHA512]}}"
    ),
    "web_config_noAuth_inventedCurves.bad.yml": f"{OPTIONAL}, curve_preferences: [CurveP100]}}",
    "web_config_noAuth_keyPath_empty.bad.yml": 'tls_server_config: {cert_file: server.crt, key_file: ""}',
    "web_config_noAuth_keyPath_invalid.bad.yml": (
        "tls_server_config: {cert_file: server.crt, key_file: nowhere}"
    ),
    "web_config_noAuth_key_empty.bad.yml": 'tls_server_config: {cert_file: server.crt, key: ""}',
    "web_config_noAuth_noHTTP2Cipher.bad.yml": (
        f"{OPTIONAL}, cipher_suites: {listed(RSA[1:])}, max_version: TLS12}}"
    ),
    "web_config_noAuth_wrongTLSVersion.bad.yml": f"{OPTIONAL}, min_version: TLS99}}",
}
LOADS, REFUSED = "loads", "refused"
ROWS = re.compile(r"^\| `(\S+)` \| (loads|refused) \| (loads|refused) \| \S.* \|$", re.MULTILINE)
DIFFERENT = {name: (there, here) for name, there, here in ROWS.findall((ROOT / "docs/web.md").read_text())}


def outcome(folder: Path, text: str) -> str:
    for key, file in ("INLINE_CERT", "server.crt"), ("INLINE_KEY", "server.key"):
        text = text.replace(key, f'"{(folder / file).read_text()}"'.replace("\n", "\\n"))
    try:
        read(written(folder, text), {})
    except WebConfigError:
        return REFUSED
    return LOADS


@pytest.mark.parametrize("name", [*GOOD, *BAD])
def test_each_of_their_files_is_taken_as_there_or_the_documentation_says_otherwise(
    folder: Path, name: str
) -> None:
    there = LOADS if name in GOOD else REFUSED
    here = outcome(folder, GOOD.get(name) or BAD.get(name, ""))
    assert DIFFERENT.get(name, (there, there)) == (there, here)


def test_the_documentation_has_only_files_that_are_taken_otherwise() -> None:
    assert DIFFERENT
    assert {name for name, (there, here) in DIFFERENT.items() if there == here} == set()
    assert DIFFERENT.keys() <= {*GOOD, *BAD}
    text = (ROOT / "docs" / "web.md").read_text()
    assert f"Of its {len(GOOD) + len(BAD)} test files, {len(DIFFERENT)} are taken otherwise" in text


# What is documented there, and in none of these files


@pytest.mark.parametrize(
    "text",
    [
        f"{TLS}, cipher_suites: [], curve_preferences: [], client_auth_type: '', client_ca_file: ''}}",
        f"{TLS}, min_version: , max_version: ~, cipher_suites: null, client_allowed_sans: }}",
        "tls_server_config:\nhttp_server_config:\nbasic_auth_users:\nrate_limit:",
        "tls_server_config: {}\nhttp_server_config: {headers: }\nbasic_auth_users: {}\nrate_limit: {}",
        "rate_limit: {interval: 0s, burst: 5}",
        "rate_limit: {burst: 5}",
        "http_server_config: {http2: off, headers: {X-Frame-Options: '', X-XSS-Protection: }}",
        "http_server_config: {http2: y}",
        f"{TLS}, min_version: TLS13, cipher_suites: [TLS_AES_128_GCM_SHA256]}}",
        "tls_server_config: {cert_file: server.crt, cert: other, key_file: server.key}",
        f"{TLS}, client_auth_type: !!str NoClientCert}}",
    ],
)
def test_what_is_documented_as_empty_or_off_loads(folder: Path, text: str) -> None:
    assert outcome(folder, text) == LOADS


@pytest.mark.parametrize("name", ["DENY", "SAMEORIGIN", "Deny", "allowall"])
def test_values_of_headers_are_taken_as_they_are_written(folder: Path, name: str) -> None:
    assert outcome(folder, f"http_server_config: {{headers: {{X-Frame-Options: {name}}}}}") == REFUSED


def test_unquoted_values_of_headers(folder: Path) -> None:
    text = "http_server_config: {headers: {X-XSS-Protection: 1, Strict-Transport-Security: 0x10}}"
    with serving_file(folder, text) as (server, _):
        headers = get(server).headers
        assert (headers["X-XSS-Protection"], headers["Strict-Transport-Security"]) == ("1", "0x10")


def test_merged_mappings(folder: Path) -> None:
    text = (
        "http_server_config:\n"
        "  headers:\n"
        "    <<: [{X-XSS-Protection: 2, X-Frame-Options: deny}, {X-XSS-Protection: 3}]\n"
        "    X-Frame-Options: sameorigin\n"
        f"basic_auth_users: {{<<: &more {{alice: {ALICE}}}, bob: {BOB}, <<: *more}}\n"
    )
    config = read(written(folder, text), {})
    assert config.headers == {"X-XSS-Protection": "2", "X-Frame-Options": "sameorigin"}
    with serving_file(folder, text) as (server, _):
        for user in "alice:secret", "bob:other":
            assert get(server, user=user).status == 200


@pytest.mark.parametrize(
    "text",
    [
        "http_server_config: &h {<<: *h}",  # merges itself: nothing new
        f"basic_auth_users: &u {{alice: {ALICE}, <<: [*u, *u]}}",
    ],
)
def test_a_mapping_that_merges_itself_has_an_end(folder: Path, text: str) -> None:
    assert outcome(folder, text) == LOADS


def test_what_cannot_be_merged_is_refused(folder: Path) -> None:
    for text in "http_server_config: {<<: words}", "http_server_config: {<<: [[]]}":
        with pytest.raises(WebConfigError, match=r"web\.yml:1: http_server_config: must be a mapping"):
            read(written(folder, text), {})


def test_without_authorities_a_certificate_is_optional_and_checked_against_those_of_the_host(
    folder: Path,
) -> None:
    with serving_file(folder, f"{OPTIONAL}}}") as (server, _):
        assert get(server, tls=client_tls(folder)).status == 200
        with pytest.raises((ssl.SSLError, ConnectionError)):
            get(server, tls=client_tls(folder, identity="client"))


def test_authorities_in_the_file_itself(folder: Path) -> None:
    lines = (folder / "ca.crt").read_text().splitlines()
    text = (
        "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n"
        "  client_auth_type: RequireAndVerifyClientCert\n"
    )
    text += "\n    ".join(["  client_ca: |", "# Autorité", *lines]) + "\n"
    with serving_file(folder, text) as (server, _):
        assert get(server, tls=client_tls(folder, identity="client")).status == 200
        with pytest.raises((ssl.SSLError, ConnectionError)):
            get(server, tls=client_tls(folder, identity="stranger"))


def test_suites_of_tls_1_3_beside_others_change_nothing(folder: Path) -> None:
    with serving_file(folder, f"{TLS}, cipher_suites: {listed([*NEW_SUITES[:1], *OLD_SUITES[:1]])}}}") as (
        server,
        _,
    ):
        for version in ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3:
            context = client_tls(folder)
            context.minimum_version = context.maximum_version = version
            assert get(server, tls=context).status == 200
