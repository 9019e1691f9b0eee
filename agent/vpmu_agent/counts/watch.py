"""What the daemon knows of all VMs: what the BPF maps have counted, and what VMs that are gone have left."""

from __future__ import annotations

import threading
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from operator import add
from typing import Protocol

from vpmu_agent.counts.counts import Counts, Snapshot
from vpmu_agent.vms.modes import Pmu
from vpmu_agent.vms.names import VmInfo

GONE_S = 15 * 60.0
"""How long a VM that is gone waits for the scrape that shows its last counts."""

READ_S = 10.0
"""How long a VM may be there before anyone looks, where nobody scrapes: it may be gone just as quickly."""


class Maps(Protocol):
    """The maps of attached probes, as `probes.Probes` reads them."""

    @property
    def mode(self) -> str:
        """How they are attached."""

    @property
    def functions(self) -> Sequence[str]:
        """The kernel functions that they watch."""

    def vcpus(self) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """tgid, vcpu_id, and numbers laid out as `layout.VCPU.fields`."""

    def pmcs(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """tgid, and numbers laid out as `layout.pmc_layout(slots).fields`."""

    def errors(self) -> Iterator[tuple[int, int, int]]:
        """tgid, errno, and how many creations failed with it."""

    def lost(self) -> Mapping[str, int]:
        """Lost records by reason."""

    def forget(self, tgids: Set[int]) -> None:
        """Deletes what the maps hold of these processes."""

    def occupancy(self) -> Mapping[str, tuple[int, int]]:
        """Of each map: how many entries it has, and has room for."""


class Processes(Protocol):
    """Whoever knows which VM a process is; `vms.Vms` does."""

    def about(self, tgid: int) -> VmInfo:
        """Its name and more."""

    def is_alive(self, tgid: int) -> bool:
        """False once the process that `about()` told of is gone, or where it told of none."""

    def forget(self, tgid: int) -> None:
        """Drops what is remembered of a process."""


@dataclass(slots=True)
class _Kept:
    """What a VM has counted that no map holds any more."""

    since: float  # time.monotonic()
    about: VmInfo
    counts: Counts = field(default_factory=Counts)
    tgids: set[int] = field(default_factory=set)
    is_shown: bool = False


class Watch:
    """Puts together what the maps hold and what is kept of VMs that are gone.

    `snapshot()` is for the threads that answer scrapes; `sweep()` and `replace()` are for the loop that polls
    the probes: the name of a VM that lived only for a moment stands in their ring.
    """

    def __init__(self, probes: Maps, vms: Processes, *, per_counter: bool = True) -> None:
        self._probes = probes
        self._vms = vms
        self._per_counter = per_counter
        self._lock = threading.Lock()
        self._known: dict[int, VmInfo] = {}  # the processes that the maps may have entries of
        self._kept: dict[str, _Kept] = {}
        self._lost = Counter[str]()  # by probes that were replaced
        self._loads = 1
        self._pmus: Mapping[str, Sequence[Pmu]] = {}
        self._since_ns = time.time_ns()
        self._read_at = time.monotonic()

    def snapshot(self, *, is_scrape: bool = True) -> Snapshot:
        """All that is known now. Only a scrape is told of VMs that are gone for the last time."""
        with self._lock:
            vms: dict[str, Counts] = {}
            about: dict[str, VmInfo] = {}
            for tgid, counts in self._read().items():
                name = self._known[tgid].name
                about[name] = self._known[tgid]
                vms[name] = vms[name] + counts if name in vms else counts
            for name, kept in self._kept.items():
                kept.is_shown |= is_scrape
                about.setdefault(name, kept.about)
                vms[name] = vms[name] + kept.counts if name in vms else kept.counts
            return Snapshot(
                vms=dict(sorted(vms.items())),
                about=dict(sorted(about.items())),
                mode=self._probes.mode,
                functions=self._probes.functions,
                lost=self._lost_now(),
                occupancy=self._probes.occupancy(),
                since_ns=self._since_ns,
                loads=self._loads,
                per_counter=self._per_counter,
                pmus=self._pmus,
            )

    def processes(self) -> Set[int]:
        """Those that may be gone by now. Ask before the probes are polled; sweep() takes it after that."""
        with self._lock:
            if time.monotonic() - self._read_at >= READ_S:
                self._learn({tgid for tgid, _, _ in self._probes.vcpus()})
            return set(self._known)

    def sweep(self, among: Set[int] | None = None) -> None:
        """Looks for VMs that are gone, of these processes (None: of all); about once a second.

        Who a process was that was gone before anyone looked stands in the ring alone, so the probes were
        polled since processes() told of it: this process may be stopped anywhere, for any time, and
        meanwhile a whole VM has come and gone.

        The counts of a process that is gone are kept here and its entries in the maps deleted, so that
        another process with its tgid starts anew. They are dropped once a scrape has shown them; without one
        they are kept for GONE_S: whoever scrapes next shall see how it ended. A VM that was restarted under
        its name goes on counting.
        """
        if among is None:
            among = self.processes()
        with self._lock:
            processes = [(tgid, known) for tgid, known in self._known.items() if tgid in among]
        gone = {}
        # A scrape need not wait for this.
        for tgid, known in processes:
            if (about := self._about_if_gone(tgid, known)) is not None:
                gone[tgid] = about
        with self._lock:
            if gone:
                self._keep(gone)
                self._probes.forget(gone.keys())
                for tgid in gone:
                    del self._known[tgid]
            forgotten = self._drop()
        for tgid in forgotten:
            self._vms.forget(tgid)

    def replace(self, probes: Maps) -> None:
        """Goes on with other probes, whose maps begin empty; the former ones must not count any more.

        They may be closed when this returns. Their counts are kept as if all their processes were gone:
        what a VM holds is known again when it was seen by the new ones.
        """
        with self._lock:
            self._keep(self._known)
            self._lost = self._lost_now()
            self._probes = probes
            self._since_ns = time.time_ns()
            self._loads += bool(probes.functions)  # there are none while KVM is away

    def show_pmus(self, pmus: Mapping[str, Sequence[Pmu]]) -> None:
        """Takes what snapshots have for `pmus`, from now on."""
        with self._lock:
            self._pmus = pmus

    def count_per_counter(self, wanted: bool) -> None:
        """Whether snapshots have the counts of each pmc, from now on."""
        with self._lock:
            self._per_counter = wanted

    def _read(self) -> dict[int, Counts]:
        """What the maps hold now, by process, each of which has a name then."""
        processes: defaultdict[int, Counts] = defaultdict(Counts)
        for tgid, _, numbers in self._probes.vcpus():
            if tgid in processes:
                counts = processes[tgid]
                counts.numbers = array("q", list(map(add, counts.numbers, numbers)))
            else:
                processes[tgid] = Counts(array("q", numbers))
        for tgid, error, count in self._probes.errors():
            processes[tgid].errors[error] += count
        if self._per_counter:
            for tgid, numbers in self._probes.pmcs():
                processes[tgid].add_pmc(numbers)
        self._learn(processes.keys())
        return processes

    def _learn(self, tgids: Set[int]) -> None:
        self._read_at = time.monotonic()
        for tgid in tgids - self._known.keys():
            self._known[tgid] = self._vms.about(tgid)

    def _keep(self, processes: Mapping[int, VmInfo]) -> None:
        """Takes what the maps hold of some processes to what is kept."""
        read = self._read()
        now = time.monotonic()
        for tgid, about in list(processes.items()):
            kept = self._kept.setdefault(about.name, _Kept(now, about))
            kept.since, kept.about, kept.is_shown = now, about, False
            kept.tgids.add(tgid)
            if tgid in read:
                kept.counts += read[tgid].ended()

    def _drop(self) -> set[int]:
        """Drops what need not be kept any longer; returns the processes that nothing is known of now."""
        alive = {about.name for about in self._known.values()}
        now = time.monotonic()
        tgids: set[int] = set()
        for name, kept in list(self._kept.items()):
            if kept.is_shown or now - kept.since >= GONE_S:
                tgids |= kept.tgids
                kept.tgids = set()
                if name not in alive:
                    del self._kept[name]
        return tgids - self._known.keys()

    def _about_if_gone(self, tgid: int, known: VmInfo) -> VmInfo | None:
        """Who a process was that is gone, None if it is still there.

        `Vms` may take a process that it is told of for a new one until it has looked; `about()` looks. The
        name may be told only now: a scrape can have come before the ring was read.
        """
        if self._vms.is_alive(tgid):
            return None
        found = self._vms.about(tgid)
        if not self._vms.is_alive(tgid):
            return found
        return None if found.name == known.name else known  # another process has its tgid

    def _lost_now(self) -> Counter[str]:
        lost = self._lost.copy()
        lost.update(self._probes.lost())
        return lost
