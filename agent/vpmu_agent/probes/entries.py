"""The entries of the arrays `pmcs` and `vcpus`: whose they are, and how they are given back.

The programs take entries; only user space gives them back (but for guest LBR, whose entries end with their
events). It takes two steps. First an entry is *retired*: nobody finds it any more. A second later, when no
program can still be at work in it, its last counts are taken, it is emptied, and its number goes on the stack
of those that are free. Until then its counts are its process's, as before.
"""

from __future__ import annotations

import struct
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

from vpmu_agent.probes.layout import (
    ARRAYS,
    GIVEN_BACK,
    PMC_TYPE_LBR,
    SHARE,
    SIZES,
    SLOT_KEY,
    VCPU,
    Layout,
)
from vpmu_agent.probes.maps import Map

REST_S = 1.0
"""How long a retired entry is left alone: longer than a program can run."""

IDLE_S = 3.0
"""How long an entry must not have changed to be retired while its process lives."""

_AT_ONCE = 4096  # entries of an array that are retired at a time: each takes some microseconds
_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")


@dataclass(frozen=True, slots=True)
class Share:
    """How many entries a process has now, and how many calls were refused because it had too many."""

    pmcs: int
    vcpus: int
    refused: int


@dataclass(frozen=True, slots=True)
class GivenBack:
    """What was in the entries that were given back, as bytes of whole entries."""

    pmcs: bytes = b""
    vcpus: bytes = b""


@dataclass(frozen=True, slots=True)
class _Retired:
    tgid: int  # 0: its counts were taken before
    at: float


class _Array:
    """One of the two arrays, with its stack of free entries."""

    def __init__(self, name: str, maps: Mapping[str, Map], layout: Layout, address: str) -> None:
        """`address` is the field that the key of an entry has as its own `address`."""
        self.name = name
        self.entries, self.free, self.slots = maps[name], maps[f"free_{name}"], maps["slots"]
        self.layout = layout
        self.retired: dict[int, _Retired] = {}
        self.unchanged: dict[int, int] = {}  # the hash of an entry as it was when it was last looked at
        self._index = ARRAYS.index(name)
        self._was_used = maps["was_used"]
        self._tgid_at = layout.offset("tgid")
        self._who = layout.reader(address, "tgid", "vcpu_id")
        self._free = bytes(layout.size)

    def used(self) -> int:
        """Return how many entries were ever used."""
        ever = self._was_used.get(_U32.pack(self._index)) or bytes(_U64.size)
        used: int = min(_U64.unpack(ever)[0], self.entries.room)
        return used

    def chunks(self) -> Iterator[tuple[int, memoryview]]:
        """Yield as Map.first(); retired entries have the tgid of their process."""
        size = self.layout.size
        for start, values in self.entries.first(self.used()):
            for slot in self._retired_in(start, len(values) // size):
                _U32.pack_into(values, (slot - start) * size + self._tgid_at, self.retired[slot].tgid)
            yield start, values

    def of(self, tgids: Set[int]) -> dict[int, int]:
        """Return the tgid of each entry that these processes have, by its number."""
        found = {}
        for start, values in self.chunks():
            for slot, (_, tgid, _) in enumerate(self._who.iter_unpack(values), start):
                if tgid in tgids:
                    found[slot] = tgid
        return found

    def retire(self, slots: Mapping[int, int], *, keep: bool) -> None:
        """Retire entries of these processes (by number). Their counts are still to be taken if `keep`."""
        found = slots.keys() - self.retired.keys()
        for slot in found:
            address, tgid, vcpu_id = self._who.unpack(self.entries.get(_U32.pack(slot)) or self._free)
            key = SLOT_KEY.struct.pack(address, tgid, vcpu_id if self.name == "vcpus" else 0)
            if self.slots.get(key) == _U32.pack(slot):
                self.slots.delete(key)
        self.entries.write_at(found, self._tgid_at, bytes(_U32.size))
        now = time.monotonic()
        self.retired |= {slot: _Retired(tgid if keep else 0, now) for slot, tgid in slots.items()}

    def give_back(self) -> tuple[bytes, Counter[int]]:
        """Free what was retired REST_S ago; return its last counts, and how many entries each process had."""
        before = time.monotonic() - REST_S
        taken: list[bytes] = []
        freed = Counter[int]()
        for slot, retired in list(self.retired.items()):
            if retired.at > before:
                continue
            entry = bytearray(self.entries.get(_U32.pack(slot)) or self._free)
            if retired.tgid:
                _U32.pack_into(entry, self._tgid_at, retired.tgid)
                taken.append(bytes(entry))
                freed[retired.tgid] += 1
            self.entries.put(_U32.pack(slot), self._free)
            self.free.push(_U32.pack(slot))
            del self.retired[slot]
        return b"".join(taken), freed

    def share(self) -> int:
        """Return how many entries one process may have."""
        return self.entries.room // SIZES["VPMU_SHARES"]

    def _retired_in(self, start: int, count: int) -> Iterator[int]:
        if len(self.retired) < count:
            return (slot for slot in self.retired if start <= slot < start + count)
        return (slot for slot in range(start, start + count) if slot in self.retired)


class Entries:
    """The entries of all processes. Methods raise KernelError if the kernel refuses; one thread at a time."""

    def __init__(self, maps: Mapping[str, Map], pmc: Layout) -> None:
        self.pmcs = _Array("pmcs", maps, pmc, "pmc")
        self.vcpus = _Array("vcpus", maps, VCPU, "kvm_vcpu")
        self._processes, self._given_back = maps["processes"], maps["given_back"]
        self._looked = 0.0
        self._held = pmc.reader("vcpu_slot", "epoch", "members", "orphans", "tgid", "left", "pmc_type")
        self._vcpu_tgid = VCPU.reader("tgid")
        self._error = pmc.reader("tgid", "vcpu_id", "pmc_type", "pmc_idx", "error")

    def shares(self) -> dict[int, Share]:
        """Return what each process has, by tgid."""
        given_back = {
            tgid: counts
            for keys, values in self._given_back.chunks()
            for (tgid,), counts in zip(
                _U32.iter_unpack(keys), GIVEN_BACK.struct.iter_unpack(values), strict=True
            )
        }
        shares = {}
        for keys, values in self._processes.chunks():
            for (tgid,), (_, refused, pmcs, vcpus, *_) in zip(
                _U32.iter_unpack(keys), SHARE.struct.iter_unpack(values), strict=True
            ):
                pmcs_back, vcpus_back = given_back.get(tgid, (0, 0))
                shares[tgid] = Share(pmcs - pmcs_back, vcpus - vcpus_back, refused)
        return shares

    def errnos(self) -> dict[tuple[int, tuple[int, int, int]], int]:
        """Return what the last creation for a counter failed with, if it failed; see Probes.errnos()."""
        # Straight from the map: a retired entry has no process there, and what it says is out of date.
        return {
            (tgid, (vcpu, pmc_type, pmc_idx)): error
            for _, values in self.pmcs.entries.first(self.pmcs.used())
            for tgid, vcpu, pmc_type, pmc_idx, error in self._error.iter_unpack(values)
            if error and tgid
        }

    def forget(self, tgids: Set[int]) -> None:
        """Retire all that these processes have, whose counts were taken already."""
        for array in (self.pmcs, self.vcpus):
            array.retire(array.of(tgids), keep=False)
        for tgid in tgids:
            self._processes.delete(_U32.pack(tgid))
            self._given_back.delete(_U32.pack(tgid))

    def give_back(self, epoch: int) -> GivenBack:
        """Free what was retired a while ago, and retire what is idle of those that have half a share or more.

        To be called about once a second. `epoch` is that of the map `control`: what an entry of an earlier
        one says that it holds is not known any more.
        """
        pmcs, freed_pmcs = self.pmcs.give_back()
        vcpus, freed_vcpus = self.vcpus.give_back()
        for tgid in freed_pmcs.keys() | freed_vcpus.keys():
            key = _U32.pack(tgid)
            before = GIVEN_BACK.struct.unpack(self._given_back.get(key) or bytes(GIVEN_BACK.size))
            after = before[0] + freed_pmcs[tgid], before[1] + freed_vcpus[tgid]
            self._given_back.put(key, GIVEN_BACK.struct.pack(*after))
        greedy = {
            tgid
            for tgid, share in self.shares().items()
            if share.pmcs > self.pmcs.share() // 2 or share.vcpus > self.vcpus.share() // 2
        }
        if not greedy:
            self.pmcs.unchanged, self.vcpus.unchanged = {}, {}
        elif time.monotonic() - self._looked >= IDLE_S:
            self._retire_idle(greedy, epoch)
            self._looked = time.monotonic()
        return GivenBack(pmcs, vcpus)

    def _retire_idle(self, greedy: Set[int], epoch: int) -> None:
        """Retire entries of these processes that hold nothing and have not changed since the last look.

        That of a vCPU is in use as long as a pmc's entry names it. Guest LBR's entries of `pmcs` are left to
        the programs, which free them.
        """
        vcpus_in_use = set()
        pmcs, vcpus = _Look(self.pmcs), _Look(self.vcpus)
        for start, values in self.pmcs.chunks():
            entries = self._held.iter_unpack(values)
            for i, (vcpu, of_epoch, members, orphans, tgid, left, pmc_type) in enumerate(entries):
                if tgid not in greedy:
                    continue
                vcpus_in_use.add(vcpu)
                holds = of_epoch == epoch and (members or orphans or left)
                if not holds and pmc_type != PMC_TYPE_LBR:
                    pmcs.add(start, i, values, tgid)
        for start, values in self.vcpus.chunks():
            for i, (tgid,) in enumerate(self._vcpu_tgid.iter_unpack(values)):
                if tgid in greedy and start + i not in vcpus_in_use:
                    vcpus.add(start, i, values, tgid)
        for look in pmcs, vcpus:
            look.retire_unchanged()


class _Look:
    """One look at the entries of an array that are idle if they have not changed since the look before."""

    def __init__(self, array: _Array) -> None:
        self._array = array
        self._seen: dict[int, int] = {}
        self._unchanged: dict[int, int] = {}  # tgid by number

    def add(self, start: int, i: int, values: memoryview, tgid: int) -> None:
        """Look at entry `i` of a chunk whose first one has the number `start`."""
        slot, size = start + i, self._array.layout.size
        if slot in self._array.retired:
            return
        self._seen[slot] = hash(bytes(values[i * size : (i + 1) * size]))
        if self._seen[slot] == self._array.unchanged.get(slot) and len(self._unchanged) < _AT_ONCE:
            self._unchanged[slot] = tgid

    def retire_unchanged(self) -> None:
        """Retire them, and keep what was seen for the next look."""
        self._array.retire(self._unchanged, keep=True)
        self._array.unchanged = self._seen
