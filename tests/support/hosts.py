"""Hosts that count calls: what the dashboards' Prometheus scrapes, and what the page in the browser shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from tests.support.counted import Maps, Processes
from tests.support.guests import Names, Pulls, amd, emulating
from tests.support.looks import host_event, look, pmc, starved, stray
from tests.support.places import DATA
from tests.support.scenes import Guest
from vpmu_agent.counts.guests import Guests
from vpmu_agent.counts.recent import Recent
from vpmu_agent.counts.watch import Watch
from vpmu_agent.model.call import Call, CallName
from vpmu_agent.trace.recording import Recording
from vpmu_agent.web.state import Overview

_LOOK_EVERY = 10
"""Steps from one pull of the census to the next."""

_ROOM = 2
"""How many counters a VM that is starved has room for."""


def recorded(name: str) -> list[Call]:
    """Return the calls of a recording in tests/data/."""
    with (DATA / f"{name}.jsonl").open("rb") as file:
        return [call for batch in Recording(file, name).batches() for call in batch]


def orphans(guest: Guest) -> Iterator[Call]:
    """Yield the calls of a counter whose group shrinks before each release: the second event stays behind."""
    while True:
        *program, first, _second = guest.life(size=2)
        assert first.name is CallName.RELEASE
        yield from program
        yield replace(first, max_nr_events=1)


@dataclass(frozen=True, slots=True)
class Load:
    """The calls of a VM: `count` of them in a step, in one step of `every`."""

    calls: Iterator[Call]
    count: int = 1
    every: int = 1


class Host:
    """One host: its agent, and the calls of its VMs."""

    def __init__(self, *loads: Load, vm: str = "", durations: bool = True, reads: bool = True) -> None:
        """With `vm` all calls are of a VM of that name, whatever process makes them.

        Without `durations` its agent runs with --no-durations, without `reads` with --no-reads.
        """
        self.maps = Maps()
        self.losing = ""
        """Why its agent loses a record in each step."""
        self.refuses = False
        """Whether a call of its first VM is refused in each step."""
        self.missing = ""
        """Why no probes are attached."""
        self.starving: frozenset[str] = frozenset()
        """VMs of which two of four counters are starved, by a profiler."""
        self.leaking: frozenset[str] = frozenset()
        """VMs of which KVM has leaked two events."""
        self.no_census = ""
        """Why there is no census."""
        self.recent = Recent()
        self._vms = Processes()
        self._vm = vm
        self._loads = loads
        self._steps = 0
        self._guests = Guests(Names(self._vms.names), emulating)
        self._census = Pulls()
        self.watch = Watch(self.maps, self._vms, durations=durations, reads=reads)
        self.overview = Overview(self.watch, self.recent, lambda: self.missing)

    def step(self, time_ns: int | None = None) -> None:
        """Let time go by. The calls are made just before `time_ns`, or when they were recorded."""
        self._steps += 1
        self.feed(
            (
                call
                for load in self._loads
                if self._steps % load.every == 0
                for call in islice(load.calls, load.count)
            ),
            time_ns,
        )
        if self.losing:
            self.maps.losses[self.losing] = self.maps.losses.get(self.losing, 0) + 1
        if self.refuses and self._vms.names:
            greedy = min(self._vms.names)
            self.maps.refused[greedy] = self.maps.refused.get(greedy, 0) + 1

    def feed(self, calls: Iterator[Call], time_ns: int | None = None) -> None:
        """Count calls, as the probes would."""
        made = list(calls)
        if time_ns is not None:
            first_ns = time_ns - 100_000 * len(made)
            made = [replace(call, time_ns=first_ns + 100_000 * i) for i, call in enumerate(made)]
        self._vms.names |= {call.tgid: self._vm or call.vm for call in made}
        self._vms.living = set(self._vms.names)
        for call, verdict in self.maps.feed(made):
            self.recent.add(call, verdict)
        if self._steps % _LOOK_EVERY == 0:
            self._look()

    def _look(self) -> None:
        """Pull the census: each VM uses four counters of one vCPU."""
        vcpus = [
            amd(tgid=tgid, address=tgid, vm=tgid, cpu=3 if name in self.starving else 4)
            for tgid, name in self._vms.names.items()
        ]
        pmcs = [
            (starved if name in self.starving and index >= _ROOM else pmc)(
                index,
                tgid=tgid,
                vcpu=tgid,
                event=(tgid << 4) + index,
                enabled_ns=self._steps * 10**8,
                running_ns=self._steps * 10**8,
            )
            for tgid, name in self._vms.names.items()
            for index in range(4)
        ]
        holders = [host_event(0x900 + i) for i in range(4)] if self.starving else []
        holders += [host_event(0x990 + i, tgid=1200, comm="perf", attr_flags=0, cpu=5) for i in range(2)]
        strays = [
            stray((tgid << 4) + index, tgid=tgid, vcpu=tgid, pmc_idx=index)
            for tgid, name in self._vms.names.items()
            if name in self.leaking
            for index in range(2)
        ]
        self._census.missing = self.no_census
        self._census.look = look(*vcpus, *pmcs, *holders, *strays, at=self._steps)
        self._guests.look(self._census)
        self.watch.show_guests(self._guests.found)
