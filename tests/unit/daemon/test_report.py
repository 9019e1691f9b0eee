"""What the daemon tells of calls and VMs: with fields, and not without end."""

from __future__ import annotations

import errno
import re
from dataclasses import replace
from typing import Any

import pytest

from tests.support.scenes import USER_CYCLES, Guest, checked
from vpmu_agent.daemon.report import (
    BURST,
    DIVERGENCE,
    FAILURE,
    LONGEST_WINDOW_S,
    REFUSED,
    UNTRACED,
    WINDOW_S,
    Report,
    tell_refused,
    tell_untraced,
)
from vpmu_agent.model.call import CallName
from vpmu_agent.model.create_errors import cause
from vpmu_agent.model.rules import Kind
from vpmu_agent.system.journal import Level
from vpmu_agent.vms.command_line import Vmm
from vpmu_agent.vms.modes import Mode, Pmu, Why
from vpmu_agent.vms.names import VmInfo

WHY = (
    "create failed with ENOSPC; no event for r076:uGD, in the guest, user mode only: "
    "the cause is unknown, perf on x86 has no such error"
)
FAILED = f"{WHY}; KVM does not tell the guest"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Log:
    """What tell() was given."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def tell(self, text: str, level: Level, **fields: object) -> None:
        known = {name: value for name, value in fields.items() if value is not None}
        self.entries.append({"MESSAGE": text, "PRIORITY": level, **known})


@pytest.fixture
def log() -> Log:
    return Log()


def test_a_divergence(log: Log) -> None:
    report = Report(Clock(), log.tell)
    for call, verdict in checked(Guest("web01", 4242).unexpected_pause(pmc=2)):
        report.add(call, verdict)
    (entry,) = log.entries
    assert entry == {
        "MESSAGE": f"web01: vCPU 0 gp2: unexpected_call ({Kind.UNEXPECTED_CALL.meaning}): "
        f"pause(event=0); expected {entry['VPMU_EXPECTED']}",
        "MESSAGE_ID": DIVERGENCE,
        "PRIORITY": Level.WARNING,
        "VPMU_VM": "web01",
        "VPMU_VCPU": 0,
        "VPMU_PMC": "gp2",
        "VPMU_CALL": "pause",
        "VPMU_EVENT": 0,
        "VPMU_KIND": "unexpected_call",
        "VPMU_EXPECTED": entry["VPMU_EXPECTED"],
    }
    assert "enable(event=0)" in entry["VPMU_EXPECTED"]


def test_a_failed_creation(log: Log) -> None:
    report = Report(Clock(), log.tell)
    for call, verdict in checked([Guest("web01", 4242).failed_create()]):
        report.add(call, verdict)
    (entry,) = log.entries
    assert entry["MESSAGE"] == f"web01: vCPU 0 gp0: {FAILED}"
    assert (entry["MESSAGE_ID"], entry["VPMU_ERRNO"]) == (FAILURE, "ENOSPC")
    assert "VPMU_KIND" not in entry


def test_vms_of_which_there_is_nothing_to_trace_are_an_entry_for_each_reason(log: Log) -> None:
    many = [(f"vm{i}", Pmu(Mode.MEDIATED)) for i in range(1000)]
    tell_untraced([*many, ("web01", Pmu(Mode.EMULATED)), ("old", Pmu(Mode.OFF, Why.NO_IRQCHIP))], log.tell)
    mediated, off = log.entries
    assert mediated["MESSAGE"].startswith("vm0, vm1, vm2, vm3, vm4 and 995 more have a mediated vPMU: ")
    assert mediated["VPMU_MODE"] == "mediated"
    assert not {"VPMU_VM", "VPMU_REASON"} & mediated.keys()
    assert off["MESSAGE"].startswith("old has lost the vPMU: ")
    assert (off["VPMU_VM"], off["VPMU_MODE"], off["VPMU_REASON"]) == ("old", "off", "no_irqchip")
    assert off["MESSAGE_ID"] == UNTRACED


def test_a_creation_that_goes_on_failing_is_one_story(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    report = Report(clock)
    storm, other = Guest("web01", 1), Guest("db01", 2)

    def fail(times: int) -> None:
        for call, verdict in checked(storm.failed_create() for _ in range(times)):
            report.add(call, verdict)

    fail(1000)
    for call, verdict in checked([other.failed_create()]):
        report.add(call, verdict)
    assert capsys.readouterr().err.splitlines() == [f"{vm}: vCPU 0 gp0: {FAILED}" for vm in ("web01", "db01")]
    report.sweep()
    assert not capsys.readouterr().err
    told = []
    for _ in range(4 * 60):  # minutes
        clock.now += WINDOW_S
        report.sweep()
        told += capsys.readouterr().err.splitlines()
        fail(10)
    counts = [int(line.split(": ")[-1].split()[0]) for line in told]
    assert counts == [999, 20, 40, 80, 160, 320, 600, 600]
    assert re.fullmatch(
        re.escape(f"web01: vCPU 0 gp0: {WHY}: 999 more times, 1000 since ") + r"[\d-]{10} [\d:]{8}", told[0]
    )
    clock.now += LONGEST_WINDOW_S
    report.sweep()
    clock.now += LONGEST_WINDOW_S
    report.sweep()
    capsys.readouterr()
    fail(1)
    assert capsys.readouterr().err == f"web01: vCPU 0 gp0: {FAILED}\n"


def test_a_group_that_stays_partial_is_one_story_too(log: Log) -> None:
    report, guest = Report(Clock(), log.tell), Guest("mail01", 1)
    leader, disabled = guest.new_event(), replace(USER_CYCLES, disabled=True)
    for _ in range(100):
        calls = [
            guest.call(CallName.CREATE, leader, size=2, attr=disabled),
            guest.call(CallName.CREATE, 0, leader=leader, size=2, result=-errno.EINVAL, attr=disabled),
        ]
        for call, verdict in checked(calls):
            report.add(call, verdict)
    report.close()
    first, later = log.entries
    assert (first["VPMU_KIND"], first["VPMU_ERRNO"]) == ("partial_group", "EINVAL")
    assert f"user mode only: {cause(errno.EINVAL)}; expected create(event=1" in first["MESSAGE"]
    assert (later["VPMU_KIND"], later["VPMU_HELD_BACK"]) == ("partial_group", 99)
    assert " (partial_group): 99 more times, 100 since " in later["MESSAGE"]


def test_a_guest_that_always_asks_for_something_else_is_told_in_few_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    report = Report(clock)
    guest = Guest("web01", 1)
    for call, verdict in checked(guest.failed_create(pmc=pmc) for pmc in range(1000)):
        report.add(call, verdict)
    assert len(capsys.readouterr().err.splitlines()) == BURST
    clock.now += WINDOW_S
    report.sweep()
    assert capsys.readouterr().err == f"web01: ENOSPC: {1000 - BURST} more within 60 s\n"


def test_a_vm_whose_calls_are_refused(log: Log) -> None:
    vm = VmInfo("web01", uuid="", vmm=Vmm.QEMU, tgid=4242, pod_uid="")
    tell_refused([(vm, 17)], log.tell)
    (entry,) = log.entries
    assert entry["MESSAGE"].startswith(
        "web01: calls are refused (17 so far), because process 4242 has more counters"
    )
    assert (entry["MESSAGE_ID"], entry["PRIORITY"], entry["VPMU_VM"]) == (REFUSED, Level.WARNING, "web01")


def test_nothing_is_kept_of_vms_that_are_quiet_again() -> None:
    clock = Clock()
    report = Report(clock)
    for call, verdict in checked(Guest(f"vm{i}", i).failed_create() for i in range(100)):
        report.add(call, verdict)
    clock.now += WINDOW_S
    report.sweep()
    assert not vars(report)["_windows"]
    assert not vars(report)["_failing"]


def test_what_is_as_it_should_be_is_no_news(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(Clock())
    for call, verdict in checked(Guest("web01", 4242).life(size=4)):
        report.add(call, verdict)
    assert not capsys.readouterr().err


def test_what_was_held_back_is_told_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(Clock())
    for call, verdict in checked(Guest("web01", 1).failed_create() for _ in range(BURST + 2)):
        report.add(call, verdict)
    report.close()
    _, last = capsys.readouterr().err.splitlines()
    assert f"{BURST + 1} more times, {BURST + 2} since " in last
