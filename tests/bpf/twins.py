"""The BPF monitor on made-up calls: BPF_PROG_TEST_RUN on raw-tracepoint twins of the probes' bodies.

What the probes would read of the kernel they read of this process: a block of memory with pmcs, vCPUs and
events in a layout of its own.
"""

from __future__ import annotations

import atexit
import ctypes
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Self

from vpmu_agent.kernel import btf
from vpmu_agent.loader.program import compile_source, program_source, seen_at_entry, seen_at_return
from vpmu_agent.model.call import Call, CallName, PmcType, UncheckedCall
from vpmu_agent.model.counter_status import EventState
from vpmu_agent.model.rules import SLOTS
from vpmu_agent.model.verdict import Observation
from vpmu_agent.probes import decoder, layout
from vpmu_agent.probes.maps import Map

_HANDLER = 0x1000
_PMC, _VCPU, _EVENT = 16, 8, 72  # bytes of each
_CONSTANTS = {
    "VPMU_HANDLER": _HANDLER,
    "VPMU_HANDLER_INTR": 0,
    "VPMU_PMC_TYPE": 0,
    "VPMU_PMC_IDX": 4,
    "VPMU_PMC_VCPU": 8,
    "VPMU_VCPU_ID": 0,
    "VPMU_VCPU_EVENT_COUNT": 4,
    "VPMU_EVENT_HANDLER": 0,
    "VPMU_EVENT_CONTEXT": 8,
    "VPMU_EVENT_ATTR": 16,
    "VPMU_EVENT_STATE": 64,
}
GROUPED = {**_CONSTANTS, "VPMU_PMC_MAX_NR_EVENTS": 5, "VPMU_CREATE_ARGS": 6}
STOCK = {**_CONSTANTS, "VPMU_CREATE_ARGS": 5}
"""What the program is told of a kernel, here of the twins' own memory, less task_offsets()."""

_BPF_PROG_TEST_RUN = 10
_SYS_BPF = 321  # x86-64
# union bpf_attr, `test`: prog_fd, retval, data_size_in, data_size_out, data_in, data_out, repeat, duration,
# ctx_size_in, ctx_size_out, ctx_in, ctx_out, flags, cpu, batch_size
_TEST = struct.Struct("=IIIIQQIIIIQQIII4x")
_ARGUMENTS = struct.Struct("=12Q")
_ATTR = struct.Struct("=IIQQQQQ")
_U32 = struct.Struct("=I")
_libc = ctypes.CDLL(None, use_errno=True)


def task_offsets() -> dict[str, int]:
    """What the program is told of the running kernel, where even the twins need it."""
    types = btf.vmlinux()
    return {
        "VPMU_TASK_MM": types.member("task_struct", "mm").offset,
        "VPMU_TASK_GROUP_LEADER": types.member("task_struct", "group_leader").offset,
        "VPMU_TASK_START_BOOTTIME": types.member("task_struct", "start_boottime").offset,
        "VPMU_MM_ARG_START": types.member("mm_struct", "arg_start").offset,
        "VPMU_MM_ARG_END": types.member("mm_struct", "arg_end").offset,
    }


class TestRun:
    """Runs one raw-tracepoint program with these arguments (12 numbers of 64 bits) when it is called."""

    def __init__(self, descriptor: int, arguments: ctypes.Array[ctypes.c_char]) -> None:
        attr = _TEST.pack(
            descriptor,
            0,  # retval
            0,  # data_size_in
            0,  # data_size_out
            0,  # data_in
            0,  # data_out
            0,  # repeat
            0,  # duration
            len(arguments),
            0,  # ctx_size_out
            ctypes.addressof(arguments),
            0,  # ctx_out
            0,  # flags
            0,  # cpu
            0,  # batch_size
        )
        self._attr = ctypes.create_string_buffer(attr, len(attr))

    def __call__(self) -> None:
        if _libc.syscall(_SYS_BPF, _BPF_PROG_TEST_RUN, self._attr, len(self._attr)):
            error = ctypes.get_errno()
            raise OSError(error, f"BPF_PROG_TEST_RUN: {os.strerror(error)}")


class _Names:
    def met(self, tgid: int, command: Sequence[str]) -> None:
        """Who these calls are of is known."""

    def name(self, tgid: int) -> str:
        """Any name will do."""
        return f"pid-{tgid}"


ROOMS = {"pmcs": 64, "vcpus": 16, "threads": 4, "processes": 8, "given_back": 8}
"""Entries of the maps, few, so that to forget them is quick."""

Numbers = dict[str, tuple[int, ...]]


class Entries:
    """One of the program's arrays, in memory that is the kernel's as well."""

    def __init__(self, of: Map, shape: layout.Layout) -> None:
        page = mmap.PAGESIZE
        self._size = -(-of.room * of.value_size // page) * page
        self._memory = mmap.mmap(of.descriptor, self._size)
        self._room, self._value_size, self._shape = of.room, of.value_size, shape

    def used(self) -> Iterator[tuple[int, Numbers]]:
        """The entries that somebody has, with their places."""
        for slot in range(self._room):
            entry = self.named(slot)
            if entry["tgid"] != (0,):
                yield slot, entry

    def named(self, slot: int) -> Numbers:
        """The entry at a place, by the names of its fields."""
        numbers = self.at(slot)
        return {name: numbers[at] for name, at in self._shape.fields.items()}

    def at(self, slot: int) -> tuple[int, ...]:
        """The numbers of the entry at a place."""
        return self._shape.struct.unpack_from(self._memory, slot * self._value_size)

    def put(self, slot: int, numbers: Sequence[int]) -> None:
        """Writes the numbers of the entry at a place."""
        self._shape.struct.pack_into(self._memory, slot * self._value_size, *numbers)

    def close(self) -> None:
        """Unmaps it."""
        self._memory.close()

    def clear(self) -> None:
        """Makes all entries free."""
        self._memory[:] = bytes(self._size)


class Twins:
    """A loaded monitor, and the memory that it takes for the kernel's. To be closed."""

    def __init__(
        self, *, grouped: bool, vcpus: int = 4, pmcs: int = 4, events: int = 4096, **options: Any
    ) -> None:
        """The other `options` are program_source()'s."""
        import bcc

        self._grouped = grouped
        constants = (GROUPED if grouped else STOCK) | task_offsets()
        rooms = {**ROOMS, **options.pop("max_entries", {})}
        options = {"ring_pages": 64, **options, "max_entries": rooms}
        self._bpf = compile_source(program_source(constants, user_memory=True, twins=True, **options))
        self._runs = {}
        self._arguments = ctypes.create_string_buffer(_ARGUMENTS.size)
        self.returning = seen_at_return(durations=options.get("durations", True))
        ends = [(name, "entry") for name in seen_at_entry()] + [(name, "return") for name in self.returning]
        for name, end in ends:
            function = self._bpf.load_func(f"vpmu_{name}_{end}".encode(), bcc.BPF.RAW_TRACEPOINT)
            self._runs[name, end] = TestRun(function.fd, self._arguments)
        self._memory = ctypes.create_string_buffer(4096 + vcpus * (_VCPU + pmcs * _PMC) + events * _EVENT)
        base = ctypes.addressof(self._memory)
        self._base = base
        self._attr = base
        self._vcpus = {i: base + 4096 + i * _VCPU for i in range(vcpus)}
        self._first_pmc = base + 4096 + vcpus * _VCPU
        self._first_event = self._first_pmc + vcpus * pmcs * _PMC
        self._events, self._room = events, (vcpus, pmcs)
        self._pmcs: dict[int, int] = {}
        self._slots: dict[int, int] = {}
        self._known: dict[int, int] = {}
        self._seen: list[bytes] = []
        self._decoder = decoder.Decoder(epoch_ns=0, vms=_Names())
        self._bpf[b"calls"].open_ring_buffer(self._receive)
        self._maps = {name: Map(name, self._bpf[name.encode()].map_fd) for name in _MAPS}
        self._given_back = [self._bpf[name] for name in (b"free_pmcs", b"free_vcpus")]
        shape = layout.pmc_layout(layout.pmc_room(SLOTS if grouped else 1))
        self.pmc_fields = shape.fields
        self._entries = {
            "pmcs": Entries(self._maps["pmcs"], shape),
            "vcpus": Entries(self._maps["vcpus"], layout.VCPU),
        }
        self._threads = Entries(self._maps["threads"], layout.Layout("vpmu_thread"))
        self._epoch, self._stream = 0, True
        self.begin()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Unloads it."""
        for entries in (*self._entries.values(), self._threads):
            entries.close()
        atexit.unregister(self._bpf.cleanup)  # which would keep it until the end
        self._bpf.cleanup()

    def begin(self) -> None:
        """Forgets all calls so far."""
        for entries in self._entries.values():
            entries.clear()
        for index in range(len(layout.ARRAYS)):
            self._maps["was_used"].put(_U32.pack(index), bytes(8))
        self._threads.clear()
        for stack in self._given_back:
            with suppress(KeyError):  # it is empty
                while True:
                    stack.pop()
        for name in ("slots", "processes", "left_behind", "errors"):
            of = self._maps[name]
            for keys, _ in of.chunks():
                for at in range(0, len(keys), of.key_size):
                    of.delete(bytes(keys[at : at + of.key_size]))
        ctypes.memset(self._first_event, 0, len(self._known) * _EVENT)
        self._pmcs.clear()
        self._slots.clear()
        self._known.clear()
        self._bump()

    def observe(self, call: Call) -> Observation:
        """Makes one call; returns it as the monitor saw it, and its verdict."""
        self.make(call)
        (seen,) = self.received()
        return seen

    def make(self, call: Call) -> None:
        """Makes one call."""
        self.enter(call)
        self.leave(call)

    def enter(self, call: Call) -> None:
        """Its entry."""
        if call.lost:
            self._bump()
        # Guest LBR has neither a handler nor a pmc.
        handler = (_HANDLER, self._pmc(call)) if call.pmc else (0, 0)
        config = 0x76 if call.pmc else call.attr.config
        attr = (4, _ATTR.size, config, 0, 0, 0, int(call.attr.disabled))
        event, leader = self._event(call.event), self._event(call.leader)
        if call.name is CallName.CREATE:
            _ATTR.pack_into(self._memory, 0, *attr)
            self._run(call.name, "entry", self._attr, 0, 0, *([leader] if self._grouped else []), *handler)
        else:
            struct.pack_into("=QQ", self._memory, event - self._base, *handler)
            _ATTR.pack_into(self._memory, event - self._base + _CONSTANTS["VPMU_EVENT_ATTR"], *attr)
            self._run(call.name, "entry", event)

    def leave(self, call: Call) -> None:
        """Its return, if there is a program for that."""
        if call.name not in self.returning:
            return
        created = self._event(call.event) or (call.result & (2**64 - 1))
        self._run(call.name, "return", created if call.name is CallName.CREATE else 0)

    def count(self, name: UncheckedCall, of: Call) -> None:
        """Makes a call that is not checked, of the event of a call."""
        event = self._event(of.event)
        struct.pack_into("=QQ", self._memory, event - self._base, _HANDLER, self._pmc(of))
        self._run(name, "entry", event)
        if name in self.returning:
            self._run(name, "return", 0)

    def counted(self) -> list[int]:
        """How often count() was called and seen, by UncheckedCall."""
        entries = [of for entries in self._entries.values() for _, of in entries.used()]
        return [sum(of[field][0] for of in entries) for field in ("reads", "periods")]

    def place(self, event: int, *, has_room: bool) -> None:
        """Sets the state of an event of Call, as perf does: active, or in error for lack of room."""
        state = EventState.ACTIVE if has_room else EventState.ERROR
        at = self._event(event) - self._base + _CONSTANTS["VPMU_EVENT_STATE"]
        struct.pack_into("=i", self._memory, at, state)

    def received(self) -> list[Observation]:
        """What the monitor sent since the last time."""
        self._bpf.ring_buffer_consume()
        raw, self._seen = self._seen, []
        return [seen for data in raw if (seen := self._decoder.call(data))]

    def stream(self, *, on: bool) -> None:
        """Whether every call is to be sent. At first it is."""
        self._stream = on
        self._bump()

    def pmc(self, pmc: int) -> tuple[int, ...]:
        """What there is of a pmc of Call, laid out as `pmc_fields`."""
        if pmc not in self._slots:
            address = self._pmcs[pmc]
            self._slots[pmc] = next(
                slot for slot, of in self._entries["pmcs"].used() if of["pmc"] == (address,)
            )
        return self._entries["pmcs"].at(self._slots[pmc])

    def pmcs(self) -> list[Numbers]:
        """What there is of all pmcs, by the fields of `struct vpmu_pmc`."""
        return [of for _, of in self._entries["pmcs"].used()]

    def write_pmc(self, pmc: int, **fields: tuple[int, ...]) -> None:
        """Writes to a pmc's entry."""
        numbers = list(self.pmc(pmc))
        for name, values in fields.items():
            numbers[self.pmc_fields[name]] = values
        self._entries["pmcs"].put(self._slots[pmc], numbers)

    def refused(self) -> int:
        """How many calls of this process were not followed, because it had taken too much."""
        share = layout.SHARE.struct.unpack(self._maps["processes"].get(_U32.pack(os.getpid())) or b"")
        return int(share[layout.SHARE.fields["refused"].start])

    def address(self, event: int) -> int:
        """Where an event of Call is in this memory, 0 if it was in no call."""
        return self._known.get(event, 0)

    def end(self) -> None:
        """Lets no more calls in."""
        self._control(0)

    def lost(self) -> dict[str, int]:
        """Calls and records that the monitor lost, by reason."""
        counts = [int(count.value) for count in self._bpf[b"lost"].values()]
        return dict(zip(layout.LOST_REASONS, counts, strict=True))

    def _bump(self) -> None:
        self._epoch += 1
        self._control(self._epoch)

    def _control(self, epoch: int) -> None:
        self._maps["control"].put(bytes(4), layout.CONTROL.struct.pack(epoch, self._stream, 0))

    def _pmc(self, call: Call) -> int:
        address = self._pmcs.get(call.pmc)
        vcpu = self._vcpus[call.vcpu]
        if address is None:
            vcpus, pmcs = self._room
            assert len(self._pmcs) < vcpus * pmcs
            address = self._pmcs[call.pmc] = self._first_pmc + len(self._pmcs) * _PMC
        where = address - self._base
        kind, idx = layout.PMC_TYPES.index(call.pmc_type), call.pmc_idx
        if call.pmc_type is PmcType.FIXED:
            idx += layout.FIXED_BASE_IDX
        struct.pack_into("=IBBxxQ", self._memory, where, kind, idx, call.max_nr_events, vcpu)
        struct.pack_into("=iB", self._memory, vcpu - self._base, call.vcpu, call.event_count & 0xFF)
        return address

    def _event(self, event: int) -> int:
        if not event:
            return 0
        address = self._known.get(event)
        if address is None:
            assert len(self._known) < self._events
            address = self._known[event] = self._first_event + len(self._known) * _EVENT
        return address

    def _run(self, name: CallName | UncheckedCall, end: str, *arguments: int) -> None:
        _ARGUMENTS.pack_into(self._arguments, 0, *arguments, *[0] * (12 - len(arguments)))
        self._runs[name, end]()

    def _receive(self, _context: Any, data: int, size: int) -> None:
        self._seen.append(ctypes.string_at(data, size))


_MAPS = (
    "control",
    "threads",
    "pmcs",
    "vcpus",
    "was_used",
    "slots",
    "processes",
    "left_behind",
    "errors",
)
