"""Structs as the header declares them."""

from __future__ import annotations

import pytest

from vpmu_agent.model.rules import SLOTS
from vpmu_agent.probes.layout import VCPU, Layout, pmc_layout, pmc_room

HEADER = """
struct thing {
	__u64 address; /* of something; and more */
	__u32 counts[THREE];
	__s32 id;
	__u16 long_name
		[4];
};
"""
LINE = 64


@pytest.fixture
def thing() -> Layout:
    return Layout("thing", {"THREE": 3}, text=HEADER)


def test_a_struct_is_packed_and_unpacked_by_its_fields(thing: Layout) -> None:
    assert thing.size == 8 + 3 * 4 + 4 + 4 * 2
    packed = thing.pack({"id": -1, "counts": [7, 8, 9]})
    numbers = thing.struct.unpack(packed)
    assert {field: numbers[at] for field, at in thing.fields.items()} == {
        "address": (0,),
        "counts": (7, 8, 9),
        "id": (-1,),
        "long_name": (0, 0, 0, 0),
    }
    assert [thing.offset(field) for field in thing.fields] == [0, 8, 20, 24]


def test_a_reader_unpacks_only_what_is_asked_for(thing: Layout) -> None:
    packed = thing.pack({"address": 5, "counts": [1, 0, 1 << 24], "id": -2, "long_name": [1, 2, 3, 4]})
    reader = thing.reader("id", raw=("counts",))
    assert reader.unpack(packed) == (b"\1\0\0\0\0\0\0\0\0\0\0\1", -2)
    assert list(reader.iter_unpack(packed * 2)) == [reader.unpack(packed)] * 2
    reader = thing.reader("long_name", lines=[("counts", "id")])
    assert reader.unpack(packed) == (b"\1\0\0\0\0\0\0\0\0\0\0\1\xfe\xff\xff\xff", 1, 2, 3, 4)
    with pytest.raises(ValueError, match="the struct has no counter, name"):
        thing.reader("name", "id", raw=("counter",))


def test_a_struct_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="does not declare `struct other`"):
        Layout("other", text=HEADER)


@pytest.mark.parametrize("slots", [1, SLOTS])
def test_entries_are_whole_cache_lines(slots: int) -> None:
    pmc = pmc_layout(pmc_room(slots))
    assert (pmc.size % LINE, pmc.offset("due") % LINE, VCPU.size % LINE) == (0, 0, 0)
    assert pmc.fields["events"].stop - pmc.fields["events"].start >= slots
