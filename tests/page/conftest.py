"""A browser, and the real server of a host that has been counting for ten minutes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import cycle, islice
from unittest.mock import patch

import pytest

from tests.page.browser import Browser, running
from tests.support.hosts import Host, Load, orphans, recorded
from tests.support.scenes import Guest
from tests.support.web import LOOPBACK
from vpmu_agent.model.call import Call
from vpmu_agent.probes import functions
from vpmu_agent.web import state
from vpmu_agent.web.app import application
from vpmu_agent.web.metrics import Exporter
from vpmu_agent.web.server import Server
from vpmu_agent.web.web_file import WebFile

HOSTILE = "<img src=x onerror=document.title='mine'>"

_NAMED = os.uname_result(("Linux", "kvm1", os.uname().release, os.uname().version, os.uname().machine))

_STEP_S = 0.2
_UP_S = 600.0  # how long the agent has been counting


def guest(name: str, tgid: int, recording: str) -> Iterator[Call]:
    """Return the calls of a recording, over and over, as those of a VM of this name."""
    return cycle(replace(call, vm=name, tgid=tgid) for call in recorded(recording))


class Shown:
    """A host, its server, and a load that moves."""

    def __init__(self, *guests: str, web: WebFile | None = None) -> None:
        """Beside VMs that do well and one that the host has no room for, these leave events behind."""
        failing = guest("mail01", 31877, "partial_groups")
        faulty = [orphans(Guest(name, 40211 + i)) for i, name in enumerate(guests)]
        loads = [
            Load(guest("ci01", 52790, "guest_a"), count=10),
            Load(guest("web02", 29306, "grouped"), count=4),
            Load(guest("web01", 28114, "guest_b"), count=2),
            Load(failing, count=5, every=140),
            *(Load(calls, count=5, every=590) for calls in faulty),
        ]
        now_ns = time.time_ns()
        start_ns = now_ns - int(_UP_S * 1e9) if guests else now_ns
        with patch("time.time_ns", return_value=start_ns):
            self.host = Host(*loads) if guests else Host()
        self.host.starving = frozenset(["web02"])
        self.host.maps.functions = tuple(functions().values())
        if guests:
            # What they go wrong with is programmed, and stays so until its turn comes again.
            self.host.feed(islice(failing, 3), start_ns + 1_000_000)
            for calls in faulty:
                self.host.feed(islice(calls, 4), start_ns + 2_000_000)
        step_ns = int(_STEP_S * 1e9)
        for time_ns in range(start_ns + step_ns, now_ns, step_ns):
            self.host.step(time_ns)
        self.server = Server(LOOPBACK, web)
        self.url = f"{self.server.url}/"
        self._stop = threading.Event()
        self._load = threading.Thread(target=self._move)

    def start(self) -> None:
        """Start to answer, and to move."""
        self.server.start(application(Exporter(self.host.watch), self.host.overview))
        self._load.start()

    def close(self) -> None:
        """Stop both."""
        self._stop.set()
        self._load.join()
        self.server.close()

    def _move(self) -> None:
        while not self._stop.wait(_STEP_S):
            self.host.step(time.time_ns())


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with running(tmp_path_factory.mktemp("chromium") / "profile") as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser) -> Browser:
    """The same for all tests, which must leave nothing to complain of."""
    chromium.leave()  # the page before: its server is gone, and it would still ask it
    chromium.complaints.clear()
    return chromium


@pytest.fixture
def shown(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shown]:
    """Where nothing else is wanted (with `parametrize`), a host on which a VM goes wrong."""
    monkeypatch.setattr(state, "MAX_AGE_S", 0.5)
    monkeypatch.setattr(os, "uname", lambda: _NAMED)
    with closing(Shown(*getattr(request, "param", ["db01"]))) as made:
        made.start()
        yield made
