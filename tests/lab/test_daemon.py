"""The daemon: small, without privileges, and still there after KVM was reloaded."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from . import agent, live, pmu, tracefs
from .agent import Agent
from .guests import guest_a
from .processes import status
from .scrape import Metrics, parse, read, scrape_until, total

LISTEN = "127.0.0.1:9775"
RELOAD_S = 180.0  # a loader takes 10 to 20 s where every instruction is emulated
PSS_MB = 40


def daemon_of(running: Agent) -> psutil.Process:
    """The child of the process that was started, which is its parent now."""
    for child in psutil.Process(running.process.pid).children():
        with suppress(psutil.Error):  # a loader that is on its way out
            if "run" in child.cmdline():
                return child
    pytest.fail("the daemon is gone")


def pss_kb(process: psutil.Process) -> int:
    match = re.search(
        r"^Pss:\s+(\d+) kB$", Path(f"/proc/{process.pid}/smaps_rollup").read_text(), re.MULTILINE
    )
    assert match
    return int(match[1])


@pytest.mark.slim
def test_the_daemon_is_small_and_may_do_nothing() -> None:
    with agent.run(LISTEN) as running, guest_a("tiny01") as guest:
        guest.finish()
        scrape_until(LISTEN, lambda now: total(now, "vpmu_calls_total", vm="tiny01", call="release") >= 4)
        daemon, parent = daemon_of(running), psutil.Process(running.process.pid)
        held = status(daemon)
        for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(held[name], 16) == 0, name
        assert set(map(int, held["Uid"].split())).isdisjoint({0})
        assert held["NoNewPrivs"] == "1"
        assert "libbcc" not in Path(f"/proc/{daemon.pid}/maps").read_text()
        listening = {c.pid for c in psutil.net_connections() if c.status == psutil.CONN_LISTEN}
        assert daemon.pid in listening
        assert parent.pid not in listening
        pss = {"daemon": pss_kb(daemon), "parent": pss_kb(parent)}
        print(f"\nproportional set size: {pss}, {sum(pss.values()) / 1024:.1f} MB")
        assert sum(pss.values()) < PSS_MB * 1024
        assert running.stop().status == 0


def test_kvm_is_unloaded_and_loaded_again() -> None:
    def of(metrics: Metrics, vm: str) -> tuple[float, ...]:
        calls = (total(metrics, "vpmu_calls_total", vm=vm, call=call) for call in ("create", "release"))
        return *calls, total(metrics, "vpmu_divergences_total", vm=vm)

    with agent.run(LISTEN) as running:
        pid = daemon_of(running).pid
        with guest_a("before", rounds=2) as guest:
            guest.finish()
            counts = pmu.kvm_counts(guest.tgid)
        # The daemon has not been scraped: what it knows of this VM must outlive the probes that counted it.
        live.reload_kvm()
        deadline = time.monotonic() + RELOAD_S
        while "attached" not in running.stderr().partition("KVM was unloaded")[2]:
            assert time.monotonic() < deadline, running.stderr()
            time.sleep(0.5)
        metrics = parse(read(LISTEN))
        assert of(metrics, "before") == (counts.initialised, counts.destroyed, 0)
        assert counts.initialised == counts.destroyed >= 8
        assert total(metrics, "vpmu_agent_attached_probes") == 6
        assert total(metrics, "vpmu_agent_loads_total") >= 2
        with guest_a("after", rounds=3) as guest:
            guest.finish()
            counts = pmu.kvm_counts(guest.tgid)
        metrics = scrape_until(LISTEN, lambda now: of(now, "after")[1] >= counts.destroyed)
        assert of(metrics, "after") == (counts.initialised, counts.destroyed, 0)
        assert counts.initialised == counts.destroyed >= 12
        assert daemon_of(running).pid == pid
        assert running.stop().status == 0


def reads(metrics: Metrics, vm: str) -> dict[str, int]:
    return {call: int(total(metrics, "vpmu_calls_total", vm=vm, call=call)) for call in tracefs.READS}


@pytest.mark.slim
def test_reads_and_new_periods_are_those_that_the_kernel_saw() -> None:
    with agent.run(LISTEN) as running:
        with (
            tracefs.watch(tracefs.READS) as trace,
            guest_a("reader", rounds=20, vcpus=2, reading=True) as guest,
        ):
            guest.finish()
        made = {call: trace.names(guest.tgid).count(call) for call in tracefs.READS}
        metrics = scrape_until(LISTEN, lambda now: reads(now, "reader") == made)
        assert reads(metrics, "reader") == made
        assert min(made.values()) > 0
        of_reads = total(metrics, "vpmu_call_duration_seconds_sum", vm="reader", call="read")
        assert 0 < of_reads < total(metrics, "vpmu_host_seconds_total", vm="reader")
        assert total(metrics, "vpmu_divergences_total", vm="reader") == 0
        assert running.stop().status == 0


@pytest.mark.parametrize("durations", ["--durations", "--no-durations"])
@pytest.mark.parametrize("mode", ["fexit", "kprobe"])
def test_only_what_must_be_seen_leaves_the_kernel(mode: str, durations: str) -> None:
    """A conforming guest fills no ring: with the daemon stopped, its counts are complete all the same."""
    with agent.run(LISTEN, "--attach", mode, durations) as running:
        daemon = daemon_of(running)
        daemon.suspend()
        with guest_a("unseen", rounds=20, vcpus=2) as guest:
            guest.finish()
            counts = pmu.kvm_counts(guest.tgid)
        daemon.resume()
        metrics = scrape_until(
            LISTEN,
            lambda now: total(now, "vpmu_calls_total", vm="unseen", call="release") >= counts.destroyed,
        )
        assert total(metrics, "vpmu_calls_total", vm="unseen", call="create") == counts.initialised >= 160
        predicted = total(metrics, "vpmu_predicted_calls_total", vm="unseen")
        calls = total(metrics, "vpmu_calls_total", vm="unseen")
        assert predicted == calls - sum(reads(metrics, "unseen").values())
        measured = total(metrics, "vpmu_call_duration_seconds_count", vm="unseen")
        assert measured == (calls if durations == "--durations" else 0)
        assert total(metrics, "vpmu_agent_lost_records_total") == 0
        assert running.stop().status == 0
