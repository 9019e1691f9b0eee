"""The truth about every counter: each status of a real guest, the right VM named and nothing said of others.

The test PMU's account says which events there are, which were put on a CPU and which found no room.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

import pytest

from . import agent, pmu
from .guests import guest_a
from .holder import NAME, holder
from .listed import listed, parsed, programmed
from .scrape import parse, read, scrape_until, total
from .vendor import CONFIGS, FIXED

LISTEN = "127.0.0.1:9775"
LEAKED = "vpmu_leaked_events"


# A vCPU's thread that lists: so its events are on the PMU when they are looked at, though there is one CPU.
LISTS_ITSELF = f"""
import os, sys
sys.executable = {sys.executable!r}
from tests.bpf.kvm import make_vm
from vpmu_agent.cli.main import cli
vm = make_vm(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC), "cr", 1)
cli(["list", "--output", "json"])
"""


@pytest.mark.intel
@pytest.mark.slim
def test_every_status_of_guests_that_were_there_before() -> None:
    with ExitStack() as stack:
        killed = programmed(stack, guest_a("killed01", stepwise=True))
        idle = stack.enter_context(guest_a("idle01", stepwise=True))
        idle.wait_for("stage")
        asleep = programmed(stack, guest_a("asleep01", counters=2, stepwise=True))
        filtered = programmed(stack, guest_a("filtered01", fixed=FIXED, stepwise=True, filtered=True))
        pmu.fail_creation(errno.ENOSPC, after=1)
        denied = programmed(stack, guest_a("denied01", counters=2, stepwise=True))
        pmu.fail_creation(0)
        pmu.set_room(2)
        starved = programmed(stack, guest_a("starved01", fixed=FIXED, stepwise=True))
        killed.kill()
        found = listed()
        counts = {guest.tgid: pmu.kvm_counts(guest.tgid) for guest in (asleep, filtered, denied, starved)}
    assert {vm["vm"]: vm["tgid"] for vm in found.of("vm")} == {
        "idle01": idle.tgid,
        "asleep01": asleep.tgid,
        "filtered01": filtered.tgid,
        "denied01": denied.tgid,
        "starved01": starved.tgid,
    }
    assert {pmu["mode"] for vm in found.of("vm") for pmu in vm["pmus"]} == {"emulated"}
    assert found.counters() == {
        "asleep01": {"gp0": "descheduled", "gp1": "descheduled"},
        "filtered01": dict.fromkeys(CONFIGS, "filtered"),
        "denied01": {"gp0": "descheduled", "gp1": "denied"},
        "starved01": dict.fromkeys(CONFIGS, "starved") | {"gp0": "descheduled", "gp1": "descheduled"},
    }
    assert found.vm("idle01")["statuses"].keys() == {"idle"}
    assert found.vm("starved01")["starved"].startswith(
        f"starved01: {len(CONFIGS) - 2} of {len(CONFIGS)} counters starved"
    )
    assert [vm["starved"] for vm in found.of("vm") if vm["vm"] != "starved01"] == [None] * 4
    assert [vm["vm"] for vm in found.of("vm") if vm["event_filter"]] == ["filtered01"]
    assert found.of("holder") == []
    assert found.status == 1

    # The test PMU's own account says the same.
    for guest, name in ((asleep, "asleep01"), (filtered, "filtered01"), (denied, "denied01")):
        assert counts[guest.tgid].alive == found.events(name)
        assert counts[guest.tgid].refused == 0
    assert counts[denied.tgid].failed >= 1
    assert counts[starved.tgid].alive == found.events("starved01") == len(CONFIGS)
    assert counts[starved.tgid].refused >= 2


def test_a_process_that_took_the_room_first_is_named() -> None:
    pmu.set_room(2)
    with holder() as pid, ExitStack() as stack:
        guest = programmed(stack, guest_a("web01", stepwise=True))
        found = listed()
        assert pmu.perf_counts(pid).alive == 1
        guest.kill()
        after = listed()
    assert found.counters() == {
        "web01": {"gp0": "descheduled", "gp1": "starved", "gp2": "starved", "gp3": "starved"}
    }
    (held,) = found.of("holder")
    assert (held["pid"], held["comm"]) == (pid, NAME)
    assert (held["events"], held["pinned"], held["failed"]) == (1, 1, 0)
    assert held["cpus"] == [0]
    assert found.vm("web01")["starved"] == (
        f"web01: 3 of 4 counters starved; on CPU 0 {NAME} (pid {pid}) has 1 event, pinned"
    )
    assert found.status == 1

    assert after.of("vm") == []
    assert after.of("counter") == []
    assert after.of("holder") == [held]
    assert after.status == 0


@pytest.mark.intel
@pytest.mark.slim
def test_a_counter_that_counts() -> None:
    with ExitStack() as stack:
        programmed(stack, guest_a("other01", counters=1, stepwise=True))
        done = subprocess.run(
            # By its name and this argument it is a VMM.
            ["qemu-system-x86_64", "-c", LISTS_ITSELF, "-name", "guest=busy01"],
            executable=sys.executable,
            env=os.environ,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    found = parsed(done)
    assert found.counters() == {"busy01": {"gp0": "counting"}, "other01": {"gp0": "descheduled"}}
    (busy,) = (line for line in found.of("counter") if line["vm"] == "busy01")
    assert busy["config"] == CONFIGS["gp0"]
    assert busy["running"] == 1
    assert busy["events"][0]["enabled_ns"] > 0
    assert busy["cpu"] == 0


def test_a_daemon_that_comes_late_knows_them_at_its_first_scrape() -> None:
    pmu.set_room(2)
    with ExitStack() as stack:
        guests = {
            name: programmed(stack, guest_a(name, counters=counters, stepwise=True))
            for name, counters in (("four01", 4), ("two01", 2))
        }
        with agent.run(LISTEN) as daemon:
            first = parse(read(LISTEN))
            for name, guest in guests.items():
                alive = pmu.kvm_counts(guest.tgid).alive
                assert alive == {"four01": 4, "two01": 2}[name]
                assert total(first, "vpmu_events", vm=name) == alive
            assert total(first, "vpmu_mode", mode="emulated") == 2
            assert total(first, "vpmu_starved_pmcs", vm="four01") == 2
            assert total(first, "vpmu_starved_pmcs") == 2
            # The guest turns its counters off and reads them: nothing is starved any more.
            guests["four01"].go_on()
            last = scrape_until(LISTEN, lambda now: total(now, "vpmu_starved_pmcs") == 0)
            assert total(last, "vpmu_divergences_total") == 0
            assert {dict(has)["vm"]: value for (name, has), value in last.items() if name == LEAKED} == {
                "four01": 0,
                "two01": 0,
            }
            assert "four01: 2 of 4 counters starved" in daemon.stderr()
            assert "two01: " not in daemon.stderr()
            assert daemon.stop().status == 0


def test_a_counter_is_told_of_soon_after_it_starves() -> None:
    """Two seconds on a host; some more are allowed here, where a pull is emulated."""
    pmu.set_room(2)
    with agent.run(LISTEN) as daemon, guest_a("soon01", stepwise=True) as guest:
        guest.wait_for("stage")
        assert total(parse(read(LISTEN)), "vpmu_starved_pmcs") == 0
        guest.go_on()
        guest.wait_for("stage")
        began = time.monotonic()
        told = scrape_until(LISTEN, lambda now: total(now, "vpmu_starved_pmcs", vm="soon01") == 2)
        took = time.monotonic() - began
        print(f"\nstarved counters are in the metrics after {took:.1f} s")
        assert total(told, "vpmu_starved_pmcs", vm="soon01") == 2
        assert took < 10
        assert daemon.stop().status == 0


def test_a_counter_that_outlives_a_reset_is_marked() -> None:
    with agent.run(LISTEN) as daemon, guest_a("reset01", counters=2, stepwise=True, resetting=True) as guest:
        guest.wait_for("stage")
        guest.go_on()
        assert guest.wait_for("stage")["stage"] == "programmed"
        assert wait_for(lambda: in_use("reset01") == 2)
        assert state()["resets"] == []
        guest.go_on()
        assert guest.wait_for("stage")["stage"] == "reset"
        (said,) = wait_for(lambda: state()["resets"])
        assert said.startswith("reset01 was reset, but its VMM has not reset 2 counters")
        assert f"{said}\n" in daemon.stderr()
        # Its guest turns them off, and then on.
        guest.go_on()
        guest.wait_for("stage")
        assert wait_for(lambda: not state()["resets"])
        assert daemon.stop().status == 0


def state() -> dict[str, Any]:
    """The daemon's state."""
    with urllib.request.urlopen(f"http://{LISTEN}/api/v1/state", timeout=30) as answer:
        found = json.load(answer)
    assert isinstance(found, dict)
    return found


def in_use(name: str) -> int:
    """How many counters of this VM the census found to be in use."""
    counters: list[dict[str, int]] = [vm["counters"] or {} for vm in state()["vms"] if vm["vm"] == name]
    return sum(sum(each.values()) - each.get("idle", 0) for each in counters)


T = TypeVar("T")


def wait_for(what: Callable[[], T], *, timeout_s: float = 30.0) -> T:
    """What it returns, once that is true; or what it returns at the end."""
    deadline = time.monotonic() + timeout_s
    while not (found := what()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found
