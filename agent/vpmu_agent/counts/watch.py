"""The daemon's counts of all VMs: those in the BPF maps, and those of VMs that are gone."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Protocol

from vpmu_agent.counts.counters import VmCounters
from vpmu_agent.counts.counts import FIELDS, Counts, Shown, Snapshot
from vpmu_agent.counts.guests import Found
from vpmu_agent.counts.sums import Sums
from vpmu_agent.probes.entries import GivenBack, Share
from vpmu_agent.probes.layout import Layout
from vpmu_agent.vms.modes import Mode
from vpmu_agent.vms.names import VmInfo

KEEP_GONE_S = 15 * 60.0
"""How long the counts of a VM that is gone are kept for the next scrape."""

MAX_GONE = 2000
"""How many VMs that are gone have their counts kept, a few KB each; of more, the first to go are dropped."""

LOOK_EVERY_S = 10.0
"""How often to look into the maps for new VMs if nobody scrapes."""


_REFUSED = FIELDS["refused"].start


class Maps(Protocol):
    """What is needed here of `probes.Probes`."""

    @property
    def mode(self) -> str:
        """How the probes are attached."""

    @property
    def functions(self) -> Sequence[str]:
        """The kernel functions that they probe."""

    @property
    def pmc(self) -> Layout:
        """The layout of the entries in pmcs()."""

    def pmcs(self) -> Iterable[memoryview]:
        """Yield all entries of pmcs, some at a time; free ones have the tgid 0."""

    def vcpus(self) -> Iterable[memoryview]:
        """Yield all entries of vCPUs, laid out as `layout.VCPU`, in the same way."""

    def shares(self) -> Mapping[int, Share]:
        """Return what each process has of the entries, by tgid."""

    def errors(self) -> Iterator[tuple[int, int, int]]:
        """Yield (tgid, errno, how many creations failed with it)."""

    def lost(self) -> Mapping[str, int]:
        """Return the number of lost records by reason."""

    def forget(self, tgids: Set[int]) -> None:
        """Delete what the maps have of these processes, which are gone."""

    def give_back(self) -> GivenBack:
        """Free entries that nobody uses; return the last counts of those whose process lives."""

    def occupancy(self, shares: Mapping[int, Share], /) -> Mapping[str, tuple[int, int]]:
        """Return (entries, room for entries) of each map; `shares` is what shares() has returned."""


class Processes(Protocol):
    """What is needed here of `vms.names.Vms`."""

    def about(self, tgid: int) -> VmInfo:
        """Return the identity of the VM that a process runs."""

    def is_alive(self, tgid: int) -> bool:
        """Return False once the process that `about()` found is gone, or if it found none."""

    def alive(self, tgids: Iterable[int]) -> Set[int]:
        """Return those of which is_alive() is true."""

    def settled(self, known: Mapping[int, VmInfo]) -> Set[int]:
        """Return those that are alive and of which about() would return this very object."""

    def forget(self, tgid: int) -> None:
        """Forget a process."""


@dataclass(slots=True)
class _Kept:
    """Counts of a VM that are no longer in any map."""

    since: float  # time.monotonic()
    about: VmInfo
    counts: Counts = field(default_factory=Counts)
    tgids: set[int] = field(default_factory=set)
    is_shown: bool = False


class _Read:
    """One read of the maps, which all scrapes wait for that were asked for before it began."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.snapshot: Snapshot | None = None  # None once it is done: it failed


class Watch:
    """Adds up the counts in the maps and those kept of VMs that are gone.

    `scrape()` and `snapshot()` are for the threads that answer clients; `sweep()` and `replace()` are for the
    loop that polls the probes, because the name of a short-lived VM comes through their ring.
    """

    def __init__(
        self,
        probes: Maps,
        vms: Processes,
        *,
        per_counter: bool = True,
        durations: bool = True,
        reads: bool = True,
    ) -> None:
        """Start with these probes, which measure durations and count reads or not, as all that come later."""
        self._probes = probes
        self._vms = vms
        self._per_counter = per_counter
        self._durations = durations
        self._reads = reads
        self._lock = threading.Lock()
        self._asking = threading.Lock()  # held for a moment; taken before or inside of the other
        self._next: _Read | None = None
        self._known: dict[int, VmInfo] = {}  # processes that may have entries in the maps
        self._given_back: dict[int, Counts] = {}  # by processes that live
        self._shown: dict[int, Shown] = {}  # by process, what must not become less
        self._refused: set[int] = set()  # processes that newly_refused() has returned
        self._kept: dict[str, _Kept] = {}
        self._lost = Counter[str]()  # by earlier probes
        self._dropped = 0
        self._loads = int(bool(probes.functions))  # Unattached, while KVM is not loaded, has none
        self._sees: bool | None = None
        self._guests = Found()
        self._found: dict[int, VmCounters] = {}  # by process
        self._since_ns = time.time_ns()
        self._read_at = time.monotonic()

    def scrape(self) -> Snapshot:
        """Return all that is known now. It counts as having shown the VMs that are gone.

        Whoever asks while the maps are being read waits for the next read, and all who wait share it: however
        many clients there are, the loop that polls the probes waits for one read, not for one of each.
        """
        while True:
            with self._asking:
                read, is_ours = self._next or _Read(), self._next is None
                self._next = read
            if is_ours:
                return self._read_for_all(read)
            read.done.wait()
            if read.snapshot is not None:
                return read.snapshot

    def _read_for_all(self, read: _Read) -> Snapshot:
        try:
            with self._lock:
                with self._asking:
                    self._next = None  # who asks from now on is told of what happens from now on
                read.snapshot = self._snapshot()
                for kept in self._kept.values():
                    kept.is_shown = True
            return read.snapshot
        finally:
            read.done.set()

    def snapshot(self) -> Snapshot:
        """Return all that is known now, for somebody who is no scrape."""
        with self._lock:
            return self._snapshot()

    def processes(self) -> Set[int]:
        """Return the known processes: call it before the probes are polled, and sweep() with it after."""
        with self._lock:
            if time.monotonic() - self._read_at >= LOOK_EVERY_S:
                self._learn(self._probes.shares().keys())
                self._read_at = time.monotonic()
            return set(self._known)

    def give_back(self) -> None:
        """Free entries of the maps that nobody uses any more; to be called about once a second."""
        with self._lock:
            given_back = self._probes.give_back()
            sums = Sums(self._probes.pmc)
            sums.add_ended([given_back.vcpus])
            sums.add_pmcs([given_back.pmcs])
            sums.add_vcpus([given_back.vcpus])
            for tgid, counts in sums.counts().items():
                before = self._given_back.get(tgid)
                self._given_back[tgid] = before + counts if before else counts

    def newly_refused(self) -> list[tuple[VmInfo, int]]:
        """Return the VMs of which calls were refused for the first time, and how many of each."""
        with self._lock:
            shares = self._probes.shares()
            refused = {tgid for tgid, share in shares.items() if share.refused}
            new, self._refused = refused - self._refused, refused
            self._learn(new)
            return [(self._known[tgid], shares[tgid].refused) for tgid in sorted(new)]

    def sweep(self, among: Set[int] | None = None) -> None:
        """Find the processes that are gone among these (None: among all); to be called about once a second.

        The probes must have been polled after processes() returned them. If a process was gone before anyone
        looked, its name is only in the ring; and this process may be stopped anywhere, for any time, while a
        whole VM comes and goes.

        The counts of a process that is gone are kept here, and its entries deleted from the maps: another
        process with its tgid starts from 0. A scrape has to show how a VM ended, so its counts are dropped
        after the next one, after KEEP_GONE_S, or when MAX_GONE others have gone since. A VM that is restarted
        under its name goes on counting, and so does one that is migrated within the host: the target takes
        over the name once the source is gone. A VM that /proc hides has a name from its first call on: what
        it held before is then shown under that.
        """
        if among is None:
            among = self.processes()
        with self._lock:
            known = {tgid: about for tgid, about in self._known.items() if tgid in among}
        settled = self._vms.settled(known)
        processes = [(tgid, about) for tgid, about in known.items() if tgid not in settled]
        gone = {}
        # Outside the lock: a scrape need not wait for this.
        for tgid, before in processes:
            if (about := self._about_if_gone(tgid, before)) is not None:
                gone[tgid] = about
        names = {
            tgid: self._vms.about(tgid)
            for tgid, before in processes
            if tgid not in gone and (before.uuid or before.is_nameless)
        }
        with self._lock:
            if gone:
                self._keep(gone)
                self._probes.forget(gone.keys())
                for tgid in gone:
                    del self._known[tgid]
                    self._found.pop(tgid, None)
            for tgid, about in names.items():
                known_uuid = self._known[tgid].uuid if tgid in self._known else None
                if known_uuid in ("", about.uuid):
                    self._known[tgid] = about
            forgotten = self._drop()
        for tgid in forgotten:
            self._vms.forget(tgid)

    def replace(self, probes: Maps) -> None:
        """Continue with other probes, whose maps are empty; the former ones must be stopped.

        These may be closed once this returns. Their counts are kept as if all their processes were gone: what
        a VM holds is unknown until the new probes have seen it.
        """
        with self._lock:
            self._keep(self._known)
            self._lost = self._lost_now()
            self._probes = probes
            self._since_ns = time.time_ns()
            self._loads += bool(probes.functions)

    def show_guests(self, found: Found) -> None:
        """Set the `guests` of snapshots from now on, those VMs included that have made no call yet.

        What their counters hold is known from the census until there are calls.
        """
        with self._lock:
            self._guests = found
            alive = self._vms.alive(found.tgids.values())
            self._found = {
                tgid: found.counters[vm]
                for vm, tgid in found.tgids.items()
                if tgid in alive and any(pmu.mode is Mode.EMULATED for pmu in found.pmus[vm])
            }

    def show_sight(self, sees: bool | None) -> None:
        """Set the `sees` of snapshots from now on."""
        with self._lock:
            self._sees = sees

    def guests(self) -> Found:
        """Return the `guests` of snapshots, without reading the maps for one."""
        with self._lock:
            return self._guests

    def count_per_counter(self, wanted: bool) -> None:
        """Set whether snapshots have the counts of each pmc from now on."""
        with self._lock:
            self._per_counter = wanted

    def _snapshot(self) -> Snapshot:
        vms: dict[str, Counts] = {}
        about: dict[str, VmInfo] = {}
        shares = self._probes.shares()
        for tgid, counts in self._read(shares).items():
            name = self._known[tgid].name
            about[name] = self._known[tgid]
            vms[name] = vms[name] + counts if name in vms else counts
        for name, kept in self._kept.items():
            about.setdefault(name, kept.about)
            vms[name] = vms[name] + kept.counts if name in vms else kept.counts
        return Snapshot(
            vms=dict(sorted(vms.items())),
            about=dict(sorted(about.items())),
            mode=self._probes.mode,
            functions=self._probes.functions,
            lost=self._lost_now(),
            occupancy=self._probes.occupancy(shares),
            since_ns=self._since_ns,
            loads=self._loads,
            dropped_vms=self._dropped,
            sees=self._sees,
            per_counter=self._per_counter,
            durations=self._durations,
            reads=self._reads,
            guests=self._guests,
        )

    def _read(self, shares: Mapping[int, Share]) -> dict[int, Counts]:
        """Return the counts in the maps by tgid, and learn the names of new processes."""
        sums = Sums(self._probes.pmc)
        sums.add_ended(self._probes.vcpus())
        sums.add_pmcs(self._probes.pmcs())
        sums.add_vcpus(self._probes.vcpus())
        processes = defaultdict(Counts, sums.counts())
        for tgid, counts in self._given_back.items():
            processes[tgid] += counts
        for tgid, counts in processes.items():
            if tgid in self._shown:
                counts.raise_to(self._shown[tgid])
            self._shown[tgid] = counts.shown()
        for tgid, counters in self._found.items():
            processes[tgid].add_held(counters.counters)
        for tgid, error, count in self._probes.errors():
            processes[tgid].errors[error] += count
        for tgid, share in shares.items():
            if share.refused:
                processes[tgid].numbers[_REFUSED] = share.refused
        self._learn(processes.keys())
        self._read_at = time.monotonic()
        return processes

    def _learn(self, tgids: Set[int]) -> None:
        for tgid in tgids - self._known.keys():
            self._known[tgid] = self._vms.about(tgid)

    def _keep(self, processes: Mapping[int, VmInfo]) -> None:
        """Move the counts of some processes from the maps to what is kept."""
        read = self._read(self._probes.shares())
        now = time.monotonic()
        for tgid, about in list(processes.items()):
            kept = self._kept.setdefault(about.name, _Kept(now, about))
            kept.since, kept.about, kept.is_shown = now, about, False
            kept.tgids.add(tgid)
            if tgid in read:
                kept.counts += read[tgid].ended()
            self._given_back.pop(tgid, None)
            self._shown.pop(tgid, None)
            self._refused.discard(tgid)

    def _drop(self) -> set[int]:
        """Drop what need not be kept any longer; return the processes of which nothing is left."""
        alive = {about.name for about in self._known.values()}
        now = time.monotonic()
        tgids: set[int] = set()
        gone = sorted(self._kept.keys() - alive, key=lambda name: self._kept[name].since)
        too_many = {*gone[: max(0, len(gone) - MAX_GONE)]}
        for name, kept in list(self._kept.items()):
            if kept.is_shown or name in too_many or now - kept.since >= KEEP_GONE_S:
                tgids |= kept.tgids
                kept.tgids = set()
                if name not in alive:
                    del self._kept[name]
                    self._dropped += not kept.is_shown
        return tgids - self._known.keys()

    def _about_if_gone(self, tgid: int, known: VmInfo) -> VmInfo | None:
        """Return the identity of a process that is gone, None if it is still there.

        `Vms.met()` may have dropped a process that is still the same, until `about()` looks again. The name
        can be new if a scrape came before the ring was read.
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
