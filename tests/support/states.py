"""A daemon's states, made up, and a server that answers with them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from tests.support.web import LOOPBACK
from vpmu_agent.web.server import Server

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

SECOND = 10**9


def vm(name: str, **other: Any) -> dict[str, Any]:
    """A VM whose four counters count."""
    usual: dict[str, Any] = {
        "vm": name,
        "uuid": "1b4e28ba-2fa1-11d2-883f-0016d3cca427",
        "vmm": "qemu",
        "pid": 4242,
        "groups": {"enabled": 4},
        "events": 4,
        "orphans": 0,
        "calls": 1000,
        "failed": 0,
        "divergences": 0,
        "host_ns": 100_000_000,
        "host_share": None,
        "counters": {"counting": 4, "idle": 2},
        "running": 1.0,
        "starved": "",
        "reset": "",
        "failing": [],
    }
    return usual | other


def starved_vm(name: str, **other: Any) -> dict[str, Any]:
    """A VM with two starved counters."""
    counters = [counter(pmc="gp2", status="starved", running=0.0), counter(pmc="gp3", status="starved")]
    sentence = f"{name}: 2 of 4 counters starved; on CPU 3 otel-profiler (pid 99) has 4 events, pinned"
    usual = {"counters": {"starved": 2, "counting": 2}, "running": 0.5, "starved": sentence}
    return vm(name, **(usual | {"failing": counters} | other))


def counter(**other: Any) -> dict[str, Any]:
    """A counter that counts."""
    usual = {"vcpu": 0, "pmc": "gp0", "status": "counting", "event": "r0c0", "cpu": 3, "running": 1.0}
    return usual | {"events": 1, "size": 1, "errno": 0, "outlived_reset": None} | other


def holder(comm: str, **other: Any) -> dict[str, Any]:
    """A process with four pinned events."""
    return {"pid": 99, "comm": comm, "events": 4, "pinned": 4, "cpus": [3], "failed": 0} | other


def state(*vms: dict[str, Any], **other: Any) -> dict[str, Any]:
    """A host with these VMs."""
    usual = {
        "schema": 1,
        "kind": "state",
        "time_ns": 1_766_000_000 * SECOND,
        "host": "node7",
        "kernel": "6.1.0-27-amd64",
        "version": "0.3.0",
        "missing": "",
        "mode": "fexit",
        "functions": ["perf_event_enable"],
        "since_ns": 1_765_000_000 * SECOND,
        "loads": 1,
        "lost": {},
        "all_vms": len(vms),
        "all_events": sum(each["events"] for each in vms),
        "all_failed": sum(each["failed"] for each in vms),
        "all_divergences": sum(each["divergences"] for each in vms),
        "all_host_ns": 0,
        "all_host_share": None,
        "vms": list(vms),
        "all_untraced": 0,
        "untraced": [],
        "all_diverging": 0,
        "diverging": [],
        "last": [],
        "all_starved": sum(each["counters"].get("starved", 0) for each in vms),
        "holders": [],
    }
    return usual | other


def older(state: dict[str, Any]) -> dict[str, Any]:
    """The same from a daemon that had no census."""
    of_host, of_vm = {"all_starved", "holders"}, {"counters", "running", "starved", "failing"}
    vms = [{key: each for key, each in vm.items() if key not in of_vm} for vm in state["vms"]]
    return {key: each for key, each in state.items() if key not in of_host} | {"vms": vms}


class Daemon:
    """What a daemon answers: `state`, and the counters of its VMs; `status` in place of both."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state
        self.counters: dict[str, list[dict[str, Any]]] | None = {}
        """By VM; None: it has no such path."""
        self.status = "200 OK"
        self.body: bytes | None = None
        """Answered in place of the state."""
        self._hangs = threading.Event()
        self._goes_on = threading.Event()
        self.steps = True
        """Whether a second goes by with each answer, in which each VM makes 100 calls of 100 µs."""

    def hang(self) -> None:
        """Answer nobody from now on."""
        self._hangs.set()

    def go_on(self) -> None:
        """Answer again."""
        self._hangs.clear()
        self._goes_on.set()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path.startswith("/-/"):  # the server asks itself whether it answers
            start_response("200 OK", [])
            return [b"ok\n"]
        if self._hangs.is_set():
            self._goes_on.wait(20)
        if self.status != "200 OK" or (path == "/api/v1/counters" and self.counters is None):
            start_response(self.status if self.status != "200 OK" else "404 Not Found", [])
            return [b"no\n"]
        start_response("200 OK", [("Content-Type", "application/json")])
        if path == "/api/v1/counters":
            assert self.counters is not None
            (name,) = parse_qs(environ["QUERY_STRING"])["vm"]
            counters = self.counters.get(name, [])
            return [json.dumps({"schema": 1, "kind": "counters", "vm": name, "counters": counters}).encode()]
        answer = json.dumps(self.state).encode() if self.body is None else self.body
        if self.steps:
            self.state = later(self.state)
        return [answer]


def later(state: dict[str, Any], seconds: int = 1, calls: int = 100) -> dict[str, Any]:
    """The same host later, when each VM has made so many calls of 100 µs."""
    vms = [
        vm | {"calls": vm["calls"] + calls, "host_ns": vm["host_ns"] and vm["host_ns"] + calls * 100_000}
        for vm in state["vms"]
    ]
    return state | {"time_ns": state["time_ns"] + seconds * SECOND, "vms": vms}


@contextmanager
def answering(daemon: Daemon) -> Iterator[str]:
    """Serve what the daemon answers; yield its URL."""
    with closing(Server(LOOPBACK)) as server:
        server.start(daemon)
        yield server.url
        daemon.go_on()
