"""A server of a host with one VM; certificates, and folders to put a web file into."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.counted import Maps, Processes
from tests.support.scenes import Guest
from tests.support.web import serving
from vpmu_agent.counts.watch import Watch
from vpmu_agent.web.server import Server

WEB01 = 4242


@pytest.fixture
def maps() -> Maps:
    return Maps(Guest("web01", WEB01).life())


@pytest.fixture
def vms() -> Processes:
    return Processes(web01=WEB01)


@pytest.fixture
def watch(maps: Maps, vms: Processes) -> Watch:
    return Watch(maps, vms)


@pytest.fixture
def running(watch: Watch) -> Iterator[Server]:
    with serving(watch=watch) as server:
        yield server


@pytest.fixture
def public(certificates: Path) -> Iterator[Path]:
    """The same where other users look: pytest's own folders are for one alone."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        for name in ("ca.crt", "server.crt", "server.key"):
            (folder / name).write_bytes((certificates / name).read_bytes())
        yield folder
