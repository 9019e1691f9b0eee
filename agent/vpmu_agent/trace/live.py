"""Calls from live probes, until the time is up or Ctrl-C or SIGTERM comes."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

from vpmu_agent.counts.counts import FIELDS
from vpmu_agent.counts.guests import Guests
from vpmu_agent.counts.starvation import NewlyStarved, Starvation
from vpmu_agent.counts.sums import Entries, Sums
from vpmu_agent.counts.watch import Maps
from vpmu_agent.kernel.errors import KernelError, ProbeError
from vpmu_agent.kernel.kvm import kvm_instance
from vpmu_agent.probes.self_test import OwnTester, SelfTest
from vpmu_agent.system.signals import stop_requests
from vpmu_agent.trace.tally import Unchecked, counted_as

if TYPE_CHECKING:
    from vpmu_agent.counts.counters import Key
    from vpmu_agent.model.verdict import Observation
    from vpmu_agent.probes import Mode
    from vpmu_agent.probes.census import Census
    from vpmu_agent.probes.self_test import SelfTested
    from vpmu_agent.trace.session import Session
    from vpmu_agent.vms.modes import Pmu
    from vpmu_agent.vms.names import Vms

POLL_S = 0.1
_SWEEP_S = 1.0


class LiveProbes(Maps, Protocol):
    """Attached probes, with what they send; `probes.Probes` is such."""

    @property
    def census(self) -> Census:
        """What finds all VMs of the host."""

    @property
    def self_tested(self) -> SelfTested | None:
        """How to test whether the probes run; None of stand-ins, which see no call of the kernel."""

    def errnos(self) -> Mapping[tuple[int, Key], int]:
        """Return the errno of a counter's last creation, by its process and which of its counters it is."""

    def starvations(self) -> int:
        """Return how many calls have left a counter starved, of all VMs."""

    def poll(self, timeout_s: float) -> list[Observation]:
        """Return the calls that were sent, oldest first; wait up to `timeout_s` for the first one."""

    def stop(self) -> list[Observation]:
        """Let no new calls in, and return those that were still on their way."""

    def close(self) -> None:
        """Take the probes off."""


class Attach(Protocol):
    """`probes.attach()`."""

    def __call__(self, *, mode: Mode, vms: Vms, stream: bool) -> AbstractContextManager[LiveProbes]:
        """Attach the probes. Raise KernelError where there can be none."""


class Source:
    """Attached probes as a source of calls, until it is told to stop."""

    def __init__(
        self,
        probes: LiveProbes,
        vms: Vms,
        stopped: Callable[[], bool],
        is_same_kvm: Callable[[], bool] = lambda: True,
    ) -> None:
        """`is_same_kvm` returns whether KVM is still the one that the probes were made for."""
        self.mode = probes.mode
        self.broken: KernelError | None = None
        """Why the probes see no calls any more, once batches() has ended for that."""
        self._probes = probes
        self._vms = vms
        self._stopped = stopped
        self._guests = Guests(vms)
        self._starved = NewlyStarved()
        self._is_same_kvm = is_same_kvm
        self._self_test = SelfTest(OwnTester())
        self._gone: set[int] = set()  # ended processes whose names are still kept
        self._unchecked: dict[str, Unchecked] = {}  # in entries that are in no map any more

    @property
    def attached(self) -> str:
        """The line that scripts wait for on stderr."""
        return attached_line(self._probes.mode, self._probes.functions)

    def new_pmus(self) -> list[tuple[str, Pmu]]:
        """Return the VMs that are new or have another PMU than before; see Guests.sweep()."""
        return self._guests.sweep(self._probes.census, self._probes.errnos, self._probes.starvations())

    def newly_starved(self) -> list[Starvation]:
        """Return the VMs whose counters began to be starved, by what new_pmus() found last."""
        return self._starved.take(self._guests.found)

    def missing_census(self) -> str:
        """Return why the PMUs of VMs are not known; "" if they are, or if it was returned before."""
        return self._guests.newly_missing(self._probes.census)

    def batches(self, duration_s: float | None) -> Iterator[list[Observation]]:
        """Yield the calls as they come, empty batches too, until it is time to end or `broken` says why."""
        end = time.monotonic() + (math.inf if duration_s is None else duration_s)
        swept = time.monotonic()
        while not self._stopped() and (left := end - time.monotonic()) > 0:
            yield self._probes.poll(min(POLL_S, left))
            if time.monotonic() - swept >= _SWEEP_S:
                try:
                    self.test()
                except KernelError as error:
                    self.broken = error
                    return
                self._sweep()
                swept = time.monotonic()

    def test(self) -> None:
        """Raise KernelError if the probes cannot see KVM's calls: they do not run, or KVM was reloaded."""
        sight = self._self_test.step(self._probes.self_tested)
        if sight.runs is False:
            raise ProbeError(sight.why, sight.todo)
        if not self._is_same_kvm():
            raise ProbeError(
                "KVM was unloaded, or loaded again, and the probes see only the calls of the one before",
                "start the trace again",
            )

    def _sweep(self) -> None:
        """Let go of processes that are gone, and of idle entries: the maps have a maximum size.

        Their names are kept until the next sweep: calls of theirs may still be in the ring.
        """
        for tgid in self._gone:
            self._vms.forget(tgid)
        self._gone = {tgid for tgid in self._probes.shares() if self._is_gone(tgid)}
        if self._gone:
            self._add_unchecked(self._probes.vcpus(), self._unchecked, self._gone)
            self._probes.forget(self._gone)
        self._add_unchecked([self._probes.give_back().vcpus], self._unchecked)

    def unchecked(self) -> dict[str, Unchecked]:
        """Return the calls so far that are not checked, by VM: of those that made calls."""
        found = dict(self._unchecked)
        self._add_unchecked(self._probes.vcpus(), found)
        return found

    def _add_unchecked(self, vcpus: Entries, to: dict[str, Unchecked], among: set[int] | None = None) -> None:
        sums = Sums(self._probes.pmc)
        sums.add_vcpus(vcpus)
        for tgid, counts in sums.counts().items():
            if among is None or tgid in among:
                name = counted_as(self._vms.about(tgid).name, to)
                read, period = counts.numbers[FIELDS["reads"]]
                found = Unchecked(read, period, sum(counts.numbers[FIELDS["read_ns"]]))
                to[name] = to.get(name, Unchecked()) + found

    def _is_gone(self, tgid: int) -> bool:
        if self._vms.is_alive(tgid):
            return False
        self._vms.about(tgid)  # is_alive() is False of a process that was never looked at
        return not self._vms.is_alive(tgid)

    def rest(self) -> list[Observation]:
        """Stop the probes and return the last calls."""
        return self._probes.stop()

    def lost(self) -> Mapping[str, int]:
        """Return how many records were lost so far, by reason."""
        return self._probes.lost()


def attached_line(mode: str, functions: Sequence[str]) -> str:
    """Return the line that scripts wait for on stderr."""
    return f"attached {mode} probes to {len(functions)} functions"


@contextmanager
def attached(mode: Mode, vms: Vms, attach: Attach) -> Iterator[Source]:
    """Attach probes that send every call. A second Ctrl-C ends the process at once.

    Raise KernelError if they cannot be attached, or do not run.
    """
    instance = kvm_instance()
    with attach(mode=mode, vms=vms, stream=True) as live, stop_requests() as stopped:
        source = Source(live, vms, stopped, lambda: kvm_instance() == instance)
        source.test()
        yield source


def follow(source: Source, session: Session, duration_s: float | None) -> None:
    """Feed a session until the end, or until nobody reads its output any more.

    Raise KernelError, with all that was seen told, if the probes see no calls any more.
    """
    for calls in source.batches(duration_s):
        session.feed(calls)
        session.feed_pmus(source.new_pmus())
        session.feed_starved(source.newly_starved())
        if missing := source.missing_census():
            print(
                f"which vPMU each VM has cannot be determined: {missing}",
                file=sys.stderr,
            )
        if session.unread:
            break
    session.feed(source.rest())
    session.feed_unchecked(source.unchecked())
    lost = source.lost()
    session.end(sum(lost.values()))
    if reasons := ", ".join(f"{reason} {count}" for reason, count in lost.items() if count):
        print(f"lost, by reason: {reasons}", file=sys.stderr)
    if source.broken:
        raise source.broken
