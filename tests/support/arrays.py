"""The loader's maps in this kernel without its programs, and entries as these would make them."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from vpmu_agent.kernel.libbpf import MapCreateOpts, libbpf
from vpmu_agent.model.rules import SLOTS
from vpmu_agent.probes import Probes
from vpmu_agent.probes.handover import Handover
from vpmu_agent.probes.layout import (
    ARRAYS,
    CONTROL,
    ERROR_KEY,
    GIVEN_BACK,
    LOST_REASONS,
    SHARE,
    SLOT_KEY,
    VCPU,
    Layout,
    pmc_layout,
    pmc_room,
)
from vpmu_agent.probes.maps import Map
from vpmu_agent.vms.names import Vms

PMC = pmc_layout(pmc_room(SLOTS))

_HASH, _ARRAY, _LRU_HASH, _STACK, _RINGBUF = 1, 2, 9, 23, 27  # BPF_MAP_TYPE_*
MMAPABLE = 1 << 10  # BPF_FMMAPABLE
_U32, _U64 = struct.Struct("=I"), struct.Struct("=Q")

Values = Mapping[str, int | Sequence[int]]


def create_map(name: str, kind: int, key: int, value: int, room: int, flags: int = 0) -> int:
    """The descriptor of a new map of a BPF_MAP_TYPE; `key` and `value` are sizes in bytes."""
    options = MapCreateOpts(sz=ctypes.sizeof(MapCreateOpts), map_flags=flags)
    found = libbpf().bpf_map_create(kind, name.encode(), key, value, room, ctypes.byref(options))
    assert found >= 0, f"{name}: {os.strerror(-found)}"
    return int(found)


class Taker:
    """Does to the maps what the programs do."""

    def __init__(self, descriptors: Mapping[str, int]) -> None:
        self.maps = {name: Map(name, descriptor) for name, descriptor in descriptors.items()}
        self.pmc = pmc_layout((self.maps["pmcs"].value_size - pmc_layout(0).size) // _U64.size)

    def take_vcpu(self, tgid: int, vcpu_id: int, **values: int | Sequence[int]) -> int:
        """Make an entry of a vCPU; return its number."""
        kvm_vcpu = 0 if vcpu_id < 0 else 0x1000 + vcpu_id
        key = SLOT_KEY.struct.pack(kvm_vcpu, tgid, vcpu_id)
        return self._take(
            "vcpus", VCPU, key, {"kvm_vcpu": kvm_vcpu, "tgid": tgid, "vcpu_id": vcpu_id, **values}
        )

    def take_pmc(self, tgid: int, address: int, vcpu: int, **values: int | Sequence[int]) -> int:
        """Make an entry of the pmc at an address; return its number. `vcpu` is that of its vCPU's entry."""
        key = SLOT_KEY.struct.pack(address, tgid, 0)
        return self._take("pmcs", self.pmc, key, {"pmc": address, "tgid": tgid, "vcpu_slot": vcpu, **values})

    def change(self, array: str, slot: int, field: str, value: int) -> None:
        """Write the first number of a field, which has 32 or 64 bits, and nothing beside it."""
        layout = self.pmc if array == "pmcs" else VCPU
        at = layout.offset(field)
        size = 8 if (array, field) == ("vcpus", "calls") else 4
        self.maps[array].write_at([slot], at, value.to_bytes(size, sys.byteorder))

    def fail(self, tgid: int, error: int, count: int) -> None:
        """Count creations that failed with an errno."""
        self.maps["errors"].put(ERROR_KEY.struct.pack(tgid, error), _U64.pack(count))

    def refuse(self, tgid: int, count: int) -> None:
        """Refuse calls of a process that has entries."""
        self._add_to_share(tgid, "refused", count)

    def free(self, array: str) -> int:
        """Take one that was given back. Raise AssertionError if there is none."""
        slot = self._given_back(array)
        assert slot is not None, f"no free {array}"
        return slot

    def is_known(self, address: int, tgid: int, vcpu_id: int = 0) -> bool:
        """Whether the programs would find an entry with this key."""
        return self.maps["slots"].get(SLOT_KEY.struct.pack(address, tgid, vcpu_id)) is not None

    def _take(self, array: str, layout: Layout, key: bytes, values: Values) -> int:
        slot = self._given_back(array)
        if slot is None:
            index = _U32.pack(ARRAYS.index(array))
            (slot,) = _U64.unpack(self.maps["was_used"].get(index) or b"")
            self.maps["was_used"].put(index, _U64.pack(slot + 1))
        self.maps[array].put(_U32.pack(slot), layout.pack(values))
        self.maps["slots"].put(key, _U32.pack(slot))
        tgid = values["tgid"]
        assert isinstance(tgid, int)
        self._add_to_share(tgid, array, 1)
        return slot

    def _given_back(self, array: str) -> int | None:
        number = ctypes.create_string_buffer(_U32.size)
        stack = ctypes.c_int(self.maps[f"free_{array}"].descriptor)
        if libbpf().bpf_map_lookup_and_delete_elem(stack, None, number):
            return None
        return int(_U32.unpack(number.raw)[0])

    def _add_to_share(self, tgid: int, field: str, count: int) -> None:
        share = list(SHARE.struct.unpack(self.maps["processes"].get(_U32.pack(tgid)) or bytes(SHARE.size)))
        share[SHARE.fields[field].start] += count
        self.maps["processes"].put(_U32.pack(tgid), SHARE.struct.pack(*share))


class Arrays(Taker):
    """All maps."""

    def __init__(self, *, pmcs: int, vcpus: int) -> None:
        u32, u64 = _U32.size, _U64.size
        self.descriptors = {
            "calls": create_map("calls", _RINGBUF, 0, 0, 4096),
            "control": create_map("control", _ARRAY, u32, CONTROL.size, 1),
            "lost": create_map("lost", _ARRAY, u32, u64, len(LOST_REASONS)),
            "starvations": create_map("starvations", _ARRAY, u32, u64, 1),
            "pmcs": create_map("pmcs", _ARRAY, u32, PMC.size, pmcs, MMAPABLE),
            "vcpus": create_map("vcpus", _ARRAY, u32, VCPU.size, vcpus, MMAPABLE),
            "slots": create_map("slots", _HASH, SLOT_KEY.size, u32, pmcs + vcpus),
            "free_pmcs": create_map("free_pmcs", _STACK, 0, u32, pmcs),
            "free_vcpus": create_map("free_vcpus", _STACK, 0, u32, vcpus),
            "was_used": create_map("was_used", _ARRAY, u32, u64, len(ARRAYS)),
            "processes": create_map("processes", _HASH, u32, SHARE.size, vcpus),
            "given_back": create_map("given_back", _HASH, u32, GIVEN_BACK.size, vcpus),
            "left_behind": create_map("left_behind", _LRU_HASH, 24, 1, 64),
            "errors": create_map("errors", _HASH, ERROR_KEY.size, u64, vcpus),
        }
        super().__init__(self.descriptors)

    @contextmanager
    def probes(self) -> Iterator[Probes]:
        """Probes with these maps, and no program."""
        maps = {name: os.dup(descriptor) for name, descriptor in self.descriptors.items()}
        with Probes(Handover("uprobe", maps), vms=Vms()) as probes:
            yield probes

    def close(self) -> None:
        for each in self.maps.values():
            each.close()
