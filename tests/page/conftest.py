"""A browser, and the real server with what recordings have counted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from itertools import cycle, islice

import pytest

from tests.dashboards.fleet import LOCAL, Host, orphans, recorded
from tests.page.browser import Browser, running
from tests.support.counted import Maps
from tests.support.scenes import Guest, checked
from vpmu_agent.counts.recent import Recent
from vpmu_agent.probes import FUNCTIONS
from vpmu_agent.web import state as overview
from vpmu_agent.web.config import WebFile
from vpmu_agent.web.metrics import Exporter
from vpmu_agent.web.server import Server
from vpmu_agent.web.state import Overview

HOSTILE = "<img src=x onerror=document.title='mine'>"

_STEP_S = 0.2


class Shown:
    """A host, its server, and a load that moves."""

    def __init__(self, *guests: str, web: WebFile | None = None) -> None:
        """Beside the VMs of recordings there are guests that leave events behind."""
        calls = [recorded(name) for name in ("guest_a", "grouped", "partial_groups", "guest_b")]
        faulty = [orphans(Guest(name, 9000 + n)) for n, name in enumerate(guests)]
        steps = (30, 11, 2, 5)
        maps = Maps()
        maps.functions = tuple(FUNCTIONS.values())
        self.missing = ""
        self.recent = Recent()
        fed = [*zip(map(cycle, calls), steps, strict=True), *((each, 1) for each in faulty)]
        self.host = Host(maps, *fed) if guests else Host(maps)
        if guests:
            for told in (*(list(islice(orphans(Guest(g, 9000)), 12)) for g in guests), calls[2]):
                for said in checked(told):
                    self.recent.add(*said)
            for _ in range(30):
                self.host.step()
        self.server = Server(LOCAL, web)
        self.url = f"{self.server.url}/"
        self._stop = threading.Event()
        self._load = threading.Thread(target=self._move)

    def start(self) -> None:
        """Answers, and moves, from now on."""
        shown = Overview(self.host.watch, self.recent, lambda: self.missing)
        self.server.start(Exporter(self.host.watch), shown)
        self._load.start()

    def close(self) -> None:
        """Ends it."""
        self._stop.set()
        self._load.join()
        self.server.close()

    def _move(self) -> None:
        while not self._stop.wait(_STEP_S):
            self.host.step()


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with running(tmp_path_factory.mktemp("chromium") / "profile") as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser) -> Browser:
    """The same for all tests, which must leave nothing to complain of."""
    chromium.complaints.clear()
    return chromium


@pytest.fixture
def shown(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shown]:
    """Where nothing else is wanted (with `parametrize`), a host on which a VM goes wrong."""
    monkeypatch.setattr(overview, "READ_S", 0.5)
    with closing(Shown(*getattr(request, "param", ["db01"]))) as made:
        made.start()
        yield made
