"""A mediated vPMU, forced on: who has it, and that nothing of it is traced, is told.

Real are KVM, perf and the agent: KVM finds a PMU that can be handed to guests, decides for each VM, and has
no perf events for its counters. Guests enter and leave, and program their counters, which KVM keeps for them.

Not real is the switch of registers at a guest's entry and exit: no emulated CPU has these, and so the test
PMU leaves it out (vpmu_test_pmu.c, `mediated`). On Intel that also answers for the CPU when KVM asks whether
it can be mediated: Bochs's has no full-width writes.
"""

from __future__ import annotations

import errno
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from . import agent, live, pmu, scrape
from .listed import listed

LISTEN = "127.0.0.1:9776"
TOLD_S = 30.0  # a pull is made every second, where nothing is emulated


@pytest.fixture(scope="module")
def _mediated() -> Iterator[None]:
    live.make_live(mediated=True)
    yield
    live.make_live()


@contextmanager
def vm(name: str, what: str) -> Iterator[subprocess.Popen[bytes]]:
    """A VM of this name; see tests.bpf.kvm for `what` it is."""
    code = "import sys; from tests.bpf.kvm import main; main(*sys.argv[3:])"
    # By its name and this argument it is a VMM.
    arguments = ["qemu-system-x86_64", "-c", code, "-name", f"guest={name}", what]
    with subprocess.Popen(
        arguments, executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline().startswith(b"made")
        yield process


@contextmanager
def host_of_vms() -> Iterator[None]:
    """One that has it and has programmed a counter, one that lost it, and one that was given none."""
    with ExitStack() as stack:
        for name, what in {"web01": "2icr", "old": "1c", "plain": "1ioc"}.items():
            stack.enter_context(vm(name, what))
        yield


@pytest.mark.intel
def test_the_same_guest_has_perf_events_where_the_vpmu_is_emulated() -> None:
    """Without this, no calls below might mean no guest."""
    with vm("web01", "2icr") as process:
        assert pmu.kvm_counts(process.pid).initialised == 1


@pytest.mark.intel
@pytest.mark.usefixtures("_mediated")
def test_a_trace_says_which_vms_have_it_and_shows_no_calls() -> None:
    before = pmu.kvm_counts()
    with agent.trace() as trace:
        # web01 runs and programs its counter while it is watched.
        with host_of_vms():
            deadline = time.monotonic() + TOLD_S
            while trace.stdout().count('"kind":"vpmu"') < 3 and time.monotonic() < deadline:
                time.sleep(0.2)
        seen = trace.stop()
    told = {line["vm"]: (line["mode"], line["reason"]) for line in seen.lines if line["kind"] == "vpmu"}
    assert told == {
        "web01": ("mediated", None),
        "old": ("off", "no_irqchip"),
        "plain": ("off", "turned_off"),
    }
    assert seen.calls() == []
    assert pmu.kvm_counts() == before  # nor did the PMU see an event of KVM's


@pytest.mark.intel
@pytest.mark.usefixtures("_mediated")
def test_metrics_and_log_say_it_too() -> None:
    with agent.run(LISTEN) as daemon, host_of_vms():
        metrics = scrape.scrape_until(LISTEN, lambda found: scrape.total(found, "vpmu_mode") == 3)
        modes = {"web01": "mediated", "old": "off", "plain": "off"}
        for name, mode in modes.items():
            assert scrape.total(metrics, "vpmu_mode", vm=name, mode=mode) == 1
        assert scrape.total(metrics, "vpmu_mode") == 3
        assert scrape.total(metrics, "vpmu_calls_total") == 0
        log = daemon.stderr()
    assert "web01 has a mediated vPMU: the guest owns the host's counters" in log
    assert "old has lost the vPMU: " in log


@pytest.mark.intel
@pytest.mark.usefixtures("_mediated")
def test_list_says_whose_counters_it_cannot_see() -> None:
    with host_of_vms():
        found = listed()
    assert {vm["vm"]: vm["pmus"] for vm in found.of("vm")} == {
        "web01": [{"mode": "mediated", "reason": None}],
        "old": [{"mode": "off", "reason": "no_irqchip"}],
        "plain": [{"mode": "off", "reason": "turned_off"}],
    }
    assert found.counters() == {"web01": {"gp0": "mediated"}}
    assert found.events("web01") == 0
    assert found.status == 0


@pytest.mark.usefixtures("_mediated")
def test_doctor_says_it_too() -> None:
    with host_of_vms():
        done = subprocess.run(
            [sys.executable, "-m", "vpmu_agent", "doctor"], capture_output=True, text=True, check=False
        )
    said = " ".join(done.stdout.split())
    assert f"mediated_vpmu warn on in {live.vendor_module()}: guests own the counters while they run" in said
    assert "web01 has a mediated vPMU: " in said
    assert "old has lost the vPMU: " in said
    assert "plain has no vPMU: its VMM turned it off" in said


@pytest.mark.intel
@pytest.mark.usefixtures("_mediated")
def test_an_event_that_would_count_in_guests_keeps_vms_from_starting(host_event: int) -> None:
    """What doctor says of the NMI watchdog."""
    assert host_event
    code = "import os; from tests.bpf.kvm import make_vm; make_vm(os.open('/dev/kvm', os.O_RDWR), 'i', 1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"[Errno {errno.EBUSY}]" in done.stderr
