"""No output of the daemon has an address of this kernel, or one that a probe has read."""

from __future__ import annotations

import json
import re
import urllib.request

import pytest

from tests.bpf.conftest import Lookalike, Running, Start
from tests.bpf.test_census import listed, running
from tests.bpf.test_daemon import run
from tests.support.addresses import LOWEST, addresses_in
from vpmu_agent.kernel.kvm import vpmu_enabled

_OF_A_PROGRAM = re.compile(r"0x(?:5[56]|7[ef])[0-9a-f]{10}").fullmatch
"""Where Linux puts a program, its heap and its libraries: the look-alike's pmcs and events are there."""


def fetched(daemon: Running, path: str) -> str:
    with urllib.request.urlopen(f"http://{daemon.address}{path}", timeout=10) as answer:
        return str(answer.read().decode())


@pytest.mark.skipif(vpmu_enabled() is not False, reason="KVM has a PMU here, and these VMs no CPUID")
def test_no_output_has_an_address_that_was_read(start: Start, stock: Lookalike) -> None:
    with start(census=True) as daemon, running("2i", name="web01"), stock.probes(census=True) as own:
        run(stock, "db01", rounds=3, fail_at=0)
        daemon.wait_for('vpmu_mode{mode="off",vm="web01"} 1')
        found = own.census.pull()
        addresses = {each.address for each in found.vcpus} | {each.vm for each in found.vcpus}
        assert len(addresses) >= 3  # of real vCPUs and their VM
        assert all(address >= LOWEST for address in addresses)
        outputs = [fetched(daemon, path) for path in ("/", "/metrics", "/api/v1/state")]
        outputs += [fetched(daemon, f"/api/v1/counters?vm={vm}") for vm in ("web01", "db01")]
        outputs += [listed("--all", "--output", output).stdout for output in ("text", "json")]
        for output in outputs:
            assert not addresses_in(output)
            assert not [each for each in addresses if f"{each:x}" in output or str(each) in output]
        last = json.loads(outputs[2])["last"]
        assert last
        seen = {call[field] for call in last for field in ("pmc_addr", "event_addr", "leader_addr")} - {"0x0"}
        assert seen
        assert not list(filter(_OF_A_PROGRAM, seen))
