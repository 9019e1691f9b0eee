"""Sockets, threads and limits: a client can be slow, large, malformed or one of too many."""

from __future__ import annotations

import resource
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tests.support.counted import Maps, Processes
from tests.support.scenes import Guest
from tests.support.web import LOOPBACK, get, serving
from vpmu_agent.web import server
from vpmu_agent.web.address import Address, ListenError
from vpmu_agent.web.server import Server

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


@contextmanager
def connected(to: Server) -> Iterator[socket.socket]:
    with socket.create_connection((to.address.host, to.address.port), timeout=10) as client:
        yield client


def answer(client: socket.socket) -> bytes:
    """All that comes until the server hangs up."""
    return b"".join(iter(lambda: client.recv(65536), b""))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ipv6_loopback() -> None:
    try:
        with serving(Address("::1", 0)) as ours:
            assert str(ours.address).startswith("[::1]:")
            assert get(ours).status == 200
    except ListenError as error:
        pytest.skip(f"no IPv6 here: {error}")


def test_no_host_is_every_address() -> None:
    with serving(Address("", 0)) as ours:
        port = ours.address.port
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


def test_of_too_many_clients_the_oldest_has_to_go(running: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CLIENTS", 8)
    with ExitStack() as stack:
        idle = [stack.enter_context(connected(running)) for _ in range(20)]
        assert get(running).status == 200
        assert [client.recv(1) for client in idle[:12]] == [b""] * 12
        with connected(running) as fresh:
            fresh.sendall(b"GET /-/healthy HTTP/1.0\r\n\r\n")
            assert answer(fresh).endswith(b"healthy\n")


def test_of_too_many_bytes_unsent_the_oldest_answer_is_cut(
    running: Server, maps: Maps, vms: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_UNSENT", 100_000)
    for tgid in range(1, 100):
        vms.names[tgid] = f"guest-{tgid}"
        maps.feed(Guest(vms.names[tgid], tgid).life())
    with ExitStack() as stack:
        for _ in range(3):
            slow = stack.enter_context(socket.socket())
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect((running.address.host, running.address.port))
            slow.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        gzip = {"Accept-Encoding": "gzip"}
        assert all(get(running, "/metrics", headers=gzip).status == 200 for _ in range(3))


# Seen to work


def test_a_server_that_answers_itself_is_in_no_trouble(
    running: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SILENT_S", 2.5)
    time.sleep(3)
    assert running.trouble == ""


def test_a_server_whose_threads_hang_is_in_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SILENT_S", 1.0)
    free = threading.Event()

    def hang(_environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        free.wait(20)
        start_response("200 OK", [])
        return [b""]

    with closing(Server(LOOPBACK)) as ours:
        assert ours.trouble == "the HTTP server was not started"
        ours.start(hang)
        wait_for(lambda: ours.trouble.startswith("the HTTP server has not answered itself for "))
        free.set()
        wait_for(lambda: ours.trouble == "")


def test_a_server_that_can_accept_nobody_is_in_trouble(
    running: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SILENT_S", 1.0)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as client:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        try:
            client.connect((running.address.host, running.address.port))
            refusal = "the HTTP server cannot accept connections: Too many open files"
            wait_for(lambda: running.trouble == refusal)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        client.sendall(b"GET /-/healthy HTTP/1.0\r\n\r\n")
        assert answer(client).endswith(b"healthy\n")
        wait_for(lambda: running.trouble == "")


def test_a_server_that_may_not_start_a_thread_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with closing(Server(LOOPBACK)) as ours:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(ListenError, match="can't start new thread; allow more threads"):
            ours.start(lambda _environ, _start_response: [])


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
    assert get(running).status == 200
    assert capfd.readouterr().err == ""


def test_a_client_that_leaves_early_is_its_own_affair(
    running: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(5):
        client = socket.create_connection((running.address.host, running.address.port), timeout=10)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # close() resets
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        client.close()
    assert get(running).status == 200
    assert capfd.readouterr().err == ""


def test_closing_frees_the_port_and_ends_the_thread() -> None:
    before = threading.active_count()
    with serving() as ours:
        address = ours.address
        assert threading.active_count() == before + 1 + server.ANSWERS
        ours.close()
        ours.close()
    assert threading.active_count() == before
    with closing(Server(address)) as again:
        assert again.address == address
