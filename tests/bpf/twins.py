"""The BPF monitor on made-up calls: BPF_PROG_TEST_RUN on raw-tracepoint twins of the probes' bodies.

What the probes would read of the kernel they read of this process: a block of memory with pmcs, vCPUs and
events in a layout of its own.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from typing import Any

from vpmu_agent.kernel import btf
from vpmu_agent.loader.program import compile_program
from vpmu_agent.model.call import Call, CallName
from vpmu_agent.model.verdict import Observation
from vpmu_agent.probes import decoder, layout

_HANDLER = 0x1000
_PMC, _VCPU, _EVENT = 16, 8, 64  # bytes of each
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
_libc = ctypes.CDLL(None, use_errno=True)


def task_offsets() -> dict[str, int]:
    """What the program is told of the running kernel, where even the twins need it."""
    types = btf.vmlinux()
    return {
        "VPMU_TASK_MM": types.member("task_struct", "mm").offset,
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


class Twins:
    """A loaded monitor, and the memory that it takes for the kernel's."""

    def __init__(
        self, *, grouped: bool, vcpus: int = 4, pmcs: int = 4, events: int = 4096, **options: Any
    ) -> None:
        """The other `options` are compile_program()'s."""
        import bcc

        self._grouped = grouped
        constants = (GROUPED if grouped else STOCK) | task_offsets()
        self._bpf = compile_program(constants, user_memory=True, twins=True, **{"ring_pages": 64, **options})
        self._runs = {}
        self._arguments = ctypes.create_string_buffer(_ARGUMENTS.size)
        for name in CallName:
            for end in ("entry", "return"):
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
        self._known: dict[int, int] = {}
        self._seen: list[bytes] = []
        self._decoder = decoder.Decoder(epoch_ns=0, vms=_Names())
        self._bpf[b"calls"].open_ring_buffer(self._receive)
        self._epoch, self._stream = 0, True
        self.begin()

    def begin(self) -> None:
        """Forgets all calls so far."""
        for name in (b"pmcs", b"vcpus", b"left_behind", b"errors"):
            table = self._bpf[name]
            for key in list(table.keys()):
                del table[key]
        self._pmcs.clear()
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
        pmc = self._pmc(call)
        event, leader = self._event(call.event), self._event(call.leader)
        if call.name is CallName.CREATE:
            _ATTR.pack_into(self._memory, 0, 4, _ATTR.size, 0x76, 0, 0, 0, int(call.attr.disabled))
            handler = (_HANDLER, pmc)
            self._run(call.name, "entry", self._attr, 0, 0, *([leader] if self._grouped else []), *handler)
        else:
            struct.pack_into("=QQ", self._memory, event - self._base, _HANDLER, pmc)
            self._run(call.name, "entry", event)

    def leave(self, call: Call) -> None:
        """Its return."""
        created = self._event(call.event) or (call.result & (2**64 - 1))
        self._run(call.name, "return", created if call.name is CallName.CREATE else 0)

    def received(self) -> list[Observation]:
        """What the monitor sent since the last time."""
        self._bpf.ring_buffer_consume()
        raw, self._seen = self._seen, []
        return [seen for data in raw if (seen := self._decoder.call(data))]

    def stream(self, *, on: bool) -> None:
        """Whether every call is to be sent. At first it is."""
        self._stream = on
        self._bump()

    def vcpu(self, vcpu: int) -> dict[str, tuple[int, ...]]:
        """What the monitor counted of a vCPU, by the fields of `struct vpmu_vcpu`."""
        table = self._bpf[b"vcpus"]
        key = table.Key(os.getpid(), vcpu)
        numbers = layout.VCPU.struct.unpack(bytes(table[key]))
        return {name: numbers[at] for name, at in layout.VCPU.fields.items()}

    def begun_before(self, tgid: int) -> None:
        """Leaves this thread's number with a process that had it before, in no call."""
        table = self._bpf[b"inflight"]
        table[ctypes.c_uint32(os.getpid())] = table.Leaf(tgid=tgid, name=layout.SIZES["VPMU_CALLS"])

    def whose_thread(self) -> int:
        """The process that this thread is kept as one of."""
        return int(self._bpf[b"inflight"][ctypes.c_uint32(os.getpid())].tgid)

    def end(self) -> None:
        """Lets no more calls in."""
        table = self._bpf[b"control"]
        table[ctypes.c_int(0)] = table.Leaf(0, self._stream)

    def lost(self) -> dict[str, int]:
        """Calls and records that the monitor lost, by reason."""
        counts = [int(count.value) for count in self._bpf[b"lost"].values()]
        return dict(zip(layout.LOST_REASONS, counts, strict=True))

    def _bump(self) -> None:
        self._epoch += 1
        table = self._bpf[b"control"]
        table[ctypes.c_int(0)] = table.Leaf(self._epoch, self._stream)

    def _pmc(self, call: Call) -> int:
        address = self._pmcs.get(call.pmc)
        vcpu = self._vcpus[call.vcpu]
        if address is None:
            vcpus, pmcs = self._room
            assert len(self._pmcs) < vcpus * pmcs
            address = self._pmcs[call.pmc] = self._first_pmc + len(self._pmcs) * _PMC
        where = address - self._base
        struct.pack_into("=IBBxxQ", self._memory, where, 0, call.pmc_idx, call.max_nr_events, vcpu)
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

    def _run(self, name: CallName, end: str, *arguments: int) -> None:
        _ARGUMENTS.pack_into(self._arguments, 0, *arguments, *[0] * (12 - len(arguments)))
        self._runs[name, end]()

    def _receive(self, _context: Any, data: int, size: int) -> None:
        self._seen.append(ctypes.string_at(data, size))
