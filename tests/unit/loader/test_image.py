"""What the loader puts into compiled instructions: maps and addresses, where they belong and nowhere else."""

from __future__ import annotations

import struct

import pytest

from vpmu_agent.loader.image import PLACEHOLDERS, Image, MapSpec, with_placeholders

ADDRESS = 0xFFFFFFFF81234560
RETURN_0 = struct.pack("=BBhi", 0xB7, 0, 0, 0) + struct.pack("=BBhi", 0x95, 0, 0, 0)


def load_64(kind: int, value: int, *, register: int = 1) -> bytes:
    """Return the two instructions that load 64 bits; `kind` is their source register."""
    low, high = value & 0xFFFFFFFF, value >> 32
    return struct.pack("=BBhI", 0x18, kind << 4 | register, 0, low) + struct.pack("=BBhI", 0, 0, 0, high)


def add(value: int) -> bytes:
    """Return an instruction with an immediate that is like half of a placeholder."""
    return struct.pack("=BBhI", 0x07, 1, 0, value & 0xFFFFFFFF)


def image(code: bytes) -> Image:
    maps = tuple(MapSpec(name, 2, 4, 8, 1, 0) for name in ("first", "second"))
    return Image(maps, {"program": code}, "bcc 1.2.3 and LLVM 4")


def test_maps_and_addresses_are_put_where_they_belong() -> None:
    handler, other = PLACEHOLDERS["VPMU_HANDLER"], PLACEHOLDERS["VPMU_PERF_READ"]

    def code(*values: int) -> bytes:
        second, first, address, unknown, halves = values
        return b"".join(
            (
                load_64(1, second),
                add(halves),
                load_64(0, address, register=9),
                load_64(1, first),
                load_64(0, unknown),
                add(halves >> 32),
                RETURN_0,
            )
        )

    made = image(code(1, 0, handler, other, handler))
    loaded = made.program("program", {"first": 1000, "second": 70000}, {"VPMU_HANDLER": ADDRESS})
    assert loaded == code(70000, 1000, ADDRESS, other, handler)


def test_only_addresses_that_exist_get_a_placeholder() -> None:
    constants = {"VPMU_HANDLER": ADDRESS, "VPMU_HANDLER_INTR": 0, "VPMU_PMC_IDX": 4}
    assert with_placeholders(constants) == (
        {**constants, "VPMU_HANDLER": PLACEHOLDERS["VPMU_HANDLER"]},
        {"VPMU_HANDLER": ADDRESS},
    )


@pytest.mark.parametrize("name", PLACEHOLDERS)
def test_a_placeholder_takes_an_instruction_of_its_own(name: str) -> None:
    number = PLACEHOLDERS[name]
    differences = [number, *(abs(number - other) for other in PLACEHOLDERS.values() if other != number)]
    assert all(difference > 2**32 for difference in differences)
    assert 2**63 < number < 2**64 - 2**32  # nor is it a negative number of 32 bits
