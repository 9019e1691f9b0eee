"""Every output is searched for kernel addresses, on a host whose calls and census are full of them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Attack
from tests.support.addresses import LOWEST, addresses_in
from tests.support.commands import invoke
from tests.support.counted import Maps, Processes
from tests.support.guests import amd, seen
from tests.support.looks import WEB, Thing, host_event, look, pmc, starved, stray, without_event
from tests.support.records import record
from tests.support.scenes import Guest, checked
from tests.support.web import LOOPBACK, get
from vpmu_agent.cli.main import StandIns
from vpmu_agent.counts.guests import Found
from vpmu_agent.counts.recent import Recent
from vpmu_agent.counts.watch import Watch
from vpmu_agent.daemon.failing import FailingCounters
from vpmu_agent.daemon.leaks import LeakReport
from vpmu_agent.daemon.report import Report
from vpmu_agent.model.call import Call
from vpmu_agent.model.verdict import Observation
from vpmu_agent.probes.decoder import Decoder
from vpmu_agent.trace.printers import JsonPrinter, Printer, TextPrinter
from vpmu_agent.trace.recording import Header, Recorder
from vpmu_agent.trace.session import Filters, Session
from vpmu_agent.web.app import application
from vpmu_agent.web.metrics import Exporter
from vpmu_agent.web.server import Server
from vpmu_agent.web.state import Overview

DIRECT_MAP = 0xFFFF_8881_2345_6000
VCPU, VM = DIRECT_MAP, DIRECT_MAP + 0x10_0000


class Names(Processes):
    """The VM's name, for the decoder too."""

    def met(self, tgid: int, command: object) -> None:
        """It is known already."""


@pytest.fixture
def sent() -> list[Call]:
    """Calls as the probes see them, with addresses: of a group, a divergence, a failure, a starved one."""
    guest = Guest("web01", WEB)
    return [
        *guest.life(size=3),
        *guest.unexpected_pause(pmc=1),
        guest.failed_create(pmc=2),
    ]


@pytest.fixture
def observed(sent: list[Call]) -> list[Observation]:
    decoder = Decoder(epoch_ns=0, vms=Names(web01=WEB))
    decoded = [decoder.call(record(*observation)) for observation in checked(sent)]
    return [observation for observation in decoded if observation]


@pytest.fixture
def guests() -> Found:
    """What the census says of a VM with every kind of counter, and of a profiler."""

    def things(at: int) -> list[Thing]:
        its = {"vcpu": VCPU}
        return [
            amd(address=VCPU, vm=VM),
            pmc(0, **its, event=VCPU + 0x400, enabled_ns=at * 10**9, running_ns=at * 10**9),
            without_event(1, **its),
            starved(2, **its, event=VCPU + 0x800),
            host_event(VCPU + 0xC00),
            *([stray(**its)] if at > 1 else []),
        ]

    return seen({WEB: "web01"}, *(look(*things(at), at=at) for at in (1, 2, 9)))


@pytest.fixture
def server(sent: list[Call], observed: list[Observation], guests: Found) -> Iterator[Server]:
    watch = Watch(Maps(sent), Names(web01=WEB))
    watch.show_guests(guests)
    recent = Recent()
    for call, verdict in observed:
        recent.add(call, verdict)
    server = Server(LOOPBACK)
    server.start(application(Exporter(watch), Overview(watch, recent, str)))
    yield server
    server.close()


def fetched(server: Server, path: str) -> str:
    """What is answered there."""
    return get(server, path).text


def said(*arguments: str, stand_ins: StandIns | None = None) -> str:
    """All that a command writes."""
    result = invoke(*arguments, stand_ins=stand_ins)
    return result.stdout + result.stderr


def traced(observed: list[Observation], printer: Callable[[io.StringIO], Printer], recording: Path) -> str:
    """What `trace --record` prints and writes."""
    out = io.StringIO()
    recorder = Recorder(recording, Header("0.4.0", "6.1.0", "fexit", {}))
    session = Session(Filters(), printer(out), out, recorder=recorder)
    session.feed(observed)
    session.end(0)
    return out.getvalue() + recording.read_text()


def logged(observed: list[Observation], guests: Found) -> str:
    """The entries of the daemon's log, with all fields, as the journal has them."""
    entries: list[object] = []

    def tell(*words: object, **fields: object) -> None:
        entries.append((*map(str, words), {name: str(value) for name, value in fields.items()}))

    report = Report(tell=tell)
    for call, verdict in observed:
        report.add(call, verdict)
    report.close()
    FailingCounters(tell=tell, nmi_watchdog=lambda: True).tell_of(guests)
    LeakReport(tell=tell).tell_of(guests)
    assert len(entries) >= 4, entries
    return json.dumps(entries)


def test_kernel_addresses(
    attack: Attack,
    server: Server,
    observed: list[Observation],
    guests: Found,
    tmp_path: Path,
) -> None:
    """Somebody looks for kernel addresses in all that the agent says"""
    outputs: dict[str, Callable[[], str]] = {"the log": partial(logged, observed, guests)}
    for path in ("/", "/metrics", "/api/v1/state", "/api/v1/counters?vm=web01"):
        outputs[path] = partial(fetched, server, path)
    host = StandIns(guests=lambda _names: guests)
    url = f"http://{server.address}"
    printers: dict[str, Callable[[io.StringIO], Printer]] = {
        "text": partial(TextPrinter, vendor=""),
        "json": lambda _out: JsonPrinter(),
    }
    for output, printer in printers.items():
        options = ("--output", output)
        outputs[f"list --output {output}"] = partial(said, "list", "--all", *options, stand_ins=host)
        outputs[f"top --output {output}"] = partial(said, "top", "--once", *options, "--url", url)
        outputs[f"trace --output {output}"] = partial(traced, observed, printer, tmp_path / output)
    for name, say in outputs.items():
        with attack.once(name):
            text = say()
            assert "web01" in text
            assert not addresses_in(text)


def test_a_recording_has_all_that_the_model_needs(observed: list[Observation], tmp_path: Path) -> None:
    traced(observed, lambda _out: JsonPrinter(), tmp_path / "recording")
    result = invoke("replay", str(tmp_path / "recording"), "--output", "json")
    calls: list[dict[str, Any]] = [json.loads(line) for line in result.stdout.splitlines()]
    kinds = [call["verdict"] for call in calls if call["kind"] == "call"]
    assert kinds == [str(verdict.kind) for _, verdict in observed]
    assert "unexpected_call" in kinds


@pytest.mark.parametrize("number", [DIRECT_MAP, LOWEST])
def test_addresses_are_found_however_they_are_written(number: int) -> None:
    for text in (f"{number:x}", f"at {number:#x}.", f'"{number:X}"', f"[{number}]", f"={number - 2**64}"):
        assert addresses_in(text), text
    assert not addresses_in("281474976710655 1766000000123456789 0x7f00deadbeef 9223372036854775807")
