"""What `list` prints of what the census found."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from io import StringIO
from typing import Any

import pytest
from click.testing import Result

from tests.support.commands import invoke, lines
from tests.support.looks import (
    ENABLED,
    WEB,
    Thing,
    guest_lbr,
    host_event,
    look,
    pmc,
    starved,
    without_event,
)
from tests.support.looks import vcpu as a_vcpu
from tests.support.places import ROOT
from vpmu_agent.cli.listing import WIDTH, Listing, listing_json, listing_text
from vpmu_agent.cli.main import StandIns
from vpmu_agent.counts.guests import Found, Guests, Names
from vpmu_agent.counts.pmus import KvmPmu
from vpmu_agent.kernel.errors import KernelError
from vpmu_agent.kernel.facts import cpu_vendor, nmi_watchdog
from vpmu_agent.model.counter_status import CounterStatus
from vpmu_agent.model.event_names import raw_name
from vpmu_agent.probes.census import Census, Look
from vpmu_agent.system.stdout import Style
from vpmu_agent.text import ranges

DB, PLAIN = 777, 88
vcpu = partial(a_vcpu, pmu_version=1)  # without a global control, as on AMD before PerfMonV2
NAMES = {WEB: "web01", DB: "db01", PLAIN: "plain"}
PAGE = (ROOT / "docs/census.md").read_text()
CYCLES = f"{raw_name(0x76, cpu_vendor()) or 'r076'}:h"
"""What the counters of pmc() have, by name if this machine is AMD's."""


class NamedVms:
    """The names of the processes above."""

    def name(self, tgid: int) -> str:
        return NAMES[tgid]

    def forget(self, tgid: int) -> None:
        """There is nothing to forget."""


class Still(Census):
    """Finds the same at each pull, but for the time that goes by for events."""

    def __init__(self, found: Look) -> None:
        super().__init__(None)
        self._look = found
        self._pulls = 0

    def pull(self) -> Look:
        self._pulls += 1
        pmcs = [
            pmc._replace(enabled_ns=pmc.enabled_ns * self._pulls, running_ns=pmc.running_ns * self._pulls)
            for pmc in self._look.pmcs
        ]
        return replace(self._look, pmcs=pmcs)


def found(*things: Thing) -> Found:
    """What guests_now() finds on a host where nothing changes."""
    guests = Guests(NamedVms(), lambda: KvmPmu(enabled=True, mediated=False))
    census = Still(look(*things))
    guests.look(census)
    guests.look(census)
    return guests.found


def run(*arguments: str, host: Found) -> Result:
    def guests(_: Names) -> Found:
        return host

    return invoke("list", *arguments, stand_ins=StandIns(guests=guests))


def rows(result: Result) -> list[list[str]]:
    return [line.split() for line in result.stdout.splitlines()]


BUSY = found(
    vcpu(),
    vcpu(address=0x11, vcpu_id=1, cpu=-1),
    pmc(0),
    pmc(1, control=ENABLED | 1 << 16 | 0xC0, enabled_ns=2 * 10**9, running_ns=10**9),
    starved(2, control=ENABLED | 3 << 16 | 0x1FF),
    without_event(3),
    vcpu(tgid=DB, address=0x20, vm=2),
    vcpu(tgid=PLAIN, address=0x30, vm=3, vm_pmu=False, pmu_version=0, gp=0),
    host_event(),
    host_event(0x901, state=-2),
    host_event(0x902, cpu=4),
)


def test_each_counter_that_is_in_use_has_a_line() -> None:
    result = run(host=BUSY)
    heading, *table = rows(result)
    assert heading == ["VM", "VCPU", "PMC", "STATUS", "EVENT", "RUNNING", "CPU", "NOTE"]
    assert table[:4] == [
        ["web01", "0", "gp0", "counting", CYCLES, "100", "%", "3"],
        ["web01", "0", "gp1", "starved", "instructions:u", "50", "%", "3"],
        ["web01", "0", "gp2", "starved", "r1ff", "-", "3", "in", "error"],
        ["web01", "0", "gp3", "denied", CYCLES, "-", "3", "no", "event"],
    ]
    assert "`vpmu-agent trace` shows that" in result.stdout
    assert result.exit_code == 1


def test_events_have_the_names_of_the_cpus_vendor() -> None:
    host = found(
        vcpu(fixed=3),
        pmc(0, control=ENABLED | 3 << 16 | 0x187),
        pmc(1, control=ENABLED | 1 << 16 | 0xC4),
        pmc(32, pmc_type=1, control=0b10),
    )
    said = {}
    for vendor in ("AuthenticAMD", "GenuineIntel", ""):
        listing = Listing(host, ["web01"], None, vendor)
        said[vendor] = [line.split()[4] for line in list(listing_text(listing, Style(StringIO())))[1:4]]
    assert said == {
        "AuthenticAMD": ["stalled-cycles-backend", "r0c4:u", "instructions:u"],
        "GenuineIntel": ["r187", "branches:u", "instructions:u"],
        "": ["r187", "r0c4:u", "instructions:u"],
    }


def test_a_precise_event_is_named_in_words_and_in_perfs_notation() -> None:
    host = found(
        vcpu(fixed=1),
        pmc(0, control=ENABLED | 1 << 16 | 0xC0, attr_flags=1 << 15),
        pmc(32, pmc_type=1, control=0b11, attr_flags=3 << 15, state=-2),
    )
    listing = Listing(host, ["web01"], None, "GenuineIntel")
    precise, starved = [line.split(None, 4) for line in list(listing_text(listing, Style(StringIO())))[1:3]]
    assert precise[4].split(None, 1)[0] == "instructions:up"
    assert precise[4].endswith(" precise (level 1)")
    assert starved[2:4] == ["fixed0", "starved"]
    assert starved[4].split(None, 1)[0] == "instructions:ppp"
    assert starved[4].endswith(" in error, precise (level 3)")
    assert [json.loads(line)["event"] for line in list(listing_json(listing))[1:3]] == [
        "r0c0:up",
        "instructions:ppp",
    ]


@pytest.mark.parametrize(("state", "status", "failing"), [(1, "counting", False), (-2, "starved", True)])
def test_a_guests_lbr_has_a_line_and_is_no_counter(state: int, status: str, *, failing: bool) -> None:
    listing = Listing(found(vcpu(), guest_lbr(state=state)), ["web01"], None, "GenuineIntel")
    said = list(listing_text(listing, Style(StringIO())))
    note = "guest LBR, in error" if failing else "guest LBR"
    assert said[1].split(None, 4)[1:4] == ["0", "lbr", status]
    assert re.search(rf" branch records +- +3 {note}$", said[1])
    assert "1 VM; counters: 6 idle." in said
    assert listing.is_failing is failing
    line = json.loads(list(listing_json(listing))[1])
    assert (line["pmc"], line["status"], line["failing"]) == ("lbr", status, failing)
    assert (line["event"], line["event_name"]) == ("r1b00", "branch records")


def test_a_vm_without_one_has_a_line_with_its_mode() -> None:
    said = [" ".join(row) for row in rows(run(host=BUSY))]
    assert "db01 1 vCPU, 6 idle counters, emulated" in said
    (plain,) = (line for line in said if line.startswith("plain"))
    assert plain.startswith("plain 1 vCPU, off: its VMM turned it off")
    assert "3 VMs; counters: 1 counting, 14 idle, 2 starved, 1 denied." in said


def test_a_counter_that_outlives_a_reset_is_marked() -> None:
    """As `list` can tell by the vCPU, which waits for its INIT; of others it does not know."""
    waiting = vcpu(address=0x11, vcpu_id=1, awaits_init=True)
    host = found(vcpu(), waiting, pmc(0), pmc(1, vcpu=0x11, vcpu_id=1))
    notes = {row[2]: row[7:] for row in rows(run(host=host)) if row[:1] == ["web01"]}
    assert notes == {"gp0": ["3"], "gp1": ["3", "outlived", "a", "reset"]}
    said = {
        line["pmc"]: line["outlived_reset"]
        for line in lines(run("--output", "json", host=host))
        if "pmc" in line
    }
    assert said == {"gp0": None, "gp1": True}


def test_who_else_uses_the_pmu_and_who_starves_by_whom() -> None:
    said = run(host=BUSY).stdout
    assert ["99", "otel-profiler", "3", "3", "1", "3-4"] in rows(run(host=BUSY))
    (sentence,) = re.findall(r"^web01: 2 of 4 counters starved; .*\.$", said, re.MULTILINE | re.DOTALL)
    assert "otel-profiler (pid 99)" in sentence
    watchdog = {True: "has a pinned event on each CPU", None: "is not known"}.get(nmi_watchdog())
    assert (watchdog is None) == ("NMI watchdog" not in said)


def test_it_is_not_too_wide() -> None:
    assert max(map(len, run("--all", host=BUSY).stdout.splitlines())) <= WIDTH


def test_a_host_whose_counters_all_count() -> None:
    result = run(host=found(vcpu(), pmc()))
    assert result.exit_code == 0
    assert "No process has events on the host's PMU.\n" in result.stdout
    assert "starved" not in result.stdout


def test_a_host_without_vms() -> None:
    result = run(host=found())
    assert result.exit_code == 0
    assert result.stdout.startswith("No VMs were found.\n")


def test_idle_counters_are_printed_when_asked_for() -> None:
    result = run("--all", "--output", "json", host=BUSY)
    counters = [line for line in lines(result) if line["kind"] == "counter"]
    assert [(line["vcpu"], line["pmc"]) for line in counters if line["vm"] == "web01"] == [
        (vcpu_id, f"gp{i}") for vcpu_id in (0, 1) for i in range(6)
    ]
    statuses = [line["status"] for line in counters]
    assert statuses.count("idle") == 8 + 6
    assert ["web01", "1", "gp5", "idle", "-", "-", "-"] in rows(run("--all", host=BUSY))


def test_a_counter_that_kvm_keeps_an_event_for_is_idle_too() -> None:
    host = found(vcpu(), pmc(0, control=0x76, state=-1))
    assert not any(line["kind"] == "counter" for line in lines(run("--output", "json", host=host)))
    first = lines(run("--output", "json", "--all", host=host))[1]
    assert (first["pmc"], first["status"], len(first["events"])) == ("gp0", "idle", 1)


def test_json() -> None:
    result = run("--output", "json", host=BUSY)
    found = lines(result)
    assert {line["schema"] for line in found} == {1}
    assert [line["kind"] for line in found] == ["vm", "vm", "vm", *["counter"] * 4, "holder", "host"]
    assert [line["vm"] for line in found[:3]] == ["db01", "plain", "web01"]
    plain, web, _, second, third = found[1:6]
    assert (second["event"], second["event_name"]) == ("r0c0:u", "instructions")
    assert plain["pmus"] == [{"mode": "off", "reason": "turned_off"}]
    assert web["statuses"] == {"counting": 1, "idle": 8, "starved": 2, "denied": 1}
    assert web["starved"].startswith("web01: 2 of 4 counters starved; ")
    assert third == {
        **{"schema": 1, "kind": "counter", "vm": "web01", "tgid": WEB, "vcpu": 0, "pmc": "gp2"},
        **{"status": "starved", "failing": True, "control": ENABLED | 3 << 16 | 0x1FF, "config": 0x76},
        **{"event": "r1ff", "event_name": None},
        **{"group_size": 1, "events": [{"state": -2, "enabled_ns": 0, "running_ns": 0}]},
        **{"running": None, "cpu": 3, "errno": None, "outlived_reset": None},
    }
    assert found[-2] == {
        **{"schema": 1, "kind": "holder", "pid": 99, "comm": "otel-profiler", "events": 3, "pinned": 3},
        **{"failed": 1, "cpus": [3, 4]},
    }
    assert (found[-1]["vms"], found[-1]["nmi_watchdog"]) == (3, nmi_watchdog())
    assert result.exit_code == 1


def test_no_kernel_address_is_printed() -> None:
    address = 0xFFFF_8880_1234_5678
    host = found(
        vcpu(address=address, vm=address + 8),
        pmc(vcpu=address, event=address + 16),
        host_event(address + 24),
    )
    for output in ("text", "json"):
        said = run("--all", "--output", output, host=host).stdout
        for number in range(address, address + 32):
            assert str(number) not in said
            assert f"{number:x}" not in said


@pytest.mark.parametrize("output", ["text", "json"])
def test_one_vm(output: str) -> None:
    result = run("--vm", "db01", "--output", output, host=BUSY)
    assert "db01" in result.stdout
    assert "web01" not in result.stdout
    assert "otel-profiler" in result.stdout
    assert result.exit_code == 0  # of web01 it was not asked


def test_a_vm_that_is_not_there() -> None:
    result = run("--vm", "web99", host=BUSY)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "no VM named web99 is running; running: db01, plain, web01" in result.stderr


def test_no_census_is_status_3_with_the_reason() -> None:
    def refused(_: Names) -> Found:
        raise KernelError("cannot attach the census: Operation not permitted", "run it as root")

    result = invoke("list", stand_ins=StandIns(guests=refused))
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr == "Error: cannot attach the census: Operation not permitted; run it as root\n"


def test_holders_that_cannot_be_known_are_not_none() -> None:
    why = "perf_read is not in /proc/kallsyms"
    host = replace(found(vcpu()), no_holders=why)
    text = " ".join(run(host=host).stdout.split())
    assert f"Who else uses the host's PMU is not known: {why}." in text
    assert "No process" not in text
    assert lines(run("--output", "json", host=host))[-1]["holders_unknown"] == why


def test_a_group_says_how_many_of_its_events_it_has() -> None:
    host = found(vcpu(), pmc(0, size=4), pmc(0, size=4, event=0x200, event_id=0x200, event_index=1))
    (row,) = (row for row in rows(run(host=host)) if row[:1] == ["web01"])
    assert row[3:] == ["partial", CYCLES, "100", "%", "3", "2", "of", "4", "events"]


def test_a_process_can_have_vms_of_several_kinds() -> None:
    off: dict[str, Any] = {"vm_pmu": False, "pmu_version": 0, "gp": 0}
    host = found(vcpu(), vcpu(address=0x11, vm=2, **off))
    (row,) = (" ".join(row) for row in rows(run(host=host)) if row[:1] == ["web01"])
    assert row.startswith("web01 2 vCPUs, 6 idle counters, emulated and off: its VMM")
    assert [pmu["mode"] for pmu in lines(run("--output", "json", host=host))[0]["pmus"]] == [
        "emulated",
        "off",
    ]


@pytest.mark.parametrize(
    ("numbers", "text"), [([], "-"), ([3], "3"), ([0, 1, 2, 5, 7, 8], "0-2,5,7-8"), ([0, 2], "0,2")]
)
def test_ranges(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text


@pytest.mark.parametrize("status", CounterStatus)
def test_every_status_is_explained(status: CounterStatus) -> None:
    (row,) = re.findall(rf"^\| `{status}` \| (.+) \| (.+) \| (.*) \|$", PAGE, re.MULTILINE)
    assert all(row[:2])
    assert ("yes" in row[2]) == status.is_failing


def test_every_key_of_the_json_is_explained() -> None:
    keys: dict[str, set[str]] = {}
    for line in lines(run("--output", "json", host=BUSY)):
        keys.setdefault(line["kind"], set()).update(line.keys() - {"schema", "kind"})
    assert set(keys) == {"vm", "counter", "holder", "host"}
    for kind, used in keys.items():
        (section,) = re.findall(rf"^- `{kind}`: (.*?)(?=^- |^\n|^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
        assert used <= set(re.findall(r"`(\w+)`", section)), kind


def test_the_examples_of_the_page_are_json() -> None:
    for line in re.findall(r"^\{.*\}$", PAGE, re.MULTILINE):
        assert json.loads(line)["schema"] == 1
