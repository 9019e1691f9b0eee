from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.commands import invoke
from tests.support.counted import Maps, Processes
from tests.support.looks import WEB, look, pmc, starved, vcpu
from tests.support.scenes import Guest
from tests.support.states import Daemon, answering, state, vm
from tests.support.web import ALICE, serving, serving_file
from vpmu_agent.counts.counters import Counters
from vpmu_agent.counts.guests import Found
from vpmu_agent.counts.watch import Watch
from vpmu_agent.top.reading import Readings, counter_lines
from vpmu_agent.top.sources import DaemonSource, NoDaemonError, SourceError, checked_url


@pytest.fixture
def daemon() -> Daemon:
    return Daemon(state(vm("web01")))


@pytest.fixture
def source(daemon: Daemon) -> Iterator[DaemonSource]:
    with answering(daemon) as url:
        yield DaemonSource(url)


def test_a_real_daemon_is_read() -> None:
    watch = Watch(Maps(Guest("web01", WEB).life()), Processes(web01=WEB))
    found = Counters().take(look(vcpu(global_ctrl=0x3F), pmc(0), starved(1)))
    watch.show_guests(Found(counters={"web01": found[WEB]}))
    with serving(watch=watch) as server:
        source = DaemonSource(server.url)
        assert [vm.vm for vm in Readings().take(source.state()).vms] == ["web01"]
        counters = source.counters("web01")
        assert counters is not None
        assert [(each.pmc, each.status, each.cpu) for each in counter_lines(counters)] == [
            ("gp0", "counting", 3),
            ("gp1", "starved", 3),
        ]
        assert source.counters("no such VM & more") == []


def test_names_of_vms_are_quoted(source: DaemonSource, daemon: Daemon) -> None:
    name = "a&b=c/d e%20ü"
    daemon.counters = {name: [{"vcpu": 0}]}
    assert source.counters(name) == [{"vcpu": 0}]


def test_a_daemon_that_knows_no_counters(source: DaemonSource, daemon: Daemon) -> None:
    daemon.counters = None
    assert source.counters("web01") is None


def test_nobody_is_there() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as former:
        port = former.getsockname()[1]
    with pytest.raises(NoDaemonError, match=f"http://127.0.0.1:{port} cannot be reached: Connection refused"):
        DaemonSource(f"http://127.0.0.1:{port}").state()


def test_an_answer_that_is_no_state_is_an_error(source: DaemonSource, daemon: Daemon) -> None:
    daemon.body = b"<html>"
    with pytest.raises(SourceError, match="answered with something that is not JSON"):
        source.state()
    daemon.status = "500 Internal Server Error"
    with pytest.raises(SourceError, match=r"answered 500 Internal Server Error$"):
        source.state()


def test_a_password_comes_from_netrc(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    with serving_file(folder, f"basic_auth_users: {{alice: {ALICE}}}") as (server, _):
        with pytest.raises(SourceError, match="answered 401 Unauthorized; put the user and password into"):
            DaemonSource(server.url).state()
        netrc = folder / ".netrc"
        netrc.write_text("machine 127.0.0.1 login alice password secret\n")
        netrc.chmod(0o600)
        assert DaemonSource(server.url).state()["kind"] == "state"


def test_tls(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "tls_server_config: {cert_file: server.crt, key_file: server.key}"
    with serving_file(folder, text) as (server, _):
        port = server.address.port
        with pytest.raises(SourceError, match="answered 400 this port speaks TLS: use https://"):
            DaemonSource(f"http://127.0.0.1:{port}").state()
        with pytest.raises(SourceError, match="certificate verify failed"):
            DaemonSource(f"https://127.0.0.1:{port}").state()
        monkeypatch.setenv("SSL_CERT_FILE", str(folder / "ca.crt"))
        assert DaemonSource(f"https://127.0.0.1:{port}").state()["kind"] == "state"


def test_a_proxy_is_for_others(source: DaemonSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert DaemonSource(source.name).state()["kind"] == "state"


@pytest.mark.parametrize(
    "url", ["127.0.0.1:9775", "ftp://host", "http://", "http://[::1", "http://host:port"]
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ValueError, match="is not the URL of a daemon: write http://HOST:PORT"):
        checked_url(url)


def test_a_password_on_the_command_line_is_refused() -> None:
    """Everybody on the host can read it there."""
    done = invoke("top", "--once", "--url", "http://alice:secret@localhost")
    assert done.exit_code == 2
    assert "a password belongs in ~/.netrc" in done.stderr
    assert "secret" not in done.stderr


def test_a_url_that_can_be_used() -> None:
    assert checked_url("https://[::1]:9775/") == "https://[::1]:9775"
    assert checked_url("http://host/prefix") == "http://host/prefix"
