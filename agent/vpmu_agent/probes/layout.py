"""The structs and enums that the BPF programs and Python share, read from the text of bpf/*.h."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate

from vpmu_agent.model.call import CallName, PmcType, UncheckedCall
from vpmu_agent.model.rules import SLOTS, Kind, State
from vpmu_agent.probes.sources import bpf_folder

_FORMATS = {"__u8": "B", "__s8": "b", "__u16": "H", "__u32": "I", "__s32": "i", "__u64": "Q", "__s64": "q"}

FIXED_BASE_IDX = 32  # KVM_FIXED_PMC_BASE_IDX


def _body(text: str, declaration: str) -> str:
    match = re.search(rf"^{declaration} {{\n(.*?)^}};", text, re.MULTILINE | re.DOTALL)
    if match is None:
        raise ValueError(f"the header does not declare `{declaration}`")
    return re.sub(r"/\*.*?\*/", "", match[1], flags=re.DOTALL)


def struct_fields(text: str, name: str, sizes: Mapping[str, int]) -> list[tuple[str, str, int]]:
    """Return (name, format character for `struct`, count) of each field of `struct name` in C text.

    `sizes` has the values of named array sizes. Raise ValueError if the struct is not declared.
    """
    return [
        (field, _FORMATS[c_type], int(sizes.get(size, size)) if size else 1)
        for c_type, field, size in re.findall(
            r"(\w+)\s+(\w+)\s*(?:\[(\w+)\])?;", _body(text, f"struct {name}")
        )
    ]


class Layout:
    """A struct of bpf/vpmu.h, or of `text`: its size in bytes and its fields, with arrays laid out flat."""

    def __init__(self, name: str, sizes: Mapping[str, int] | None = None, *, text: str = "") -> None:
        self._declared = struct_fields(text or _TEXT, name, SIZES | dict(sizes or {}))
        # "=": no padding; the header orders its fields so that C adds none either.
        self.struct = struct.Struct("=" + "".join(f"{count}{fmt}" for _, fmt, count in self._declared))
        self.size: int = self.struct.size
        starts = [0, *accumulate(count for _, _, count in self._declared)]
        self.fields: dict[str, slice] = {
            field: slice(start, start + count)
            for (field, _, count), start in zip(self._declared, starts, strict=False)
        }
        """The place of each field among the numbers that `struct` unpacks."""

    def reader(
        self, *fields: str, raw: Sequence[str] = (), lines: Sequence[Sequence[str]] = ()
    ) -> struct.Struct:
        """Return what unpacks only some fields, in the order of the struct; those of `raw` as bytes.

        Each of `lines` is fields that follow each other, and is unpacked as the bytes of all of them. To
        unpack whole entries would take several times as long. Raise ValueError if there is no such field.
        """
        together = {line[0]: line for line in lines}
        rest = {field for line in lines for field in line[1:]}
        if unknown := {*fields, *raw, *together, *rest} - self.fields.keys():
            raise ValueError(f"the struct has no {', '.join(sorted(unknown))}")
        sizes = {field: count * struct.calcsize(f"={fmt}") for field, fmt, count in self._declared}
        formats = ["="]
        for field, fmt, count in self._declared:
            if field in fields:
                formats.append(f"{count}{fmt}")
            elif field in raw:
                formats.append(f"{sizes[field]}s")
            elif field in together:
                formats.append(f"{sum(sizes[each] for each in together[field])}s")
            elif field not in rest:
                formats.append(f"{sizes[field]}x")
        return struct.Struct("".join(formats))

    def offset(self, field: str) -> int:
        """Return where a field begins, in bytes."""
        before = list(self.fields).index(field)
        return struct.calcsize("=" + "".join(f"{count}{fmt}" for _, fmt, count in self._declared[:before]))

    def pack(self, values: Mapping[str, int | Sequence[int]]) -> bytes:
        """Return an entry with these values, an array's as a sequence, and 0 in all other fields."""
        numbers = [0] * sum(count for _, _, count in self._declared)
        for field, value in values.items():
            numbers[self.fields[field]] = [value] if isinstance(value, int) else value
        return self.struct.pack(*numbers)


def enum_names(text: str, name: str) -> list[str]:
    """Return the enumerators of `enum name` in C text; the one at index n has the value n.

    Raise ValueError if the enum is not declared.
    """
    return re.findall(r"(\w+),", _body(text, f"enum {name}"))


def _short(enumerator: str, prefix: str) -> str:
    return enumerator.removeprefix(prefix).lower()


def pmc_room(slots: int) -> int:
    """Return the length of `events` in `struct vpmu_pmc` where a group has at most `slots` members.

    It fills the last of the entry's cache lines with what is before and after it: three numbers of 64 bits
    are left of the line of `due`.
    """
    return 1 if slots == 1 else slots + 1


_TEXT = (bpf_folder() / "vpmu.h").read_text()
SIZES = {
    **{name: int(value) for name, value in re.findall(r"^#define (VPMU_\w+) +(\d+)\b", _TEXT, re.MULTILINE)},
    "VPMU_KINDS": len(Kind),
    "VPMU_STATES": len(State),
    "VPMU_SLOTS": SLOTS,
    "VPMU_ROOM": pmc_room(SLOTS),
}
"""The sizes of arrays by name: those of the header, and those that come from the model."""
CALL, PROCESS = Layout("vpmu_call"), Layout("vpmu_process")
CONTROL = Layout("vpmu_control")
SLOT_KEY = Layout("vpmu_slot_key")
VCPU = Layout("vpmu_vcpu")
ERROR_KEY = Layout("vpmu_error_key")
SHARE, GIVEN_BACK = Layout("vpmu_share"), Layout("vpmu_given_back")
ARRAYS = [_short(name, "VPMU_") for name in enum_names(_TEXT, "vpmu_array")]
"""The arrays whose entries processes take, in the order of the map `was_used`."""
CALLS = [CallName(_short(name, "VPMU_")) for name in enum_names(_TEXT, "vpmu_call_name")]
UNCHECKED = [UncheckedCall(_short(name, "VPMU_")) for name in enum_names(_TEXT, "vpmu_unchecked_call")]
PMC_TYPES = [PmcType(_short(name, "VPMU_")) for name in enum_names(_TEXT, "vpmu_pmc_type")]
PMC_TYPE_LBR = PMC_TYPES.index(PmcType.LBR)


def pmc_layout(room: int) -> Layout:
    """Return the layout of `struct vpmu_pmc` in a program whose pmc_room() is `room`."""
    return Layout("vpmu_pmc", {"VPMU_ROOM": room})


@lru_cache
def pmc_name(pmc_type: int, pmc_idx: int) -> str:
    """Return `gp0`, `fixed1` or `lbr`, as `Call.pmc_name`, for the numbers in a record or map."""
    kind = PMC_TYPES[pmc_type]
    if kind is PmcType.LBR:
        return "lbr"
    index = pmc_idx - FIXED_BASE_IDX if kind is PmcType.FIXED else pmc_idx
    return f"{kind}{index}"


TEST_ENDS = [_short(name, "VPMU_TEST_") for name in enum_names(_TEXT, "vpmu_self_test")][:-1]
"""The ends of a test call that the map `self_tests` counts."""

LOST_REASONS = [_short(name, "VPMU_LOST_") for name in enum_names(_TEXT, "vpmu_lost")][:-1]
"""What each entry of the map `lost` counts."""
