"""`python -m tests.unit.fake_host ARGUMENTS`: vpmu-agent on a host whose probes work, with scripted calls.

Only the probes are not real. They give a batch of calls per poll and then none.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from types import TracebackType
from typing import Self

from tests.unit.counted import Maps
from tests.unit.scenes import Guest
from vpmu_agent import cli, probes
from vpmu_agent.model.call import Call
from vpmu_agent.probes import FUNCTIONS, Mode
from vpmu_agent.probes.record import VmNames


class ScriptedProbes(Maps):
    """What `Probes` promises. The calls are this process's own, so that their VM is alive."""

    def __init__(self, vms: VmNames, *, mode: Mode, diverging: bool, lost: int) -> None:
        super().__init__()
        self.mode = "fexit" if mode == "auto" else mode
        self.functions = tuple(FUNCTIONS.values())
        self.closed = False
        tgid = os.getpid()
        guest = Guest(vms.name(tgid), tgid)
        first, *life = guest.life(size=2)
        self._batches = [[first], life, list(guest.life(pmc=1))]
        if diverging:
            self._batches.append(guest.unexpected_pause(pmc=2))
        if lost:
            self._batches[1][0] = replace(life[0], lost=lost)
        self._rest = list(guest.life(pmc=3))
        self._lost = lost

    def poll(self, timeout_s: float) -> list[Call]:
        """The next batch; waits if there is none, as the real one does."""
        if self._batches:
            calls = self._batches.pop(0)
            self.feed(calls)
            return calls
        time.sleep(timeout_s)
        return []

    def lost(self) -> dict[str, int]:
        """All of them for want of room."""
        return {"total": self._lost, "ring_full": self._lost, "inflight_full": 0, "missed_return": 0}

    def stop(self) -> list[Call]:
        """One more life of a counter was on its way."""
        rest, self._rest = self._rest, []
        return rest

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True


def attach(*, mode: Mode = "auto", vms: VmNames) -> ScriptedProbes:
    """In place of `probes.attach()`; the environment says what shall happen."""
    return ScriptedProbes(
        vms,
        mode=mode,
        diverging="DIVERGING" in os.environ,
        lost=int(os.environ.get("LOST", "0")),
    )


if __name__ == "__main__":
    vars(probes)["attach"] = attach
    cli.main()
