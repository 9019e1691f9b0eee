from __future__ import annotations

import pytest

from tests.support.states import counter, holder, starved_vm, state, vm
from vpmu_agent.top import table
from vpmu_agent.top.reading import Reading, Readings, VmLine, counter_lines
from vpmu_agent.top.table import SORTS, Line, ordered


def written(line: Line) -> str:
    return "".join(text for _, text in line).rstrip()


def bad(line: Line) -> list[str]:
    """The parts that stand out."""
    return [text.strip() for look, text in line if look == "bad"]


def reading(*vms: dict[str, object]) -> Reading:
    return Readings().take(state(*vms))


@pytest.mark.parametrize("width", [80, 99, 100, 120, 200])
def test_a_line_fits_however_long_its_texts_are(width: int) -> None:
    counters = {"descheduled": 99, "x" * 50: 9}
    long = vm("instance-" + "0" * 90 + "-a", calls=10**12, host_ns=10**18, counters=counters)
    vms = reading(long, vm("b")).vms
    heading, lines = table.vm_table(vms, width)
    assert len(written(heading)) <= width
    for _, line in lines:
        assert len(written(line)) <= width
    assert written(lines[0][1]).startswith("instance-" if width == 200 else "…")
    assert "0-a " in written(lines[0][1])  # numbered names differ at their end


def test_in_a_pipe_names_stay_whole() -> None:
    name = "instance-" + "0" * 80
    _, ((_, line),) = table.vm_table(reading(vm(name, counters={"descheduled": 9, "starved": 12})).vms, None)
    assert name in written(line)
    assert "12 starved, 9 descheduled" in written(line)


def test_what_fails_stands_first_and_out() -> None:
    assert (
        table.statuses_text({"counting": 9, "starved": 1, "denied": 2}) == "2 denied, 1 starved, 9 counting"
    )
    assert table.statuses_text({"idle": 6, "counting": 1, "starved": 0}) == "1 counting"
    assert table.statuses_text({"idle": 6}) == "6 idle"
    assert table.statuses_text({}) == "none"
    _, ((_, fine), (_, starved)) = table.vm_table(reading(vm("a"), starved_vm("b", failed=2)).vms, 80)
    assert bad(fine) == []
    assert bad(starved) == ["2 starved, 2 counting", "2"]


def test_totals_name_what_is_not_known() -> None:
    unknown = Readings().take(state(vm("a", host_ns=None), all_starved=None))
    assert written(table.totals(unknown)) == (
        "1 VM, 4 events, starved unknown, failed 0, diverged 0, tax - %, - calls/s"
    )


def test_warnings() -> None:
    shown = Readings().take(
        state(vm("a"), missing="KVM was unloaded", lost={"ring_full": 3}, all_vms=120, no_census="no BTF")
    )
    assert [written(line) for line in table.warnings(shown)] == [
        "no probes are attached: KVM was unloaded",
        "there is no census: no BTF",
        "3 records lost: the counts are incomplete",
        "1 of 120 VMs are shown, those with the most tax",
    ]


def test_orders() -> None:
    by_key = {sort.key: sort for sort in SORTS}
    vms = [
        VmLine("a", host_share=0.1, host_ns=5, calls=1, calls_per_s=3, events=1, failed=0, divergences=2),
        VmLine("b", host_share=0.2, host_ns=1, calls=2, calls_per_s=9, events=4, failed=1),
        VmLine("c", counters={"starved": 2}, calls=9),
        VmLine("m", mode="mediated"),
    ]
    for key, names in {"t": "bacm", "c": "bacm", "e": "bacm", "s": "cabm", "f": "bacm", "d": "abcm"}.items():
        assert "".join(vm.vm for vm in ordered(vms, by_key[key])) == names, key
    assert "".join(vm.vm for vm in ordered(vms, by_key["n"])) == "abcm"
    assert "".join(vm.vm for vm in ordered(vms, by_key["n"], backwards=True)) == "cbam"
    assert "".join(vm.vm for vm in ordered(vms, by_key["t"], backwards=True)) == "cabm"


def test_counters_by_vcpu() -> None:
    counters = [
        counter(vcpu=1, pmc="fixed0", event="", cpu=None, events=2, size=4, status="partial", running=None),
        counter(pmc="gp1", status="denied", errno=28, events=0, running=None),
        counter(pmc="gp0", event="r0c0:u", event_name="instructions"),
    ]
    _, lines = table.counter_table(counter_lines(counters))
    assert [" ".join(written(line).split()) for line in lines] == [
        "vCPU 0 on CPU 3: 1 denied, 1 counting",
        "gp1 denied r0c0 0/1 - ENOSPC",
        "gp0 counting instructions:u 1/1 100",
        "vCPU 1: 1 partial",
        "fixed0 partial - 2/4 -",
    ]


def test_holders() -> None:
    held = [holder("x" * 40, cpus=[0, 1, 2, 3, 8], failed=1)]
    heading, (line, watchdog) = table.holder_table(Readings().take(state(holders=held, nmi_watchdog=True)))
    assert " ".join(written(heading).split()) == "HOST PMU HELD BY PID EVENTS PINNED ERROR CPUS"
    assert written(line).split() == ["x" * 23 + "…", "99", "4", "4", "1", "0-3,8"]
    assert written(watchdog).split() == ["the", "NMI", "watchdog", "-", "1", "1", "0", "each"]
    assert table.holder_table(Readings().take(state(holders=None, nmi_watchdog=None)))[1] == []


def test_trouble_of_a_vm() -> None:
    failure = {
        "vm": "web01", "vcpu": 1, "pmc": "gp2", "event": "r0c0:GD", "event_name": "instructions",
        "errno": "ENOSPC", "cause": "no room", "count": 40,
    }  # fmt: skip
    diverging = {"vm": "web01", "vcpu": None, "pmc": None, "kind": "unexpected_call", "count": 1}
    lbr = failure | {"vcpu": -1, "pmc": "lbr", "event_name": None, "count": 1}
    shown = Readings().take(state(vm("web01"), vm("b"), failures=[failure, lbr], diverging=[diverging]))
    assert [written(line) for line in table.trouble(shown.vms[0])] == [
        "diverged: unexpected_call, once",
        "vCPU 1 gp2 instructions: ENOSPC, 40 times: no room",
        "lbr r0c0:GD: ENOSPC, once: no room",
    ]
    assert table.trouble(shown.vms[1]) == []


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (None, "-"),
        (0, "0"),
        (0.5, "0.5"),
        (9.96, "10"),
        (340.4, "340"),
        (123_456, "123k"),
        (2_500_000, "2.5M"),
    ],
)
def test_rates(rate: float | None, text: str) -> None:
    assert table.rate_text(rate) == text


def test_only_what_ran_all_the_time_has_a_hundred() -> None:
    assert [table.running_text(running) for running in (None, 0.0, 0.5, 0.999, 1.0)] == [
        "-",
        "0",
        "50",
        "99",
        "100",
    ]
    assert [table.share_text(share) for share in (0, 0.0001, 0.123, 2.5)] == ["0.0", "<0.1", "12.3", "250.0"]
