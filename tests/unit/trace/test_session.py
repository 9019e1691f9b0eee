from __future__ import annotations

import errno
import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import pytest

from tests.support.guests import amd, found
from tests.support.looks import WEB, host_event, pmc, starved
from tests.support.scenes import USER_CYCLES, Guest, as_guest_lbr, checked
from vpmu_agent.counts.starvation import NewlyStarved
from vpmu_agent.model.call import Call, CallName, PmcType
from vpmu_agent.model.create_errors import UNKNOWN
from vpmu_agent.model.rules import Kind
from vpmu_agent.system.stdout import OutputError, output
from vpmu_agent.text import attr_text, duration_text, measured_text
from vpmu_agent.trace.printers import JsonPrinter, Printer, TextPrinter
from vpmu_agent.trace.recording import Header, Recorder, Recording
from vpmu_agent.trace.session import Filters, Session
from vpmu_agent.vms.modes import Mode, Pmu, Why


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "COLUMNS", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")


def shown(calls: list[Call], *, out: io.StringIO | None = None, lost: int = 0, **options: Any) -> str:
    out = out or io.StringIO()
    filters = options.pop("filters", Filters())
    session = Session(filters, TextPrinter(out, options.pop("vendor", "")), out, **options)
    session.feed(checked(calls))
    session.end(lost)
    return out.getvalue()


def objects(calls: list[Call], *, filters: Filters | None = None, lost: int = 0) -> list[dict[str, Any]]:
    out = io.StringIO()
    session = Session(filters or Filters(), JsonPrinter(), out)
    session.feed(checked(calls))
    session.end(lost)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, "r076:uGD"),
        ({"exclude_user": True, "exclude_kernel": False}, "r076:kGD"),
        ({"exclude_kernel": False}, "r076:GD"),
        ({"exclude_user": True}, "r076:hGD"),
        ({"exclude_host": False}, "r076:uHGD"),
        ({"exclude_host": False, "exclude_guest": True}, "r076:uHD"),
        ({"precise_ip": 3}, "r076:upppGD"),
        ({"pinned": False}, "r076:uG"),
        ({"pinned": False, "exclude_kernel": False, "exclude_guest": True}, "r076"),
        ({"config": 0x1B00}, "r1b00:uGD"),
        ({"config": 0xC2}, "r0c2:uGD"),
        ({"type": 0, "config": 0}, "cycles:uGD"),
        ({"type": 0, "config": 9}, "ref-cycles:uGD"),
        ({"type": 0, "config": 10}, "pmu0/0xa/:uGD"),
        ({"type": 8, "config": 0x3C}, "pmu8/0x3c/:uGD"),
    ],
)
def test_attributes_are_in_perfs_notation(change: dict[str, Any], text: str) -> None:
    assert attr_text(replace(USER_CYCLES, **change)) == text


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (1000, "1.00 µs"),
        (9_994, "9.99 µs"),
        (9_996, "10.0 µs"),
        (12_345, "12.3 µs"),
        (99_960, "100 µs"),
        (999_499, "999 µs"),
        (999_600, "1.00 ms"),
        (4_560_000, "4.56 ms"),
        (1_200_000_000, "1.20 s"),
        (4_000_000_000_000, "4000 s"),
    ],
)
def test_durations_have_three_digits(ns: int, text: str) -> None:
    assert duration_text(ns) == text


def test_a_duration_that_was_not_measured_is_a_dash_and_null() -> None:
    calls = [replace(call, duration_ns=0) for call in Guest("web01", 1).life()]
    lines, summary = (part.splitlines() for part in shown(calls).split("\n\n"))
    took = slice(lines[0].index("VERDICT") - 9, lines[0].index("VERDICT") - 1)
    assert [line[took].strip() for line in lines] == ["TOOK", *("-" for _ in calls)]
    assert summary[1].split()[-1] == "-"
    assert {each["duration_ns"] for each in objects(calls) if each["kind"] == "call"} == {None}


def test_the_columns_are_aligned_and_fit_a_width_of_100() -> None:
    web, other = Guest("web01", 4242), Guest("db-7", 777)
    calls = [*web.life(vcpu=11), *other.life(size=3, pmc=2, config=0x1C2), web.failed_create(pmc=5)]
    heading, *lines = shown(calls).split("\n\n")[0].splitlines()
    assert max(map(len, (heading, *lines))) <= 100
    assert [line.strip() for line in lines[len(calls) :]] == [
        "no event for r076:uGD, in the guest, user mode only: the cause is unknown, perf on",
        "x86 has no such error",
    ]
    lines = lines[: len(calls)]
    assert re.split(" +", heading) == [
        "TIME",
        "VM",
        "VCPU",
        "PMC",
        "CALL",
        "EV",
        "LEADER",
        "ATTR",
        "TOOK",
        "VERDICT",
    ]
    for column in ("VM", "PMC", "CALL", "ATTR", "VERDICT"):
        start = heading.index(column)
        assert all(line[start - 1] == " " != line[start] for line in lines)
    for column in ("VCPU", "EV", "TOOK"):
        end = heading.index(column) + len(column)
        assert all(line[end - 1] != " " == line[end] for line in lines)
    leader = heading.index("LEADER") + len("LEADER") - 1
    assert [line[leader] for line in lines[4:8]] == ["-", "0", "0", " "]
    assert "r1c2:uGD off" in lines[4]
    assert "off" not in lines[7]
    assert lines[-1].endswith("ENOSPC, predicted")


def test_every_verdict_fits_its_column() -> None:
    start = shown(list(Guest("web01", 1).life())).splitlines()[0].index("VERDICT")
    assert all(start + len(kind) <= 100 for kind in Kind)
    assert start + len("predicted, starved") <= 100


def test_a_starved_counter_stands_beside_the_verdict_and_in_the_summary() -> None:
    calls = list(Guest("web01", 1).life())
    calls[0], calls[2] = (replace(call, starved=True) for call in (calls[0], calls[2]))
    lines = shown(calls).splitlines()
    assert [line.endswith(" predicted, starved") for line in lines[1:5]] == [True, False, True, False]
    assert "web01: 2 calls left a counter starved, for which the host's PMU had no room" in lines
    assert "starved" not in shown(list(Guest("web01", 1).life()))
    coloured = shown(calls, out=Terminal())
    assert "\x1b[33mpredicted, starved\x1b[0m" in coloured
    assert [each.get("starved") for each in objects(calls)[:4]] == [True, None, True, None]


def test_times_are_of_the_local_day_to_the_microsecond() -> None:
    call = next(Guest("web01", 4242).life())
    line = shown([call]).splitlines()[1]
    assert re.match(rf"\d\d:\d\d:\d\d\.{(call.time_ns // 1000) % 1_000_000:06} web01 ", line)


def test_a_divergence_says_what_was_expected() -> None:
    lines = shown(Guest("web01", 1).unexpected_pause()).splitlines()
    assert lines[3].endswith(" unexpected_call")
    assert lines[4].strip().startswith("expected enable(event=0)")
    assert "web01: vCPU 0 gp0: unexpected_call: 1" in lines


def test_a_lost_record_is_shown_where_it_was_lost() -> None:
    first, second, *_ = Guest("web01", 1).life()
    lines = shown([first, replace(second, lost=12)], lost=13).splitlines()
    assert [line for line in lines if line.startswith("--")] == [
        "-- 12 records lost here --",
        "-- 1 record lost here --",
    ]
    assert lines.index("-- 12 records lost here --") == 2
    assert lines[-1] == "13 records lost: the counts are incomplete."


def test_a_loss_before_a_call_that_is_filtered_out_is_shown_all_the_same() -> None:
    web, other = list(Guest("web01", 1).life()), list(Guest("db01", 2).life())
    calls = [web[0], replace(other[0], lost=2), replace(other[1], lost=3), web[1]]
    found = objects(calls, filters=Filters(vms=frozenset({"web01"})), lost=5)
    assert [(line["kind"], line.get("records")) for line in found] == [
        ("call", None),
        ("lost", 5),
        ("call", None),
        ("summary", None),
    ]
    assert found[-1]["lost"] == 5


def test_the_summary_counts_each_vm_and_names_failures() -> None:
    web, other = Guest("web01", 1), Guest("db01", 2)
    text = shown([*web.life(), *web.life(pmc=1), *other.life(size=2), other.failed_create(pmc=3)])
    summary = text.split("\n\n", 1)[1].splitlines()
    rows = [line.split() for line in summary[:3]]
    assert rows[0] == ["VM", "CREATE", "ENABLE", "PAUSE", "RELEASE", "FAILED", "DIVERGED", "HOST", "TIME"]
    assert rows[1][:7] == ["db01", "3", "2", "0", "2", "1", "0"]
    assert rows[2][:7] == ["web01", "2", "2", "2", "2", "0", "0"]
    at = summary.index("db01: create failed with ENOSPC: 1")
    assert summary[at + 1] == f"  {UNKNOWN}"
    assert re.fullmatch(
        r"  vCPU 0 gp3: r076:uGD, in the guest, user mode only: 1 time since [\d:.]{15}", summary[at + 2]
    )


def test_a_creation_that_fails_again_is_explained_once() -> None:
    guest = Guest("web01", 1)
    attr = replace(USER_CYCLES, config=0xC0, exclude_kernel=False)
    failed = [
        guest.call(CallName.CREATE, 0, result=-errno.EOPNOTSUPP, attr=replace(attr, sample_period=period))
        for period in range(1, 1000)
    ]
    other = guest.call(CallName.CREATE, 0, result=-errno.EINVAL, attr=attr)
    lines = shown([*failed, other, failed[0]]).splitlines()
    explained = [at for at, line in enumerate(lines) if "no event for" in line]
    assert [lines[at - 1].split()[-2] for at in explained] == ["EOPNOTSUPP,", "EINVAL,", "EOPNOTSUPP,"]
    assert (
        lines[explained[0]]
        .strip()
        .startswith("no event for instructions (r0c0:GD), in the guest: the host's PMU cannot count")
    )
    at = lines.index("web01: create failed with EOPNOTSUPP: 1000")
    assert re.fullmatch(
        r"  vCPU 0 gp0: instructions \(r0c0:GD\), in the guest: 1000 times since [\d:.]{15}", lines[at + 2]
    )


def test_a_summary_has_the_last_ten_failures_of_a_vm_and_an_errno() -> None:
    guest = Guest("web01", 1)
    lines = shown([guest.failed_create(pmc=pmc) for pmc in range(12)] * 2).splitlines()
    assert "  2 more of other counters or events" not in lines
    assert "  4 more of other counters or events" in lines
    assert sum("2 times since" in line for line in lines) == 10


def test_a_vendors_events_have_names() -> None:
    out = io.StringIO()
    printer = TextPrinter(out, "AuthenticAMD")
    ((call, verdict),) = checked([Guest("web01", 1).failed_create()])
    *_, explanation, rest = printer.call(call, verdict)
    assert "no event for cycles (r076:uGD), in the guest, user mode only: " in explanation
    assert rest.strip()


def test_a_failed_call_in_json_says_why() -> None:
    found, *_ = objects([Guest("web01", 1).failed_create()])
    assert (found["result"], found["errno"], found["cause"]) == (-28, "ENOSPC", UNKNOWN)
    assert "errno" not in objects(list(Guest("web01", 1).life()))[0]


def test_no_calls_are_said_to_be_none() -> None:
    assert shown([]) == "No calls were seen.\n"
    assert objects([]) == []
    assert objects([], lost=4) == [{"schema": 1, "kind": "lost", "records": 4}]


def test_colour_only_on_a_terminal_that_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [*Guest("web01", 1).life(), *Guest("web01", 1).unexpected_pause(pmc=1)]
    assert "\x1b" not in shown(calls)
    coloured = shown(calls, out=Terminal())
    assert "\x1b[32mpredicted\x1b[0m" in coloured
    assert plain(coloured) == shown(calls)
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in shown(calls, out=Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in shown(calls, out=Terminal())


def test_a_long_name_is_cut_on_a_terminal_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    call = next(Guest("instance-0000002a", 1).life())
    assert " …-0000002a " in plain(shown([call], out=Terminal()).split("\n\n")[0])
    assert " instance-0000002a " in shown([call]).split("\n\n")[0]
    monkeypatch.setenv("COLUMNS", "120")
    wide = plain(shown([call], out=Terminal()).split("\n\n")[0]).splitlines()
    assert " instance-0000002a " in wide[1]
    assert wide[0].index("VERDICT") == wide[1].index("predicted")


def test_pebs_and_guest_lbr_are_told_apart_in_words_and_summed_up() -> None:
    guest = Guest("web01", 1)
    precise = replace(USER_CYCLES, config=0xC0, precise_ip=3)
    made = guest.call(CallName.CREATE, 1, attr=precise)
    failed = guest.call(CallName.CREATE, 0, attr=precise, result=-errno.EOPNOTSUPP, pmc=1)
    lbr = as_guest_lbr(guest.call(CallName.CREATE, 2))
    refused = as_guest_lbr(guest.call(CallName.CREATE, 0, result=-errno.EBUSY))
    calls = [made, failed, lbr, refused]
    said = " ".join(shown(calls, vendor="GenuineIntel").split())
    precise_one = "instructions (r0c0:upppGD), precise (level 3), in the guest, user mode only"
    assert f"no event for {precise_one}: " in said
    assert "no event for branch records (r1b00:HGD), guest LBR: " in said
    took = measured_text(2 * made.duration_ns)
    parts = [f"web01: 2 calls for {what} took {took}" for what in ("precise events (PEBS)", "guest LBR")]
    assert " ".join(parts) in said
    summary = objects(calls)[-1]
    sums = {"calls": 2, "host_ns": 2 * made.duration_ns}
    assert (summary["precise"], summary["guest_lbr"]) == (sums, sums)
    assert not {"precise", "guest_lbr"} & objects(list(guest.life()))[-1].keys()


def test_what_is_not_known_is_a_question_mark_and_what_is_not_there_a_dash() -> None:
    guest = Guest("web01", 1)
    lbr = replace(guest.call(CallName.PAUSE, 0xABC), pmc=0, pmc_type=PmcType.LBR, vcpu=-1)
    failed = guest.call(CallName.CREATE, 0, leader=0xFFF, size=4, result=-errno.ENODEV)
    first, second = shown([lbr, failed]).splitlines()[1:3]
    assert re.search(r" - lbr +pause ", first)
    assert re.search(r" create +[-?0-3] +\? ", second)


def test_the_display_filter_leaves_counts_and_recording_whole(tmp_path: Path) -> None:
    calls = [*Guest("web01", 1).life(), *Guest("db01", 2).life()]
    path = tmp_path / "recording"
    recorder = Recorder(path, Header("", "", "", {}))
    filters = Filters(vms=frozenset({"web01"}), calls=frozenset({CallName.PAUSE}))
    out = io.StringIO()
    session = Session(filters, JsonPrinter(), out, recorder=recorder)
    session.feed(checked(calls))
    session.end(0)
    found = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line.get("call") for line in found] == ["pause", None]
    assert found[-1]["calls"] == {"create": 1, "enable": 1, "pause": 1, "release": 1}
    assert session.seen == {"web01", "db01"}
    with path.open("rb") as file:
        assert [call for batch in Recording(file, "").batches() for call in batch] == calls[:4]


def test_a_recording_keeps_the_losses_of_what_was_filtered_out(tmp_path: Path) -> None:
    web, other = list(Guest("web01", 1).life()), list(Guest("db01", 2).life())
    path = tmp_path / "recording"
    filters = Filters(vms=frozenset({"web01"}))
    session = Session(filters, JsonPrinter(), io.StringIO(), recorder=Recorder(path, Header("", "", "", {})))
    session.feed(checked([web[0], replace(other[0], lost=2), replace(web[1], lost=1), web[2]]))
    session.end(7)
    with path.open("rb") as file:
        recording = Recording(file, "")
        losses = [call.lost for batch in recording.batches() for call in batch]
    assert (losses, recording.lost) == ([0, 3, 0], 7)


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        (Filters(vcpus=frozenset({1})), {"vcpu": 1}),
        (Filters(pmcs=frozenset({"gp3"})), {"pmc": "gp3"}),
        (Filters(vms=frozenset({"db01"}), vcpus=frozenset({0, 1})), {"vm": "db01"}),
    ],
)
def test_filters_pick_counters(filters: Filters, kept: dict[str, object]) -> None:
    web, other = Guest("web01", 1), Guest("db01", 2)
    calls = [*web.life(vcpu=1), *web.life(pmc=3), *other.life()]
    found = [line for line in objects(calls, filters=filters) if line["kind"] == "call"]
    assert len(found) == 4
    assert all(line[key] == value for line in found for key, value in kept.items())


@pytest.mark.parametrize("quiet", [False, True])
def test_a_vm_of_which_there_is_nothing_to_trace_is_said_to_be_one(quiet: bool) -> None:
    out = io.StringIO()
    session = Session(Filters(), TextPrinter(out), out, quiet=quiet)
    session.feed_pmus([("web01", Pmu(Mode.MEDIATED)), ("db01", Pmu(Mode.EMULATED))])
    session.end(0)
    said, nothing = out.getvalue().split(" --\n")
    assert " ".join(said.split()) == (
        "-- web01 has a mediated vPMU: the guest owns the host's counters while it runs, and KVM creates no "
        "perf events for it, so there is nothing to trace"
    )
    assert nothing == "No calls were seen.\n"
    assert all(len(line) <= 100 for line in out.getvalue().splitlines())


def test_it_is_an_object_in_json_and_only_of_vms_that_are_followed() -> None:
    out = io.StringIO()
    session = Session(Filters(vms=frozenset({"web01", "old"})), JsonPrinter(), out)
    pmus = {"web01": Pmu(Mode.MEDIATED), "db01": Pmu(Mode.MEDIATED), "old": Pmu(Mode.OFF, Why.NO_IRQCHIP)}
    session.feed_pmus(pmus.items())
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [
        {"schema": 1, "kind": "vpmu", "vm": "web01", "mode": "mediated", "reason": None},
        {"schema": 1, "kind": "vpmu", "vm": "old", "mode": "off", "reason": "no_irqchip"},
    ]


STARVED = found({WEB: "web01"}, amd(), pmc(0), starved(2), starved(3), host_event())


@pytest.mark.parametrize("quiet", [False, True])
def test_a_vm_that_begins_to_be_starved_is_said_to_be(quiet: bool) -> None:
    out = io.StringIO()
    session = Session(Filters(), TextPrinter(out), out, quiet=quiet)
    session.feed_starved(NewlyStarved(lambda: True).take(STARVED))
    assert [line.strip() for line in out.getvalue().splitlines()] == [
        "-- web01: 2 of 3 counters starved; on CPU 3 otel-profiler (pid 99) has 1 event, pinned, the NMI",
        "watchdog has 1 event, pinned --",
    ]
    session.feed_starved([])
    assert len(out.getvalue().splitlines()) == 2


@pytest.mark.parametrize(
    ("filters", "pmcs"),
    [
        (Filters(), ["gp2", "gp3"]),
        (Filters(pmcs=frozenset({"gp3"})), ["gp3"]),
        (Filters(vms=frozenset({"db01"})), []),
        (Filters(vcpus=frozenset({1})), []),
        (Filters(vms=frozenset({"web01"}), pmcs=frozenset({"gp0"})), []),
    ],
)
def test_in_json_there_are_the_starved_counters_that_are_followed(filters: Filters, pmcs: list[str]) -> None:
    out = io.StringIO()
    session = Session(filters, JsonPrinter(), out)
    session.feed_starved(NewlyStarved(lambda: None).take(STARVED))
    sentence = "web01: 2 of 3 counters starved; on CPU 3 otel-profiler (pid 99) has 1 event, pinned"
    counters = [{"vcpu": 0, "pmc": pmc, "cpu": 3, "running": None} for pmc in pmcs]
    expected = {"schema": 1, "kind": "starved", "vm": "web01", "sentence": sentence, "counters": counters}
    assert [json.loads(line) for line in out.getvalue().splitlines()] == ([expected] if pmcs else [])


def test_quiet_prints_the_summary_only() -> None:
    first, second, *_ = Guest("web01", 1).life()
    text = shown([first, replace(second, lost=3)], quiet=True, lost=4)
    assert text.splitlines()[0].startswith("VM ")
    assert "4 records lost" in text


@pytest.mark.parametrize("printer", [JsonPrinter(), None])
def test_a_reader_that_left_is_no_error(printer: Printer | None) -> None:
    read, write = os.pipe()
    os.close(read)
    out = output(write)
    session = Session(Filters(), printer or TextPrinter(out), out)
    session.feed(checked(Guest("web01", 1).life()))
    assert session.unread
    session.end(0)
    leave(out, write)


def test_an_output_that_is_full_is_a_sentence() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    out = output(full)
    session = Session(Filters(), JsonPrinter(), out)
    with pytest.raises(OutputError, match="cannot write the output: No space left on device"):
        session.feed(checked(Guest("web01", 1).life()))
    leave(out, full)


def leave(out: TextIO, descriptor: int) -> None:
    """Let go of a stream with text in it that could not be written."""
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), descriptor)
    out.flush()
    os.close(descriptor)
