"""A process that has the number, the memory and the events' addresses of a VM that has just ended."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.bpf.conftest import Lookalike, Start
from vpmu_agent.counts.counts import ALL_CALLS, Counts
from vpmu_agent.counts.watch import Watch
from vpmu_agent.vms.names import Vms

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
pytestmark = pytest.mark.skipif(not os.access(LAST_PID, os.W_OK), reason="only root may choose the next pid")
ROUND = 5  # create, pause, enable, pause, release


class Vm:
    """A look-alike that makes a call for each line that it reads."""

    def __init__(self, path: Path, name: str) -> None:
        self.process = subprocess.Popen(
            [path, "run", "rounds=3", "step=1", "-name", f"guest={name}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def begin(self) -> None:
        self._go_on()

    def call(self, count: int) -> None:
        """Make so many calls, which have returned once the next one is announced."""
        for _ in range(count):
            self._go_on()

    def _go_on(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline()


@contextmanager
def vm(path: Path, name: str, tgid: int = 0) -> Iterator[Vm]:
    """A VM that is about to make its first call, with this tgid if one is given."""
    for _ in range(20):  # others start processes too
        if tgid:
            LAST_PID.write_text(str(tgid - 1))
        vm = Vm(path, name)
        with vm.process:
            try:
                if tgid in (0, vm.process.pid):
                    vm.begin()
                    yield vm
                    return
            finally:
                vm.process.kill()
    pytest.skip("the kernel did not hand out the same pid twice")


def calls(counts: Counts) -> int:
    return sum(counts.numbers[ALL_CALLS])


def test_its_calls_are_not_counted_for_the_vm_that_ended(stock: Lookalike) -> None:
    vms = Vms()
    with stock.probes(stream=False, vms=vms) as probes:
        watch = Watch(probes, vms)
        with vm(stock.path, "web01") as first:
            first.call(ROUND - 1)  # so that an event is held when it is killed
            assert calls(watch.scrape().vms["web01"]) == ROUND - 1
        tgid = first.process.pid
        with vm(stock.path, "db01", tgid) as second:
            second.call(ROUND)
            assert calls(watch.snapshot().vms["web01"]) == ROUND - 1
            refused = probes.lost()["tgid_reused"]
            assert refused == ROUND
            watch.sweep(watch.processes())
            second.call(ROUND)
            vms_now = watch.snapshot().vms
            assert {name: calls(counts) for name, counts in vms_now.items()} == {
                "db01": ROUND,
                "web01": ROUND - 1,
            }
            assert probes.lost()["tgid_reused"] == refused


def test_the_daemon_has_put_the_former_vms_counts_away_within_half_a_second(
    start: Start, stock: Lookalike
) -> None:
    """It looks each tenth of a second; with its other tasks, once a second, it would be late now and then."""
    with start() as running, ExitStack() as stack:
        for number in range(5):
            with vm(stock.path, f"web{number}") as former:
                former.call(ROUND)
                running.wait_for(f'vpmu_calls_total{{call="enable",vm="web{number}"}} 1\n')
            time.sleep(0.5)
            latter = stack.enter_context(vm(stock.path, f"db{number}", former.process.pid))
            latter.call(ROUND)
            running.wait_for(f'vpmu_calls_total{{call="enable",vm="db{number}"}} 1\n')
        assert 'vpmu_agent_lost_records_total{reason="tgid_reused"} 0.0\n' in running.metrics()
