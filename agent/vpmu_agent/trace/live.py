"""Calls from live probes, until the time is up or Ctrl-C or SIGTERM comes."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

    from vpmu_agent.model.verdict import Observation
    from vpmu_agent.probes import Mode, Probes
    from vpmu_agent.trace.session import Session
    from vpmu_agent.vms.modes import Pmu
    from vpmu_agent.vms.names import Vms

POLL_S = 0.1
_SWEEP_S = 1.0


class Source:
    """Attached probes as a source of calls, until it is told to stop."""

    def __init__(self, probes: Probes, vms: Vms, stopped: Callable[[], bool]) -> None:
        self.mode = probes.mode
        self._probes = probes
        self._vms = vms
        self._stopped = stopped
        from vpmu_agent.counts.census import Modes  # loads what only a live host needs

        self._modes = Modes(vms)
        self._gone: set[int] = set()  # ended processes whose names are still kept

    @property
    def attached(self) -> str:
        """The line that scripts wait for on stderr."""
        return attached_line(self._probes.mode, self._probes.functions)

    def new_pmus(self) -> list[tuple[str, Pmu]]:
        """Return the VMs that are new or have another PMU than before; see Modes.sweep()."""
        return self._modes.sweep(self._probes.census)

    def missing_census(self) -> str:
        """Return why the PMUs of VMs are not known; "" if they are, or if it was returned before."""
        return self._modes.newly_missing(self._probes.census)

    def batches(self, duration_s: float | None) -> Iterator[list[Observation]]:
        """Yield the calls as they come, empty batches too, until it is time to end."""
        end = time.monotonic() + (math.inf if duration_s is None else duration_s)
        swept = time.monotonic()
        while not self._stopped() and (left := end - time.monotonic()) > 0:
            yield self._probes.poll(min(POLL_S, left))
            if time.monotonic() - swept >= _SWEEP_S:
                self._sweep()
                swept = time.monotonic()

    def _sweep(self) -> None:
        """Forget processes that are gone: a trace may be long, and the maps have a maximum size.

        Their names are kept until the next sweep: calls of theirs may still be in the ring.
        """
        for tgid in self._gone:
            self._vms.forget(tgid)
        self._gone = {tgid for tgid in {tgid for tgid, _, _ in self._probes.vcpus()} if self._is_gone(tgid)}
        if self._gone:
            self._probes.forget(self._gone)

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
def attached(mode: Mode, vms: Vms) -> Iterator[Source]:
    """Attach probes that send every call. A second Ctrl-C ends the process at once.

    Raise KernelError if they cannot be attached.
    """
    from vpmu_agent import probes  # imported here: only a live host needs what it loads

    with probes.attach(mode=mode, vms=vms, stream=True) as live, stop_requests() as stopped:
        yield Source(live, vms, stopped)


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether Ctrl-C or SIGTERM came. A second Ctrl-C ends the process at once."""
    stop = False

    def request_stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal stop
        stop = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    former = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def follow(source: Source, session: Session, duration_s: float | None) -> None:
    """Feed a session until the end, or until nobody reads its output any more."""
    for calls in source.batches(duration_s):
        session.feed(calls)
        session.feed_pmus(source.new_pmus())
        if missing := source.missing_census():
            print(f"which vPMU each VM has cannot be determined: {missing}", file=sys.stderr)
        if session.unread:
            break
    session.feed(source.rest())
    session.end(sum(source.lost().values()))
