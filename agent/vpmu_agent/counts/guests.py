"""What the census says, pull after pull: the PMU and counters of each VM, and who else has events."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

from vpmu_agent.counts.counters import Counters, Holder, Key, VmCounters, holders
from vpmu_agent.counts.leaks import Leak, Leaks
from vpmu_agent.counts.pmus import KvmPmu, kvm_pmu, pmus
from vpmu_agent.kernel.errors import KernelError
from vpmu_agent.probes import attach_census
from vpmu_agent.probes.census import Census, HostEvent, Look
from vpmu_agent.vms.modes import Pmu

PULL_S = 1.0
"""Seconds from one pull of the census to the next, at least."""

CPU_SHARE = 0.009
"""The share of one CPU that pulls may take: their cost grows with the number of files open on the host."""

WALK_SHARE = 0.001
"""The share that walks of the known VMs alone may take, where pulls are far between; with pulls, 1 %."""

FORGET_S = 60.0
"""How long a VM that the census no longer finds keeps its name: calls in the ring may still need it."""

SETTLE_S = 0.1
"""Seconds between the two pulls of guests_now(): what only a moment explains is over by then."""


class Names(Protocol):
    """What is needed here of `vms.names.Vms`."""

    def name(self, tgid: int) -> str:
        """Return the name of the VM that a process runs."""

    def forget(self, tgid: int) -> None:
        """Forget a process."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the last pull found. VMs are known by name, in order; one process may have several."""

    pmus: Mapping[str, Sequence[Pmu]] = field(default_factory=dict)
    counters: Mapping[str, VmCounters] = field(default_factory=dict)
    """Of the VMs whose PMU is known."""
    tgids: Mapping[str, int] = field(default_factory=dict)
    leaks: Mapping[str, Sequence[Leak]] = field(default_factory=dict)
    """The events that KVM has leaked, of the VMs that have any."""
    holders: Sequence[Holder] = ()
    """Who has events on the host's PMU, other than KVM; those with the most first."""
    no_holders: str = ""
    """Why it is not known who has; empty if it is."""
    pulls: int = 0
    """How many there were; 0: nothing is known."""
    cpu_s: float = 0.0
    """CPU time that all pulls took, in seconds."""
    records: int = 0
    """How many things the last pull found: vCPUs, events of counters, events of others."""
    missing: str = ""
    """Why the last pull found nothing; empty if it worked."""

    @property
    def is_known(self) -> bool:
        """Whether the last pull worked, so that what is not here is not there."""
        return self.pulls > 0 and not self.missing


class Guests:
    """Pulls the census and keeps what it found. For one thread, except that any may read `found`.

    It is pulled every PULL_S, or less often if that would take more than CPU_SHARE of a CPU. A counter that a
    call has left starved is looked at sooner, and the next pull then comes later. In between, the known VMs
    are walked alone where the kernel can do that.
    """

    def __init__(self, vms: Names, kvm: Callable[[], KvmPmu] = kvm_pmu) -> None:
        self.found = Found()
        self._vms = vms
        self._kvm = kvm
        self._counters = Counters()
        self._leaks = Leaks()
        self._told: dict[int, list[Pmu]] = {}
        self._gone: dict[int, float] = {}  # processes that no longer have a VM, and since when
        self._missing = ""
        self._next_at = self._sooner_at = 0.0
        self._starvations = 0  # at the last pull
        self._walk_at = 0.0
        self._host_events: list[HostEvent] = []

    def sweep(
        self,
        census: Census,
        errnos: Callable[[], Mapping[tuple[int, Key], int]] = dict,
        starvations: int = 0,
    ) -> list[tuple[str, Pmu]]:
        """Pull the census if it is time; return the VMs that are new or have another PMU than before.

        `errnos` returns what Counters.take() needs; `starvations` is how many calls have left a counter
        starved.
        """
        is_urgent = starvations != self._starvations
        now = time.monotonic()
        if now >= (self._sooner_at if is_urgent else self._next_at):
            self._starvations = starvations
            return self.look(census, errnos)
        if census.can_walk and self._walk_at <= now < self._next_at - PULL_S and self.found.tgids:
            return self._walk(census, errnos)
        return []

    def look(
        self, census: Census, errnos: Callable[[], Mapping[tuple[int, Key], int]] = dict
    ) -> list[tuple[str, Pmu]]:
        """Do as sweep(), though it may not be time."""
        before = time.thread_time()
        with _uncollected():
            look = census.pull()
            self._host_events = look.host_events
            new = self._take(look, errnos(), census.missing)
            del look
        now, cpu_s = self._spent(census, before)
        self._walk_at = max(self._walk_at, now + PULL_S)
        # What the pulls so far may not have taken is owed; a pull ahead of its time may owe that of one more.
        pace_s = max(PULL_S, cpu_s / CPU_SHARE)
        self._next_at = max(self._next_at, now) + pace_s
        self._sooner_at = max(now + PULL_S, self._next_at - pace_s)
        for tgid, since in list(self._gone.items()):
            if now - since >= FORGET_S:
                del self._gone[tgid]
                self._vms.forget(tgid)
        return new

    def _walk(
        self, census: Census, errnos: Callable[[], Mapping[tuple[int, Key], int]]
    ) -> list[tuple[str, Pmu]]:
        """Look at the known VMs alone; who else has events is as the last pull found it."""
        before = time.thread_time()
        with _uncollected():
            look = census.walk(sorted(self._told))
            if look is None:
                return []
            new = self._take(replace(look, host_events=self._host_events), errnos(), census.missing)
        now, cpu_s = self._spent(census, before)
        self._walk_at = now + max(PULL_S, cpu_s / WALK_SHARE)
        return new

    def _spent(self, census: Census, before: float) -> tuple[float, float]:
        """Keep what a look cost since `before` (time.thread_time()); return the time, and the CPU seconds."""
        cpu_s = time.thread_time() - before
        self.found = replace(self.found, cpu_s=self.found.cpu_s + cpu_s, no_holders=census.no_host_events)
        return time.monotonic(), cpu_s

    def newly_missing(self, census: Census) -> str:
        """Return why there is no census; "" if there is one, or if this was returned before."""
        before, self._missing = self._missing, census.missing
        return "" if self._missing == before else self._missing

    def _take(self, look: Look, errnos: Mapping[tuple[int, Key], int], missing: str) -> list[tuple[str, Pmu]]:
        has = pmus(look.vcpus, self._kvm())
        counters = self._counters.take(look, errnos)
        names = {tgid: self._vms.name(tgid) for tgid in has}
        new = [
            (names[tgid], pmu)
            for tgid, pmus_of in has.items()
            for pmu in pmus_of
            if pmu not in self._told.get(tgid, ())
        ]
        now = time.monotonic()
        self._gone.update(dict.fromkeys(self._told.keys() - has.keys(), now))
        for tgid in has:
            self._gone.pop(tgid, None)
        self._told = has
        ordered = sorted(has, key=lambda tgid: names[tgid])
        self.found = Found(
            pmus={names[tgid]: has[tgid] for tgid in ordered},
            counters={names[tgid]: counters[tgid] for tgid in ordered},
            tgids={names[tgid]: tgid for tgid in ordered},
            leaks={} if missing else self._leaks.take(look, names),
            holders=holders(look.host_events),
            pulls=self.found.pulls + (0 if missing else 1),
            cpu_s=self.found.cpu_s,
            records=len(look.vcpus) + len(look.pmcs) + len(look.host_events),
            missing=missing,
        )
        return new


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection: a pull may make 100,000 objects, none of which is part of a cycle.

    They become old as they are; otherwise the next collection of young objects would look at each of them.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.unfreeze()
        gc.enable()


def guests_now(vms: Names) -> Found:
    """Return what is on the host now: for a privileged caller without probes, by two pulls of its own.

    Raise KernelError if the kernel or bcc refuses the census.
    """
    guests, census = Guests(vms), attach_census()
    try:
        guests.look(census)
        time.sleep(SETTLE_S)
        guests.look(census)
        if census.missing:
            raise KernelError(census.missing)
    finally:
        census.close()
    return guests.found
