"""Which PMU VMs have, by what the census finds of their vCPUs; how it is told, and how often it is asked."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterable
from typing import Any

import pytest

from tests.support.looks import HOST_EVENT, PMC, VCPU, WEB, vcpu
from vpmu_agent.counts.guests import CPU_SHARE, FORGET_S, PULL_S, WALK_SHARE, Guests
from vpmu_agent.counts.pmus import KvmPmu, pmus
from vpmu_agent.probes.census import Census, Look, Vcpu, decode
from vpmu_agent.vms.modes import Mode, Pmu, Why, sentence, untraced

DB = 777
EMULATING = KvmPmu(enabled=True, mediated=False)
MEDIATING = KvmPmu(enabled=True, mediated=True)


def test_a_record_says_what_the_kernel_has() -> None:
    address = 0xFFFF888012345678
    made = {
        "tgid": WEB,
        "kvm": address,
        "vcpu_id": 3,
        "nr_gp": 6,
        "enable_pmu": 1,
        "irqchip_mode": 2,
        "cpu": 3,
        "tsc_set_ns": 7,
    }
    data = VCPU.pack({**made, "kvm_vcpu": 1, "irqchip_mode": 0, "mp_state": 1})
    data += VCPU.pack({**made, "kvm_vcpu": 2, "created_mediated_pmu": 1, "pmu_version": 2, "cpuid_nent": 30})
    data += VCPU.pack(
        {**made, "kvm_vcpu": 3, "cpuid_nent": 30, "mp_state": 2**32 - 1, "tsc_set_ns": 2**64 - 1}
    )
    no_pmu = {"vm": address, "vcpu_id": 3, "pmu_version": 0}
    assert decode(data).vcpus == [
        vcpu(address=1, has_irqchip=False, has_cpuid=False, tsc_set_ns=7, awaits_init=True, **no_pmu),
        vcpu(address=2, vm=address, vcpu_id=3, mediated=True, tsc_set_ns=7),
        vcpu(address=3, tsc_set_ns=None, **no_pmu),
    ]
    assert decode(b"") == Look()
    with pytest.raises(struct.error):
        decode(data[:-1])


def test_what_several_files_lead_to_is_there_once() -> None:
    data = [VCPU.pack({"kvm_vcpu": 7, "tgid": WEB}), PMC.pack({"kind": 1, "kvm_vcpu": 7, "event": 5})]
    opener: dict[str, Any] = {
        "kind": 2,
        "event": 9,
        "comm": [int.from_bytes(b"otel", "little"), 0],
        "cpu": -1,
    }
    data += [HOST_EVENT.pack({**opener, "tgid": 10}), HOST_EVENT.pack({**opener, "tgid": 11})]
    look = decode(b"".join(data * 2))
    assert [len(found) for found in (look.vcpus, look.pmcs, look.host_events)] == [1, 1, 1]
    (event,) = look.host_events
    assert (event.tgid, event.comm, event.cpu) == (10, "otel", -1)


def test_a_process_cannot_write_to_terminals_by_its_name() -> None:
    data = HOST_EVENT.pack({"kind": 2, "event": 9, "comm": [int.from_bytes(b"\x1b[2Jx", "little"), 0]})
    (event,) = decode(data).host_events
    assert event.comm == "\N{REPLACEMENT CHARACTER}[2Jx"


@pytest.mark.parametrize(
    ("found", "kvm", "expected"),
    [
        (vcpu(), EMULATING, Pmu(Mode.EMULATED)),
        (vcpu(has_irqchip=False), EMULATING, Pmu(Mode.EMULATED)),
        (vcpu(), KvmPmu(enabled=None, mediated=None), Pmu(Mode.EMULATED)),
        (vcpu(mediated=True), MEDIATING, Pmu(Mode.MEDIATED)),
        (vcpu(mediated=True, pmu_version=0), MEDIATING, Pmu(Mode.OFF, Why.NO_CPUID)),
        (vcpu(pmu_version=0), EMULATING, Pmu(Mode.OFF, Why.NO_CPUID)),
        (vcpu(vm_pmu=False, pmu_version=0), KvmPmu(enabled=False, mediated=False), Pmu(Mode.OFF, Why.HOST)),
        (vcpu(vm_pmu=False, pmu_version=0), EMULATING, Pmu(Mode.OFF, Why.TURNED_OFF)),
        (vcpu(vm_pmu=False, pmu_version=0), MEDIATING, Pmu(Mode.OFF, Why.TURNED_OFF)),
        (vcpu(vm_pmu=False, has_irqchip=False, pmu_version=0), EMULATING, Pmu(Mode.OFF, Why.TURNED_OFF)),
        (vcpu(vm_pmu=False, has_irqchip=False, pmu_version=0), MEDIATING, Pmu(Mode.OFF, Why.NO_IRQCHIP)),
        # What decides cannot be read.
        (vcpu(vm_pmu=False, pmu_version=0), KvmPmu(enabled=None, mediated=False), Pmu(Mode.OFF, Why.UNKNOWN)),
        (
            vcpu(vm_pmu=False, has_irqchip=False),
            KvmPmu(enabled=True, mediated=None),
            Pmu(Mode.OFF, Why.UNKNOWN),
        ),
    ],
)
def test_what_a_vm_has(found: Vcpu, kvm: KvmPmu, expected: Pmu) -> None:
    assert pmus([found, found], kvm) == {WEB: [expected]}


def test_a_vm_that_is_being_set_up_is_not_known_yet() -> None:
    new = vcpu(has_cpuid=False, pmu_version=0)
    assert pmus([new], EMULATING) == {}
    assert pmus([vcpu(pmu_version=0), new], EMULATING) == {}
    assert pmus([vcpu(), new], EMULATING) == {WEB: [Pmu(Mode.EMULATED)]}


def test_a_process_may_have_several_vms() -> None:
    found = [vcpu(vm=1), vcpu(vm=2, vm_pmu=False, pmu_version=0), vcpu(vm=3), vcpu(tgid=DB, vm=4)]
    assert pmus(found, EMULATING) == {
        WEB: [Pmu(Mode.EMULATED), Pmu(Mode.OFF, Why.TURNED_OFF)],
        DB: [Pmu(Mode.EMULATED)],
    }


def test_every_pmu_has_its_sentence() -> None:
    assert sentence(["web01"], Pmu(Mode.MEDIATED)) == (
        "web01 has a mediated vPMU: the guest owns the host's counters while it runs, and KVM creates no "
        "perf events for it, so there is nothing to trace"
    )
    assert sentence(["web01", "db01"], Pmu(Mode.OFF, Why.NO_IRQCHIP)).startswith(
        "web01 and db01 have lost the vPMU: "
    )
    names = [f"vm{i}" for i in range(1000)]
    assert sentence(names, Pmu(Mode.EMULATED)) == "vm0, vm1, vm2, vm3, vm4 and 995 more have an emulated vPMU"
    said = {sentence(["web01"], Pmu(Mode.OFF, why)) for why in Why}
    assert len(said) == len(Why)
    assert all(text.endswith(", so there is nothing to trace") for text in said)


def test_only_what_is_emulated_is_traced() -> None:
    found = [
        ("web01", Pmu(Mode.EMULATED)),
        ("db01", Pmu(Mode.MEDIATED)),
        ("db02", Pmu(Mode.MEDIATED)),
        ("old", Pmu(Mode.OFF, Why.HOST)),
    ]
    assert untraced(found) == {Pmu(Mode.MEDIATED): ["db01", "db02"], Pmu(Mode.OFF, Why.HOST): ["old"]}


class Pulls(Census):
    """A census that finds what it is told to."""

    def __init__(self, *found: Vcpu) -> None:
        super().__init__(None)
        self.found = list(found)
        self.pulled = 0

    def pull(self) -> Look:
        self.pulled += 1
        return Look(vcpus=self.found)


class Names:
    def __init__(self) -> None:
        self.forgotten: list[int] = []

    def name(self, tgid: int) -> str:
        return {WEB: "web01", DB: "db01"}[tgid]

    def forget(self, tgid: int) -> None:
        self.forgotten.append(tgid)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock, and what a pull costs."""
    times = [100.0, 0.0]
    spent = itertools.count()
    monkeypatch.setattr("time.monotonic", lambda: times[0])
    monkeypatch.setattr("time.thread_time", lambda: next(spent) * times[1])
    return times


def test_a_vm_is_told_of_once_until_it_changes(now: list[float]) -> None:
    guests, census = Guests(Names(), lambda: MEDIATING), Pulls(vcpu(mediated=True), vcpu(tgid=DB, vm=2))
    assert guests.sweep(census) == [("web01", Pmu(Mode.MEDIATED)), ("db01", Pmu(Mode.EMULATED))]
    assert guests.found.pmus == {"db01": [Pmu(Mode.EMULATED)], "web01": [Pmu(Mode.MEDIATED)]}
    now[0] += PULL_S
    assert guests.sweep(census) == []
    census.found = [vcpu(mediated=True, pmu_version=0)]
    now[0] += PULL_S
    assert guests.sweep(census) == [("web01", Pmu(Mode.OFF, Why.NO_CPUID))]
    assert guests.found.pmus == {"web01": [Pmu(Mode.OFF, Why.NO_CPUID)]}


def test_pulls_take_no_more_than_their_share(now: list[float]) -> None:
    guests, census = Guests(Names(), lambda: EMULATING), Pulls()
    guests.sweep(census)
    guests.sweep(census)
    now[0] += PULL_S
    now[1] = 0.062  # 300,000 files
    guests.sweep(census)
    assert census.pulled == 2
    now[0] += 0.99 * 0.062 / CPU_SHARE
    guests.sweep(census)
    assert census.pulled == 2
    now[0] += 0.02 * 0.062 / CPU_SHARE
    guests.sweep(census)
    assert census.pulled == 3


def test_a_counter_that_a_call_left_starved_is_looked_at_sooner(now: list[float]) -> None:
    guests, census = Guests(Names(), lambda: EMULATING), Pulls()
    now[1] = 0.062
    pace = 0.062 / CPU_SHARE
    guests.sweep(census)
    guests.sweep(census, starvations=1)
    assert census.pulled == 1  # just now
    now[0] += PULL_S
    guests.sweep(census, starvations=1)
    assert census.pulled == 2
    for i in range(2, 1000):  # again and again
        now[0] += PULL_S
        guests.sweep(census, starvations=i)
    seconds = 999 * PULL_S
    assert seconds / pace <= census.pulled <= seconds / pace + 2
    now[0] += 2 * pace
    before = census.pulled
    guests.sweep(census, starvations=999)
    assert census.pulled == before + 1
    now[0] += PULL_S
    guests.sweep(census, starvations=999)  # no new one
    assert census.pulled == before + 1


class Walking(Pulls):
    """A census that can also walk; the walk finds what the pull does, and no events of the host."""

    def __init__(self, *found: Vcpu) -> None:
        super().__init__(*found)
        self.walked: list[list[int]] = []

    @property
    def can_walk(self) -> bool:
        return True

    def walk(self, tgids: Iterable[int]) -> Look | None:
        self.walked.append(list(tgids))
        return Look(vcpus=[each for each in self.found if each.tgid in self.walked[-1]])


def test_known_vms_are_walked_where_pulls_are_far_between(now: list[float]) -> None:
    guests, census = Guests(Names(), lambda: EMULATING), Walking(vcpu())
    now[1] = 0.062
    guests.sweep(census)
    census.found = [vcpu(pmu_version=0), vcpu(tgid=DB, vm=2)]
    guests.sweep(census)
    assert census.walked == []  # just now
    now[0] += PULL_S
    now[1] = 0.002
    assert guests.sweep(census) == [("web01", Pmu(Mode.OFF, Why.NO_CPUID))]
    assert (census.pulled, census.walked) == (1, [[WEB]])  # the other one is not known yet
    now[0] += 0.99 * 0.002 / WALK_SHARE
    guests.sweep(census)
    assert len(census.walked) == 1
    now[0] += 0.02 * 0.002 / WALK_SHARE
    guests.sweep(census)
    assert (census.pulled, len(census.walked)) == (1, 2)


def test_walks_that_cost_as_much_as_pulls_keep_within_their_share(now: list[float]) -> None:
    guests, census = Guests(Names(), lambda: EMULATING), Walking(vcpu())
    now[1] = 0.062
    seconds = 2000
    for _ in range(seconds):
        guests.sweep(census)
        now[0] += 1
    assert len(census.walked) <= seconds * WALK_SHARE / 0.062 + 1
    assert census.pulled <= seconds * CPU_SHARE / 0.062 + 1


def test_where_pulls_are_cheap_nothing_is_walked(now: list[float]) -> None:
    guests, census = Guests(Names(), lambda: EMULATING), Walking(vcpu())
    for _ in range(100):
        guests.sweep(census)
        now[0] += PULL_S / 4
    assert (census.pulled, census.walked) == (25, [])


def test_the_name_of_a_vm_that_is_gone_is_kept_for_the_ring(now: list[float]) -> None:
    vms = Names()
    guests, census = Guests(vms, lambda: EMULATING), Pulls(vcpu())
    guests.sweep(census)
    census.found = []
    now[0] += PULL_S
    guests.sweep(census)
    assert guests.found.pmus == {}
    now[0] += FORGET_S - PULL_S
    guests.sweep(census)
    census.found = [vcpu()]  # it was only about to get other vCPUs
    now[0] += PULL_S
    guests.sweep(census)
    now[0] += FORGET_S
    guests.sweep(census)
    assert vms.forgotten == []
    census.found = []
    for _ in range(3):
        now[0] += FORGET_S
        guests.sweep(census)
    assert vms.forgotten == [WEB]


def test_a_census_that_is_not_there_is_said_once() -> None:
    guests = Guests(Names(), lambda: EMULATING)
    without = Census(None, "cannot load the census: refused")
    assert guests.sweep(without) == []
    assert guests.newly_missing(without) == "cannot load the census: refused"
    assert guests.newly_missing(without) == ""
    assert guests.newly_missing(Census(None)) == ""
    assert guests.newly_missing(without) == "cannot load the census: refused"


def test_a_census_that_fails_is_missing_from_then_on() -> None:
    census = Census(os.open(os.devnull, os.O_RDONLY))  # no link of an iterator
    assert census.pull() == Look()
    assert census.missing.startswith("cannot start to read the census: ")
    assert census.pull() == Look()
    census.close()
