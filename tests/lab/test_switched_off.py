"""The kernel takes the probes out of its code, and says nothing: the agent knows it, and says so."""

from __future__ import annotations

import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from . import agent, live
from .agent import COMMAND, Agent
from .guests import guest_a
from .scrape import Metrics, parse, read, scrape_until, total

LISTEN = "127.0.0.1:9775"
SOON_S = 30.0
DEBUGFS = Path("/sys/kernel/debug")
FTRACE = Path("/proc/sys/kernel/ftrace_enabled")
KPROBES = DEBUGFS / "kprobes/enabled"


@pytest.fixture(autouse=True)
def debugfs() -> None:
    if not KPROBES.exists():
        subprocess.run(["mount", "-t", "debugfs", "none", DEBUGFS], check=True)


@contextmanager
def off(switch: Path) -> Iterator[None]:
    switch.write_text("0")
    try:
        yield
    finally:
        switch.write_text("1")


def ready() -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{LISTEN}/-/ready", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def wait_until(condition: Callable[[], bool], running: Agent) -> float:
    """How long it took, in seconds."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < SOON_S, (ready(), running.stderr())
        time.sleep(0.1)
    return time.monotonic() - start


def calls(metrics: Metrics) -> float:
    return total(metrics, "vpmu_calls_total", vm="web01")


FEXIT_FTRACE = ("fexit", FTRACE, "kernel.ftrace_enabled is 0")
KPROBE_FTRACE = ("kprobe", FTRACE, "kernel.ftrace_enabled is 0")
KPROBE_KPROBES = ("kprobe", KPROBES, "kprobes may be switched off")
also = pytest.mark.matrix


@pytest.mark.parametrize(
    ("mode", "switch", "why"),
    [
        pytest.param(*FEXIT_FTRACE, id="fexit-ftrace"),
        pytest.param(*KPROBE_FTRACE, id="kprobe-ftrace", marks=also),
        pytest.param(*KPROBE_KPROBES, id="kprobe-kprobes"),
    ],
)
def test_probes_that_are_switched_off_and_on_again(mode: str, switch: Path, why: str) -> None:
    with agent.run(LISTEN, "--attach", mode) as running:
        wait_until(lambda: ready() == (200, "ready\n"), running)
        wait_until(lambda: total(parse(read(LISTEN)), "vpmu_agent_self_test_ok") == 1, running)
        with guest_a("web01", rounds=64, stepwise=True) as guest:
            guest.wait_for("stage")
            guest.go_on()
            guest.wait_for("stage")  # its counters are programmed, and the agent has seen it
            scrape_until(LISTEN, lambda now: calls(now) >= 4)
            with off(switch):
                took = wait_until(lambda: ready()[0] == 503, running)
                assert why in ready()[1]
                assert "blind: " in running.stderr()
                metrics = parse(read(LISTEN))
                assert total(metrics, "vpmu_agent_self_test_ok") == 0
                seen = calls(metrics)
                guest.go_on()
                time.sleep(0.02)  # some rounds that nobody sees
                guest.process.send_signal(signal.SIGSTOP)
                assert calls(parse(read(LISTEN))) == seen
            back = wait_until(lambda: ready()[0] == 200, running)
            print(f"\n{mode}: blind is said after {took:.1f} s, and no longer said after {back:.1f} s")
            assert "the probes run again" in running.stderr()
            guest.process.send_signal(signal.SIGCONT)
            guest.wait_for("stage")
            guest.go_on()
            guest.finish()
        assert calls(scrape_until(LISTEN, lambda now: calls(now) > seen)) > seen
        metrics = parse(read(LISTEN))
        assert total(metrics, "vpmu_divergences_total") == 0, running.stderr()
        assert total(metrics, "vpmu_unknown_calls_total", vm="web01") > 0
        assert total(metrics, "vpmu_agent_self_test_ok") == 1
        assert running.stop().status == 0


@pytest.mark.parametrize(
    ("mode", "switch", "why"),
    [
        pytest.param(*FEXIT_FTRACE, id="fexit-ftrace", marks=also),
        pytest.param(*KPROBE_FTRACE, id="kprobe-ftrace"),
        # Not kprobes: if these are switched on after the attaching, Linux 6.1's ftrace ends itself, for good.
    ],
)
def test_a_daemon_that_is_blind_from_the_start(mode: str, switch: Path, why: str) -> None:
    with off(switch), agent.run(LISTEN, "--attach", mode) as running:
        wait_until(lambda: ready()[0] == 503 and why in ready()[1], running)
        assert "blind: " in running.stderr()
        assert total(parse(read(LISTEN)), "vpmu_agent_self_test_ok") == 0
        switch.write_text("1")
        wait_until(lambda: ready()[0] == 200, running)
        with guest_a("web01", rounds=3) as guest:
            guest.finish()
        metrics = scrape_until(
            LISTEN, lambda now: total(now, "vpmu_calls_total", vm="web01", call="release") >= 4
        )
        assert total(metrics, "vpmu_calls_total", vm="web01", call="create") > 0
        assert total(metrics, "vpmu_divergences_total") == 0
        assert running.stop().status == 0


@pytest.mark.parametrize("mode", ["fexit", pytest.param("kprobe", marks=also)])
def test_a_trace_ends_when_its_probes_do_not_run(mode: str) -> None:
    command = [*COMMAND, "trace", "--output", "json", "--attach", mode, "--duration", "30"]
    with off(FTRACE):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "do not run: kernel.ftrace_enabled is 0; sysctl kernel.ftrace_enabled=1" in done.stderr
    with agent.trace("--attach", mode) as running:
        with off(FTRACE):
            assert running.process.wait(SOON_S) == 3
        seen = running.stop()
    assert "do not run: kernel.ftrace_enabled is 0" in seen.stderr
    assert seen.lines == []  # there was no VM


def test_a_trace_ends_when_kvm_is_reloaded() -> None:
    with agent.trace() as running:
        live.reload_kvm()
        assert running.process.wait(SOON_S) == 3
        assert "KVM was unloaded, or loaded again" in running.stop().stderr


def test_doctor_sees_probes_that_do_not_run() -> None:
    command = [*COMMAND, "doctor"]
    with off(FTRACE):
        blind = subprocess.run(command, capture_output=True, text=True, check=False)
    assert blind.returncode != 0
    assert "kernel.ftrace_enabled is 0" in blind.stdout
