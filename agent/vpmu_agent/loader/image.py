"""Compiled programs and their maps as data, which any process can load into the kernel without the compiler.

What differs from one boot to the next is left open: descriptors of maps, and addresses in the kernel.
Programs are compiled with a placeholder for each such address, a number that nothing else is.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpmu_agent.kernel.errors import ProbeError
from vpmu_agent.kernel.libbpf import MapInfo, libbpf, strerror

if TYPE_CHECKING:
    import bcc

PLACEHOLDERS = {
    "VPMU_HANDLER": 0x9D3C6A5FE1B24780,
    "VPMU_HANDLER_INTR": 0xC47E19B86D0F532A,
    "VPMU_VCPU_IOCTL": 0xA85F02D73B91EC46,
    "VPMU_PERF_READ": 0xE6B1743D5A8C20F9,
}
"""The constants that are addresses, and the numbers that stand for them.

None fits into 32 bits, and no two differ by what does. The programs hide them from the compiler's optimiser,
which can but load each by an instruction of its own.
"""

# struct bpf_insn: code, registers (source above destination), offset, immediate. BPF_LD | BPF_IMM | BPF_DW
# loads 64 bits: the lower half is its immediate, the upper half that of a second instruction.
_INSN = struct.Struct("=BBhi")
_LOAD_64 = 0x18
_NUMBER, _MAP_FD = 0, 1  # what it loads, by its source register (BPF_PSEUDO_MAP_FD)
_HALF = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class MapSpec:
    """What a map is made from: `struct bpf_map_info` without what it is at run time."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class Image:
    """Maps, and programs by name, whose instructions have a map's number in `maps` for its descriptor."""

    maps: tuple[MapSpec, ...]
    programs: dict[str, bytes]
    toolchain: str
    """What compiled it, such as "bcc 0.31.0 and LLVM 19.1"."""

    def program(self, name: str, descriptors: Mapping[str, int], addresses: Mapping[str, int]) -> bytes:
        """Return a program to load, given the maps' descriptors by name, and addresses by constant."""
        numbers = {PLACEHOLDERS[constant]: address for constant, address in addresses.items()}

        def resolved(kind: int, value: int) -> int:
            if kind == _MAP_FD:
                return descriptors[self.maps[value].name]
            return numbers.get(value, value) if kind == _NUMBER else value

        return _rewritten(self.programs[name], resolved)


def with_placeholders(constants: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the constants with placeholders for addresses, and the addresses; 0 is none and stays."""
    addresses = {name: constants[name] for name in PLACEHOLDERS if constants.get(name)}
    return {**constants, **{name: PLACEHOLDERS[name] for name in addresses}}, addresses


def read_image(bpf: bcc.BPF, *, toolchain: str) -> Image:
    """Return what bcc has compiled: its maps are there already, its programs not yet loaded."""
    from bcc.libbcc import lib

    names = (lib.bpf_function_name(bpf.module, number) for number in range(lib.bpf_num_functions(bpf.module)))
    code = {name.decode(): bpf.dump_func(name) for name in names}
    specs: dict[int, MapSpec] = {}
    for instructions in code.values():
        for kind, value in _loads(instructions):
            if kind == _MAP_FD and value not in specs:
                specs[value] = _spec(value)
    numbers = {descriptor: number for number, descriptor in enumerate(specs)}

    def numbered(kind: int, value: int) -> int:
        return numbers[value] if kind == _MAP_FD else value

    return Image(
        tuple(specs.values()),
        {name: _rewritten(instructions, numbered) for name, instructions in code.items()},
        toolchain,
    )


def _spec(descriptor: int) -> MapSpec:
    info = MapInfo()
    size = ctypes.c_uint32(ctypes.sizeof(info))
    ctypes.set_errno(0)
    if libbpf().bpf_obj_get_info_by_fd(descriptor, ctypes.byref(info), ctypes.byref(size)):
        raise ProbeError(f"cannot ask the kernel about a map of bcc's: {strerror(ctypes.get_errno())}")
    return MapSpec(
        info.name.decode(), info.type, info.key_size, info.value_size, info.max_entries, info.map_flags
    )


def _loads(code: bytes) -> Iterator[tuple[int, int]]:
    """Yield (kind, value) of each load of 64 bits."""
    for _, kind, value in _loads_at(code):
        yield kind, value


def _loads_at(code: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (offset in bytes, kind, value) of each load of 64 bits."""
    at = 0
    while at < len(code):
        opcode, registers, _, low = _INSN.unpack_from(code, at)
        if opcode == _LOAD_64:
            *_, high = _INSN.unpack_from(code, at + _INSN.size)
            yield at, registers >> 4, (high & _HALF) << 32 | (low & _HALF)
            at += _INSN.size
        at += _INSN.size


def _rewritten(code: bytes, new: Callable[[int, int], int]) -> bytes:
    """Return the instructions with `new(kind, value)` for the value of each load of 64 bits."""
    rewritten = bytearray(code)
    for at, kind, value in _loads_at(code):
        number = new(kind, value)
        for half, part in ((at, number & _HALF), (at + _INSN.size, number >> 32)):
            struct.pack_into("=I", rewritten, half + _INSN.size - 4, part)
    return bytes(rewritten)
