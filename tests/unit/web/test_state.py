from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.support.counted import Maps, Processes
from tests.support.guests import amd, found, seen
from tests.support.looks import host_event, look, pmc, starved, stray, without_event
from tests.support.scenes import Guest, checked
from vpmu_agent.counts.guests import Found
from vpmu_agent.counts.recent import Recent
from vpmu_agent.counts.watch import Watch
from vpmu_agent.model.call import Call, CallName
from vpmu_agent.vms.modes import Mode, Pmu, Why
from vpmu_agent.web.page import html
from vpmu_agent.web.state import (
    COUNTERS,
    NOW_S,
    ROWS,
    SENTENCES,
    Diverging,
    HostState,
    Overview,
    state_json,
)

WEB, DB = 4242, 4343


class Clock:
    """A time.monotonic() that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    return clock


@pytest.fixture
def maps() -> Maps:
    return Maps(Guest("web01", WEB).life(size=2))


@pytest.fixture
def vms() -> Processes:
    return Processes(web01=WEB, db01=DB)


@pytest.fixture
def watch(maps: Maps, vms: Processes) -> Watch:
    return Watch(maps, vms)


@pytest.fixture
def shown(watch: Watch) -> Overview:
    return Overview(watch, Recent(), str)


def test_vms_of_which_there_is_nothing_to_trace(shown: Overview, watch: Watch) -> None:
    mediated = {f"vm{i:03}": [Pmu(Mode.MEDIATED)] for i in range(60)}
    has = {"old": [Pmu(Mode.OFF, Why.NO_IRQCHIP)], "web01": [Pmu(Mode.EMULATED)], **mediated}
    watch.show_guests(Found(pmus=has))
    state = json.loads(state_json(shown.state()))
    assert state["all_untraced"] == 61
    assert len(state["untraced"]) == ROWS
    assert state["untraced"][:2] == [
        {"vm": "old", "mode": "off", "reason": "no_irqchip"},
        {"vm": "vm000", "mode": "mediated", "reason": None},
    ]
    assert [vm["vm"] for vm in state["vms"]] == ["web01"]


def test_what_the_census_says(watch: Watch) -> None:
    things = amd(), pmc(0), starved(2), starved(3), host_event(0x900), host_event(0x901)
    watch.show_guests(found({WEB: "web01"}, *things, without_event(1)))
    state = json.loads(state_json(Overview(watch, Recent(), str, "AuthenticAMD", lambda: None).state()))
    (web01,) = state["vms"]
    said = "web01: 2 of 4 counters starved; on CPU 3 otel-profiler (pid 99) has 2 events, pinned"
    assert web01["counters"] == {"counting": 1, "idle": 2, "starved": 2, "denied": 1}
    assert (web01["running"], web01["starved"]) == (None, said)  # no time between the two looks
    assert [(each["pmc"], each["status"]) for each in web01["failing"]] == [
        ("gp1", "denied"),
        ("gp2", "starved"),
        ("gp3", "starved"),
    ]
    assert web01["failing"][1] == {
        "vcpu": 0,
        "pmc": "gp2",
        "status": "starved",
        "event": "r076:h",
        "event_name": "cycles",
        "events": 1,
        "size": 1,
        "cpu": 3,
        "running": None,
        "errno": 0,
        "outlived_reset": None,
    }
    assert (web01["failing"][0]["event"], web01["failing"][0]["events"]) == ("r076:h", 0)
    assert (state["all_starved"], state["all_starving"]) == (2, 1)
    assert state["starving"] == [
        {"vm": "web01", "failing": {"starved": 2, "denied": 1}, "sentence": f"{said}; also 1 denied"}
    ]
    assert state["holders"] == [
        {"pid": 99, "comm": "otel-profiler", "events": 2, "pinned": 2, "cpus": [3], "failed": 0}
    ]
    assert (state["no_census"], state["nmi_watchdog"], state["all_holders"]) == ("", None, 1)


def test_counters_that_outlive_a_reset(watch: Watch) -> None:
    reset = amd(tsc_set_ns=2 * 10**9)
    watch.show_guests(seen({WEB: "web01"}, look(amd(), pmc(0)), look(reset, pmc(0), starved(1))))
    overview = Overview(watch, Recent(), str)
    state = json.loads(state_json(overview.state()))
    said = "web01 was reset, but its VMM has not reset a counter that goes on as before (gp0 of vCPU 0)"
    assert (state["resets"], state["vms"][0]["reset"]) == ([said], said)
    counters = json.loads(overview.counters_json("web01"))["counters"]
    assert [counter["outlived_reset"] for counter in counters] == [True, None]
    assert f"{said}." in html(overview.state())


def test_where_there_is_no_census_what_it_would_find_is_unknown(shown: Overview, watch: Watch) -> None:
    assert shown.state().no_census == "it has not been read yet"
    watch.show_guests(Found(pulls=3, missing="cannot read the census"))
    state = Overview(watch, Recent(), str).state()
    assert (state.no_census, state.all_starved, state.starving) == ("cannot read the census", None, [])
    assert (state.no_holders, state.all_holders, state.holders) == ("cannot read the census", None, None)
    (web01,) = state.vms
    assert (web01.counters, web01.running, web01.starved, web01.failing) == (None, None, "", ())


def test_a_census_that_finds_no_events_of_the_host(watch: Watch) -> None:
    watch.show_guests(replace(found({WEB: "web01"}, amd(), starved()), no_holders="perf_read() is not there"))
    state = json.loads(state_json(Overview(watch, Recent(), str).state()))
    assert (state["no_census"], state["all_starved"]) == ("", 1)
    assert (state["no_holders"], state["holders"]) == ("perf_read() is not there", None)


def test_events_that_kvm_has_leaked(watch: Watch) -> None:
    strays = [stray(number) for number in range(1, ROWS + 2)]
    found = seen({WEB: "web01"}, look(amd(), at=1), look(amd(), *strays, at=2), look(amd(), *strays, at=9))
    watch.show_guests(found)
    state = json.loads(state_json(Overview(watch, Recent(), str).state()))
    assert (state["all_leaked"], len(state["leaked"])) == (ROWS + 1, ROWS)
    assert state["leaked"][0] == {
        "vm": "web01",
        "vcpu": 0,
        "pmc": "gp0",
        "event": "r076:GD",
        "takes_room": True,
        "age_s": 7.0,
        "is_older": False,
        "sentence": (
            "web01, vCPU 0, gp0: KVM has leaked an event (r076:GD): for 7 s the counter has not held it, so "
            "nothing will release it; it still counts, on one of the host's counters"
        ),
    }
    watch.show_guests(Found(missing="cannot read the census"))
    state = json.loads(state_json(Overview(watch, Recent(), str).state()))
    assert (state["all_leaked"], state["leaked"]) == (None, [])


def test_a_host_full_of_starved_vms_is_bounded(watch: Watch, vms: Processes) -> None:
    names = {tgid: f"vm{tgid:03}" for tgid in range(1, 101)}
    vms.names |= names
    vcpus = [
        amd(tgid=tgid, address=tgid << 8 | cpu, vm=tgid, vcpu_id=cpu) for tgid in names for cpu in range(4)
    ]
    counters = [
        starved(index, tgid=vcpu.tgid, vcpu=vcpu.address)
        for vcpu in vcpus
        for index in range(6 if vcpu.tgid == 77 else 1)
    ]
    events = [host_event(0x900 + pid, tgid=pid) for pid in range(1000, 1100)]
    watch.show_guests(found(names, *vcpus, *counters, *events))
    state = Overview(watch, Recent(), str).state()
    assert (len(state.starving), state.all_starving, state.starving[0].vm) == (SENTENCES, 100, "vm077")
    assert state.all_starved == 99 * 4 + 24
    assert (len(state.holders or ()), state.all_holders) == (ROWS, 100)


def test_only_so_many_counters_of_a_vm_are_listed(watch: Watch) -> None:
    vcpus = [amd(address=cpu, vcpu_id=cpu) for cpu in range(4)]
    counters = [starved(index, vcpu=cpu) for cpu in range(4) for index in range(6)]
    watch.show_guests(found({WEB: "web01"}, *vcpus, *counters))
    (web01,) = Overview(watch, Recent(), str).state().vms
    assert len(web01.failing) == COUNTERS
    assert web01.counters == {"starved": 24}


def test_a_vm_with_what_it_holds_and_its_tax(shown: Overview, maps: Maps) -> None:
    maps.feed(Guest("db01", DB).unexpected_pause())
    guest = Guest("db01", DB)
    maps.feed([guest.failed_create(pmc=1)])
    state = shown.state()
    db01, web01 = sorted(state.vms, key=lambda vm: vm.vm)
    assert (web01.groups, web01.events, web01.calls, web01.divergences) == ({}, 0, 6, 0)
    # Two creates, enables and releases, of the durations of tests/unit/scenes.py.
    assert web01.host_ns == 2 * (23_400 + 870 + 1_456_000)
    assert (db01.groups, db01.events, db01.failed, db01.divergences) == ({"paused": 1}, 1, 1, 1)
    assert (state.all_vms, state.all_events, state.all_failed, state.all_divergences) == (2, 1, 1, 1)
    assert state.all_host_ns == sum(vm.host_ns for vm in state.vms if vm.host_ns) > web01.host_ns
    assert [vm.vm for vm in state.vms] == ["web01", "db01"]  # by tax
    assert (web01.vmm, web01.pid) == ("qemu", WEB)


def test_without_durations_there_is_no_tax_and_vms_are_listed_by_calls(
    maps: Maps, vms: Processes, clock: Clock
) -> None:
    for _ in range(2):
        maps.feed(Guest("db01", DB).life(size=2))
    unmeasured = Overview(Watch(maps, vms, durations=False), Recent(), str)
    for _ in range(2):  # the second time a share could be known
        clock.now += 2
        state = json.loads(state_json(unmeasured.state()))
        assert [(vm["vm"], vm["calls"]) for vm in state["vms"]] == [("db01", 12), ("web01", 6)]
        assert {(vm["host_ns"], vm["host_share"]) for vm in state["vms"]} == {(None, None)}
        assert (state["all_host_ns"], state["all_host_share"]) == (None, None)


def test_the_share_is_that_of_the_time_between_two_reads(shown: Overview, maps: Maps, clock: Clock) -> None:
    assert shown.state().vms[0].host_share is None
    clock.now += 2
    maps.feed([Guest("web01", WEB).call(CallName.RELEASE, 1)])
    state = shown.state()
    assert state.vms[0].host_share == pytest.approx(1_456_000 / 2e9)
    assert state.all_host_share == pytest.approx(1_456_000 / 2e9)
    clock.now += NOW_S + 1
    assert shown.state().vms[0].host_share is None  # that would be of no time in particular


def test_however_many_ask_it_is_read_once_a_second(shown: Overview, maps: Maps, clock: Clock) -> None:
    first = shown.state()
    maps.feed(Guest("db01", DB).life())
    clock.now += 0.9
    assert shown.state() is first
    clock.now += 0.2
    assert shown.state().all_vms == 2


def test_who_looks_at_the_page_takes_nothing_from_a_scrape(
    shown: Overview, watch: Watch, vms: Processes, clock: Clock
) -> None:
    shown.state()
    vms.living = set()
    watch.sweep()
    for _ in range(3):
        clock.now += 2
        assert [vm.vm for vm in shown.state().vms] == ["web01"]
        watch.sweep()
    assert "web01" in watch.scrape().vms
    clock.now += 2
    shown.state()
    watch.sweep()  # shown by the scrape, and not unshown by the page
    assert "web01" not in watch.scrape().vms


def diverging(guest: Guest, pmc: int) -> list[Call]:
    """One divergence, after which the counter holds nothing."""
    calls = guest.unexpected_pause(pmc=pmc)
    return [*calls, guest.call(CallName.RELEASE, calls[0].event, pmc=pmc)]


def test_diverging_counters_and_those_that_diverge_most_first(
    shown: Overview, maps: Maps, vms: Processes
) -> None:
    maps.feed(diverging(Guest("web01", WEB), 1))
    for index in (2, 2, 3):
        maps.feed(replace(call, vcpu=1) for call in diverging(Guest("db01", DB), index))
    state = shown.state()
    assert state.diverging[0] == Diverging("db01", 1, "gp2", "unexpected_call", 2)
    assert {(each.vm, each.pmc, each.count) for each in state.diverging[1:]} == {
        ("db01", "gp3", 1),
        ("web01", "gp1", 1),
    }
    by_vm = Overview(Watch(maps, vms, per_counter=False), Recent(), str).state()
    assert by_vm.diverging[0] == Diverging("db01", None, None, "unexpected_call", 3)
    assert by_vm.all_divergences == state.all_divergences == 4


def test_only_so_many_are_shown_and_the_rest_counted(maps: Maps, vms: Processes, shown: Overview) -> None:
    for tgid in range(1, 61):
        vms.names[tgid] = f"guest-{tgid}"
        guest = Guest(vms.names[tgid], tgid)
        for _ in range(tgid):
            maps.feed(diverging(guest, 0))
    state = shown.state()
    assert (state.all_vms, len(state.vms), state.vms[0].vm) == (61, ROWS, "guest-60")
    assert (state.all_diverging, len(state.diverging), state.diverging[0].vm) == (60, 50, "guest-60")
    assert state.all_divergences == sum(range(1, 61))


def test_the_json_is_all_of_it_and_one_line(watch: Watch, maps: Maps) -> None:
    recent = Recent()
    for call, verdict in checked(Guest("web01", WEB).unexpected_pause()):
        recent.add(call, verdict)
    maps.losses = {"ring_full": 3, "missed_return": 0}
    text = state_json(Overview(watch, recent, lambda: "KVM was unloaded").state())
    assert "\n" not in text
    state = json.loads(text)
    assert (state["schema"], state["kind"], state["missing"]) == (1, "state", "KVM was unloaded")
    assert state["lost"] == {"ring_full": 3}
    assert state["vms"][0]["vm"] == "web01"
    assert [(call["kind"], call["verdict"], call["expected"]) for call in state["last"]] == [
        ("call", "unexpected_call", "enable(event=0) or release(event=0)")
    ]
    assert {*state} - {"schema", "kind"} == {*HostState.__slots__}


def test_since_when(monkeypatch: pytest.MonkeyPatch, maps: Maps, vms: Processes, clock: Clock) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 5_000)
    watch = Watch(maps, vms)
    shown = Overview(watch, Recent(), str)
    assert shown.state().since_ns == 5_000
    monkeypatch.setattr("time.time_ns", lambda: 9_000)
    watch.replace(maps)
    clock.now += 2
    state = shown.state()
    assert (state.since_ns, state.loads) == (9_000, 2)
