"""Which hosts a request may be for."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.support.commands import daemon
from tests.support.counted import Maps, Processes
from tests.support.web import ALICE, LOOPBACK, TLS, client_tls, get, written
from vpmu_agent.counts.recent import Recent
from vpmu_agent.counts.watch import Watch
from vpmu_agent.web.address import Address
from vpmu_agent.web.app import application
from vpmu_agent.web.hosts import Hosts, parse_hosts
from vpmu_agent.web.metrics import Exporter
from vpmu_agent.web.server import Server
from vpmu_agent.web.state import Overview
from vpmu_agent.web.web_file import WebFile

EVIL = {"Host": "rebound.evil.example:9775"}
WITH_DATA = ("/", "/metrics", "/api/v1/state", "/api/v1/counters?vm=web01", "/nothing")


@contextmanager
def serving(
    listen: Address = LOOPBACK, allowed: str = "", security: WebFile | None = None
) -> Iterator[Server]:
    watch = Watch(Maps(), Processes())
    with closing(Server(listen, security)) as server:
        hosts = Hosts(listen, server.address, parse_hosts(allowed))
        server.start(hosts.guarded(application(Exporter(watch), Overview(watch, Recent(), str))))
        yield server


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", True),
        ("localhost", True),
        ("LOCALHOST:9775", True),
        ("localhost.:9775", True),
        ("app.localhost", True),
        ("127.0.0.1:9775", True),
        ("192.0.2.7", True),
        ("[::1]:9775", True),
        ("[2001:db8::1]", True),
        ("web01:9775", True),
        ("host.corp.internal", True),
        ("host.local", True),
        ("kvm1.dc.example", True),
        ("KVM1.DC.EXAMPLE:9775", True),
        ("a.scraped.example", True),
        ("b.a.scraped.example", True),
        ("scraped.example", False),
        ("evilscraped.example", False),
        ("evil.example", False),
        ("evil.example:9775", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("evil.example.", False),
        ("127.0.0.1,evil.example", False),
        ("evil.example:80:80", False),
        ("[evil.example]", False),
        ("0x7f.1", False),
        ("evil.example/localhost", False),
    ],
)
def test_known_hosts(header: str, *, expected: bool) -> None:
    hosts = Hosts(LOOPBACK, LOOPBACK, parse_hosts("KVM1.dc.example, *.scraped.example."))
    assert hosts.knows(header) == expected


def test_names_of_this_machine_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "kvm1.dc.example")
    monkeypatch.setattr(socket, "getfqdn", lambda: "kvm1.other.example")
    hosts = Hosts(Address("metrics.example", 9775), LOOPBACK, frozenset())
    hosts.learn_own_name()
    assert all(map(hosts.knows, ("kvm1.dc.example", "kvm1.other.example:9775", "metrics.example")))


@pytest.mark.parametrize(
    "text", ["a b", "http://a.example", "a.example:9775", "a..example", "*a.example", "[::1]"]
)
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a host name: write NAME, \*\.DOMAIN, or \* for any host"):
        parse_hosts(text)


def test_an_unknown_host_is_refused_where_there_are_data() -> None:
    with serving() as server:
        for path in WITH_DATA:
            answer = get(server, path, headers=EVIL)
            assert (answer.status, answer.reason) == (421, "Misdirected Request")
            assert answer.text == (
                "unknown host 'rebound.evil.example:9775': use this machine's address or name, or see "
                "--allow-hosts\n"
            )
            assert get(server, path, headers={"Host": "localhost"}).status != 421
        assert get(server, "/-/healthy", headers=EVIL).status == 200
        assert get(server, "/", method="HEAD", headers=EVIL).body == b""


def test_what_others_can_reach_is_scraped_by_any_name() -> None:
    with serving(Address("", 0)) as server:
        assert get(server, "/metrics", headers=EVIL).status == 200
        assert get(server, "/api/v1/state", headers=EVIL).status == 421


@pytest.mark.parametrize("allowed", ["*", "rebound.evil.example", "*.evil.example"])
def test_a_host_may_be_allowed(allowed: str) -> None:
    with serving(allowed=allowed) as server:
        assert get(server, "/api/v1/state", headers=EVIL).status == 200


def test_with_tls_or_passwords_the_host_does_not_matter(folder: Path) -> None:
    with serving(security=WebFile(written(folder, TLS + "}"), pytest.fail)) as server:
        assert get(server, "/", tls=client_tls(folder), headers=EVIL).status == 200
    users = f"basic_auth_users: {{alice: {ALICE}}}"
    with serving(security=WebFile(written(folder, users), pytest.fail)) as server:
        assert get(server, "/", user="alice:secret", headers=EVIL).status == 200
        assert get(server, "/", headers=EVIL).status == 401


def test_the_daemon_refuses_unknown_hosts() -> None:
    with daemon(["run", "--listen", "127.0.0.1:0", "--allow-hosts", "kvm1.example"]) as (_, address):
        port = int(address.rsplit(":", 1)[1])
        for host, status in (("evil.example", b"421"), ("kvm1.example", b"200"), (address, b"200")):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                client.sendall(f"GET /api/v1/state HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                assert client.recv(100).split()[1] == status
