"""The agent against a real KVM: its creates and releases are the test PMU's own, whatever the guest does."""

from __future__ import annotations

import errno
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from . import agent, pmu
from .agent import Line
from .checks import AUTO, TRIED, assert_agrees, assert_as_predicted
from .guests import guest_a, guest_b
from .pmu import Counts
from .scrape import Metrics, scrape_until, total
from .vendor import CONFIGS, FIXED, GP_CONFIGS

LISTEN = "127.0.0.1:9775"


# Properties of a test in pytest's JUnit report, for matrix.py.
@pytest.mark.intel
@pytest.mark.slim
def test_guest_a(tmp_path: Path, record_property: Callable[[str, str], None]) -> None:
    recording = tmp_path / "guest_a.jsonl"
    with agent.trace("--record", str(recording)) as tracing, guest_a("tiny01", fixed=FIXED) as guest:
        record_property(AUTO, tracing.mode)
        guest.finish()
        counts = pmu.kvm_counts(guest.tgid)
        seen = tracing.stop()
    assert_agrees(seen, "tiny01", counts)
    assert_as_predicted(seen, "tiny01")
    calls = seen.calls("tiny01")
    assert {line["pmc"] for line in calls} == CONFIGS.keys()
    for counter, config in CONFIGS.items():
        of_pmc = [line for line in calls if line["pmc"] == counter]
        # A counter that was paused when its vCPU lost the CPU is released, and created instead of enabled.
        steps = " ".join(line["call"] for line in of_pmc)
        # Its last release can also come with the VM's end.
        assert re.fullmatch("create pause (enable|release create) pause( release)?", steps)
        assert {line["attr"]["config"] for line in of_pmc} == {config}
    assert {line["tgid"] for line in calls} == {guest.tgid}
    assert {(line["vcpu"], line["event"], line["leader"], line["max_nr_events"]) for line in calls} == {
        (0, 0, None, 1)
    }
    assert [line["time_ns"] for line in calls] == sorted(line["time_ns"] for line in calls)
    assert len(recording.read_text().splitlines()) >= len(calls)


def test_two_vcpus_and_many_rounds() -> None:
    with agent.trace() as tracing, guest_a("tiny01", rounds=20, vcpus=2) as guest:
        guest.finish()
        counts = pmu.kvm_counts(guest.tgid)
        seen = tracing.stop()
    assert_agrees(seen, "tiny01", counts)
    assert_as_predicted(seen, "tiny01")
    programs = Counter(line["vcpu"] for line in seen.calls("tiny01") if line["call"] in ("create", "enable"))
    assert programs == {0: 160, 1: 160}


@pytest.mark.slim
def test_guest_b() -> None:
    with agent.trace() as tracing, guest_b("web01", rounds=2) as guest:
        guest.wait_for("done")
        guest.finish()
        counts = pmu.kvm_counts(guest.tgid)
        seen = tracing.stop()
    assert counts.initialised >= 4
    assert_agrees(seen, "web01", counts)
    assert_as_predicted(seen, "web01")
    creates = seen.calls("web01", "create")
    assert {line["attr"]["config"] & 0xFF for line in creates} == set(GP_CONFIGS)
    assert {line["attr"]["type"] for line in creates} == {4}


def test_two_guests_at_once_are_told_apart_and_one_is_killed() -> None:
    with (
        agent.trace() as tracing,
        guest_b("web01", rounds=2) as web01,
        guest_b("db01", work_ms=600_000) as db01,
    ):
        web01.wait_for("done")
        web01.finish()
        wait_until(lambda: pmu.kvm_counts(db01.tgid).alive == 4)
        let_the_agent_read()
        db01.kill()
        counts = {name: pmu.kvm_counts(guest.tgid) for name, guest in (("web01", web01), ("db01", db01))}
        seen = tracing.stop()
    assert counts["db01"].alive == 0
    for name, of_guest in counts.items():
        assert of_guest.initialised >= 4
        assert_agrees(seen, name, of_guest)
        assert_as_predicted(seen, name)
    assert {line["tgid"] for line in seen.calls("web01")} == {web01.tgid}
    assert {line["tgid"] for line in seen.calls("db01")} == {db01.tgid}
    assert {line["vm"] for line in seen.lines} == {"web01", "db01"}


def test_a_guest_killed_between_two_calls() -> None:
    with agent.trace() as tracing, guest_a("doomed", stepwise=True) as guest:
        guest.wait_for("stage")
        guest.go_on()
        assert guest.wait_for("stage") == {"stage": "programmed"}
        let_the_agent_read()
        guest.kill()
        counts = pmu.kvm_counts(guest.tgid)
        seen = tracing.stop()
    assert counts.initialised == counts.destroyed >= 4
    assert_agrees(seen, "doomed", counts)
    assert_as_predicted(seen, "doomed")


def test_an_agent_that_comes_after_the_guest_adopts_its_events() -> None:
    with guest_a("early", rounds=2, stepwise=True) as guest:
        guest.wait_for("stage")
        guest.go_on()
        assert guest.wait_for("stage") == {"stage": "programmed"}
        with agent.trace() as tracing:
            before = pmu.kvm_counts(guest.tgid)
            guest.go_on()
            assert guest.wait_for("stage") == {"stage": "done"}
            guest.go_on()
            guest.finish()
            counts = pmu.kvm_counts(guest.tgid) - before
            seen = tracing.stop()
    assert before.alive == 4
    # Round 0's events go and round 1's come.
    assert counts.destroyed - counts.initialised == 4
    assert counts.initialised >= 4
    assert_agrees(seen, "early", counts)
    assert seen.summary("early")["divergences"] == 0
    assert {line["verdict"] for line in seen.calls("early")} <= {"predicted", "unknown"}


@pytest.mark.slim
def test_fexit_and_kprobes_see_the_same_calls_in_the_same_order(
    record_property: Callable[[str, str], None],
) -> None:
    def essence(line: Line) -> Line:
        names = ("vm", "vcpu", "pmc", "call", "event", "leader", "result", "verdict")
        # The period is what is left to count, so it follows the clock.
        attr = {name: value for name, value in line["attr"].items() if name != "sample_period"}
        return {name: line[name] for name in names} | attr

    calls = {}
    for mode in ("fexit", "kprobe"):
        with agent.trace("--attach", mode) as tracing, guest_a("tiny01", rounds=3, realtime=True) as guest:
            guest.finish()
            counts = pmu.kvm_counts(guest.tgid)
            seen = tracing.stop()
        assert_agrees(seen, "tiny01", counts)
        calls[mode] = [essence(line) for line in seen.calls("tiny01")]
        record_property(TRIED, mode)
    assert calls["fexit"] == calls["kprobe"]


@pytest.mark.intel
def test_creations_that_fail_are_seen_with_their_error() -> None:
    pmu.fail_creation(errno.ENODEV, after=2)
    with agent.trace() as tracing, guest_a("refused") as guest:
        guest.finish()
        counts = pmu.kvm_counts(guest.tgid)
        seen = tracing.stop()
    assert counts.initialised == 2
    assert counts.failed > 0
    assert_agrees(seen, "refused", counts)
    failed = [line for line in seen.calls("refused", "create") if line["result"] != 0]
    assert [line["result"] for line in failed] == [-errno.ENODEV] * counts.failed


def test_a_full_pmu_changes_no_count() -> None:
    pmu.set_room(2)
    with agent.trace() as tracing, guest_a("crowded") as guest:
        guest.finish()
        counts = pmu.kvm_counts(guest.tgid)
        seen = tracing.stop()
    assert counts.refused > 0
    assert_agrees(seen, "crowded", counts)


@pytest.mark.usefixtures("host_event")
def test_other_peoples_events_are_not_shown() -> None:
    with agent.trace() as tracing:
        before = pmu.kvm_counts()
        with guest_a() as guest:
            guest.finish()
        counts = pmu.kvm_counts() - before
        seen = tracing.stop()
    name = f"pid-{guest.tgid}"
    assert {line["vm"] for line in seen.lines} == {name}
    assert_agrees(seen, name, counts)


def test_metrics_are_the_test_pmus_counts() -> None:
    with agent.run(LISTEN) as running, guest_a("tiny01", rounds=2, stepwise=True) as guest:
        guest.wait_for("stage")
        guest.go_on()
        assert guest.wait_for("stage") == {"stage": "programmed"}
        assert_metrics_agree("tiny01", pmu.kvm_counts(guest.tgid))
        guest.go_on()
        assert guest.wait_for("stage") == {"stage": "done"}
        counts = pmu.kvm_counts(guest.tgid)
        assert counts.alive == 4
        assert_metrics_agree("tiny01", counts)
        guest.go_on()
        guest.finish()
        assert_metrics_agree("tiny01", pmu.kvm_counts(guest.tgid))
        assert running.stop().status == 0


def assert_metrics_agree(vm: str, counts: Counts) -> None:
    metrics = scrape_until(
        LISTEN,
        lambda now: (
            calls_total(now, vm, "create") >= counts.initialised
            and calls_total(now, vm, "release") >= counts.destroyed
        ),
    )
    assert calls_total(metrics, vm, "create") == counts.initialised
    assert calls_total(metrics, vm, "release") == counts.destroyed
    assert total(metrics, "vpmu_events", vm=vm) == counts.alive
    assert total(metrics, "vpmu_divergences_total", vm=vm) == 0


def calls_total(metrics: Metrics, vm: str, call: str) -> float:
    return total(metrics, "vpmu_calls_total", vm=vm, call=call)


def let_the_agent_read() -> None:
    """A VM's name is to be had while it lives; the agent asks when it reads the first of its calls."""
    time.sleep(1)


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
