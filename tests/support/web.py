"""A server with the real routes, what its clients ask, and files for --web.config.file."""

from __future__ import annotations

import base64
import http.client
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import bcrypt

from tests.support.counted import Maps, Processes
from tests.support.places import ROOT
from vpmu_agent.counts.recent import Recent
from vpmu_agent.counts.watch import Watch
from vpmu_agent.web.address import Address
from vpmu_agent.web.app import application
from vpmu_agent.web.metrics import Exporter
from vpmu_agent.web.server import Security, Server
from vpmu_agent.web.state import Overview
from vpmu_agent.web.web_file import WebFile

LOOPBACK = Address("127.0.0.1", 0)

# Always the same: they are part of some tests' names.
_SALT = b"$2b$04$" + b"a" * 22
ALICE = bcrypt.hashpw(b"secret", _SALT).decode()
BOB = bcrypt.hashpw(b"other", _SALT).decode()
TLS = "tls_server_config: {cert_file: server.crt, key_file: server.key"
"""What a file that wants TLS begins with; the caller closes the brace."""


def written(folder: Path, text: str) -> Path:
    path = folder / "web.yml"
    path.write_text(text)
    return path


def documented() -> str:
    """Return the example in docs/web.md."""
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "web.md").read_text(), re.DOTALL)
    return str(example)


@contextmanager
def serving(
    address: Address = LOOPBACK,
    security: Security | None = None,
    *,
    watch: Watch | None = None,
    missing: str = "",
) -> Iterator[Server]:
    """Run a server; of a host without VMs, if there is no `watch`."""
    shown = watch or Watch(Maps(), Processes())
    with closing(Server(address, security)) as server:
        server.start(application(Exporter(shown), Overview(shown, Recent(), lambda: missing)))
        yield server


@contextmanager
def serving_file(folder: Path, text: str) -> Iterator[tuple[Server, list[str]]]:
    """Run a server with such a web file; yield it and what the file reports."""
    reports: list[str] = []
    with serving(security=WebFile(written(folder, text), reports.append)) as server:
        yield server, reports


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
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


def get(
    server: Server,
    path: str = "/-/healthy",
    *,
    tls: ssl.SSLContext | None = None,
    user: str = "",
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
) -> Answer:
    host, port = server.address.host, server.address.port
    connection = (
        http.client.HTTPSConnection(host, port, timeout=10, context=tls)
        if tls
        else http.client.HTTPConnection(host, port, timeout=10)
    )
    credentials = {"Authorization": basic(user)} if user else {}
    with closing(connection):
        connection.request(method, path, headers={**(headers or {}), **credentials})
        answer = connection.getresponse()
        return Answer(answer.status, answer.reason, answer.headers, answer.read())


def basic(user: str) -> str:
    """Return the Authorization header of `NAME:PASSWORD`."""
    return f"Basic {base64.b64encode(user.encode()).decode()}"
