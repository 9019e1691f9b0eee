"""A process that takes all it can get, on the look-alike: nothing is missing from the counts of others."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.bpf.conftest import Lookalike
from vpmu_agent.counts.counts import FIELDS, Counts
from vpmu_agent.counts.watch import Watch
from vpmu_agent.model.call import CallName
from vpmu_agent.probes import Probes
from vpmu_agent.probes.entries import Share
from vpmu_agent.probes.layout import SIZES
from vpmu_agent.vms.names import Vms

GREEDY = {
    "pmcs": {"pmcs": 66_000},
    "vcpus": {"generations": 17_000},
}
"""What a process does that uses up one of the arrays in a few seconds."""


class Daemon:
    """What the daemon does with its probes, without its processes."""

    def __init__(self, probes: Probes, vms: Vms) -> None:
        self.probes = probes
        self.watch = Watch(probes, vms)
        self.refused: list[str] = []

    def work(self) -> None:
        """Do what is due every second."""
        processes = self.watch.processes()
        self.probes.poll(0.1)
        self.watch.sweep(processes)
        self.watch.give_back()
        self.refused += [vm.name for vm, _ in self.watch.newly_refused()]

    def counts(self, vm: str) -> Counts:
        return self.watch.scrape().vms[vm]

    def share(self, vm: str) -> Share:
        return self.probes.shares()[self.watch.snapshot().about[vm].tgid]


@contextmanager
def holding(program: Lookalike, name: str, **plan: int) -> Iterator[Counter[str]]:
    """A VM that has made its calls and lives on; how many it says there were."""
    words = [f"{key}={value}" for key, value in plan.items()]
    with subprocess.Popen(
        [program.path, "run", *words, "hold=1", "-name", f"guest={name}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(b"\n")
            process.stdin.flush()
            yield Counter(json.loads(process.stdout.readline()))
        finally:
            process.kill()


def made(counts: Counts) -> Counter[str]:
    return Counter(dict(zip(map(str, CallName), counts.numbers[FIELDS["calls"]], strict=True)))


@pytest.mark.parametrize("array", GREEDY)
def test_a_greedy_process_takes_nothing_from_others(stock: Lookalike, array: str) -> None:
    vms = Vms()
    with stock.probes(stream=False, vms=vms) as probes:
        daemon = Daemon(probes, vms)
        with holding(stock, "greedy", **GREEDY[array]) as told:
            daemon.work()
            share = daemon.share("greedy")
            used, room = probes.occupancy(probes.shares())[array]
            assert used == getattr(share, array) == room // SIZES["VPMU_SHARES"]
            # Each of its calls was counted or refused, which is told once.
            counts = daemon.counts("greedy")
            assert made(counts).total() + share.refused == told.total()
            assert counts.numbers[FIELDS["refused"]].tolist() == [share.refused]
            assert {reason: n for reason, n in probes.lost().items() if n} == {"over_share": share.refused}
            assert daemon.refused == ["greedy"]
            with holding(stock, "modest", threads=4, rounds=20) as modest:
                assert made(daemon.counts("modest")) == +modest
                # What it has dropped is given back while it lives, and no count goes with it.
                deadline = time.monotonic() + 60
                while getattr(daemon.share("greedy"), array) > room // SIZES["VPMU_SHARES"] // 2:
                    assert time.monotonic() < deadline
                    daemon.work()
                    time.sleep(0.5)
                assert made(daemon.counts("greedy")) == made(counts)
                assert made(daemon.counts("modest")) == +modest
                assert daemon.share("modest").refused == 0
            assert daemon.refused == ["greedy"]
