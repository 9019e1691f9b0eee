"""What the BPF maps would hold after some calls, counted with the Python check; and who the processes are."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Set
from itertools import chain

from vpmu_agent.model.buckets import DURATION_BOUNDS_NS, SIZE_BOUNDS
from vpmu_agent.model.call import Call, CallName, PmcType
from vpmu_agent.model.check import Monitor
from vpmu_agent.model.rules import Kind, State
from vpmu_agent.model.verdict import Observation, Verdict
from vpmu_agent.probes.layout import VCPU, pmc_layout
from vpmu_agent.vms.command_line import Vmm
from vpmu_agent.vms.names import VmInfo

PMC = pmc_layout(4)
_SIZE = {layout: max(where.stop for where in layout.fields.values()) for layout in (VCPU, PMC)}


class Maps:
    """Probes as `Watch` knows them."""

    def __init__(self, *calls: Iterable[Call]) -> None:
        self.mode: str = "fexit"
        self.functions: tuple[str, ...] = tuple(CallName)
        self.losses = {"ring_full": 0}
        self.rooms = {"vcpus": 8}
        self.is_closed = False
        self._lock = threading.Lock()
        self._monitor = Monitor()
        self._vcpus: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0] * _SIZE[VCPU])
        self._pmcs: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0] * _SIZE[PMC])
        self._errors = Counter[tuple[int, int]]()
        self.feed(chain(*calls))

    def feed(self, calls: Iterable[Call]) -> list[Observation]:
        """Count calls as the probes would; return them with what the model says of them."""
        with self._lock:
            return [(call, self._count(call)) for call in calls]

    def vcpus(self) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        assert not self.is_closed
        with self._lock:
            held = {key: numbers.copy() for key, numbers in self._vcpus.items()}
            groups = list(self._monitor.groups())
        for group in groups:
            numbers = held[group.tgid, group.vcpu]
            state = list(State).index(group.state)
            if group.events:
                numbers[VCPU.fields["groups"].start + state] += 1
            numbers[VCPU.fields["events"].start] += group.events
            numbers[VCPU.fields["orphans"].start] += group.orphans
        return iter([(*key, tuple(numbers)) for key, numbers in held.items()])

    def pmcs(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        with self._lock:
            return iter([(tgid, tuple(numbers)) for (tgid, _), numbers in self._pmcs.items()])

    def errors(self) -> Iterator[tuple[int, int, int]]:
        with self._lock:
            return iter([(*key, count) for key, count in self._errors.items()])

    def lost(self) -> dict[str, int]:
        assert not self.is_closed
        return self.losses

    def forget(self, tgids: Set[int]) -> None:
        with self._lock:
            for entries in (self._vcpus, self._pmcs, self._errors):
                for key in [key for key in entries if key[0] in tgids]:
                    del entries[key]
            for tgid in tgids:
                self._monitor.forget(tgid)

    def occupancy(self) -> dict[str, tuple[int, int]]:
        entries = {"vcpus": self._vcpus, "pmcs": self._pmcs}
        return {name: (len(entries[name]), room) for name, room in self.rooms.items()}

    def _count(self, call: Call) -> Verdict:
        verdict = self._monitor.observe(call)
        vcpu, pmc = self._vcpus[call.tgid, call.vcpu], self._pmcs[call.tgid, call.pmc]
        index, kind = list(CallName).index(call.name), list(Kind).index(verdict.kind)
        for layout, numbers in ((VCPU, vcpu), (PMC, pmc)):
            numbers[layout.fields["calls"].start + index] += 1
            numbers[layout.fields["verdicts"].start + kind] += 1
        for name in verdict.predicted:
            vcpu[VCPU.fields["predicted"].start + list(CallName).index(name)] += 1
        vcpu[VCPU.fields["duration_ns"].start + index] += call.duration_ns
        _add(vcpu, f"{call.name}_buckets", DURATION_BOUNDS_NS, call.duration_ns)
        if call.name is CallName.CREATE and call.leader:
            if call.attr.pinned:
                vcpu[VCPU.fields["pinned_siblings"].start] += 1
        elif call.name is CallName.CREATE:
            _add(vcpu, "sizes", SIZE_BOUNDS, call.max_nr_events)
            vcpu[VCPU.fields["sizes_sum"].start] += call.max_nr_events
        if call.result:
            self._errors[call.tgid, -call.result] += 1
        pmc_idx = call.pmc_idx + 32 if call.pmc_type is PmcType.FIXED else call.pmc_idx
        for field, number in {
            "vcpu_id": call.vcpu,
            "pmc_type": list(PmcType).index(call.pmc_type),
            "pmc_idx": pmc_idx,
        }.items():
            pmc[PMC.fields[field].start] = number
        return verdict


class Processes:
    """Which VM a process is, as `Watch` asks: all are alive until one ends."""

    def __init__(self, **tgids: int) -> None:
        self.names = {tgid: name for name, tgid in tgids.items()}
        self.alive = set(self.names)
        self.forgotten: list[int] = []

    def about(self, tgid: int) -> VmInfo:
        return VmInfo(self.names[tgid], uuid="", vmm=Vmm.QEMU, tgid=tgid, pod_uid="")

    def is_alive(self, tgid: int) -> bool:
        return tgid in self.alive

    def forget(self, tgid: int) -> None:
        self.forgotten.append(tgid)


def _add(numbers: list[int], field: str, bounds: tuple[int, ...], value: int) -> None:
    numbers[VCPU.fields[field].start + bisect_left(bounds, value)] += 1
