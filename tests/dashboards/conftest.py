from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.dashboards.prometheus import Prometheus, running

MOVE_S = 25.0
"""How long the load moves before anyone looks: the rules' windows are full then."""


@dataclass
class Live:
    """A Prometheus that has scraped the fleet for a while."""

    prometheus: Prometheus
    before: float
    """A moment before the first scrape."""
    now: float
    report: list[str] = field(default_factory=list)


_REPORTS = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Live]:
    before = time.time() - 1
    command = [sys.executable, "-m", "tests.dashboards.fleet"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as fleet:
        try:
            assert fleet.stdout
            addresses = json.loads(fleet.stdout.readline())
            with running(tmp_path_factory.mktemp("prometheus"), addresses) as prometheus:
                time.sleep(MOVE_S)
                found = Live(prometheus, before, time.time())
                request.config.stash[_REPORTS] = found.report
                yield found
        finally:
            fleet.communicate()  # closes its standard input, which ends it


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if report := config.stash.get(_REPORTS, []):
        terminalreporter.section("queries against the live Prometheus")
        for line in report:
            terminalreporter.write_line(line)
