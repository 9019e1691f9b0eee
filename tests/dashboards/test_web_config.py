"""Prometheus's own tool takes the files that we take, and Prometheus scrapes with TLS and a password."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.dashboards.prometheus import running
from tests.support import pki
from tests.support.hosts import Host
from tests.support.web import ALICE, documented, serving, written
from vpmu_agent.web.web_file import WebFile

EVERYTHING = f"""
tls_server_config:
  cert_file: server.crt
  key_file: server.key
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: ca.crt
  min_version: TLS12
  max_version: TLS13
  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256]
  prefer_server_cipher_suites: true
  curve_preferences: [CurveP256]
http_server_config:
  http2: true
  headers:
    Content-Security-Policy: default-src 'none'
    X-Frame-Options: deny
    X-Content-Type-Options: nosniff
    X-XSS-Protection: "0"
    Strict-Transport-Security: max-age=63072000
basic_auth_users:
  alice: {ALICE}
"""

CLIENT = {"ca_file": "ca.crt", "cert_file": "client.crt", "key_file": "client.key"}


@pytest.mark.parametrize("text", [documented(), EVERYTHING], ids=["docs/web.md", "everything"])
def test_promtool_takes_the_same_file(tmp_path: Path, text: str) -> None:
    pki.make(tmp_path)
    path = written(tmp_path, text)
    WebFile(path, pytest.fail)
    command = ["promtool", "check", "web-config", str(path)]
    # It looks for the files that are named where it runs.
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_prometheus_scrapes_with_tls_and_a_password(tmp_path: Path) -> None:
    pki.make(tmp_path)
    host = Host()
    client = {name: str(tmp_path / file) for name, file in CLIENT.items()}
    how = {"scheme": "https", "tls_config": client, "basic_auth": {"username": "alice", "password": "secret"}}
    web = WebFile(written(tmp_path, EVERYTHING), pytest.fail)
    with (
        serving(security=web, watch=host.watch) as server,
        running(tmp_path, {"kvm1": str(server.address)}, **how) as prometheus,
    ):
        end = time.monotonic() + 20
        while not (found := prometheus.query("up == 1", time.time())).numbers:
            assert time.monotonic() < end, prometheus.query("up", time.time())
            time.sleep(0.2)
        assert found.numbers == [1]
        assert prometheus.query("vpmu_agent_build_info", time.time()).numbers == [1]
