"""`top --once` and `top --output json`, of a daemon and of own probes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import started
from tests.support.places import ROOT
from tests.support.states import Daemon, answering, holder, older, starved_vm, state, vm

LONG = "instance-00000a3f-production-database-of-the-other-department"


@pytest.fixture
def daemon() -> Daemon:
    return Daemon(
        state(
            vm(LONG, host_ns=900_000_000),
            starved_vm("web01", reset="web01 was reset, but"),
            holders=[holder("perf")],
        )
    )


@pytest.fixture
def url(daemon: Daemon) -> Iterator[str]:
    with answering(daemon) as url:
        yield url


def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    with started("top", "--interval", "1", *arguments, **environment) as process:
        output, errors = process.communicate(timeout=30)
    return process.returncode, output.decode(), errors.decode()


def test_once(url: str) -> None:
    status, output, errors = run("--once", "--url", url)
    assert (status, errors) == (1, "")  # counters are starved
    title, totals, blank, heading, first, second, *rest = output.splitlines()
    assert title.endswith(url)
    assert totals == "2 VMs, 8 events, starved 2, failed 0, diverged 0, tax 2.0 %, 200 calls/s"
    assert (blank, heading[:3]) == ("", "VM ")
    assert first.split()[:3] == [LONG, "1.0", "100"]
    assert "2 starved, 2 counting" in second
    assert rest[1] == "web01: 2 of 4 counters starved; on CPU 3 otel-profiler (pid 99) has 4 events, pinned"
    assert rest[2] == "web01 was reset, but"
    assert rest[-1].split()[0] == "perf"
    assert "\x1b" not in output


def test_once_as_json_is_one_object(url: str) -> None:
    status, output, _ = run("--once", "--output", "json", "--url", url)
    (line,) = output.splitlines()
    found = json.loads(line)
    assert (status, found["schema"], found["kind"]) == (1, 1, "top")
    assert (found["source"], found["interval_s"], found["all_starved"]) == (url, 1.0, 2)
    _, web01 = found["vms"]
    assert (web01["calls_per_s"], web01["host_share"]) == (100.0, 0.01)
    assert web01["counters"] == {"starved": 2, "counting": 2}
    assert found["holders"][0]["comm"] == "perf"


@pytest.mark.parametrize(("word", "status"), [("denied", 1), ("partial", 1), ("filtered", 0), ("idle", 0)])
def test_the_exit_status_says_whether_a_guest_reads_wrong_numbers(
    url: str, daemon: Daemon, word: str, status: int
) -> None:
    daemon.state = state(vm("web01", counters={word: 1, "counting": 2}))
    assert run("--once", "--url", url)[0] == status


def test_a_vm_that_is_not_listed_counts_for_the_exit_status(url: str, daemon: Daemon) -> None:
    daemon.state = state(vm("web01"), all_vms=120, all_starving=1)
    assert run("--once", "--url", url)[0] == 1


def test_json_is_a_stream_of_one_object_for_each_interval(url: str) -> None:
    with started("top", "--interval", "1", "--output", "json", "--url", url) as process:
        assert process.stdout
        begun = time.monotonic()
        shown = [json.loads(process.stdout.readline()) for _ in range(3)]
        assert 2 <= time.monotonic() - begun < 10
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert [each["vms"][0]["calls_per_s"] for each in shown] == [100.0] * 3
    first, second, third = (each["time_ns"] for each in shown)
    assert first < second < third


def test_a_stream_goes_on_when_the_daemon_is_back(url: str, daemon: Daemon) -> None:
    with started("top", "--interval", "1", "--output", "json", "--url", url) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        daemon.status = "503 Service Unavailable"
        assert process.stderr.readline().decode() == f"{url} answered 503 Service Unavailable\n"
        daemon.status = "200 OK"
        while json.loads(process.stdout.readline())["interval_s"] < 1:
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def test_a_reader_that_leaves_ends_a_stream(url: str) -> None:
    with started("top", "--interval", "1", "--output", "json", "--url", url) as process:
        assert process.stdout
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(10) == 0
        assert process.stderr
        assert process.stderr.read() == b""


def test_a_full_disk_is_told(url: str) -> None:
    arguments = ["top", "--once", "--interval", "1", "--url", url]
    command = [sys.executable, "-m", "tests.support.fake_host", *arguments]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, timeout=30, check=False)
    assert done.returncode == 3
    assert done.stderr == b"Error: cannot write the output: No space left on device\n"


def test_an_older_daemon(url: str, daemon: Daemon) -> None:
    daemon.state = older(daemon.state)
    status, output, _ = run("--once", "--url", url)
    assert status == 0
    assert "starved unknown" in output
    assert output.splitlines()[-1] == "Who else has events on the host's PMU is unknown."


def test_own_probes_where_no_daemon_runs() -> None:
    status, output, errors = run("--once", "--output", "json")
    assert (status, errors) == (0, "")
    found = json.loads(output)
    assert found["source"] == "own fexit probes"
    assert [vm["calls"] for vm in found["vms"]] == [10]


def test_the_daemon_of_this_host_comes_first(url: str) -> None:
    status, output, _ = run("--once", "--output", "json", DAEMON_URL=url)
    assert (status, json.loads(output)["source"]) == (1, url)


def test_a_daemon_that_was_named_is_not_replaced() -> None:
    status, output, errors = run("--once", "--url", "http://127.0.0.1:9")
    assert (status, output) == (3, "")
    assert errors == "Error: http://127.0.0.1:9 cannot be reached: Connection refused\n"


def test_where_there_is_neither_both_are_told() -> None:
    status, _, errors = run("--once", REFUSAL="the probes need root")
    assert status == 3
    assert errors == (
        "Error: http://127.0.0.1:9 cannot be reached: Connection refused, and probes cannot be attached: "
        "the probes need root\n"
    )


def test_something_else_at_the_port_is_no_daemon(url: str, daemon: Daemon) -> None:
    daemon.state = {"kind": "other"}
    daemon.steps = False
    status, _, errors = run("--once", "--url", url)
    assert (status, errors) == (3, f"Error: {url}: the answer is not the state of a vpmu-agent\n")
