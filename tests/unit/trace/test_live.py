"""The real process: signals, pipes, ports."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.error import HTTPError

import psutil
import pytest

from tests.support.commands import daemon, daemon_of, invoke, lines, read_until, record, started
from tests.support.counted import Maps
from tests.support.guests import Pulls, amd
from tests.support.looks import pmc, starved
from tests.support.scenes import Guest
from vpmu_agent.counts.guests import PULL_S
from vpmu_agent.model.verdict import Observation
from vpmu_agent.trace.live import Source, follow
from vpmu_agent.trace.printers import JsonPrinter
from vpmu_agent.trace.session import Filters, Session
from vpmu_agent.vms.names import Vms

if TYPE_CHECKING:
    from vpmu_agent.probes import Probes


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return record(tmp_path / "recording", list(Guest("web01", 4242).life()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_trace_with_its_summary(number: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / "recording"
    with started("trace", "--output", "json", "--record", str(path)) as process:
        read_until(process.stderr, b"attached ")
        read_until(process.stdout, b'{"schema":1,"kind":"call"')
        process.send_signal(number)
        output, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (0, b"")
    assert json.loads(output.splitlines()[-1])["kind"] == "summary"
    assert invoke("replay", str(path), "-q").exit_code == 0


def test_a_killed_trace_leaves_a_recording_of_whole_calls(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    with started("trace", "--record", str(path)) as process:
        read_until(process.stderr, b"attached ")
        while path.read_bytes().count(b"\n") < 11:
            time.sleep(0.01)
        process.kill()
        process.wait(10)
    result = invoke("replay", str(path), "--output", "json")
    assert result.exit_code == 1
    assert result.stderr == f"Error: {path}: cut short after line 11: there is no end mark\n"
    assert len(lines(result)) == 11


def test_a_reader_that_leaves_ends_a_replay_quietly(tmp_path: Path) -> None:
    guest = Guest("web01", 1)
    path = record(tmp_path / "long", [call for _ in range(3000) for call in guest.life()])
    with started("replay", str(path)) as process:
        assert process.stdout
        assert process.stdout.readline().startswith(b"TIME")
        process.stdout.close()
        assert process.stderr
        assert process.stderr.read() == b""
        assert process.wait(10) == 0


def test_an_output_that_is_full_is_a_sentence(recording: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [sys.executable, "-m", "vpmu_agent", "replay", str(recording)],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            timeout=30,
        )
    assert result.stderr == b"Error: cannot write the output: No space left on device\n"
    assert result.returncode == 3


def test_a_terminal_without_unicode_gets_something(recording: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "vpmu_agent", "replay", str(recording)],
        capture_output=True,
        check=True,
        timeout=30,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert b"\\xb5s" in result.stdout


def test_run_serves_what_it_sees_until_it_is_told_to_end() -> None:
    with daemon(["run", "--listen", "127.0.0.1:0"]) as (process, address):
        name = f"pid-{daemon_of(process)}"
        deadline = time.monotonic() + 10
        text = ""
        while f'call="create",vm="{name}"}} 3\n' not in text and time.monotonic() < deadline:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
                text = answer.read().decode()
        assert f'vpmu_calls_total{{call="create",vm="{name}"}} 3\n' in text
        assert 'vpmu_agent_lost_records_total{reason="ring_full"} 0.0\n' in text
        with urllib.request.urlopen(f"http://{address}/-/ready", timeout=10) as answer:
            assert answer.read() == b"ready\n"
        assert "vpmu_pmc_calls_total{" in text
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stderr
        assert process.stderr.read() == b""


def test_run_without_series_by_counter() -> None:
    with daemon(["run", "--listen", "127.0.0.1:0", "--no-per-counter"]) as (process, address):
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            assert b"vpmu_pmc_calls_total" not in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def test_run_without_durations() -> None:
    with daemon(["run", "--listen", "127.0.0.1:0", "--no-durations"]) as (process, address):
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            text = answer.read()
        assert b"vpmu_agent_durations_enabled 0.0\n" in text
        assert b"vpmu_call_duration_seconds" not in text
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def test_replay_and_help_need_no_bcc(recording: Path) -> None:
    code = (
        "import sys; sys.modules['bcc'] = None\n"
        "from vpmu_agent.cli.main import cli\n"
        "cli(['replay', '-q', sys.argv[1]] if len(sys.argv) > 1 else ['--help'])\n"
    )
    for arguments in ([], [str(recording)]):
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=30, capture_output=True)


def test_a_long_trace_lets_go_of_vms_that_are_gone() -> None:
    with subprocess.Popen(["sleep", "60"]) as gone, subprocess.Popen(["sleep", "60"]) as stays:
        maps, vms = Polled(), Vms()
        for process in (gone, stays):
            maps.feed(Guest(vms.name(process.pid), process.pid).life())
        batches = Source(cast("Probes", maps), vms, lambda: False).batches(None)
        wait_until(batches, lambda: maps.polls > 15)
        assert maps.shares().keys() == {gone.pid, stays.pid}
        gone.kill()
        gone.wait()
        wait_until(batches, lambda: maps.shares().keys() == {stays.pid})
        assert gone.pid in vars(vms)["_vms"]  # for calls that are on their way
        maps.polls = 0
        wait_until(batches, lambda: maps.polls > 15)
        assert vars(vms)["_vms"].keys() == {stays.pid}
        stays.kill()


def test_a_trace_says_once_that_counters_are_starved() -> None:
    probes, out = Polled(), io.StringIO()
    pid = os.getpid()
    probes.census = Pulls(amd(tgid=pid), pmc(0, tgid=pid), starved(1, tgid=pid))
    session = Session(Filters(), JsonPrinter(), out)
    follow(Source(cast("Probes", probes), Vms(), lambda: False), session, PULL_S + 0.5)
    (said,) = [json.loads(line) for line in out.getvalue().splitlines()]
    assert (said["kind"], said["vm"]) == ("starved", f"pid-{pid}")
    assert [counter["pmc"] for counter in said["counters"]] == ["gp1"]
    assert said["sentence"].startswith(f"pid-{pid}: 1 of 2 counters starved; ")


class Polled(Maps):
    """Probes that send nothing."""

    polls = 0
    census = Pulls()

    def poll(self, timeout_s: float) -> list[Observation]:
        self.polls += 1
        time.sleep(timeout_s)
        return []

    def stop(self) -> list[Observation]:
        return []


def wait_until(batches: Iterator[object], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        next(batches)
        assert time.monotonic() < deadline


@pytest.mark.parametrize("refusal", ["this kernel has no BTF", "KVM is not loaded"])
def test_a_daemon_that_cannot_attach_says_why_and_leaves_nobody(refusal: str) -> None:
    with started("run", "--listen", "127.0.0.1:0", REFUSAL=refusal) as process:
        output, errors = process.communicate(timeout=20)
    assert (output, errors.decode()) == (b"", f"Error: {refusal}\n")
    assert process.returncode == 3


def test_a_daemon_that_waits_for_kvm_serves_meanwhile() -> None:
    with started("run", "--wait", "--listen", "127.0.0.1:0", REFUSAL="KVM is not loaded") as process:
        assert read_until(process.stderr, b"KVM") == b"KVM is not loaded; waiting for it\n"
        address = read_until(process.stderr, b"serving http://").decode().split("/")[2]
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            assert b'vpmu_agent_attached_probes{mode="none"} 0.0\n' in answer.read()
        with pytest.raises(HTTPError, match="503"):
            urllib.request.urlopen(f"http://{address}/-/ready", timeout=10)
        with urllib.request.urlopen(f"http://{address}/", timeout=10) as answer:
            assert b"KVM is not loaded" in answer.read()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_port_in_use_is_found_before_the_probes() -> None:
    with daemon(["run", "--listen", "127.0.0.1:0"]) as (_, address):
        with started("run", "--listen", address, REFUSAL="not asked for") as second:
            _, errors = second.communicate(timeout=20)
        assert errors.decode() == f"Error: cannot listen on {address}: Address already in use\n"
        assert second.returncode == 3


def test_the_daemon_ends_with_its_parent() -> None:
    with daemon(["run", "--listen", "127.0.0.1:0"]) as (process, _):
        child = psutil.Process(daemon_of(process))
        process.kill()
        child.wait(10)


def test_no_command_but_the_loader_imports_bcc() -> None:
    """Neither directly nor by another module."""
    code = (
        "import sys; sys.modules['bcc'] = None\n"
        "import vpmu_agent.cli.main, vpmu_agent.daemon.run, vpmu_agent.probes, vpmu_agent.daemon.supervisor\n"
        "assert 'vpmu_agent.loader.program' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
