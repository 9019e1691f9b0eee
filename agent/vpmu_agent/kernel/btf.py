"""The types of a kernel (or of an object file) from its BTF, read through libbpf's C API."""

from __future__ import annotations

import ctypes
import os
import weakref
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from pathlib import Path

from vpmu_agent.kernel.config import kernel_config
from vpmu_agent.kernel.container import has_sysfs
from vpmu_agent.kernel.errors import BtfError
from vpmu_agent.kernel.libbpf import LIBBPF_ERRNO, libbpf, quiet, strerror

VMLINUX = Path("sys/kernel/btf/vmlinux")


class Kind(IntEnum):
    """BTF_KIND_* (include/uapi/linux/btf.h)."""

    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


NEW_TO_US = "report the kernel release: vpmu-agent does not know this kernel's types"

# Kinds that wrap a type and leave its layout alone.
MODIFIERS = frozenset({Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG})


@dataclass(frozen=True, slots=True)
class Member:
    """The place of a field: offset in bytes from the start of the struct asked for, and size in bytes.

    A bit field has its width in `bits` and starts `bit_offset` bits after `offset` (both are 0 for a plain
    field); `size` is then the size of its declared type. A flexible array has size 0.
    """

    offset: int
    size: int
    bit_offset: int = 0
    bits: int = 0


@dataclass(frozen=True, slots=True)
class Arg:
    """An argument of a function: its name ("" if BTF has none) and its C type, such as `struct pmu *`."""

    name: str
    type: str


class _Type(ctypes.Structure):
    """`struct btf_type`; `size` is a type id where the kind refers to another type."""

    _fields_ = (("name", ctypes.c_uint32), ("info", ctypes.c_uint32), ("size", ctypes.c_uint32))
    name: int
    info: int
    size: int

    @property
    def kind(self) -> int:
        return (self.info >> 24) & 0x1F

    @property
    def count(self) -> int:
        return self.info & 0xFFFF

    @property
    def kind_flag(self) -> bool:
        return bool(self.info >> 31)


class Btf:
    """The types of one BTF blob, or of a module's on top of the kernel's.

    Made by `parse()`, `vmlinux()` and `module()`. Each lookup raises BtfError if its object is missing, and
    names that and the BTF in the message.
    """

    def __init__(self, handle: int, *, source: str, base: Btf | None = None) -> None:
        self._handle = handle
        self._lib = libbpf()
        self.source = source
        # libbpf reads the base's memory through the split BTF: it must not be freed first.
        self._base = base
        weakref.finalize(self, _free, self._lib, handle, base)

    def has_struct(self, name: str) -> bool:
        """Return whether there is a full definition of `struct name`."""
        return self._find(name, Kind.STRUCT) > 0

    def has_member(self, struct: str, path: str) -> bool:
        """Return whether `struct` has the field `path`; raise BtfError only if the struct is missing."""
        self.struct_size(struct)
        try:
            self.member(struct, path)
        except BtfError:
            return False
        return True

    def struct_size(self, name: str) -> int:
        """Return sizeof(struct name) in bytes."""
        return self._type(self._struct(name)).size

    def member(self, struct: str, path: str) -> Member:
        """Return the field `path` of `struct`, such as "vcpu_id" or "attr.config".

        Fields of anonymous structs and unions are found too, as C finds them.
        """
        type_id = self._struct(struct)
        bit = 0
        found = Member(0, 0)
        parent = f"struct {struct}"
        for name in path.split("."):
            hit = self._member(type_id, name)
            if hit is None:
                raise BtfError(f"no field {name} in {parent} in the BTF of {self.source}", NEW_TO_US)
            bits_before, type_id, width = hit
            bit += bits_before
            size = max(0, self._lib.btf__resolve_size(self._handle, type_id))
            found = Member(bit // 8, size, bit % 8 if width else 0, width)
            type_id = self._strip(type_id)
            parent = self._spell(type_id)
        return found

    def enum_value(self, enum: str, name: str) -> int:
        """Return the value of the enumerator `name` of `enum`."""
        type_id = self._enum(enum)
        if not type_id:
            raise BtfError(f"no enum {enum} in the BTF of {self.source}", NEW_TO_US)
        enum_type = self._type(type_id)
        words = 3 if enum_type.kind == Kind.ENUM64 else 2
        raw = self._words(type_id, words * enum_type.count)
        for at in range(0, len(raw), words):
            if self._name(raw[at]) == name:
                # `struct btf_enum` holds an s32; tools that made BTF before 2022 do not set the flag for it
                if words == 2:
                    return ctypes.c_int32(raw[at + 1]).value
                value = raw[at + 1] | (raw[at + 2] << 32)
                return ctypes.c_int64(value).value if enum_type.kind_flag else value
        raise BtfError(f"no enumerator {name} in enum {enum} in the BTF of {self.source}", NEW_TO_US)

    def has_func(self, name: str) -> bool:
        """Return whether there is a function `name`."""
        return self._find(name, Kind.FUNC) > 0

    def func_id(self, name: str) -> int:
        """Return the type id of the function `name`, by which an fentry program is loaded for it."""
        type_id = self._find(name, Kind.FUNC)
        if type_id <= 0:
            raise BtfError(
                f"no function {name}() in the BTF of {self.source}: this kernel does not have it, its "
                "compiler inlined it everywhere, or its BTF leaves such functions out",
                "boot a kernel whose BTF has it (Debian's 6.1 and later do, Debian's 5.10 does not), or "
                "report the kernel release",
            )
        return type_id

    def func_args(self, name: str) -> tuple[Arg, ...]:
        """Return the arguments of the function `name`, in order."""
        proto = self._type(self.func_id(name)).size
        raw = self._words(proto, 2 * self._type(proto).count)
        return tuple(
            Arg(self._name(raw[at]), self._spell(raw[at + 1]) if raw[at + 1] else "...")
            for at in range(0, len(raw), 2)
        )

    def _find(self, name: str, kind: Kind) -> int:
        return int(self._lib.btf__find_by_name_kind(self._handle, name.encode(), kind))

    def _struct(self, name: str) -> int:
        type_id = self._find(name, Kind.STRUCT)
        if type_id <= 0:
            raise BtfError(f"no struct {name} in the BTF of {self.source}", NEW_TO_US)
        return type_id

    def _enum(self, name: str) -> int:
        return next((i for kind in (Kind.ENUM, Kind.ENUM64) if (i := self._find(name, kind)) > 0), 0)

    def _type(self, type_id: int) -> _Type:
        return _Type.from_address(self._address(type_id))

    def _address(self, type_id: int) -> int:
        address = self._lib.btf__type_by_id(self._handle, type_id)
        if not address:
            raise BtfError(
                f"the BTF of {self.source} is damaged: it refers to type {type_id}, which it lacks"
            )
        return int(address)

    def _words(self, type_id: int, count: int) -> list[int]:
        """Return the `count` 32-bit words behind a `struct btf_type`: members, enumerators or arguments."""
        behind = self._address(type_id) + ctypes.sizeof(_Type)
        return list((ctypes.c_uint32 * count).from_address(behind))

    def _name(self, offset: int) -> str:
        name: bytes | None = self._lib.btf__name_by_offset(self._handle, offset)
        return (name or b"").decode()

    def _strip(self, type_id: int) -> int:
        """Return the type behind typedefs and qualifiers."""
        while type_id and (found := self._type(type_id)).kind in MODIFIERS:
            type_id = found.size
        return type_id

    def _member(self, type_id: int, name: str) -> tuple[int, int, int] | None:
        """Return (bit offset, type id, bit field width or 0) of a field, direct or in an anonymous struct."""
        parent = self._type(type_id)
        if parent.kind not in (Kind.STRUCT, Kind.UNION):
            return None
        raw = self._words(type_id, 3 * parent.count)
        for at in range(0, len(raw), 3):
            name_offset, member_type, place = raw[at : at + 3]
            bit, width = (place & 0xFFFFFF, place >> 24) if parent.kind_flag else (place, 0)
            member_name = self._name(name_offset)
            if member_name == name:
                return bit, member_type, width
            if not member_name and (hit := self._member(self._strip(member_type), name)):
                return bit + hit[0], hit[1], hit[2]
        return None

    def _spell(self, type_id: int) -> str:
        """Return a type as C writes it; function pointers and arrays well enough for an error message."""
        if not type_id:
            return "void"
        found = self._type(type_id)
        name = self._name(found.name)
        match found.kind:
            case Kind.STRUCT | Kind.UNION | Kind.ENUM | Kind.ENUM64:
                word = {Kind.STRUCT: "struct", Kind.UNION: "union"}.get(Kind(found.kind), "enum")
                return f"{word} {name or '(anonymous)'}"
            case Kind.FWD:
                return f"{'union' if found.kind_flag else 'struct'} {name}"
            case Kind.PTR:
                target = self._spell(found.size)
                return f"{target}*" if target.endswith("*") else f"{target} *"
            case Kind.CONST | Kind.VOLATILE | Kind.RESTRICT:
                word, target = Kind(found.kind).name.lower(), self._spell(found.size)
                return f"{target}{word}" if target.endswith("*") else f"{word} {target}"
            case Kind.TYPE_TAG:
                return self._spell(found.size)
            case Kind.ARRAY:
                element, _, length = self._words(type_id, 3)
                return f"{self._spell(element)}[{length}]"
            case Kind.FUNC_PROTO:
                return f"{self._spell(found.size)} (function)"
            case _:
                return name


def parse(path: Path, *, base: Btf | None = None) -> Btf:
    """Return the BTF of a raw blob or of the .BTF section of an ELF file; `base` is what split BTF extends.

    Raise BtfError if the file is missing, unreadable or not BTF.
    """
    with quiet():
        ctypes.set_errno(0)
        handle = libbpf().btf__parse_split(os.fsencode(path), base._handle if base else None)
        code = ctypes.get_errno()
    if not handle:
        todo = (
            "install a newer libbpf: the kernel's BTF may be in a later format"
            if code >= LIBBPF_ERRNO
            else ""
        )
        raise BtfError(f"cannot read BTF from {path}: {strerror(code)}", todo)
    return Btf(handle, source=str(path), base=base)


UNMASK_TODO = (
    "mount the host's /sys, read-only is enough, and let nothing hide /sys/kernel/btf (podman: "
    "--security-opt unmask=/sys/kernel/btf; systemd: InaccessiblePaths=, TemporaryFileSystem=)"
)


def vmlinux(*, root: Path = Path("/")) -> Btf:
    """Return the running kernel's BTF, which is kept: it stays the same. Raise BtfError if there is none."""
    path = root / VMLINUX
    if not path.is_file():
        raise _no_btf(path, root)
    return _kept(path)


@lru_cache(maxsize=1)
def _kept(path: Path) -> Btf:
    """Return what is there, parsed once: that takes 10 ms, and a start asks for it five times."""
    return parse(path)


def _no_btf(path: Path, root: Path) -> BtfError:
    """Return why the kernel's BTF cannot be seen: a container can hide what the kernel has."""
    mount = "mount the host's /sys, read-only is enough"
    boot = "boot a kernel that has it (distributions' kernels do)"
    if not has_sysfs(root=root):
        return BtfError(f"{path} is missing: {root / 'sys'} is not the kernel's sysfs", mount)
    match kernel_config("DEBUG_INFO_BTF", root=root):
        case "y":
            found = "the kernel has it (CONFIG_DEBUG_INFO_BTF=y), so it is hidden from this process"
            return BtfError(f"{path} is missing: {found}", UNMASK_TODO)
        case None if path.parent.is_dir():
            # Only a kernel that has BTF makes this folder (kernel/bpf/sysfs_btf.c, btf_vmlinux_init()).
            found = "the kernel has it, and it is hidden from this process"
            return BtfError(f"{path} is masked: {found}", UNMASK_TODO)
        case None:
            found = "the kernel was built without CONFIG_DEBUG_INFO_BTF=y, or it is hidden from this process"
            return BtfError(f"{path} is missing: {found}", f"{boot}; in a container, {mount}")
        case _:
            return BtfError(f"{path} is missing: the kernel was built without CONFIG_DEBUG_INFO_BTF=y", boot)


def module(name: str, *, base: Btf, root: Path = Path("/")) -> Btf:
    """Return a loaded module's BTF on top of the kernel's; raise BtfError if it has none."""
    path = root / VMLINUX.parent / name
    if not path.exists():
        raise BtfError(
            f"{path} is missing: {name} is not loaded, is built into the kernel, or was built without "
            "CONFIG_DEBUG_INFO_BTF_MODULES=y or for another kernel's BTF",
            f"load {name}, or boot a kernel whose modules have BTF (distributions' kernels do)",
        )
    return parse(path, base=base)


def _free(library: ctypes.CDLL, handle: int, _base: Btf | None) -> None:
    """Free a blob. The base is a parameter only so that it lives until then."""
    library.btf__free(handle)
