"""Maps of this kernel, read by their descriptors."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from tests.bpf.conftest import Lookalike
from tests.support.arrays import MMAPABLE, create_map
from tests.support.children import in_child
from vpmu_agent import probes
from vpmu_agent.kernel.errors import KernelError
from vpmu_agent.kernel.libbpf import libbpf
from vpmu_agent.probes import maps
from vpmu_agent.probes.layout import CONTROL
from vpmu_agent.probes.maps import Map
from vpmu_agent.system import privileges
from vpmu_agent.system.user import DAEMON_USER, find_user

HASH, ARRAY = 1, 2  # BPF_MAP_TYPE_*
_U32, _U64 = struct.Struct("=I"), struct.Struct("=Q")


def create(kind: int, *, room: int, value_size: int = 8, flags: int = 0) -> Map:
    return Map("test", create_map("test", kind, 4, value_size, room, flags))


@pytest.fixture
def full() -> Iterator[Map]:
    full = create(HASH, room=5000)
    for i in range(5000):
        full.put(_U32.pack(i), _U64.pack(i * i))
    yield full
    full.close()


def entries(of: Map) -> list[tuple[int, int]]:
    return [
        (key, value)
        for keys, values in of.chunks()
        for (key,), (value,) in zip(_U32.iter_unpack(keys), _U64.iter_unpack(values), strict=True)
    ]


@pytest.mark.parametrize("chunk", [1, 7, 256, 5000, 100_000])
def test_every_entry_is_there_once(full: Map, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # With 1 and 7, some bucket of the hash has more entries than are asked for.
    monkeypatch.setattr(maps, "_CHUNK", chunk)
    assert sorted(entries(full)) == [(i, i * i) for i in range(5000)]
    assert full.entries() == full.room == 5000


def test_entries_can_be_deleted_while_they_are_read(full: Map) -> None:
    for keys, _ in full.chunks():
        for (key,) in _U32.iter_unpack(keys):
            if key % 2:
                full.delete(_U32.pack(key))
    assert sorted(key for key, _ in entries(full)) == list(range(0, 5000, 2))
    full.delete(_U32.pack(1))  # which is not there


def test_an_array_and_an_empty_hash() -> None:
    array = create(ARRAY, room=3)
    array.put(_U32.pack(1), _U64.pack(7))
    assert entries(array) == [(0, 0), (1, 7), (2, 0)]
    assert array.get(_U32.pack(1)) == _U64.pack(7)
    empty = create(HASH, room=3)
    assert entries(empty) == []
    assert empty.get(_U32.pack(1)) is None
    array.close()
    empty.close()


@pytest.mark.parametrize("chunk", [1, 2, 256])
def test_the_first_entries_of_an_array(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "_CHUNK", chunk)
    array = create(ARRAY, room=9)
    for i in range(9):
        array.put(_U32.pack(i), _U64.pack(i * i))
    for count in (0, 1, 2, 5, 9):
        found = [
            (start + i, value)
            for start, values in array.first(count)
            for i, (value,) in enumerate(_U64.iter_unpack(values))
        ]
        assert found == [(i, i * i) for i in range(count)]
    array.close()


def test_writing_into_an_entry_leaves_the_rest_of_it() -> None:
    """Entries here cross pages, and the array is larger than what is mapped at a time."""
    room, size = 200, 1000
    array = create(ARRAY, room=room, value_size=size, flags=MMAPABLE)
    for i in range(room):
        array.put(_U32.pack(i), bytes([i]) * size)
    array.write_at(set(range(room)) - {7}, 500, b"\xff\xfe\xfd\xfc")
    for i in range(room):
        written = bytes([i]) * 4 if i == 7 else b"\xff\xfe\xfd\xfc"
        assert array.get(_U32.pack(i)) == bytes([i]) * 500 + written + bytes([i]) * (size - 504)
    array.close()


def test_what_the_kernel_refuses_names_the_map(full: Map) -> None:
    with pytest.raises(KernelError, match="cannot describe the BPF map gone: File descriptor in bad state"):
        Map("gone", -1)
    with pytest.raises(KernelError, match="cannot write the BPF map test: Argument list too long"):
        full.put(_U32.pack(5000), _U64.pack(0))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to give up")
def test_no_privileges_are_needed(full: Map) -> None:
    def check() -> None:
        privileges.drop(find_user(DAEMON_USER))
        same = Map("same", os.dup(full.descriptor))
        assert len(entries(same)) == 5000
        same.put(_U32.pack(0), _U64.pack(1))
        same.delete(_U32.pack(1))
        assert libbpf().bpf_map_create(HASH, b"test", 4, 8, 1, None) < 0

    in_child(check)
    assert full.get(_U32.pack(0)) == _U64.pack(1)
    assert full.get(_U32.pack(1)) is None


def test_calls_that_no_probe_was_run_for_begin_a_new_epoch(
    stock: Lookalike, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the monitor knows of every pmc is in doubt then."""
    misses = 0
    monkeypatch.setattr(probes, "recursion_misses", lambda _program: misses)
    with stock.probes() as live:

        def epoch() -> int:
            control = vars(live)["_maps"]["control"].get(bytes(4))
            return int(CONTROL.struct.unpack(control)[0])

        live.poll(0.15)
        assert epoch() == 1
        misses = 2
        live.poll(0.15)
        assert epoch() == 2
        live.poll(0.15)
        assert epoch() == 2
        assert live.lost()["not_run"] == len(vars(live)["_programs"]) * misses
        live.stop()
        misses = 3
        live.poll(0.15)
        assert epoch() == 0
