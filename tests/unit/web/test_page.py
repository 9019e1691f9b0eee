from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tests.support.counted import Maps, Processes
from tests.support.guests import amd, found, seen
from tests.support.looks import host_event, look, pmc, starved, stray, without_event
from tests.support.scenes import Guest, checked
from vpmu_agent.counts.recent import Recent
from vpmu_agent.counts.watch import Watch
from vpmu_agent.model.call import CallName
from vpmu_agent.probes.census import HostEvent, Pmc, Vcpu
from vpmu_agent.web.page import HEADERS, html, observed
from vpmu_agent.web.state import HostState, Overview, Untraced

HOSTILE = "<script>alert('1')</script>\"&amp;$css"


def state(*guests: Guest, missing: str = "", durations: bool = True) -> HostState:
    """One counter of each diverges, and one was not created."""
    maps, recent = Maps(), Recent()
    for guest in guests:
        calls = [*guest.unexpected_pause(), guest.failed_create(pmc=1)]
        if not durations:
            calls = [replace(call, duration_ns=0) for call in calls]
        maps.feed(calls)
        for call, verdict in checked(calls):
            recent.add(call, verdict)
    watch = Watch(maps, Processes(**{guest.vm: guest.tgid for guest in guests}), durations=durations)
    return Overview(watch, recent, lambda: missing).state()


class Reader(HTMLParser):
    """The text of a page, its tags, and which are open at its end."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, _attrs: object) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "link", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


def test_a_vm_of_which_there_is_nothing_to_trace_is_shown_with_its_reason() -> None:
    seen = replace(
        state(Guest("web01", 42)),
        all_untraced=1002,
        untraced=[Untraced("db01", "mediated", None), Untraced(HOSTILE, "off", "no_irqchip")],
    )
    read = Reader(html(seen))
    assert "db01 has a mediated vPMU: the guest owns the host's counters" in read.text
    assert f"{HOSTILE} has lost the vPMU: " in read.text
    assert "1,000 more VMs have nothing to trace." in read.text


def test_what_a_person_sees() -> None:
    read = Reader(html(state(Guest("web01", 42))))
    assert read.open == []
    for text in (
        "● Watching since",
        "fexit probes on 6 functions",
        "No records were lost.",
        "web01 qemu, pid 42",
        "1 paused 1 event",
        "web01 0 gp0 unexpected_ call 1",
        "vCPU 0 gp0 unexpected_call nothing that KVM may do with this counter in the state it is in",
        "Expected enable(event=0) or release(event=0) Observed pause(event=0) "
        "Event r076:uGD, in the guest, user mode only; took 1.34 µs",
        "vCPU 0 gp1 ENOSPC the cause is unknown, perf on x86 has no such error "
        "Observed create(event=0, leader=None, disabled=0) failed with ENOSPC",
    ):
        assert text in read.text


def test_a_creation_that_fails_again_and_again_is_shown_once_with_how_often() -> None:
    guest = Guest("web01", 42)
    recent = Recent()
    for call, verdict in checked(guest.failed_create() for _ in range(1234)):
        recent.add(call, verdict)
    watch = Watch(Maps(), Processes(web01=42))
    text = Reader(html(Overview(watch, recent, str, "AuthenticAMD").state())).text
    assert text.count("failed with ENOSPC") == 1
    assert re.search(r"perf on x86 has no such error; 1,234 times since \d{4}-\d\d-\d\d [\d:]{8} ", text)
    assert "Event cycles (r076:uGD), in the guest, user mode only; took" in text


def test_without_durations_there_is_no_tax() -> None:
    unmeasured = replace(state(Guest("web01", 42), durations=False), all_vms=2)
    text = Reader(html(unmeasured)).text
    for shown in (
        "Host events held 1 Tax - Starved counters ? Divergences",
        "1 more VMs with fewer calls; the metrics include them all. Tax is not measured: the agent runs with "
        "--no-durations.",
        "Event r076:uGD",
    ):
        assert shown in text
    assert " took " not in text
    assert " ns" not in text


def test_counters_that_are_starved_and_by_whom() -> None:
    maps = Maps(Guest("web01", 42).life(), Guest(HOSTILE, 43).life())
    watch = Watch(maps, Processes(**{"web01": 42, HOSTILE: 43}))
    things: list[Vcpu | Pmc | HostEvent] = [
        *(amd(tgid=tgid, address=tgid, vm=tgid) for tgid in (42, 43)),
        *(pmc(index, tgid=42, vcpu=42) for index in range(2)),
        *(starved(index, tgid=42, vcpu=42) for index in (2, 3)),
        without_event(tgid=43, vcpu=43),
        *(host_event(0x900 + cpu, comm="<b>", cpu=cpu, oncpu=cpu) for cpu in (0, 1, 2, 3, 8)),
        host_event(0x950, tgid=98, comm="perf", attr_flags=0, cpu=-1, oncpu=-1, state=-2),
    ]
    watch.show_guests(found({42: "web01", 43: HOSTILE}, *things))
    read = Reader(html(Overview(watch, Recent(), str, nmi_watchdog=lambda: True).state()))
    assert read.open == []
    for text in (
        "Starved counters 2 Divergences",
        "2 counting , 2 starved 4",
        "web01 2 of 4 counters starved; on CPU 3 ",
        f"{HOSTILE} of 1 counters 1 denied",
        "<b> pid 99 5 5 0-3,8 0",
        "perf pid 98 1 0 - 1",
        "NMI watchdog the kernel's 1 a CPU 1 a CPU all ?",
    ):
        assert text in read.text


def test_events_that_kvm_has_leaked() -> None:
    strays = [stray(number, pmc_idx=number, state=-1) for number in (1, 2)]
    watch = Watch(Maps(), Processes(**{HOSTILE: 4242}))
    watch.show_guests(seen({4242: HOSTILE}, look(amd(), *strays, at=1), look(amd(), *strays, at=9)))
    overview = Overview(watch, Recent(), str)
    read = Reader(html(overview.state()))
    assert read.open == []
    assert (
        f"{HOSTILE} vCPU 0, gp1: KVM has leaked an event (r076:GD): for more than 8 s the counter has not "
        "held it, so nothing will release it; it is off and counts nothing"
    ) in read.text
    text = Reader(html(replace(overview.state(), all_leaked=1002))).text
    assert "1,000 more that are younger." in text
    assert (
        "Leaked events None: KVM holds every event" in Reader(html(replace(overview.state(), leaked=[]))).text
    )


def test_how_much_of_the_time_events_run_is_said_if_it_is_not_all() -> None:
    one = state(Guest("web01", 42))
    counting = replace(one.vms[0], counters={"counting": 4}, running=1.0)
    assert "4 counting 4 1 1" in Reader(html(replace(one, vms=[counting], no_census=""))).text
    lacking = replace(counting, counters={"starved": 1234}, running=0.339)
    text = Reader(html(replace(one, vms=[lacking], no_census=""))).text
    assert "1,234 starved running 33 % of the time 4 1 1" in text


def test_without_a_census_nothing_is_called_well() -> None:
    why = "cannot read the census: <refused>"
    without = replace(state(Guest("web01", 42)), no_census=why, no_holders=why)
    text = Reader(html(without)).text
    for shown in (
        "Starved counters ? Divergences",
        f"Starved and failing counters Not known: {why}.",
        f"Who has events on the host's PMU Not known: {why}.",
        f"Leaked events Not known: {why}.",
    ):
        assert shown in text
    assert "None: the host's PMU has room" not in text
    assert "Nobody but KVM" not in text
    assert "KVM holds every event" not in text


def test_nothing_is_starved() -> None:
    watch = Watch(Maps(), Processes())
    watch.show_guests(found({}))
    text = Reader(html(Overview(watch, Recent(), str, nmi_watchdog=lambda: False).state())).text
    assert "Starved counters 0 Divergences" in text
    assert "None: the host's PMU has room for every counter that a guest has enabled." in text
    assert "Nobody but KVM." in text


def test_nobody_has_used_its_pmu() -> None:
    read = Reader(html(state()))
    assert read.open == []
    assert "No VM has used its PMU yet. Count something in a guest" in read.text
    assert "None: KVM behaved as the model predicted" in read.text
    assert "None since the agent was started." in read.text
    assert "table" not in read.tags


def test_probes_that_are_away_and_records_that_are_lost() -> None:
    away = replace(state(missing="KVM was unloaded"), lost={"ring_full": 1200, "missed_return": 1})
    text = Reader(html(away)).text
    assert re.search(r"● Not watching since \S+ \S+ \S+ \(\w+ s\): KVM was unloaded", text)
    assert "Records were lost: ring_full 1,200, missed_return 1." in text


def test_a_vm_cannot_say_what_the_page_is() -> None:
    hostile = html(state(Guest(HOSTILE, 42), Guest("</style></title>", 43)))
    plain = html(state(Guest("a", 42), Guest("b", 43)))
    assert Reader(hostile).tags == Reader(plain).tags
    assert Reader(hostile).text.count(HOSTILE) == 4  # as a VM, a diverging counter, and in two of the last


def test_nothing_but_this_script_and_this_style_may_run() -> None:
    text, policy = html(state(Guest(HOSTILE, 42))), dict(HEADERS)["Content-Security-Policy"]
    for tag in ("script", "style"):
        (inline,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r" (?:src|style|on\w+)=", text)
    assert "//" not in re.sub(r"<(script|style)>.*?</\1>", "", text, flags=re.DOTALL)


def test_more_than_there_is_room_for() -> None:
    crowded = replace(state(*(Guest(f"web{n}", n) for n in range(1, 31))), all_vms=1234, all_diverging=31)
    text = Reader(html(crowded)).text
    assert "1,204 more VMs with less tax; the metrics include them all." in text
    assert "1 more with smaller counts." in text
    assert "The latest 20 of 60 that are kept." in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (61, "1 min 1 s"), (3 * 3600 + 59, "3 h 0 min"), (200_000, "2 d 7 h")]
)
def test_for_how_long(seconds: int, text: str) -> None:
    old = state()
    assert f"({text})" in html(replace(old, since_ns=old.time_ns - seconds * 1_000_000_000))


def test_what_was_observed_is_told_as_what_was_expected() -> None:
    create, *_ = checked(Guest("web01", 42).life(size=2))
    assert observed(create) == "create(event=0, leader=None, disabled=1)"
    _, member, *_ = checked(Guest("web01", 42).life(size=2))
    assert observed(member) == "create(event=1, leader=0, disabled=1)"
    guest = Guest("web01", 42)
    unknown = next(checked([guest.call(CallName.CREATE, 16, leader=32)]))
    assert observed(unknown) == "create(event=?, leader=?, disabled=0)"
    *_, last = checked(guest.unexpected_pause(pmc=1))
    assert observed(last) == "pause(event=0)"
