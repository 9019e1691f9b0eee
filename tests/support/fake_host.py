"""`python -m tests.support.fake_host ARGUMENTS`: vpmu-agent on a host whose probes work, with scripted calls.

Only the loader and the probes are not real. These give a batch of calls per poll and then none.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import replace
from types import TracebackType
from typing import Self

from tests.support.counted import Maps
from tests.support.scenes import Guest
from vpmu_agent.cli.main import StandIns, main
from vpmu_agent.daemon.source import ProbeSource
from vpmu_agent.kernel.errors import KernelError, KvmNotLoadedError
from vpmu_agent.model.call import Call
from vpmu_agent.model.check import Checker
from vpmu_agent.model.verdict import Observation
from vpmu_agent.probes import Mode, functions
from vpmu_agent.probes.census import Census
from vpmu_agent.probes.decoder import VmNames

NOBODY = "http://127.0.0.1:9"
"""Where no daemon listens: the port is that of the discard protocol."""


class ScriptedProbes(Maps):
    """What `Probes` promises. The calls are this process's own, so that their VM is alive."""

    def __init__(self, vms: VmNames, *, mode: str, diverging: bool, lost: int) -> None:
        super().__init__()
        self.mode = mode
        self.census = Census(None)
        self.functions = tuple(functions().values())
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
        self._observe = Checker().observe

    def poll(self, timeout_s: float) -> list[Observation]:
        """The next batch; waits if there is none, as the real one does."""
        if refusal := os.environ.get("POLL_FAILS"):
            raise KernelError(refusal)
        if self._batches:
            calls = self._batches.pop(0)
            self.feed(calls)
            return self._checked(calls)
        time.sleep(timeout_s)
        return []

    def lost(self) -> dict[str, int]:
        """All of them for want of room."""
        return {"ring_full": self._lost, "inflight_full": 0, "missed_return": 0}

    def stop(self) -> list[Observation]:
        """One more life of a counter was on its way."""
        rest, self._rest = self._rest, []
        return self._checked(rest)

    def close(self) -> None:
        self.closed = True

    def _checked(self, calls: list[Call]) -> list[Observation]:
        return [(call, self._observe(call)) for call in calls]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def loader_command(mode: Mode, *, durations: bool, reads: bool) -> list[str]:
    """In place of `probes.loader_command()`: a loader that says nothing, so durations are as scripted."""
    _ = durations, reads
    os.environ["MODE"] = mode
    return ["/bin/true"]


def adopt(_channel: socket.socket, *, vms: VmNames) -> ScriptedProbes:
    """In place of `probes.adopt()`."""
    return scripted(os.environ["MODE"], vms)


def attach(*, mode: Mode, vms: VmNames, stream: bool) -> ScriptedProbes:
    """In place of `probes.attach()`."""
    _ = stream
    return scripted(mode, vms)


def scripted(mode: str, vms: VmNames) -> ScriptedProbes:
    """Probes of this process; the environment says what shall happen."""
    if refusal := os.environ.get("REFUSAL"):
        raise (KvmNotLoadedError if "KVM" in refusal else KernelError)(refusal)
    return ScriptedProbes(
        vms,
        mode="fexit" if mode == "auto" else mode,
        diverging="DIVERGING" in os.environ,
        lost=int(os.environ.get("LOST", "0")),
    )


def why_no_vpmu() -> tuple[str, str] | None:
    """As on a host whose guests have PMUs; WHY_NO_VPMU says otherwise."""
    why = os.environ.get("WHY_NO_VPMU")
    return (why, "load kvm with enable_pmu=1") if why else None


def stand_ins() -> StandIns:
    """What makes the host of a command such a one. No process holds a VM, unless the test says so."""
    return StandIns(
        attach=attach,
        daemon_url=os.environ.get("DAEMON_URL", NOBODY),
        source=ProbeSource(loader_command=loader_command, adopt=adopt, why_no_vpmu=why_no_vpmu),
        why_no_vpmu=why_no_vpmu,
    )


if __name__ == "__main__":
    main(stand_ins())
