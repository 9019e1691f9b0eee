"""`top` over real maps: of the daemon, asked without privileges, and of its own probes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from tests.bpf.conftest import ROOT, Lookalike, Start
from tests.bpf.test_daemon import enables, run
from tests.bpf.test_greedy import holding
from vpmu_agent.top.reading import Reading, Readings
from vpmu_agent.top.sources import OwnSource
from vpmu_agent.vms.names import Vms


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_the_daemon_is_asked_as_nobody(start: Start, stock: Lookalike) -> None:
    with start() as running, holding(stock, "web01", rounds=50):
        running.wait_for(enables("50", "web01"))
        command = [sys.executable, "-m", "vpmu_agent", "top", "--once", "--output", "json", "--interval", "1"]
        done = subprocess.run(
            [*command, "--url", f"http://{running.address}"],
            check=False,
            capture_output=True,
            text=True,
            user="nobody",
            cwd=ROOT,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
        found = json.loads(done.stdout)
        assert found["source"] == f"http://{running.address}"
        (web01,) = [vm for vm in found["vms"] if vm["vm"] == "web01"]
        assert web01["calls"] > 50
        assert web01["calls_per_s"] == 0


def test_own_probes_count_from_when_they_are_there(stock: Lookalike) -> None:
    vms = Vms()
    with stock.probes(stream=False, census=True, vms=vms) as probes:
        source, readings = OwnSource(probes, vms), Readings()
        before = readings.take(source.state())
        assert (before.mode, before.no_census) == ("uprobe", "")
        assert "web01" not in {vm.vm for vm in before.vms}
        run(stock, "web01", rounds=50)
        first = after_a_second(source, readings)
        (web01,) = (vm for vm in first.vms if vm.vm == "web01")
        assert web01.calls > 50
        assert web01.host_ns
        assert web01.calls_per_s is None  # it was not there before
        second = after_a_second(source, readings)
        assert [vm.calls_per_s for vm in second.vms if vm.vm == "web01"] in ([0.0], [])


def after_a_second(source: OwnSource, readings: Readings) -> Reading:
    end = time.monotonic() + 1.2
    while time.monotonic() < end:
        source.keep_up()
    return readings.take(source.state())
