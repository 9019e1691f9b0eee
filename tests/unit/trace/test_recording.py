from __future__ import annotations

import errno
import io
import json
import os
import re
import stat
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.commands import invoke
from tests.support.places import DATA
from tests.support.scenes import Guest
from vpmu_agent.model.call import Attr, Call, CallName, PmcType
from vpmu_agent.model.rules import Expected, Kind
from vpmu_agent.model.verdict import Verdict
from vpmu_agent.system.stdout import OutputError
from vpmu_agent.trace.call_json import CallReader, call_json
from vpmu_agent.trace.recording import MAX_LINE, Header, Recorder, Recording, RecordingError
from vpmu_agent.trace.tally import Tally
from vpmu_agent.vms.clean import clean_name

HEADER = Header("0.1.0", "6.1.0-27-amd64", "fexit", {"vm": ["web01"], "vcpu": [], "pmc": []})
PREDICTED = Verdict(Kind.PREDICTED, 0, None)
CALLS = list(Guest("web01", 4242).life(size=3))


def record(path: Path, calls: list[Call], *, lost: int = 0) -> None:
    recorder = Recorder(path, HEADER)
    tally = Tally()
    for call in calls:
        tally.add(call, PREDICTED)
        recorder.write([call_json(call, PREDICTED)])
    recorder.end(tally, lost)


def read(data: bytes) -> tuple[list[Call], Recording]:
    recording = Recording(io.BytesIO(data), "file")
    return [call for batch in recording.batches() for call in batch], recording


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    record(tmp_path / "whole", CALLS)
    return (tmp_path / "whole").read_bytes()


u64 = st.integers(0, 2**64 - 1)
s63 = st.integers(0, 2**63 - 1)
attrs = st.builds(
    Attr,
    type=st.integers(0, 2**32 - 1),
    config=u64,
    sample_period=u64,
    precise_ip=st.integers(0, 3),
)
calls = st.builds(
    Call,
    time_ns=s63,
    duration_ns=s63,
    pmc=u64,
    event=u64,
    leader=u64,
    result=st.integers(-4095, 0),
    attr=attrs,
    vm=st.text(min_size=1, max_size=20).map(clean_name),
    tgid=st.integers(0, 2**31 - 1),
    tid=st.integers(0, 2**31 - 1),
    vcpu=st.integers(-1, 2**31 - 1),
    pmc_type=st.sampled_from([PmcType.GP, PmcType.FIXED]),
    pmc_idx=st.integers(0, 63),
    max_nr_events=st.integers(0, 255),
    event_count=st.integers(-1, 255),
    lost=s63,
    starved=st.booleans(),
)


@given(
    call=calls,
    index=st.none() | st.integers(0, 255),
    expected=st.sampled_from(Expected),
    at=st.integers(0, 2**32 - 1),
)
def test_a_call_is_the_same_after_writing_and_reading(
    call: Call, index: int | None, expected: Expected, at: int
) -> None:
    said = Verdict(Kind.UNEXPECTED_CALL, index, index, expected=expected, at=at)
    line = call_json(call, said)
    value = json.loads(line)
    assert (value["event"], value["leader"], value.get("expected", "")) == (index, index, said.expected)
    header = json.dumps(
        {"schema": 1, "kind": "recording", "agent": "", "kernel": "", "attach": "", "filters": {}}
    )
    found, _ = read(f"{header}\n{line}\n".encode())
    assert found == [call]


def test_a_call_in_json_has_the_documented_fields() -> None:
    call = CALLS[1]
    value = json.loads(call_json(call, Verdict(Kind.PREDICTED, 1, 0)))
    assert list(value) == [
        "schema",
        "kind",
        "time_ns",
        "vm",
        "vcpu",
        "pmc",
        "call",
        "event",
        "leader",
        "result",
        "duration_ns",
        "attr",
        "verdict",
        "tgid",
        "tid",
        "pmc_addr",
        "event_addr",
        "leader_addr",
        "max_nr_events",
        "event_count",
        "lost",
    ]
    assert value["schema"] == 1
    assert (value["kind"], value["vm"], value["pmc"], value["call"]) == ("call", "web01", "gp0", "create")
    assert (value["event"], value["leader"], value["verdict"]) == (1, 0, "predicted")
    assert value["leader_addr"] == hex(call.leader)
    assert value["attr"]["disabled"] is True
    assert value["attr"]["config"] == 0x76
    starved = json.loads(call_json(replace(call, starved=True), Verdict(Kind.PREDICTED, 1, 0)))
    assert list(starved) == [*value, "starved"]
    assert starved["starved"] is True


def as_json(line: bytes) -> Call | None:
    """What a line says that is parsed as a whole, None if it is no call."""
    try:
        value = json.loads(line.decode())
        is_call = type(value) is dict and (value["schema"], value["kind"]) == (1, "call")
        return CallReader()(value) if is_call and type(value["schema"]) is int else None
    except (KeyError, ValueError):
        return None


WRITTEN = [
    line
    for path in sorted(DATA.glob("*.jsonl"))
    for line in path.read_bytes().splitlines(keepends=True)
    if b'"kind":"call"' in line
] + [call_json(replace(call, starved=True), PREDICTED).encode() + b"\n" for call in CALLS]
PIECES = [
    b"0",
    b"01",
    b"-1",
    b"-0",
    b"+1",
    b"1_0",
    b" 1",
    b"1.0",
    b"1e3",
    b"9" * 19,
    b"\xef\xbc\x91",
    b'"',
    b"\\",
    b'\\"',
    b",",
    b":",
    b"{",
    b"}",
    b"[",
    b"]",
    b" ",
    b"\n",
    b"\r",
    b"\0",
    b"\xff",
    b"true",
    b"null",
    b"NaN",
    b"x",
    b'"x"',
    b'"x":1,',
    b',"x":1',
    b'"kind":"end",',
    b',"kind":"end"',
    b',"schema":2',
    b'"vm":"x",',
    b',"vm":"x"',
    b',"time_ns":7',
    b',"duration_ns":7',
    b',"attr":{}',
    b',"event_addr":"0x1"',
    b',"max_nr_events":7',
    b',"starved":true',
    b',"starved":1',
    b',\\"duration_ns\\":7',
    b'{"a":1,"duration_ns":7}',
    b'{"attr":{"a":1,"event_addr":"0x1"',
    b',"sample_period":7',
    b',"disabled":true',
    b'},"attr":{',
    b'},"type":{"a":1',
    b'},"disabled":{"a":1',
]


def test_the_lines_we_write_are_all_read_by_their_parts() -> None:
    assert CallReader().written(WRITTEN) == [as_json(line) for line in WRITTEN]
    assert len(WRITTEN) > 400


@settings(max_examples=400)
@given(data=st.data())
def test_a_line_says_the_same_read_by_its_parts_and_as_a_whole(data: st.DataObject) -> None:
    """Lines with something cut out, put in, or of another line, to a reader that knows their parts."""
    line, other = (data.draw(st.sampled_from(WRITTEN)) for _ in range(2))
    # Where fields begin and end is where it matters.
    ends = [i for i, byte in enumerate(line) if byte in b'",:{}0123456789']
    for _ in range(data.draw(st.integers(1, 3))):
        start, end = (data.draw(st.sampled_from(ends)) for _ in range(2))
        match data.draw(st.sampled_from(["put in", "replace", "splice"])):
            case "put in":
                line = line[:start] + data.draw(st.sampled_from(PIECES)) + line[start:]
            case "replace":
                line = line[:start] + data.draw(st.sampled_from([b"", *PIECES])) + line[end:]
            case "splice":
                line = line[:start] + other[start:]
    known = CallReader()
    known.written(WRITTEN)
    expected = as_json(line)
    assert known.written([line]) in ([expected] if expected else [], [])


def test_a_duration_that_was_not_measured_is_read_back(tmp_path: Path) -> None:
    unmeasured = [replace(call, duration_ns=0) for call in CALLS]
    record(tmp_path / "file", unmeasured)
    data = (tmp_path / "file").read_bytes()
    assert data.count(b'"duration_ns":null,') == len(CALLS)
    assert read(data)[0] == unmeasured
    # Missing is not the same.
    with pytest.raises(RecordingError, match="file: line 2: 'duration_ns' of a call must be an integer"):
        read(data.replace(b'"duration_ns":null,', b"", 1))


def test_numbers_that_json_does_not_have_are_refused(whole: bytes) -> None:
    for number in (b"01", b"+1", b"1_0", b"\xef\xbc\x91", b""):
        for field in (b"time_ns", b"duration_ns", b"sample_period", b"tgid", b"lost"):
            damaged = re.sub(rb'"%s":\d+' % field, rb'"%s":' % field + number, whole)
            with pytest.raises(RecordingError, match="file: line 2: not JSON"):
                read(damaged)


def test_of_a_field_that_comes_twice_the_last_counts(whole: bytes) -> None:
    def first(old: bytes, new: bytes) -> Call:
        return read(whole.replace(old, new, 1))[0][0]

    assert first(b'"lost":0}', b'"lost":0,"vm":"db01"}').vm == "db01"
    assert first(b'"precise_ip":0}', b'"precise_ip":0,"config":5}').attr.config == 5
    with pytest.raises(RecordingError, match="file: line 2: kind 'noise' is not one that recordings have"):
        first(b'"lost":0}', b'"lost":0,"kind":"noise"}')
    again = re.search(rb'"disabled":.*?}', whole)
    assert again
    with pytest.raises(RecordingError, match="file: line 2: 'type' of a call must be"):
        first(b',"verdict"', b',"attr":{' + again[0] + b',"verdict"')


def test_calls_that_others_wrote_are_read_as_well(whole: bytes) -> None:
    header, *lines = whole.splitlines()
    spaced = [json.dumps(json.loads(line)).encode() for line in lines]
    sorted_ = [json.dumps(json.loads(line), sort_keys=True).encode() for line in lines]
    mixed = [*lines[:2], *spaced[2:4], lines[4], *sorted_[5:]]
    for rewritten in (spaced, sorted_, mixed, [line + b"\r" for line in lines]):
        assert read(b"\n".join([header, *rewritten, b""]))[0] == CALLS


def test_a_guest_lbr_call_survives() -> None:
    lbr = replace(CALLS[0], pmc=0, vcpu=-1, pmc_type=PmcType.LBR)
    assert CALLS[0].pmc_idx == 0
    header = json.dumps(
        {"schema": 1, "kind": "recording", "agent": "", "kernel": "", "attach": "", "filters": {}}
    )
    found, _ = read(f"{header}\n{call_json(lbr, PREDICTED)}\n".encode())
    assert found == [lbr]


def test_a_recording_holds_its_header_calls_end_and_summaries(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    record(path, CALLS, lost=3)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["recording", *["call"] * len(CALLS), "end", "summary"]
    assert lines[-2] == {"schema": 1, "kind": "end", "calls": len(CALLS), "lost": 3}
    assert lines[-1] == {
        "schema": 1,
        "kind": "summary",
        "vm": "web01",
        "calls": {"create": 3, "enable": 3, "pause": 0, "release": 3},
        "divergences": 0,
        "lost": 3,
    }
    found, recording = read(path.read_bytes())
    assert found == CALLS
    assert (recording.header, recording.lost, recording.cut_short) == (HEADER, 3, "")


def test_a_recording_overwrites_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    path.write_text("x" * 100_000)
    record(path, CALLS)
    assert read(path.read_bytes())[0] == CALLS


def test_a_recording_is_the_users_alone(tmp_path: Path) -> None:
    record(tmp_path / "recording", CALLS)
    assert stat.S_IMODE((tmp_path / "recording").stat().st_mode) == 0o600


def test_a_recording_that_can_not_be_made_names_its_path(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=f"{tmp_path}: cannot record to it: Is a directory"):
        Recorder(tmp_path, HEADER)


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recording"
    recorder = Recorder(path, HEADER)
    line = call_json(CALLS[0], PREDICTED)
    recorder.write([line])
    file = recorder._file

    class FullDisk(io.FileIO):
        room = len(line) + 100

        def write(self, data: Any) -> int:
            if not self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written = super().write(bytes(data[: self.room]))
            self.room -= written
            return written

    monkeypatch.setattr(recorder, "_file", FullDisk(file.fileno(), "wb", closefd=False))
    with pytest.raises(OutputError, match=r"the recording stopped after 1 calls: No space left on device"):
        recorder.write([line] * 3)
    found, recording = read(path.read_bytes())
    assert len(found) == 2
    assert recording.cut_short == "file: cut short after line 3: there is no end mark"


def test_a_device_that_is_full_from_the_start_is_a_sentence() -> None:
    with pytest.raises(OutputError, match="/dev/full: the recording stopped after 0 calls"):
        Recorder(Path("/dev/full"), HEADER)


def test_every_cut_gives_the_whole_calls_before_it(whole: bytes) -> None:
    header = whole.index(b"\n") + 1
    end = whole.index(b'{"schema":1,"kind":"end"')
    for cut in range(header, len(whole) - 1, 7):
        found, recording = read(whole[:cut])
        assert found == CALLS[: whole[header:cut].count(b"\n")]
        assert recording.cut_short.startswith("file: cut short ")
        if cut < end and whole[cut - 1 : cut] != b"\n":
            assert recording.cut_short == f"file: cut short within line {whole[:cut].count(10) + 1}"


def test_without_its_summaries_a_recording_is_still_whole(whole: bytes) -> None:
    found, recording = read(whole[: whole.index(b'{"schema":1,"kind":"summary"')])
    assert (found, recording.cut_short) == (CALLS, "")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "line 1: empty, or ends within its header: not a recording"),
        (b'{"schema":1,"kind":"reco', "line 1: empty, or ends within its header: not a recording"),
        (b"\x7fELF\0\0\0\n", "line 1: not JSON: binary data"),
        (b"\xff\xfe\n", "line 1: not JSON"),
        (b"hello\n", "line 1: not JSON"),
        (b"\n", "line 1: not JSON"),
        (b"[1, 2]\n", "line 1: not a JSON object"),
        (b"[" * 10_000 + b"\n", "line 1: not JSON"),
        (b"1" * 10_000 + b"\n", "line 1: not JSON"),
        (b"{}\n", "line 1: an object without a schema number"),
        (b'{"schema":true}\n', "line 1: an object without a schema number"),
        (b'{"schema":2,"kind":"recording"}\n', "line 1: schema 2; this agent reads schema 1 only"),
        (b'{"schema":1,"kind":"call"}\n', "line 1: not the header of a recording"),
        (
            b'{"schema":1,"kind":"recording"}\n',
            "line 1: the header must have agent, kernel, attach and filters",
        ),
        (b"x" * (MAX_LINE + 1) + b"\n", f"line 1: longer than {MAX_LINE} bytes"),
        (b"x" * 10_000_000, f"line 1: longer than {MAX_LINE} bytes"),
    ],
)
def test_what_is_no_recording_is_refused_at_once(data: bytes, complaint: str) -> None:
    with pytest.raises(RecordingError) as refused:
        Recording(io.BytesIO(data), "file")
    assert str(refused.value).startswith(f"file: {complaint}")


def edited(line: bytes, edit: Callable[[dict[str, Any]], Any]) -> bytes:
    value = json.loads(line)
    edit(value)
    return json.dumps(value, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("time_ns", -1, "'time_ns' of a call must be an integer from 0 to"),
        ("time_ns", 2**63, "'time_ns' of a call must be an integer from 0 to"),
        ("time_ns", 1.0, "'time_ns' of a call must be an integer from 0 to"),
        ("vcpu", True, "'vcpu' of a call must be an integer from -1 to"),
        ("result", 1, "'result' of a call must be an integer from -4095 to 0"),
        ("max_nr_events", 256, "'max_nr_events' of a call must be an integer from 0 to 255"),
        ("lost", None, "'lost' of a call must be"),
        ("starved", 1, "'starved' of a call must be true or false"),
        ("pmc_addr", "ffff", "'pmc_addr' of a call must be an address"),
        ("event_addr", "0x1_0", "'event_addr' of a call must be an address"),
        ("leader_addr", "0x" + "f" * 17, "'leader_addr' of a call must be an address"),
        ("leader_addr", [], "'leader_addr' of a call must be an address"),
        ("vm", "", "'vm' of a call must be a VM's name"),
        ("vm", "\x1b[31mred", "'vm' of a call must be a VM's name"),
        ("vm", "\ud800", "'vm' of a call must be a VM's name"),
        ("vm", "x" * 129, "'vm' of a call must be a VM's name"),
        ("vm", {}, "'vm' of a call must be a VM's name"),
        ("call", "destroy", "'call' of a call must be one of create, enable, pause, release"),
        ("call", ["create"], "'call' of a call must be one of"),
        ("pmc", "gp64", "'pmc' of a call must be a counter"),
        ("pmc", None, "'pmc' of a call must be a counter"),
        ("attr", None, "'attr' of a call must be an object"),
    ],
)
def test_a_field_that_is_wrong_is_named(whole: bytes, field: str, value: Any, complaint: str) -> None:
    lines = whole.split(b"\n")
    lines[3] = edited(lines[3], lambda call: call.update({field: value}))
    with pytest.raises(RecordingError) as refused:
        read(b"\n".join(lines))
    assert str(refused.value).startswith(f"file: line 4: {complaint}")


@pytest.mark.parametrize(
    ("field", "value"),
    [("type", 2**32), ("config", -1), ("precise_ip", 4), ("pinned", 1), ("disabled", None)],
)
def test_an_attribute_that_is_wrong_is_named(whole: bytes, field: str, value: Any) -> None:
    lines = whole.split(b"\n")
    lines[3] = edited(lines[3], lambda call: call["attr"].update({field: value}))
    with pytest.raises(RecordingError, match=f"line 4: '{field}' of a call must be"):
        read(b"\n".join(lines))


@pytest.mark.parametrize("field", ["tid", "pmc", "vm", "event_addr", "attr", "call"])
def test_a_field_that_is_missing_is_named(whole: bytes, field: str) -> None:
    lines = whole.split(b"\n")
    lines[1] = edited(lines[1], lambda call: call.pop(field))
    with pytest.raises(RecordingError, match=f"line 2: '{field}' of a call must be"):
        read(b"\n".join(lines))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"schema":1,"kind":"noise"}', "kind 'noise' is not one that recordings have"),
        (b'{"schema":1,"kind":"recording"}', "kind 'recording' is not one that recordings have"),
        (b'{"schema":1,"kind":"end","calls":9,"lost":0}', "the end mark counts 9 calls; 2 were read"),
        (
            b'{"schema":1,"kind":"end","calls":2,"lost":-1}',
            "the end mark does not say how many records were lost",
        ),
        (b"garbage", "not JSON"),
        (b"x" * (MAX_LINE + 1), f"longer than {MAX_LINE} bytes"),
    ],
)
def test_damage_is_found_where_it_is_after_the_calls_before_it(
    whole: bytes, line: bytes, complaint: str
) -> None:
    lines = whole.split(b"\n")
    lines[3] = line
    recording = Recording(io.BytesIO(b"\n".join(lines)), "file")
    batches = recording.batches()
    assert next(batches) == CALLS[:2]
    with pytest.raises(RecordingError) as refused:
        next(batches)
    assert str(refused.value).startswith(f"file: line 4: {complaint}")


def test_nothing_but_summaries_follows_the_end(whole: bytes) -> None:
    with pytest.raises(RecordingError, match="line 13: comes after the end mark"):
        read(whole + whole.split(b"\n")[1] + b"\n")


def test_calls_of_a_pipe_come_when_they_are_written(whole: bytes) -> None:
    reader, writer = os.pipe()
    header, first, second, _ = whole.split(b"\n", 3)
    with os.fdopen(reader, "rb") as source, os.fdopen(writer, "wb", buffering=0) as pipe:
        pipe.write(header + b"\n" + first + b"\n" + second[:100])
        batches = Recording(source, "pipe").batches()
        assert next(batches) == CALLS[:1]
        pipe.write(second[100:] + b"\n")
        assert next(batches) == CALLS[1:2]


def test_memory_does_not_grow_with_the_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call is of another event at another address, with another period and another name of a VM."""
    monkeypatch.setattr("vpmu_agent.trace.call_json._CACHE", 100)
    header = json.dumps(
        {"schema": 1, "kind": "recording", "agent": "", "kernel": "", "attach": "", "filters": {}}
    )

    class Endless(io.RawIOBase):
        def __init__(self, calls: int) -> None:
            self.left = calls
            self.first = True

        def read(self, _size: int = -1) -> bytes:
            if self.first:
                self.first = False
                return header.encode() + b"\n"
            self.left -= 100
            if self.left < 0:
                return b""
            lines = []
            for i in range(self.left, self.left + 100):
                attr = replace(CALLS[0].attr, sample_period=i)
                call = replace(CALLS[0], event=i, pmc=2 * i, leader=3 * i, attr=attr, vm=f"vm{i}")
                lines.append(call_json(call, PREDICTED) + "\n")
            return "".join(lines).encode()

    def peak(calls: int) -> int:
        tracemalloc.start()
        try:
            recording = Recording(Endless(calls), "file")  # type: ignore[arg-type] # as far as it is used
            assert sum(len(batch) for batch in recording.batches()) == calls
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # Sixteen times the calls; when Python collects its garbage makes a difference of two or three.
    assert peak(16_000) < peak(1000) * 5


def test_every_call_name_can_be_recorded() -> None:
    for name in CallName:
        call = replace(CALLS[0], name=name)
        assert json.loads(call_json(call, PREDICTED))["call"] == name


def test_a_failed_call_is_read_as_fast_as_others() -> None:
    failed = replace(CALLS[1], name=CallName.CREATE, event=0, result=-errno.EOPNOTSUPP)
    line = call_json(failed, Verdict(Kind.PREDICTED, 1, 0))
    assert '"errno":"EOPNOTSUPP","cause":"' in line
    assert CallReader().written([line.encode()]) == [failed]


@pytest.mark.parametrize("vendor", ["AuthenticAMD", ""])
def test_the_vendor_of_the_cpu_is_read_back(tmp_path: Path, vendor: str) -> None:
    path = tmp_path / "recording"
    Recorder(path, replace(HEADER, cpu_vendor=vendor)).end(Tally(), 0)
    with path.open("rb") as file:
        assert Recording(file, "a").header == replace(HEADER, cpu_vendor=vendor)


def test_an_older_recording_has_no_vendor_and_a_wrong_one_is_refused() -> None:
    old = {"schema": 1, "kind": "recording", "agent": "", "kernel": "", "attach": "", "filters": {}}
    assert Recording(io.BytesIO(f"{json.dumps(old)}\n".encode()), "a").header.cpu_vendor == ""
    with pytest.raises(RecordingError, match="line 1: 'cpu_vendor' of the header must be a text"):
        Recording(io.BytesIO(f"{json.dumps({**old, 'cpu_vendor': 1})}\n".encode()), "a")


@pytest.mark.parametrize(
    "unchecked",
    [
        "7",
        "[]",
        '{"read":1,"period":2}',
        '{"read":-1,"period":2,"host_ns":3}',
        '{"read":1,"period":true,"host_ns":3}',
    ],
)
def test_a_summary_whose_unchecked_calls_make_no_sense_is_refused(tmp_path: Path, unchecked: str) -> None:
    path = tmp_path / "recording"
    record(path, [])
    with path.open("a") as file:
        file.write('{"schema":1,"kind":"summary","vm":"web01","unchecked":' + unchecked + "}\n")
    result = invoke("replay", str(path))
    assert result.exit_code == 2
    assert "'unchecked' of a summary must have read, period, host_ns" in result.stderr


def test_unchecked_calls_are_replayed(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    record(path, [])
    with path.open("a") as file:
        counts = '{"read":12,"period":1,"host_ns":3500}'
        file.write('{"schema":1,"kind":"summary","vm":"web01","unchecked":' + counts + "}\n")
    assert "web01: 12 reads and 1 new period took 3.50 µs" in invoke("replay", str(path)).stdout
    assert json.loads(invoke("replay", str(path), "--output", "json").stdout)["unchecked"]["read"] == 12
    assert "12 reads" not in invoke("replay", str(path), "--pmc", "gp0").stdout
