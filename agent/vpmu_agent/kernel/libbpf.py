"""libbpf's C API through ctypes: the few functions used here, declared once."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from vpmu_agent.kernel.errors import KernelError

SONAME = "libbpf.so.1"
LIBBPF_ERRNO = 4000  # __LIBBPF_ERRNO__START (tools/lib/bpf/libbpf.h): its own errors, such as a wrong format


class ProgLoadOpts(ctypes.Structure):
    """The head of `struct bpf_prog_load_opts` (tools/lib/bpf/bpf.h); `sz` tells libbpf where it ends."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_uint32),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_ifindex", ctypes.c_uint32),
        ("kern_version", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_prog_fd", ctypes.c_uint32),
        ("attach_btf_obj_fd", ctypes.c_uint32),
        ("fd_array", ctypes.c_void_p),
        ("func_info", ctypes.c_void_p),
        ("func_info_cnt", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_void_p),
        ("line_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_void_p),
    )


class MapCreateOpts(ctypes.Structure):
    """The head of `struct bpf_map_create_opts` (tools/lib/bpf/bpf.h)."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
    )


class MapInfo(ctypes.Structure):
    """The head of `struct bpf_map_info` (include/uapi/linux/bpf.h)."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
    )
    type: int
    key_size: int
    value_size: int
    max_entries: int
    map_flags: int
    name: bytes


RingCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
"""`ring_buffer_sample_fn`: context, data, size; a negative result ends the poll after this record."""


@cache
def libbpf() -> ctypes.CDLL:
    """Return the library with its prototypes; raise KernelError if it is not installed."""
    try:
        library = ctypes.CDLL(SONAME, use_errno=True)
    except OSError as error:
        raise KernelError(
            f"cannot load {SONAME} ({error})", "install libbpf 1.0 or later (Debian: apt install libbpf1)"
        ) from error

    pointer, string, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    prototypes: dict[str, tuple[type | None, tuple[type, ...]]] = {
        "btf__parse_split": (pointer, (string, pointer)),
        "btf__free": (None, (pointer,)),
        "btf__find_by_name_kind": (number, (pointer, string, ctypes.c_uint32)),
        "btf__type_by_id": (pointer, (pointer, ctypes.c_uint32)),
        "btf__name_by_offset": (string, (pointer, ctypes.c_uint32)),
        "btf__resolve_size": (ctypes.c_int64, (pointer, ctypes.c_uint32)),
        "bpf_prog_load": (
            number,
            (number, string, string, pointer, ctypes.c_size_t, ctypes.POINTER(ProgLoadOpts)),
        ),
        "bpf_raw_tracepoint_open": (number, (string, number)),
        "bpf_link_create": (number, (number, number, number, pointer)),
        "bpf_iter_create": (number, (number,)),
        "bpf_obj_get_info_by_fd": (number, (number, pointer, ctypes.POINTER(ctypes.c_uint32))),
        "bpf_map_create": (
            number,
            (
                number,
                string,
                ctypes.c_uint32,
                ctypes.c_uint32,
                ctypes.c_uint32,
                ctypes.POINTER(MapCreateOpts),
            ),
        ),
        "bpf_map_lookup_elem": (number, (number, pointer, pointer)),
        "bpf_map_update_elem": (number, (number, pointer, pointer, ctypes.c_uint64)),
        "bpf_map_delete_elem": (number, (number, pointer)),
        "bpf_map_lookup_batch": (
            number,
            (number, pointer, pointer, pointer, pointer, ctypes.POINTER(ctypes.c_uint32), pointer),
        ),
        "ring_buffer__new": (pointer, (number, RingCallback, pointer, pointer)),
        "ring_buffer__poll": (number, (pointer, number)),
        "ring_buffer__free": (None, (pointer,)),
        "libbpf_set_print": (pointer, (pointer,)),
        "libbpf_strerror": (number, (number, string, ctypes.c_size_t)),
    }
    for name, (result, arguments) in prototypes.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


_PROG_INFO_SIZE, RECURSION_MISSES = 216, 208  # struct bpf_prog_info (include/uapi/linux/bpf.h) of Linux 5.12


def recursion_misses(program: int) -> int:
    """Return how often the kernel skipped a program because it was already running on that CPU.

    0 before Linux 5.12, which does not report it (struct bpf_prog_info). Raise KernelError if `program` is
    not the descriptor of a program.
    """
    info = ctypes.create_string_buffer(_PROG_INFO_SIZE)
    size = ctypes.c_uint32(_PROG_INFO_SIZE)
    ctypes.set_errno(0)
    if libbpf().bpf_obj_get_info_by_fd(program, info, ctypes.byref(size)):
        raise KernelError(f"cannot ask the kernel about a BPF program: {strerror(ctypes.get_errno())}")
    return ctypes.c_uint64.from_buffer(info, RECURSION_MISSES).value


def strerror(code: int) -> str:
    """Return the text for an errno, or for one of libbpf's own error numbers from 4000 on."""
    text = ctypes.create_string_buffer(128)
    libbpf().libbpf_strerror(code, text, len(text))
    return text.value.decode(errors="replace")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep libbpf from writing warnings to stderr: the caller reports what fails.

    The print function is restored because bcc uses the same copy of the library.
    """
    library = libbpf()
    before = library.libbpf_set_print(None)
    try:
        yield
    finally:
        library.libbpf_set_print(before)
