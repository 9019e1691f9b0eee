"""Clients that are idle, slow, many, or strangers, while another one scrapes."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import count, cycle, product
from pathlib import Path

import bcrypt
import psutil
import pytest

from tests.faults.conftest import Attack
from tests.support.commands import daemon, daemon_of, read_until, started
from tests.support.counted import Maps, Processes
from tests.support.places import ROOT
from tests.support.scenes import Guest
from tests.support.web import LOOPBACK, basic, serving
from vpmu_agent.counts.watch import Watch

SCRAPE_S = 10.0
"""How long Prometheus waits for a scrape."""


def scrape(address: str, user: str = "") -> None:
    """Scrape once, as Prometheus does: within its time or not at all."""
    headers = {"Accept-Encoding": "gzip"} | ({"Authorization": basic(user)} if user else {})
    request = urllib.request.Request(f"http://{address}/metrics", headers=headers)
    with urllib.request.urlopen(request, timeout=SCRAPE_S) as answer:
        assert answer.status == 200
        assert answer.read()


def scrapes(attack: Attack, address: str, times: int, *, user: str = "") -> None:
    """Scrape again and again, and count it."""
    for _ in range(times):
        with attack.once():
            scrape(address, user)
        time.sleep(0.05)


@contextmanager
def meanwhile(clients: int, attack: Callable[[], None]) -> Iterator[None]:
    """Have so many threads make an attack again and again."""
    over = threading.Event()

    def go_on() -> None:
        while not over.is_set():
            with suppress(OSError):
                attack()

    threads = [threading.Thread(target=go_on, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(20)


def connected(address: str) -> socket.socket:
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=5)


@pytest.fixture
def ours() -> Iterator[str]:
    """The address of a daemon on a host whose probes are scripted."""
    with daemon(["run", "--listen", "127.0.0.1:0"]) as (_, address):
        yield address


@pytest.fixture
def many_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[1], 8192), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_idle_clients(attack: Attack, ours: str) -> None:
    """18 clients connect and never finish their request"""
    beginnings = cycle((b"", b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n"))

    def idle() -> None:
        with closing(connected(ours)) as client:
            client.settimeout(2)
            client.sendall(next(beginnings))
            while client.recv(100):
                pass

    with meanwhile(18, idle):
        scrapes(attack, ours, 37)


@pytest.mark.slow
@pytest.mark.usefixtures("many_files")
def test_thousands_of_idle_clients(attack: Attack, ours: str) -> None:
    """4,000 clients connect and stay"""
    with ExitStack() as stack:
        for number in range(4000):
            with suppress(OSError):
                stack.enter_context(connected(ours))
            if number % 100 == 99:
                with attack.once():
                    scrape(ours)


@pytest.mark.slow
@pytest.mark.usefixtures("many_files")
def test_dripping_clients(attack: Attack, ours: str) -> None:
    """600 clients send one byte of a request at a time"""
    clients = [connected(ours) for _ in range(600)]

    def drip() -> None:
        for number, client in enumerate(clients):
            try:
                client.sendall(b"x")
            except OSError:
                client.close()
                clients[number] = connected(ours)
        time.sleep(0.1)

    with meanwhile(1, drip):
        scrapes(attack, ours, 40)
    for client in clients:
        client.close()


def test_slow_readers(attack: Attack) -> None:
    """16 clients ask for all metrics of 300 VMs and do not read them"""
    maps, vms = Maps(), Processes(**{f"guest-{tgid}": tgid for tgid in range(1, 301)})
    for tgid in range(1, 301):
        maps.feed(Guest(f"guest-{tgid}", tgid).life())

    def read_slowly() -> None:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(5)
            client.connect((server.address.host, server.address.port))
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            for _ in range(10):
                client.recv(1)
                time.sleep(0.2)

    with serving(LOOPBACK, watch=Watch(maps, vms)) as server, meanwhile(16, read_slowly):
        time.sleep(0.5)
        scrapes(attack, str(server.address), 5)


@pytest.fixture
def public() -> Iterator[Path]:
    """Where other users may look, as pytest's folders are for one alone: the daemon becomes another."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        yield folder


def web_file(folder: Path, **costs: int) -> Path:
    """A web file with a user for each cost; their password is `secret`."""
    path = folder / "web.yml"
    hashes = {user: bcrypt.hashpw(b"secret", bcrypt.gensalt(cost)).decode() for user, cost in costs.items()}
    path.write_text("basic_auth_users:\n" + "".join(f"  {user}: {hashes[user]}\n" for user in hashes))
    return path


@contextmanager
def guarded(folder: Path, **costs: int) -> Iterator[tuple[int, str]]:
    """A daemon with such a web file: its pid and its address."""
    path = web_file(folder, **costs)
    with daemon(["run", "--listen", "127.0.0.1:0", f"--web.config.file={path}"]) as (process, address):
        yield daemon_of(process), address


NUMBERS = count()


def guess(address: str) -> None:
    """Try a wrong password, of the user or of one who does not exist."""
    number = next(NUMBERS)
    scrape(address, f"{'prometheus' if number % 2 else 'stranger'}:{number}")


@pytest.mark.slow
def test_wrong_passwords(attack: Attack, public: Path) -> None:
    """4 clients try passwords, a hash being of cost 14"""
    with guarded(public, prometheus=14) as (_, address):
        scrape(address, "prometheus:secret")
        with meanwhile(4, lambda: guess(address)):
            scrapes(attack, address, 20, user="prometheus:secret")


@pytest.mark.slow
def test_wrong_passwords_before_the_right_one(attack: Attack, public: Path) -> None:
    """10 clients try passwords before the right one comes"""
    with (
        guarded(public, prometheus=12) as (_, address),
        meanwhile(10, lambda: guess(address)),
    ):
        scrapes(attack, address, 20, user="prometheus:secret")


@pytest.mark.slow
def test_strangers_cost_little(attack: Attack, public: Path) -> None:
    """Unknown users try passwords where a user's hash is of cost 16"""
    with guarded(public, prometheus=4) as (pid, address):
        path = public / "web.yml"
        path.write_text(path.read_text().replace("$2b$04", "$2b$16"))  # whose password nobody needs
        with suppress(OSError):
            scrape(address)  # which has it read
        before = sum(psutil.Process(pid).cpu_times()[:2])
        with attack.once(), suppress(OSError):
            scrape(address, "stranger:secret")
        with attack.once("CPU"):
            assert sum(psutil.Process(pid).cpu_times()[:2]) - before < 1.0


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone becomes somebody else")
def test_no_threads(attack: Attack) -> None:
    """No thread can be started any more"""
    command = [sys.executable, "-m", "tests.faults.threadless"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdin
        address = process.stdout.readline().strip()
        scrapes(attack, address, 40)
        process.stdin.close()


@pytest.mark.usefixtures("many_files")
def test_no_descriptors(attack: Attack) -> None:
    """300 clients connect and stay where the daemon may have 64 open files"""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
    try:
        ours = daemon(["run", "--listen", "127.0.0.1:0"])
        _, address = ours.__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    with ExitStack() as stack:
        stack.push(ours.__exit__)
        for number in range(300):
            with suppress(OSError):
                stack.enter_context(connected(address))
            if number % 20 == 19:
                with attack.once():
                    scrape(address)


def test_the_watchdog_is_fed(attack: Attack, public: Path) -> None:
    """50 idle clients keep the watchdog from being fed"""
    public.chmod(0o777)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(public / "notify"))
        (public / "notify").chmod(0o777)
        manager.settimeout(5)
        with (
            started("run", "--listen", "127.0.0.1:0", NOTIFY_SOCKET=str(public / "notify")) as process,
            ExitStack() as stack,
        ):
            address = read_until(process.stderr, b"serving http://").decode().split("/")[2]
            for _ in range(50):
                stack.enter_context(connected(address))
            for _ in range(3):
                with attack.once():
                    while manager.recv(1000) != b"WATCHDOG=1":
                        pass


def test_a_page_that_rebinds_its_name(attack: Attack, ours: str) -> None:
    """A web page asks by a name of its own that leads to the agent"""
    paths = ("/", "/metrics", "/api/v1/state", "/api/v1/counters?vm=a")
    hosts = ("evil.example", "EVIL.example:9775", "127.0.0.1.evil.example", "localhost.evil.example.")
    for path, host in product(paths, hosts):
        with attack.once(f"{path} of {host}"), closing(connected(ours)) as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert client.recv(1000).startswith(b"HTTP/1.0 421 ")
