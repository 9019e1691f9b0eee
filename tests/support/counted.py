"""What the BPF maps would hold after some calls, counted with the Python check; and who the processes are."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from itertools import chain

from vpmu_agent.counts.counts import Counts, Pmc
from vpmu_agent.model.buckets import DURATION_BOUNDS_NS, SIZE_BOUNDS
from vpmu_agent.model.call import Call, CallName, PmcType, UncheckedCall
from vpmu_agent.model.check import Checker, Group
from vpmu_agent.model.rules import Kind, State
from vpmu_agent.model.verdict import Observation, Verdict
from vpmu_agent.probes.entries import GivenBack, Share
from vpmu_agent.probes.layout import FIXED_BASE_IDX, VCPU, Layout, pmc_layout, pmc_name
from vpmu_agent.probes.self_test import SelfTested
from vpmu_agent.vms.command_line import Vmm
from vpmu_agent.vms.names import VmInfo

_Entry = dict[str, list[int]]
"""The numbers of an entry, by field."""


class Maps:
    """Probes as `Watch` knows them."""

    pmc = pmc_layout(8)
    self_tested: SelfTested | None = None

    def __init__(self, *calls: Iterable[Call]) -> None:
        self.mode: str = "fexit"
        self.functions: tuple[str, ...] = (*CallName, *UncheckedCall)
        self.losses = {"ring_full": 0}
        self.rooms = {"vcpus": 8}
        self.is_closed = False
        self._lock = threading.Lock()
        self._monitor = Checker()
        self.refused: dict[int, int] = {}
        self._vcpus: dict[tuple[int, int], _Entry] = defaultdict(lambda: _blank(VCPU))
        self._pmcs: dict[tuple[int, int], _Entry] = defaultdict(lambda: _blank(self.pmc))
        self._errors = Counter[tuple[int, int]]()
        self.feed(chain(*calls))

    def feed(self, calls: Iterable[Call]) -> list[Observation]:
        """Count calls as the probes would; return them with what the model says of them."""
        with self._lock:
            return [(call, self._count(call)) for call in calls]

    def pmcs(self) -> Iterator[memoryview]:
        with self._lock:
            held = defaultdict[tuple[int, int, str], list[Group]](list)
            for group in self._monitor.groups():
                held[group.tgid, group.vcpu, group.pmc].append(group)
            packed = []
            for entry in self._pmcs.values():
                (tgid,), (vcpu,), (pmc_type,), (pmc_idx,) = (
                    entry[field] for field in ("tgid", "vcpu_id", "pmc_type", "pmc_idx")
                )
                groups = held[tgid, vcpu, pmc_name(pmc_type, pmc_idx)]
                holds = _holds(groups.pop()) if groups else {}
                packed.append(memoryview(self.pmc.pack({**entry, **holds})))
        return iter(packed)

    def vcpus(self) -> Iterator[memoryview]:
        assert not self.is_closed
        with self._lock:
            return iter([memoryview(VCPU.pack(entry)) for entry in self._vcpus.values()])

    def shares(self) -> dict[int, Share]:
        with self._lock:
            pmcs, vcpus = (Counter(tgid for tgid, _ in of) for of in (self._pmcs, self._vcpus))
            return {
                tgid: Share(pmcs[tgid], vcpus[tgid], self.refused.get(tgid, 0))
                for tgid in pmcs.keys() | vcpus.keys() | self.refused.keys()
            }

    def errors(self) -> Iterator[tuple[int, int, int]]:
        with self._lock:
            return iter([(*key, count) for key, count in self._errors.items()])

    def starvations(self) -> int:
        return 0

    def errnos(self) -> dict[tuple[int, Pmc], int]:
        with self._lock:
            return {
                (pmc["tgid"][0], (pmc["vcpu_id"][0], pmc["pmc_type"][0], pmc["pmc_idx"][0])): pmc["error"][0]
                for pmc in self._pmcs.values()
                if pmc["error"][0]
            }

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
                self.refused.pop(tgid, None)

    def give_back(self) -> GivenBack:
        return GivenBack()

    def occupancy(self, _shares: Mapping[int, Share]) -> dict[str, tuple[int, int]]:
        entries = {"vcpus": self._vcpus, "pmcs": self._pmcs}
        return {name: (len(entries[name]), room) for name, room in self.rooms.items()}

    def _count(self, call: Call) -> Verdict:
        verdict = self._monitor.observe(call)
        # The guest-LBR event has an entry of its own.
        vcpu, pmc = self._vcpus[call.tgid, call.vcpu], self._pmcs[call.tgid, call.pmc or call.event]
        names = list(CallName)
        pmc["calls"][names.index(call.name)] += 1
        pmc["due"][names.index(call.name)] -= 1
        for name in verdict.predicted:
            pmc["due"][names.index(name)] += 1
        if verdict.kind is not Kind.PREDICTED:
            pmc["verdicts"][list(Kind).index(verdict.kind)] += 1
        pmc[f"{call.name}_ns"][0] += call.duration_ns
        _add(pmc[f"{call.name}_buckets"], DURATION_BOUNDS_NS, call.duration_ns)
        if call.name is CallName.CREATE and (call.leader or call.result):
            vcpu["siblings"][0] += 1
            vcpu["pinned_siblings"][0] += bool(call.leader) and call.attr.pinned
        elif call.name is CallName.CREATE and call.max_nr_events > 1:
            _add(vcpu["sizes"], SIZE_BOUNDS, call.max_nr_events)
            vcpu["sizes_sum"][0] += call.max_nr_events
        pmc["starvations"][0] += call.starved
        if call.name is CallName.CREATE:
            pmc["error"] = [-call.result]
        if call.result:
            self._errors[call.tgid, -call.result] += 1
        is_fixed = call.pmc_type is PmcType.FIXED
        pmc |= {
            "tgid": [call.tgid],
            "vcpu_id": [call.vcpu],
            "pmc_type": [list(PmcType).index(call.pmc_type)],
            "pmc_idx": [call.pmc_idx + FIXED_BASE_IDX if is_fixed else call.pmc_idx],
        }
        vcpu |= {"tgid": [call.tgid], "vcpu_id": [call.vcpu]}
        return verdict


def by_pmc(counts: Counts) -> dict[Pmc, tuple[int, ...]]:
    """The calls of each pmc, by name."""
    rows = zip(*[iter(counts.calls)] * len(CallName), strict=True)
    return dict(zip(counts.pmcs, rows, strict=True))


def _blank(layout: Layout) -> _Entry:
    return {field: [0] * (at.stop - at.start) for field, at in layout.fields.items()}


def _holds(group: Group) -> _Entry:
    return {
        "state": [list(State).index(group.state)],
        "members": [(1 << group.events) - 1],
        "left": [group.orphans],
    }


class Processes:
    """Which VM a process is, as `Watch` asks: all are alive until one ends."""

    def __init__(self, **tgids: int) -> None:
        self.names = {tgid: name for name, tgid in tgids.items()}
        self.living = set(self.names)
        self.forgotten: list[int] = []
        self.uuid = ""

    def about(self, tgid: int) -> VmInfo:
        return VmInfo(self.names[tgid], uuid=self.uuid, vmm=Vmm.QEMU, tgid=tgid, pod_uid="")

    def name(self, tgid: int) -> str:
        return self.names[tgid]

    def is_alive(self, tgid: int) -> bool:
        return tgid in self.living

    def alive(self, tgids: Iterable[int]) -> set[int]:
        return self.living & {*tgids}

    def settled(self, known: Mapping[int, VmInfo]) -> set[int]:
        return set(known) & set[int]()  # so that each is asked about

    def forget(self, tgid: int) -> None:
        self.forgotten.append(tgid)


def _add(buckets: list[int], bounds: tuple[int, ...], value: int) -> None:
    buckets[bisect_left(bounds, value)] += 1
