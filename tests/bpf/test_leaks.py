"""The events of a vCPU's thread on this kernel, whether a counter holds them or not.

KVM has no counters here. So in the census that is tried, an event's overflow handler stands for its counter,
and the vCPU's counters are where that function is: what is there is not the event, so no counter holds it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import shutil
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.bpf.conftest import Start
from tests.bpf.kvm import KVM_CREATE_VCPU, KVM_CREATE_VM, KVM_RUN
from tests.bpf.verifier import attached_census
from tests.support.commands import read_until
from vpmu_agent.counts.leaks import LEAKED_S, Leaks
from vpmu_agent.kernel.census import read_census_layout
from vpmu_agent.kernel.layout import kvm_types
from vpmu_agent.kernel.symbols import function_addresses
from vpmu_agent.loader import program
from vpmu_agent.model.counter_status import EventState
from vpmu_agent.probes.census import Census, Look, Stray
from vpmu_agent.probes.layout import pmc_name
from vpmu_agent.probes.sources import bpf_folder

LINUX = tuple(map(int, platform.release().split(".")[:2]))

pytestmark = [
    pytest.mark.skipif(not Path("/dev/kvm").exists(), reason="there is no /dev/kvm here"),
    pytest.mark.skipif(LINUX < (6, 2), reason="software events are in another context there"),
]

LOOKED_AT = 128  # CENSUS_THREAD_EVENTS
PERF_EVENT_OPEN = 298
PERF_EVENT_IOC_ID = 0x80082407
SOFTWARE, PAGE_FAULTS, DISABLED = 1, 2, 1


@pytest.fixture(scope="module", autouse=True)
def _vcpu() -> Iterator[None]:
    """This thread is the one that a vCPU of this process ran on."""
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
    made = fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)
    with suppress(OSError):  # that it was tried is enough
        fcntl.ioctl(made, KVM_RUN, 0)
    yield
    for descriptor in (made, vm, kvm):
        os.close(descriptor)


@pytest.fixture(scope="module")
def constants(_vcpu: None) -> dict[str, int]:
    """What makes it so, in place of this kernel's."""
    constants = read_census_layout().constants
    usual = Census(attached_census(constants))
    (found,) = of_this_process(usual.pull()).vcpus
    usual.close()
    (handler,) = function_addresses(["perf_event_output_forward"])
    return {
        "VPMU_EVENT_CONTEXT": kvm_types().member("perf_event", "overflow_handler").offset,
        "VPMU_VCPU_GP_COUNTERS": (handler.address - found.address) % 2**64,
    }


@pytest.fixture(scope="module")
def census(constants: dict[str, int]) -> Iterator[Census]:
    census = Census(attached_census(read_census_layout().constants | constants))
    yield census
    census.close()


def of_this_process(look: Look) -> Look:
    return Look(
        time=look.time,
        vcpus=[vcpu for vcpu in look.vcpus if vcpu.tgid == os.getpid()],
        strays=[stray for stray in look.strays if stray.tgid == os.getpid()],
        guest_lbr=[event for event in look.guest_lbr if event.tgid == os.getpid()],
    )


@contextmanager
def events(number: int) -> Iterator[list[int]]:
    """So many events of this thread that are off; their numbers, which the kernel gave them."""
    attr = struct.pack("=IIQ", SOFTWARE, 64, PAGE_FAULTS).ljust(40, b"\0") + struct.pack("=Q", DISABLED)
    libc = ctypes.CDLL(None, use_errno=True)
    with ExitStack() as stack:
        ids: list[int] = []
        for _ in range(number):
            event = libc.syscall(PERF_EVENT_OPEN, attr.ljust(64, b"\0"), 0, -1, -1, 0)
            assert event >= 0, os.strerror(ctypes.get_errno())
            stack.callback(os.close, event)
            ids += struct.unpack("=Q", fcntl.ioctl(event, PERF_EVENT_IOC_ID, bytes(8)))
        yield ids


def strays(census: Census) -> list[Stray]:
    return of_this_process(census.pull()).strays


def test_each_event_of_the_thread_is_found_and_no_other(census: Census) -> None:
    assert strays(census) == []
    with events(3) as ids:
        found = strays(census)
        assert [stray.id for stray in found] == ids[::-1]  # the newest first
        assert {(stray.type, stray.config, stray.attr_flags) for stray in found} == {
            (SOFTWARE, PAGE_FAULTS, DISABLED)
        }
        assert {(stray.vcpu_id, stray.pmc_type, stray.pmc_idx) for stray in found} == {(0, 0, 0)}
        assert {stray.state for stray in found} == {EventState.OFF}
    assert strays(census) == []


def test_of_many_events_the_newest_are_looked_at_and_that_there_are_more_is_said(census: Census) -> None:
    with events(LOOKED_AT) as ids:
        assert [stray.id for stray in strays(census)] == ids[::-1]
    with events(LOOKED_AT + 2) as ids:
        *found, more = strays(census)
        assert [stray.id for stray in found] == ids[:1:-1]
        assert more.id == 0
    assert strays(census) == []


def test_one_that_stays_is_leaked_until_it_is_gone(census: Census) -> None:
    leaks, start = Leaks(), census.pull().time

    def leaked(after: float) -> list[int]:
        found = of_this_process(census.pull())
        look = Look(time=start + after, vcpus=found.vcpus, strays=found.strays)
        return [leak.id for leak in leaks.take(look, {os.getpid(): "web01"}).get("web01", [])]

    with events(1) as ids:
        assert leaked(1) == []
        with events(1):
            assert leaked(2) == []
        assert leaked(1 + LEAKED_S) == ids
    assert leaked(2 + LEAKED_S) == []


def test_the_usual_census_takes_them_for_nobodys() -> None:
    usual = Census(attached_census(read_census_layout().constants))
    with events(3):
        assert strays(usual) == []
    with events(LOOKED_AT + 1):
        assert [stray.id for stray in strays(usual)] == [0]
    usual.close()


def test_an_event_for_guest_lbr_is_no_leak_and_is_found_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This CPU has none, so page faults stand for it: like it, they have no counter as their context."""
    text = (bpf_folder() / "census.bpf.c").read_text()
    for right, wrong in {
        "CENSUS_TYPE_RAW   4 ": f"CENSUS_TYPE_RAW {SOFTWARE} ",
        "CENSUS_FIXED_VLBR 0x1b00": f"CENSUS_FIXED_VLBR {PAGE_FAULTS}",
    }.items():
        assert right in text
        text = text.replace(right, wrong)
    shutil.copytree(bpf_folder(), tmp_path / "bpf")
    (tmp_path / "bpf/census.bpf.c").write_text(text)
    monkeypatch.setattr(program, "bpf_folder", lambda: tmp_path / "bpf")
    census = Census(attached_census(read_census_layout().constants))
    with events(1) as ids:
        found = of_this_process(census.pull())
    census.close()
    assert found.strays == []
    (event,) = found.guest_lbr
    assert (event.id, event.state, event.vcpu_id) == (ids[0], EventState.OFF, 0)
    assert pmc_name(event.pmc_type, event.pmc_idx) == "lbr"


def test_the_daemon_without_privileges_tells_of_each_once(start: Start, constants: dict[str, int]) -> None:
    vm = f"pid-{os.getpid()}"
    gauge = f'vpmu_leaked_events{{vm="{vm}"}} '
    with start(census=constants) as daemon:
        daemon.wait_for("\nvpmu_agent_census_up 1.0\n")
        with events(2):
            said = [read_until(daemon.process.stderr, f"{vm}, ".encode()).decode() for _ in range(2)]
            for line in said:
                assert line.startswith(f"{vm}, vCPU 0, gp0: KVM has leaked an event (pmu1/0x2/:HG): for ")
                assert line.endswith(
                    " the counter has not held it, so nothing will release it; it is off and counts nothing\n"
                )
            daemon.wait_for(f"{gauge}2\n")
        assert read_until(daemon.process.stderr, f"{vm}: ".encode()).decode() == (
            f"{vm}: 2 events are no longer leaked: held or released after all, or gone with the thread\n"
        )
        assert gauge not in daemon.metrics()  # it has no PMU
    # An agent that is started when the events are there.
    with events(1), start(census=constants) as daemon:
        assert ": for more than " in read_until(daemon.process.stderr, f"{vm}, ".encode()).decode()
