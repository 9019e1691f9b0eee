"""Makes an image's maps, loads its programs and attaches them, all through libbpf.

Functions raise ProbeError, which names the map, the program or the function, if the kernel refuses. What was
opened by then stays open until the process ends, which a loader soon does.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType

from vpmu_agent.kernel.errors import ProbeError
from vpmu_agent.kernel.libbpf import MapCreateOpts, ProgLoadOpts, libbpf, quiet, strerror
from vpmu_agent.kernel.trials import open_probe, probe_device
from vpmu_agent.loader.image import Image, MapSpec
from vpmu_agent.loader.reason import kernel_refused

_LICENSE = b"GPL"
_NAME_SIZE = 15  # characters of a program's name (BPF_OBJ_NAME_LEN)
_INSN_SIZE = 8
_LOG_SIZE = 16 * 1024 * 1024 - 1  # the most that Linux before 5.2 takes
_IOC_ENABLE, _IOC_SET_BPF = 0x2400, 0x40042408  # PERF_EVENT_IOC_* (include/uapi/linux/perf_event.h)


class Kind(Enum):
    """A kind of program: its BPF_PROG_TYPE_*, and its expected BPF_TRACE_* (include/uapi/linux/bpf.h)."""

    PROBE = (2, 0)  # for kprobes and uprobes, at entry and return
    RAW_TRACEPOINT = (17, 0)
    FENTRY = (26, 24)
    FEXIT = (26, 25)
    ITERATOR = (26, 28)


@dataclass(frozen=True, slots=True)
class Loading:
    """An image whose maps are made, by their names; `addresses` are those of this boot."""

    image: Image
    maps: dict[str, int]
    addresses: Mapping[str, int]

    def load(self, name: str, kind: Kind, *, function: int = 0) -> int:
        """Return the descriptor of a program; `function` is the type in BTF of what a tracing one is for."""
        code = self.image.program(name, self.maps, self.addresses)
        program_type, attach_type = kind.value
        options = ProgLoadOpts(
            sz=ctypes.sizeof(ProgLoadOpts),
            attempts=5,
            expected_attach_type=attach_type,
            attach_btf_id=function,
        )
        arguments = (program_type, name[:_NAME_SIZE].encode(), _LICENSE, code, len(code) // _INSN_SIZE)
        with quiet():
            ctypes.set_errno(0)
            descriptor = int(libbpf().bpf_prog_load(*arguments, ctypes.byref(options)))
            if descriptor >= 0:
                return descriptor
            code_of_error = ctypes.get_errno()
            # Once more for its reasons: to write them down takes time and memory.
            log = ctypes.create_string_buffer(_LOG_SIZE)
            options.log_level, options.log_size = 1, _LOG_SIZE
            options.log_buf = ctypes.addressof(log)
            again = int(libbpf().bpf_prog_load(*arguments, ctypes.byref(options)))
        if again >= 0:  # what was short the first time, such as memory, is not any more
            return again
        text = log.value.decode(errors="replace")
        raise kernel_refused(name, code_of_error, text, instructions=len(code) // _INSN_SIZE)


def make_maps(
    image: Image, addresses: Mapping[str, int], rooms: Mapping[str, int] = MappingProxyType({})
) -> Loading:
    """Make the maps of an image; `rooms` are sizes (`max_entries`) that replace those of the image."""
    specs = [replace(spec, max_entries=rooms.get(spec.name, spec.max_entries)) for spec in image.maps]
    return Loading(image, {spec.name: _make_map(spec) for spec in specs}, addresses)


def _make_map(spec: MapSpec) -> int:
    options = MapCreateOpts(sz=ctypes.sizeof(MapCreateOpts), map_flags=spec.flags)
    with quiet():
        ctypes.set_errno(0)
        descriptor = libbpf().bpf_map_create(
            spec.type,
            spec.name.encode(),
            spec.key_size,
            spec.value_size,
            spec.max_entries,
            ctypes.byref(options),
        )
    if descriptor < 0:
        raise ProbeError(f"cannot create the BPF map {spec.name}: {strerror(ctypes.get_errno())}")
    return int(descriptor)


def attach_probe(
    program: int, target: str, *, device: str = "kprobe", offset: int = 0, is_return: bool
) -> int:
    """Attach a program to a function, given as to open_probe(); return the probe's descriptor."""
    kind = probe_device(device)
    descriptor = -errno.ENODEV
    if kind is not None:
        descriptor = open_probe(target.encode(), kind=kind, offset=offset, is_return=is_return)
    if descriptor < 0:
        end = "return" if is_return else "entry"
        raise ProbeError(f"cannot attach a {device} to the {end} of {target}: {os.strerror(-descriptor)}")
    try:
        fcntl.ioctl(descriptor, _IOC_SET_BPF, program)
        fcntl.ioctl(descriptor, _IOC_ENABLE, 0)
    except OSError as error:
        raise ProbeError(f"cannot attach a program to the {device} on {target}: {error.strerror}") from error
    return descriptor


def attach_tracing(program: int, function: str) -> int:
    """Attach an fentry or fexit program to the function that it was loaded for; return its link."""
    with quiet():
        ctypes.set_errno(0)
        link = int(libbpf().bpf_raw_tracepoint_open(None, program))
    if link < 0:
        raise ProbeError(f"cannot attach a program to {function}(): {strerror(ctypes.get_errno())}")
    return link


def attach_iterator(program: int) -> int:
    """Attach an iterator; return its link."""
    _, attach_type = Kind.ITERATOR.value
    with quiet():
        ctypes.set_errno(0)
        link = int(libbpf().bpf_link_create(program, 0, attach_type, None))
    if link < 0:
        raise ProbeError(f"cannot attach an iterator: {strerror(ctypes.get_errno())}")
    return link
