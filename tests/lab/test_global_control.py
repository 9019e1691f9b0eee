"""One write to the global control starts or stops all counters of a vCPU: Intel, and AMD's PerfMonV2."""

from __future__ import annotations

import functools
from collections import Counter
from contextlib import ExitStack

import pytest

from . import agent, pmu, tracefs
from .checks import assert_agrees, assert_as_predicted
from .guests import guest_a
from .listed import at_stage, listed
from .scrape import Metrics, scrape_until, total
from .vendor import CONFIGS, FIXED

LISTEN = "127.0.0.1:9775"
ROUNDS = 20


# Guests that use all counters of each kind.
guest = functools.partial(guest_a, globally=True, fixed=FIXED)


@pytest.mark.intel
@pytest.mark.slim
def test_every_write_is_a_call_for_each_counter() -> None:
    with (
        tracefs.watch() as kernels,
        agent.trace() as tracing,
        guest("burst01", rounds=ROUNDS, realtime=True) as started,
    ):
        (values,) = started.wait_for("vcpus")["vcpus"]
        started.finish()
        counts = pmu.kvm_counts(started.tgid)
        seen = tracing.stop()
    assert_agrees(seen, "burst01", counts)
    assert_as_predicted(seen, "burst01")
    calls = seen.calls("burst01")
    assert Counter(line["call"] for line in calls) == Counter(kernels.names(started.tgid))
    steps = ["create", "pause", *["enable", "pause"] * (2 * ROUNDS - 1), "release"]
    for counter, config in CONFIGS.items():
        of_counter = [line for line in calls if line["pmc"] == counter]
        assert [line["call"] for line in of_counter] == steps
        assert {line["attr"]["config"] for line in of_counter} == {config}
    assert {line["pmc"] for line in calls} == CONFIGS.keys()
    # What the guest reads between its rounds goes on from where it was.
    for read in zip(*values, strict=True):
        assert sorted(read) == list(read)
        assert 0 < read[0] < read[-1]


@pytest.mark.intel
def test_a_burst_on_two_vcpus_is_counted_in_full() -> None:
    with agent.run(LISTEN) as running:
        with tracefs.watch() as kernels, guest("burst01", rounds=64, vcpus=2) as started:
            started.finish()
            counts = pmu.kvm_counts(started.tgid)
        made = Counter(kernels.names(started.tgid))
        metrics = scrape_until(LISTEN, lambda now: calls(now, call="release") >= made["release"])
        assert running.stop().status == 0
    # Where a vCPU has lost its CPU, KVM creates what it would have enabled.
    assert made["create"] + made["enable"] == 2 * 2 * 64 * len(CONFIGS)
    assert (made["create"], made["release"]) == (counts.initialised, counts.destroyed)
    assert {call: calls(metrics, call=call) for call in made} == made
    for counter in CONFIGS:
        of_counter = {call: calls_of(metrics, counter, call) for call in made}
        assert of_counter["create"] + of_counter["enable"] == 2 * 2 * 64
        assert of_counter["create"] == of_counter["release"]
    assert total(metrics, "vpmu_predicted_calls_total", vm="burst01") == made.total()
    assert total(metrics, "vpmu_divergences_total", vm="burst01") == 0
    assert total(metrics, "vpmu_agent_lost_records_total") == 0


def calls(metrics: Metrics, call: str) -> float:
    return total(metrics, "vpmu_calls_total", vm="burst01", call=call)


def calls_of(metrics: Metrics, counter: str, call: str) -> float:
    return total(metrics, "vpmu_pmc_calls_total", vm="burst01", pmc=counter, call=call)


@pytest.mark.intel
@pytest.mark.slim
def test_counters_are_idle_while_the_global_control_says_so() -> None:
    with ExitStack() as stack:
        at_stage(stack, guest("ready01", stepwise=True), "ready")
        started = at_stage(stack, guest("started01", stepwise=True), "programmed")
        stopped = at_stage(stack, guest("stopped01", stepwise=True), "done")
        found = listed("--all")
        alive = {guest.tgid: pmu.kvm_counts(guest.tgid).alive for guest in (started, stopped)}
    assert found.counters() == {
        "ready01": dict.fromkeys(CONFIGS, "idle"),
        "started01": dict.fromkeys(CONFIGS, "descheduled"),
        "stopped01": dict.fromkeys(CONFIGS, "idle"),
    }
    assert found.status == 0
    for name in found.counters():
        assert found.vm(name)["pmu_version"] == 2
    # They are enabled, each by itself, and the ones that were stopped have kept their events.
    enabled = {"gp": 1 << 22, "fixed": 0b11}
    for line in found.of("counter"):
        assert line["control"] & enabled[line["pmc"].rstrip("0123456789")]
        assert len(line["events"]) == (0 if line["vm"] == "ready01" else 1)
    assert alive == {started.tgid: len(CONFIGS), stopped.tgid: len(CONFIGS)}
