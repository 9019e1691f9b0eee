"""BPF maps and ring buffers by their descriptors, through libbpf: without privileges and without bcc."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterable, Iterator
from itertools import groupby

from vpmu_agent.kernel.errors import KernelError
from vpmu_agent.kernel.libbpf import RingCallback, libbpf, quiet, strerror

_INFO_WORDS = 6  # of struct bpf_map_info: type, id, key_size, value_size, max_entries, map_flags
_CHUNK = 256  # entries per system call; their buffers take about 200 KB
_WINDOW = 64 * 1024  # bytes of an array that are mapped at a time: mapping takes longer than writing
_RECORDS = 8192  # per poll, so that it returns even if records come faster than they are read


class Map:
    """A map. Each method raises KernelError, which names the map, if the kernel refuses."""

    def __init__(self, name: str, descriptor: int) -> None:
        """Take ownership of the descriptor."""
        self.name = name
        self.descriptor = descriptor
        info = (ctypes.c_uint32 * _INFO_WORDS)()
        size = ctypes.c_uint32(ctypes.sizeof(info))
        if failed := libbpf().bpf_obj_get_info_by_fd(descriptor, info, ctypes.byref(size)):
            raise self._refused("describe", failed)
        _, _, self.key_size, self.value_size, self.room, _ = info

    def get(self, key: bytes) -> bytes | None:
        """Return the value at `key`, None if there is none."""
        value = ctypes.create_string_buffer(self.value_size)
        if failed := libbpf().bpf_map_lookup_elem(self.descriptor, key, value):
            if failed == -errno.ENOENT:
                return None
            raise self._refused("read", failed)
        return value.raw

    def put(self, key: bytes, value: bytes) -> None:
        """Write one entry."""
        if failed := libbpf().bpf_map_update_elem(self.descriptor, key, value, 0):
            raise self._refused("write", failed)

    def delete(self, key: bytes) -> None:
        """Delete one entry, if it is there."""
        failed = libbpf().bpf_map_delete_elem(self.descriptor, key)
        if failed and failed != -errno.ENOENT:
            raise self._refused("delete from", failed)

    def chunks(self) -> Iterator[tuple[memoryview, memoryview]]:
        """Yield all entries of a hash or an array, some hundred at a time: (their keys, their values).

        Both are valid only until the next ones are asked for. Entries that are added or deleted meanwhile may
        be among them or not; all others are, once.
        """
        count = min(_CHUNK, self.room)
        # The kernel's cursor: opaque, and at most as wide as a key (4 bytes for a hash).
        before, after = None, ctypes.create_string_buffer(max(self.key_size, 4))
        keys, values = self._buffers(count)
        while True:
            there = ctypes.c_uint32(count)
            failed = self._read_batch(before, after, keys, values, there)
            if failed == -errno.ENOSPC:  # a hash bucket has more entries than that
                count *= 2
                keys, values = self._buffers(count)
                continue
            if there.value:
                yield (
                    memoryview(keys)[: there.value * self.key_size],
                    memoryview(values)[: there.value * self.value_size],
                )
            if failed:  # ENOENT: these were the last
                return
            before = after

    def first(self, count: int) -> Iterator[tuple[int, memoryview]]:
        """Yield the first `count` entries of an array, some hundred at a time: (number of the first, values).

        The values are valid only until the next ones are asked for, and may be written to until then.
        """
        keys, values = self._buffers(min(_CHUNK, count))
        before, after = None, ctypes.create_string_buffer(self.key_size)
        for start in range(0, count, _CHUNK):
            there = ctypes.c_uint32(min(_CHUNK, count - start))
            self._read_batch(before, after, keys, values, there)
            yield start, memoryview(values)[: there.value * self.value_size]
            before = after

    def entries(self) -> int:
        """Return the number of entries."""
        return sum(len(keys) // self.key_size for keys, _ in self.chunks())

    def push(self, value: bytes) -> None:
        """Put a value on top of a stack."""
        if failed := libbpf().bpf_map_update_elem(self.descriptor, None, value, 0):
            raise self._refused("push to", failed)

    def write_at(self, indices: Iterable[int], offset: int, data: bytes) -> None:
        """Write into entries of an array with BPF_F_MMAPABLE, and leave the rest of them to who writes there.

        put() writes whole entries. `data` must not cross the border of a page. Raise OSError if the array
        cannot be mapped.
        """
        size = -(-self.room * self.value_size // mmap.PAGESIZE) * mmap.PAGESIZE
        places = sorted(index * self.value_size + offset for index in indices)
        for window, group in groupby(places, key=lambda place: place // _WINDOW):
            start = window * _WINDOW
            with mmap.mmap(self.descriptor, min(_WINDOW, size - start), offset=start) as memory:
                for place in group:
                    memory[place - start : place - start + len(data)] = data

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.descriptor)

    def _buffers(self, count: int) -> tuple[ctypes.Array[ctypes.c_char], ctypes.Array[ctypes.c_char]]:
        return (
            ctypes.create_string_buffer(count * self.key_size),
            ctypes.create_string_buffer(count * self.value_size),
        )

    def _read_batch(
        self,
        before: object,
        after: object,
        keys: ctypes.Array[ctypes.c_char],
        values: ctypes.Array[ctypes.c_char],
        count: ctypes.c_uint32,
    ) -> int:
        """Read the next entries; return 0, -ENOENT if they were the last, -ENOSPC if there is no room."""
        failed = int(
            libbpf().bpf_map_lookup_batch(
                self.descriptor, before, after, keys, values, ctypes.byref(count), None
            )
        )
        if failed not in (0, -errno.ENOENT, -errno.ENOSPC):
            raise self._refused("read", failed)
        return failed

    def _refused(self, what: str, code: int) -> KernelError:
        return KernelError(f"cannot {what} the BPF map {self.name}: {strerror(-code)}")


class Ring:
    """The reading end of a ring buffer."""

    def __init__(self, ring: Map) -> None:
        self._records: list[bytes] = []
        self._callback = RingCallback(self._receive)  # kept here: libbpf holds no reference
        with quiet():
            ctypes.set_errno(0)
            self._handle = libbpf().ring_buffer__new(ring.descriptor, self._callback, None, None)
        if not self._handle:
            raise KernelError(f"cannot read the BPF ring buffer {ring.name}: {strerror(ctypes.get_errno())}")

    def poll(self, timeout_s: float) -> list[bytes]:
        """Return the records in the ring, oldest first; wait up to `timeout_s` for the first one."""
        libbpf().ring_buffer__poll(self._handle, int(timeout_s * 1000))
        records, self._records = self._records, []
        return records

    def close(self) -> None:
        """Free the ring's memory; the map stays open."""
        libbpf().ring_buffer__free(self._handle)

    def _receive(self, _context: object, data: int, size: int) -> int:
        self._records.append(ctypes.string_at(data, size))
        return -1 if len(self._records) >= _RECORDS else 0
