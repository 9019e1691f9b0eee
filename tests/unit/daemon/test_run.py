"""What the daemon's loop does at each turn."""

from __future__ import annotations

import errno

from tests.support.counted import Maps, Processes
from tests.support.looks import WEB, vcpu, without_event
from tests.support.scenes import Guest
from vpmu_agent.counts.guests import Guests
from vpmu_agent.counts.pmus import KvmPmu
from vpmu_agent.counts.watch import Watch
from vpmu_agent.daemon.run import look_at_guests
from vpmu_agent.model.verdict import Observation
from vpmu_agent.probes.census import Census, Look


class Denied(Census):
    """A census that finds a VM with a counter that has no event."""

    def __init__(self) -> None:
        super().__init__(None)

    def pull(self) -> Look:
        return Look(vcpus=[vcpu()], pmcs=[without_event()])


class Attached(Maps):
    """Probes with that census."""

    census = Denied()

    def poll(self, _timeout_s: float) -> list[Observation]:
        return []

    def stop(self) -> list[Observation]:
        return []

    def close(self) -> None:
        self.is_closed = True


def test_the_census_is_given_the_errno_of_a_counter_that_was_denied() -> None:
    probes = Attached([Guest("web01", WEB).failed_create()])
    names = Processes(web01=WEB)
    watch = Watch(probes, names)
    look_at_guests(probes, Guests(names, lambda: KvmPmu(enabled=True, mediated=False)), watch)
    (counter,) = watch.snapshot().guests.counters["web01"].counters
    assert counter.errno == errno.ENOSPC
