"""A small fleet to scrape: `python -m tests.dashboards.fleet` prints where, and serves until its input ends.

Each host is the real exporter over HTTP. What it counts are the calls of recordings, fed in steps, over and
over, so that load moves; and what no recording has is made up, so that no series is zero for ever.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import chain, cycle

from tests.support.hosts import Host, Load, orphans, recorded
from tests.support.scenes import Guest
from tests.support.web import LOOPBACK
from vpmu_agent.model.call import Call, CallName
from vpmu_agent.system.notify import ENVIRONMENT, notify
from vpmu_agent.system.ready import is_readable
from vpmu_agent.web.app import application
from vpmu_agent.web.metrics import Exporter
from vpmu_agent.web.server import Server

_STEP_S = 0.1


def with_losses(calls: list[Call]) -> list[Call]:
    """Return the calls with records lost before the middle one: what follows cannot be judged."""
    middle = len(calls) // 2
    return [*calls[:middle], replace(calls[middle], lost=1), *calls[middle + 1 :]]


def without_room(calls: list[Call]) -> list[Call]:
    """Return the calls as where the PMU has no room for an event that is created."""
    return [replace(call, starved=call.name is CallName.CREATE and not call.result) for call in calls]


def hosts() -> dict[str, Host]:
    """Return a busy host, one where all goes wrong, one that loses calls, and one without probes.

    The one that loses calls measures no durations and leaves out reads.
    """
    storm, groups = recorded("guest_a"), recorded("grouped")
    shared, failing = recorded("guest_b"), recorded("partial_groups")
    lossy, made_up = with_losses(shared), Guest("web01", 9000)
    found = {
        # 2,560 programs a second are a storm.
        "kvm1": Host(Load(cycle(storm), 1280), Load(cycle(groups), 23)),
        # One VM of several processes, which no real one has: the dashboard for one VM can show it all.
        "kvm2": Host(
            Load(chain(lossy, cycle(without_room(shared))), 13),
            Load(cycle(failing)),
            Load(orphans(made_up)),
            vm="web01",
        ),
        "kvm3": Host(Load(cycle(lossy), 13), durations=False, reads=False),
        "kvm4": Host(),
    }
    for name, reason in {"kvm2": "ring_full", "kvm3": "missed_return"}.items():
        found[name].losing = reason
    found["kvm2"].refuses = True
    found["kvm2"].starving = found["kvm2"].leaking = frozenset({"web01"})
    found["kvm3"].no_census = "this kernel has no iterator"
    blind = found["kvm4"]
    blind.maps.functions = ()
    blind.watch.replace(blind.maps)  # as when the kvm module is away
    reloaded = found["kvm3"]
    reloaded.watch.replace(reloaded.maps)  # as after a reload of it
    return found


def serve() -> None:
    """Print the hosts' addresses as JSON, one of them without a server, and feed until the input ends."""
    with ExitStack() as stack:
        found = hosts()
        addresses = {}
        for name, host in found.items():
            server = stack.enter_context(closing(Server(LOOPBACK)))
            server.start(application(Exporter(host.watch), host.overview))
            addresses[name] = str(server.address)
        # Bound, so that nobody else gets it, and not listening.
        down = stack.enter_context(socket.socket())
        down.bind(("127.0.0.1", 0))
        ip, port = down.getsockname()
        addresses["kvm5"] = f"{ip}:{port}"
        print(json.dumps(addresses), flush=True)
        os.environ[ENVIRONMENT] = "/nowhere/notify"  # each message to the service manager is late
        begun, steps = time.monotonic(), 0
        while not is_readable(sys.stdin, _STEP_S):
            # By the clock, for the rules want to see rates, and a busy machine comes late.
            due = int((time.monotonic() - begun) / _STEP_S) - steps
            for host in found.values():
                for _ in range(due):
                    host.step()
            steps += due
            notify("WATCHDOG=1")


if __name__ == "__main__":
    serve()
