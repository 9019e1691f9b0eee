"""A small fleet to scrape: `python -m tests.dashboards.fleet` prints where, and serves until its input ends.

Each host is the real exporter over HTTP. What it counts are the calls of recordings, fed in steps, over and
over, so that load moves; and what no recording has is made up, so that no series is zero for ever.
"""

from __future__ import annotations

import json
import select
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import chain, cycle, islice
from pathlib import Path

from tests.support.counted import Maps, Processes
from tests.support.scenes import Guest
from vpmu_agent.counts.recent import Recent
from vpmu_agent.counts.watch import Watch
from vpmu_agent.model.call import Call, CallName
from vpmu_agent.trace.recording import Recording
from vpmu_agent.vms.modes import Mode, Pmu
from vpmu_agent.web.metrics import Exporter
from vpmu_agent.web.server import Address, Server
from vpmu_agent.web.state import Overview

_DATA = Path(__file__).parents[1] / "data"
_STEP_S = 0.1
LOCAL = Address("127.0.0.1", 0)


def recorded(name: str) -> list[Call]:
    """The calls of one recording."""
    with (_DATA / f"{name}.jsonl").open("rb") as file:
        return [call for batch in Recording(file, name).batches() for call in batch]


def with_losses(calls: list[Call]) -> list[Call]:
    """The same, where records were lost before the middle: what follows cannot be known."""
    middle = len(calls) // 2
    return [*calls[:middle], replace(calls[middle], lost=1), *calls[middle + 1 :]]


def orphans(guest: Guest) -> Iterator[Call]:
    """A counter whose group shrinks before its release, again and again: the second event stays behind."""
    while True:
        *program, first, _second = guest.life(size=2)
        assert first.name is CallName.RELEASE
        yield from program
        yield replace(first, max_nr_events=1)


class Host:
    """One host: its agent, and the calls of its VMs, each with how many to feed in a step."""

    def __init__(self, maps: Maps, *fed: tuple[Iterator[Call], int], vm: str = "") -> None:
        self.maps = maps
        self.losing = ""
        """Why its agent loses a record in each step."""
        self._vms = Processes()
        self._vm = vm
        self._fed = fed
        self.watch = Watch(maps, self._vms)
        self.overview = Overview(self.watch, Recent(), str)

    def step(self) -> None:
        """Lets time go by."""
        calls = [call for calls, count in self._fed for call in islice(calls, count)]
        self._vms.names |= {call.tgid: self._vm or call.vm for call in calls}
        self._vms.alive = set(self._vms.names)
        self.maps.feed(calls)
        emulated = (Pmu(Mode.EMULATED),)
        self.watch.show_pmus(dict.fromkeys(self._vms.names.values(), emulated))
        if self.losing:
            self.maps.losses[self.losing] = self.maps.losses.get(self.losing, 0) + 1


def hosts() -> dict[str, Host]:
    """A busy host, one where all goes wrong, one whose agent loses calls, and one whose agent is blind."""
    storm, groups = recorded("guest_a"), recorded("grouped")
    shared, failing = recorded("guest_b"), recorded("partial_groups")
    lossy, made_up = with_losses(shared), Guest("web01", 9000)
    found = {
        # 2,560 programs a second are a storm.
        "kvm1": Host(Maps(), (cycle(storm), 1280), (cycle(groups), 23)),
        # One VM of several processes, which no real one has: the dashboard for one VM can show it all.
        "kvm2": Host(
            Maps(), (chain(lossy, cycle(shared)), 13), (cycle(failing), 1), (orphans(made_up), 1), vm="web01"
        ),
        "kvm3": Host(Maps(), (cycle(lossy), 13)),
        "kvm4": Host(Maps()),
    }
    for name, reason in {"kvm2": "ring_full", "kvm3": "missed_return"}.items():
        found[name].losing = reason
    blind = found["kvm4"]
    blind.maps.functions = ()
    blind.watch.replace(blind.maps)  # as when the kvm module is away
    reloaded = found["kvm3"]
    reloaded.watch.replace(reloaded.maps)  # as after a reload of it
    return found


def serve() -> None:
    """Prints the hosts' addresses as JSON, one of which nobody answers at, and feeds until the input ends."""
    with ExitStack() as stack:
        found = hosts()
        addresses = {}
        for name, host in found.items():
            server = stack.enter_context(closing(Server(LOCAL)))
            server.start(Exporter(host.watch), host.overview)
            addresses[name] = str(server.address)
        # Bound, so that nobody else gets it, and not listening.
        down = stack.enter_context(socket.socket())
        down.bind(("127.0.0.1", 0))
        addresses["kvm5"] = "{}:{}".format(*down.getsockname())
        print(json.dumps(addresses), flush=True)
        while not select.select([sys.stdin], [], [], _STEP_S)[0]:
            for host in found.values():
                host.step()


if __name__ == "__main__":
    serve()
