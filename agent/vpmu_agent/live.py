"""The loops over live probes: until the time is over, or Ctrl-C or SIGTERM comes."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vpmu_agent.model.call import Call
from vpmu_agent.model.check import Monitor

if TYPE_CHECKING:
    from types import FrameType

    from vpmu_agent.metrics import Watch
    from vpmu_agent.probes import Mode, Probes
    from vpmu_agent.trace import Session
    from vpmu_agent.vms import Vms

_POLL_S = 0.1
_SWEEP_S = 1.0


class Source:
    """Attached probes, and the wish to end."""

    def __init__(self, probes: Probes, stopped: Callable[[], bool]) -> None:
        self.mode = probes.mode
        self.functions = probes.functions
        self._probes = probes
        self._stopped = stopped

    @property
    def attached(self) -> str:
        """The line that scripts wait for on stderr."""
        return f"attached {self.mode} probes to {len(self.functions)} functions"

    def batches(self, duration_s: float | None) -> Iterator[list[Call]]:
        """The calls as they come, empty batches too, until it is time to end."""
        end = time.monotonic() + (math.inf if duration_s is None else duration_s)
        while not self._stopped() and (left := end - time.monotonic()) > 0:
            yield self._probes.poll(min(_POLL_S, left))

    def rest(self) -> list[Call]:
        """The calls that were still on their way; there will be no more."""
        return self._probes.stop()

    def lost(self) -> Mapping[str, int]:
        """Lost records so far, by reason."""
        return {reason: count for reason, count in self._probes.lost().items() if reason != "total"}


@contextmanager
def attached(mode: Mode, vms: Vms) -> Iterator[Source]:
    """Live probes. A second Ctrl-C ends the process at once. Raises KernelError where there can be none."""
    from vpmu_agent import probes  # it loads what only a live host needs

    stop = False

    def request_stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal stop
        stop = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with probes.attach(mode=mode, vms=vms) as live:
        former = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield Source(live, lambda: stop)
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)


def follow(source: Source, session: Session, duration_s: float | None) -> None:
    """Feeds a session until its end, or until nobody reads its output any more."""
    observe = Monitor().observe
    for calls in source.batches(duration_s):
        session.feed(zip(calls, map(observe, calls), strict=True))
        if session.unread:
            break
    rest = source.rest()
    session.feed(zip(rest, map(observe, rest), strict=True))
    session.end(sum(source.lost().values()))


def watch(source: Source, known: Watch, vms: Vms, duration_s: float | None) -> None:
    """Feeds what the metrics are made of, and drops the VMs that are gone."""
    swept = time.monotonic()
    for calls in source.batches(duration_s):
        known.feed(calls)
        if time.monotonic() - swept >= _SWEEP_S:
            for tgid in known.sweep(vms.is_alive):
                vms.forget(tgid)
            swept = time.monotonic()
