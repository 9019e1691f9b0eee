from __future__ import annotations

import gzip
import http.client
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from urllib.error import HTTPError

import pytest

from tests.support.counted import Maps, Processes
from tests.support.scenes import Guest
from vpmu_agent.counts.recent import Recent
from vpmu_agent.counts.watch import Watch
from vpmu_agent.web import metrics, server
from vpmu_agent.web.metrics import Exporter
from vpmu_agent.web.server import (
    Address,
    ListenError,
    Server,
    accepts_gzip,
    accepts_openmetrics,
    parse_address,
)
from vpmu_agent.web.state import Overview

WEB = 4242
LOOPBACK = Address("127.0.0.1", 0)


@pytest.fixture
def maps() -> Maps:
    return Maps(Guest("web01", WEB).life())


@pytest.fixture
def vms() -> Processes:
    return Processes(web01=WEB)


@pytest.fixture
def watch(maps: Maps, vms: Processes) -> Watch:
    return Watch(maps, vms)


@pytest.fixture
def running(watch: Watch) -> Iterator[Server]:
    with closing(Server(LOOPBACK)) as made:
        made.start(Exporter(watch), Overview(watch, Recent(), str))
        yield made


def start(made: Server, missing: str = "") -> None:
    watch = Watch(Maps(), Processes())
    made.start(Exporter(watch), Overview(watch, Recent(), lambda: missing))


@contextmanager
def served(address: Address, missing: str = "") -> Iterator[Server]:
    with closing(Server(address)) as made:
        start(made, missing)
        yield made


@contextmanager
def connected(to: Server) -> Iterator[socket.socket]:
    with socket.create_connection((to.address.host, to.address.port), timeout=10) as client:
        yield client


def answer(client: socket.socket) -> bytes:
    """All that comes until the server hangs up."""
    return b"".join(iter(lambda: client.recv(65536), b""))


def get(of: Server, path: str, *, method: str = "GET") -> tuple[int, str, str]:
    request = urllib.request.Request(f"http://{of.address}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9775", Address("127.0.0.1", 9775)),
        ("localhost:0", Address("localhost", 0)),
        ("[::1]:9775", Address("::1", 9775)),
        (":9775", Address("", 9775)),
        ("[::]:65535", Address("::", 65535)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    ["", "9775", "localhost", "host:", "host:http", "host:65536", "host:-1", "host:²", "::1:9775", "[::1]"],
)
def test_what_is_no_address_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not|has no port") as refused:
        parse_address(text)
    assert repr(text) in str(refused.value)


def test_metrics_are_served(running: Server) -> None:
    status, content_type, body = get(running, "/metrics")
    assert status == 200
    assert content_type.startswith("text/plain; version=")
    assert 'vpmu_calls_total{call="create",vm="web01"} 1\n' in body


def scrape(of: Server, **headers: str) -> tuple[http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection(of.address.host, of.address.port, timeout=10)
    with closing(connection):
        connection.request("GET", "/metrics", headers=headers)
        answer = connection.getresponse()
        return answer.headers, answer.read()


PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize("encoding", ["gzip", "identity", ""])
@pytest.mark.parametrize("accept", [PROMETHEUS, "text/plain", "*/*"])
def test_openmetrics_and_compression_are_negotiated(running: Server, accept: str, encoding: str) -> None:
    headers, body = scrape(running, **{"Accept": accept, "Accept-Encoding": encoding})
    if encoding == "gzip":
        assert headers["Content-Encoding"] == "gzip"
        body = gzip.decompress(body)
    else:
        assert headers["Content-Encoding"] is None
    content_type = {PROMETHEUS: metrics.OPENMETRICS}.get(accept, metrics.TEXT)
    assert headers["Content-Type"] == content_type
    assert body.endswith(b"# EOF\n") == (content_type == metrics.OPENMETRICS)
    assert b'vpmu_calls_total{call="create",vm="web01"} 1\n' in body


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (PROMETHEUS, True),
        ("application/openmetrics-text", True),
        ("text/plain, Application/OpenMetrics-Text; Version=1.0.0", True),
        ("application/openmetrics-text; version=0.0.1", False),
        ("application/openmetrics-text; version=2.0.0, text/plain", False),
        ("application/openmetrics", False),
        ("text/plain;version=1.0.0", False),
        ("*/*", False),
        (";;,,=", False),
        ("", False),
    ],
)
def test_openmetrics_is_for_those_who_ask_for_it(accept: str, expected: bool) -> None:
    assert accepts_openmetrics(accept) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [("gzip", True), ("deflate, GZIP;q=0.5", True), ("x-gzip2", False), ("identity", False), ("", False)],
)
def test_gzip_is_for_those_who_ask_for_it(header: str, expected: bool) -> None:
    assert accepts_gzip(header) == expected


def test_a_large_answer_comes_in_chunks_and_whole(running: Server, maps: Maps, vms: Processes) -> None:
    for tgid in range(1, 120):
        vms.names[tgid] = f"guest-{tgid}"
        maps.feed(Guest(vms.names[tgid], tgid).life())
    _, plain = scrape(running, Accept="application/openmetrics-text")
    _, compressed = scrape(running, **{"Accept": "application/openmetrics-text", "Accept-Encoding": "gzip"})
    assert len(plain) > 8 * metrics.CHUNK
    last = b"# TYPE vpmu_agent_scrape_duration_seconds gauge\n"  # what follows differs every time
    assert plain.partition(last)[0] == gzip.decompress(compressed).partition(last)[0]
    assert plain.endswith(b"# EOF\n")


def test_a_head_is_no_scrape(running: Server, watch: Watch, vms: Processes) -> None:
    assert get(running, "/metrics")[0] == 200
    vms.alive = set()
    watch.sweep()
    assert get(running, "/metrics", method="HEAD")[::2] == (200, "")
    watch.sweep()
    assert "web01" in get(running, "/metrics")[2]
    watch.sweep()
    assert "web01" not in get(running, "/metrics")[2]


def test_a_scrape_that_fails_is_said_to(
    running: Server, maps: Maps, capfd: pytest.CaptureFixture[str]
) -> None:
    maps.is_closed = True
    assert get(running, "/metrics")[0] == 500
    assert "AssertionError" in capfd.readouterr().err
    assert get(running, "/-/healthy")[0] == 200


def test_the_page_and_its_state(running: Server) -> None:
    status, content_type, body = get(running, "/")
    assert (status, content_type) == (200, "text/html; charset=utf-8")
    assert "web01" in body
    status, content_type, body = get(running, "/api/v1/state")
    assert (status, content_type) == (200, "application/json")
    assert json.loads(body)["vms"][0]["vm"] == "web01"
    assert body.endswith("}\n")


def test_no_answer_is_taken_for_something_else(running: Server) -> None:
    for path in ("/", "/metrics", "/api/v1/state", "/-/healthy", "/-/ready", "/nothing"):
        with connected(running) as client:
            client.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            head = answer(client).partition(b"\r\n\r\n")[0]
        assert b"\r\nX-Content-Type-Options: nosniff" in head
        assert (b"\r\nContent-Security-Policy: default-src 'none'; " in head) == (path == "/")


def test_the_other_pages(running: Server) -> None:
    assert get(running, "/-/healthy")[::2] == (200, "healthy\n")
    for path in ("/favicon.ico", "/metrics/", "/nothing", "/-/", "/api/v1"):
        assert get(running, path)[0] == 404


def test_only_reading_is_allowed(running: Server) -> None:
    assert get(running, "/metrics", method="HEAD")[::2] == (200, "")
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert get(running, "/metrics", method=method)[0] == 405


def test_ipv6_loopback() -> None:
    try:
        with served(Address("::1", 0)) as made:
            assert str(made.address).startswith("[::1]:")
            assert get(made, "/-/healthy")[0] == 200
    except ListenError as error:
        pytest.skip(f"no IPv6 here: {error}")


def test_no_host_is_every_address() -> None:
    with served(Address("", 0)) as made:
        port = made.address.port
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/healthy", timeout=10) as answer:
            assert answer.status == 200


def test_an_address_that_can_not_be_had_is_a_sentence(running: Server) -> None:
    with pytest.raises(ListenError, match=rf"^cannot listen on {running.address}: Address already in use$"):
        Server(running.address)
    with pytest.raises(
        ListenError, match=r"cannot listen on 192\.0\.2\.1:9775: Cannot assign requested address"
    ):
        Server(Address("192.0.2.1", 9775))
    with pytest.raises(
        ListenError, match=r"cannot listen on no\.such\.host\.invalid:1: .*(not known|failure)"
    ):
        Server(Address("no.such.host.invalid", 1))


@pytest.mark.parametrize("missing", ["", "KVM was unloaded"])
def test_ready_is_another_thing_than_healthy(missing: str) -> None:
    with served(LOOPBACK, missing) as made:
        assert get(made, "/-/healthy")[::2] == (200, "healthy\n")
        expected = (503, f"not ready: {missing}\n") if missing else (200, "ready\n")
        assert get(made, "/-/ready")[::2] == expected


@pytest.mark.parametrize("sent", [b"", b"G", b"GET /metrics HTTP/1.0\r\nA: b\r\n"])
def test_a_request_may_take_so_much_time_and_no_more_however_it_comes(
    running: Server, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(server, "REQUEST_S", 0.5)
    with connected(running) as slow:
        start = time.monotonic()
        slow.sendall(sent)
        slow.settimeout(0.05)
        while time.monotonic() - start < 5:
            try:
                assert slow.recv(100) == b""
            except TimeoutError:
                slow.sendall(b"x")  # none of its reads takes long
            else:
                break
        assert 0.4 < time.monotonic() - start < 3


def test_so_may_an_answer(
    running: Server,
    maps: Maps,
    vms: Processes,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(server, "ANSWER_S", 0.3)
    for tgid in range(1, 800):
        vms.names[tgid] = f"guest-{tgid}"
        maps.feed(Guest(vms.names[tgid], tgid).life())
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((running.address.host, running.address.port))
        slow.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        time.sleep(1.5)
        slow.settimeout(10)
        with suppress(ConnectionResetError):
            assert b"vpmu_agent_build_info" not in answer(slow)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /" + b"x" * 100_000,
        b"GET / HTTP/1.0\r\nCookie: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.0\r\n" + b"A: b\r\n" * 101 + b"\r\n",
        b"GET / HTTP/1.0\r\n" + b"A: b\r\n" * 50_000 + b"\r\n",
    ],
    ids=["line", "header", "headers", "many headers"],
)
def test_what_is_too_large_is_said_to_be(running: Server, request_line: bytes) -> None:
    with connected(running) as client:
        client.sendall(request_line)
        assert answer(client).startswith(b"HTTP/1.0 431 ")


def test_a_body_is_not_read_and_the_answer_comes_all_the_same(running: Server) -> None:
    with connected(running) as client:
        client.sendall(b"POST / HTTP/1.0\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000)
        assert answer(client).startswith(b"HTTP/1.0 405 ")


def test_a_client_that_does_not_hang_up_is_not_waited_for(
    running: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_LINGER_S", 0.2)
    with connected(running) as client:
        client.sendall(b"GET /-/healthy HTTP/1.0\r\n\r\n")
        assert answer(client).endswith(b"healthy\n")
        deadline = time.monotonic() + 5
        with suppress(ConnectionError):
            while time.monotonic() < deadline:
                client.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() < deadline


def test_too_many_clients_are_turned_away_and_the_others_served(running: Server) -> None:
    where = (running.address.host, running.address.port)
    idle = [socket.create_connection(where, timeout=10) for _ in range(server.MAX_CLIENTS)]
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with socket.create_connection(where, timeout=1) as one_more:
                try:
                    # Turned away may mean before the request was sent, or while it is.
                    one_more.sendall(b"GET /-/healthy HTTP/1.0\r\n\r\n")
                    if one_more.recv(100) == b"":
                        break
                except ConnectionError:
                    break
        else:
            pytest.fail("nobody was turned away")
    finally:
        for client in idle:
            client.close()
    assert _eventually_healthy(running)


def _eventually_healthy(of: Server) -> bool:
    for _ in range(100):
        try:
            return get(of, "/-/healthy")[0] == 200
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\r\n\r\n", b""),
        (b"GET\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/9\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/9.9\r\n\r\n", b"505"),
        (b"GET /metrics HTTP/1.\xb2\r\n\r\n", b"400"),
        (b"GET /-/healthy\r\n\r\n", b"200"),
        (b"GET http://[::1 HTTP/1.0\r\n\r\n", b"404"),
        (b"GET //%ff/%zz?%%&= HTTP/1.0\r\n\r\n", b"404"),
        (b"GET /-/healthy HTTP/1.1\r\n: \r\n\0\r\nA b\r\n  c\r\nContent-Length: x\r\n\r\n", b"200"),
        (b"<script> / HTTP/1.0\r\n\r\n", b"405"),
        (b"\x16\x03\x01\x00\xee\x01\x00\xff\r\n\r\n", b"400"),
        (b"a b <script>\r\n\r\n", b"400"),
    ],
)
def test_malformed_requests_do_no_harm(
    running: Server, sent: bytes, status: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    with connected(running) as client:
        client.sendall(sent)
        found = answer(client)
    assert found[:13] == (b"HTTP/1.0 " + status + b" " if status else b"")
    assert b"<script>" not in found.partition(b"\r\n\r\n")[2]
    assert get(running, "/-/healthy")[0] == 200
    assert capfd.readouterr().err == ""


def test_a_client_that_leaves_early_is_its_own_affair(
    running: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(5):
        client = socket.create_connection((running.address.host, running.address.port), timeout=10)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # close() resets
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        client.close()
    assert get(running, "/-/healthy")[0] == 200
    assert capfd.readouterr().err == ""


def test_closing_frees_the_port_and_ends_the_thread() -> None:
    made = Server(LOOPBACK)
    before = threading.active_count()
    start(made)
    address = made.address
    made.close()
    made.close()
    assert threading.active_count() == before
    with closing(Server(address)) as again:
        assert again.address == address
