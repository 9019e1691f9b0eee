from __future__ import annotations

import json
import os
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import Result

from tests.support.commands import invoke, lines, record
from tests.support.fake_host import stand_ins
from tests.support.scenes import Guest
from vpmu_agent.kernel.facts import cpu_vendor

ME = f"pid-{os.getpid()}"


def trace(*options: str) -> Result:
    return invoke("trace", *options, stand_ins=stand_ins())


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    web, db = Guest("web01", 4242), Guest("db01", 777)
    return record(tmp_path / "recording", [*web.life(), *db.life(size=2), *web.life(vcpu=1, pmc=2)])


@pytest.fixture
def diverging(tmp_path: Path) -> Path:
    return record(tmp_path / "diverging", Guest("web01", 1).unexpected_pause())


def refused(result: Result, status: int) -> str:
    """The one sentence on stderr of a command that did nothing."""
    assert result.exit_code == status
    assert result.stdout == ""
    *usage, error = result.stderr.splitlines()
    assert all(not line or line.startswith(("Usage: ", "Try '")) for line in usage)
    assert error.startswith("Error: ")
    return error.removeprefix("Error: ")


# replay


def test_replay_as_text(recording: Path) -> None:
    result = invoke("replay", str(recording))
    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout.count("predicted") == 14
    *_, counts, _, siblings = result.stdout.splitlines()
    assert counts.split()[:5] == ["web01", "2", "2", "2", "2"]
    assert siblings == "db01: 1 sibling created pinned, which perf_event_open() refuses"


def test_replay_as_json_gives_the_recorded_lines_and_the_summaries(recording: Path) -> None:
    result = invoke("replay", str(recording), "--output", "json")
    assert result.exit_code == 0
    recorded = recording.read_text().splitlines()
    assert result.stdout.splitlines() == [*recorded[1:15], *recorded[16:]]


def test_replay_of_standard_input(recording: Path) -> None:
    assert invoke("replay", "-", "-q", stdin=recording.read_bytes()).exit_code == 0
    assert refused(invoke("replay", "-", stdin=b"hello\n"), 2) == "standard input: line 1: not JSON"


def test_a_divergence_is_status_1(diverging: Path) -> None:
    result = invoke("replay", str(diverging), "--output", "json")
    assert result.exit_code == 1
    found = lines(result)
    assert [line.get("verdict") for line in found] == ["predicted", "predicted", "unexpected_call", None]
    assert found[2]["expected"]
    assert found[-1]["divergences"] == 1


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        (["--vm", "web01"], 8),
        (["--vm", "web01", "--vm", "db01"], 14),
        (["--vcpu", "1"], 4),
        (["--pmc", "gp2"], 4),
        (["--call", "create"], 4),
        (["--call", "create", "--call", "release", "--vm", "db01"], 4),
        (["--vm", "db01", "--vcpu", "1"], 0),
        (["--quiet"], 0),
    ],
)
def test_filters(recording: Path, options: list[str], calls: int) -> None:
    result = invoke("replay", str(recording), "--output", "json", *options)
    assert result.exit_code == 0
    assert sum(line["kind"] == "call" for line in lines(result)) == calls


def test_a_vm_that_is_not_in_the_recording(recording: Path) -> None:
    said = refused(invoke("replay", str(recording), "--vm", "web02"), 2)
    assert said == f"{recording}: no VM named web02 in it; VMs found: db01, web01"
    some = invoke("replay", str(recording), "--vm", "web02", "--vm", "db01", "--output", "json")
    assert some.exit_code == 2
    assert "no VM named web02" in some.stderr
    assert lines(some)[-1]["vm"] == "db01"


def test_a_recording_that_was_cut_short_is_replayed_as_far_as_it_goes(recording: Path) -> None:
    data = recording.read_bytes()
    recording.write_bytes(data[: data.index(b'"schema":1,"kind":"end"') - 200])
    result = invoke("replay", str(recording), "--output", "json")
    assert result.exit_code == 1
    assert result.stderr == f"Error: {recording}: cut short within line 15\n"
    assert [line["kind"] for line in lines(result)] == [*["call"] * 13, *["summary"] * 2]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "line 1: empty"),
        (bytes(range(256)) * 100, "line 1: not JSON: binary data"),
        (b'{"schema":7,"kind":"recording"}\n', "line 1: schema 7"),
        (b"x" * 1_000_000, "line 1: longer than"),
    ],
)
def test_a_file_that_is_no_recording(tmp_path: Path, data: bytes, complaint: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    assert refused(invoke("replay", str(path)), 2).startswith(f"{path}: {complaint}")


def test_a_damaged_recording_has_no_summary(recording: Path) -> None:
    data = recording.read_bytes().split(b"\n")
    recording.write_bytes(b"\n".join([*data[:4], b"\0\0\0", *data[4:]]))
    result = invoke("replay", str(recording), "--output", "json")
    assert result.exit_code == 2
    assert result.stderr == f"Error: {recording}: line 5: not JSON: binary data\n"
    assert [line["kind"] for line in lines(result)] == ["call"] * 3


def test_a_file_that_can_not_be_opened(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert (
        refused(invoke("replay", str(missing)), 2)
        == f"{missing}: cannot be opened: No such file or directory"
    )
    assert "is a directory" in refused(invoke("replay", str(tmp_path)), 2)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["replay"], "'FILE'"),
        (["replay", "-", "--pmc", "gp99"], "'gp99' is not a counter"),
        (["replay", "-", "--vcpu", "-1"], "-1"),
        (["replay", "-", "--call", "destroy"], "'destroy'"),
        (["replay", "-", "--output", "xml"], "'xml'"),
        (["trace", "--duration", "0"], "0"),
        (["trace", "--duration", "soon"], "'soon'"),
        (["trace", "--attach", "magic"], "'magic'"),
        (["trace", "--record", "/no/such/folder/file"], "'/no/such/folder'"),
        (["trace", "--record", "/"], "'/'"),
        (["run", "--listen", "localhost"], "'localhost' has no port"),
        (["run", "--listen", "localhost:http"], "'http' in 'localhost:http' is not a port"),
        (["run", "--listen", "::1:9775"], "'::1:9775'"),
        (["run", "--user", "no-such-user"], "'no-such-user'"),
        (["run", "--user", "root"], "'root' is root, whose privileges are to be given up"),
        (["prace"], "'prace'"),
    ],
)
def test_wrong_usage_names_what_is_wrong(arguments: list[str], named: str) -> None:
    assert named in refused(invoke(*arguments), 2)


def test_help_and_version() -> None:
    assert invoke("--version").stdout == f"vpmu-agent, version {version('vpmu-agent')}\n"
    for command in ("trace", "replay", "run", "list", "doctor"):
        result = invoke(command, "--help")
        assert result.exit_code == 0
        assert command in invoke("-h").stdout


# trace and run


def test_trace_shows_what_came_and_what_was_still_on_its_way() -> None:
    result = trace("--duration", "0.3", "--output", "json")
    assert result.exit_code == 0
    assert result.stderr == "attached fexit probes to 6 functions\n"
    *calls, summary = lines(result)
    assert len(calls) == 14
    assert summary == {
        **{"schema": 1, "kind": "summary", "vm": ME},
        **{"calls": {"create": 4, "enable": 4, "pause": 2, "release": 4}, "divergences": 0, "lost": 0},
        "unchecked": {"read": 0, "period": 0, "host_ns": 0},
    }


def test_a_trace_that_diverged_is_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIVERGING", "1")
    assert trace("--duration", "0.3", "--attach", "kprobe").exit_code == 1


def test_a_recording_replays_as_it_was_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIVERGING", "1")
    monkeypatch.setenv("LOST", "2")
    path = tmp_path / "recording"
    traced = trace("--duration", "0.3", "--record", str(path), "--output", "json")
    replayed = invoke("replay", str(path), "--output", "json")
    assert traced.stdout == replayed.stdout
    assert (traced.exit_code, replayed.exit_code) == (1, 1)
    assert {"schema": 1, "kind": "lost", "records": 2} in lines(replayed)
    assert "lost, by reason: ring_full 2\n" in traced.stderr
    header = json.loads(path.read_text().splitlines()[0])
    assert header == {
        **{"schema": 1, "kind": "recording", "agent": version("vpmu-agent"), "kernel": os.uname().release},
        **{"attach": "fexit", "filters": {"vm": [], "vcpu": [], "pmc": []}},
        "cpu_vendor": cpu_vendor(),
    }


def test_filters_apply_to_the_recording_but_call_does_not(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    options = ("--pmc", "gp1", "--call", "pause", "--output", "json")
    result = trace("--duration", "0.3", "--record", str(path), *options)
    assert [line.get("call") for line in lines(result)][:-1] == ["pause"]
    assert len(lines(invoke("replay", str(path), "--output", "json"))) == 5
    assert json.loads(path.read_text().splitlines()[0])["filters"] == {"vm": [], "vcpu": [], "pmc": ["gp1"]}


def test_a_kernel_that_refuses_is_a_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "recording"
    monkeypatch.setenv("REFUSAL", "this kernel has no BTF: it needs CONFIG_DEBUG_INFO_BTF")
    said = refused(trace("--record", str(path)), 3)
    assert said == "this kernel has no BTF: it needs CONFIG_DEBUG_INFO_BTF"
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees which VMs run")
def test_a_vm_that_does_not_run() -> None:
    # This kernel need not have KVM: the process itself is real, that it holds a VM is not.
    host = replace(stand_ins(), running=lambda: [os.getpid()])
    said = refused(invoke("trace", "--vm", "web99", "--duration", "0.1", stand_ins=host), 2)
    assert said == f"no VM named web99 is running; running: {ME} (--wait starts without it)"
    for options in (["--vm", "web99", "--wait"], ["--vm", ME]):
        assert invoke("trace", *options, "--duration", "0.1", stand_ins=host).exit_code == 0


def test_predict_prints_the_sequence_of_a_group() -> None:
    done = invoke("predict", "--events", "4", "--output", "json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(one["call"], one["event"], one["leader"], one["disabled"]) for one in found] == [
        ("create", 0, None, True),
        *(("create", i, 0, True) for i in (1, 2, 3)),
        *(("enable", i, None, None) for i in range(4)),
    ]
    assert {one["result"] for one in found} == {0}


def test_predict_shows_what_a_failure_leaves_behind() -> None:
    done = invoke("predict", "--events", "4", "--fail-at", "2", "--steps", "program,release")
    failed, outcome = (" ".join(line.split()) for line in done.stdout.splitlines()[3:5])
    assert failed == "create 2 0 disabled ENOSPC"
    assert (
        outcome == "-- fails with ENOSPC; holds events 0 to 1, never enabled, until a release; event_count 2"
    )


def test_predict_refuses_what_cannot_be() -> None:
    done = invoke("predict", "--events", "2", "--steps", "program,dance")
    assert done.exit_code == 2
    assert "no step 'dance': there are program, pause, resume, release" in done.stderr


def test_a_replay_names_events_as_the_recordings_host_does(tmp_path: Path) -> None:
    failed = replace(Guest("web01", 42).failed_create(), time_ns=1)
    path = record(tmp_path / "recording", [failed])
    assert "no event for r076:uGD, in the guest" in invoke("replay", str(path)).stdout
    header, rest = path.read_text().split("\n", 1)
    path.write_text(json.dumps({**json.loads(header), "cpu_vendor": "AuthenticAMD"}) + "\n" + rest)
    assert "no event for cycles (r076:uGD), in the guest" in invoke("replay", str(path)).stdout
