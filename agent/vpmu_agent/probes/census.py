"""The census, read ("pulled") from a BPF iterator that a loader attached.

It finds every vCPU of the host, the counters that its guest has enabled or KVM has events for, and the events
of other users of the host's PMU.

Attaching takes privileges; a pull takes none from Linux 5.19 on, which lets unprivileged processes use BPF
descriptors.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from vpmu_agent.kernel.errors import KernelError
from vpmu_agent.kernel.libbpf import libbpf, quiet, strerror
from vpmu_agent.probes.layout import PMC_TYPE_LBR, Layout, enum_names
from vpmu_agent.probes.sources import bpf_folder
from vpmu_agent.vms.clean import clean_name

_READ_SIZE = 64 * 1024  # bytes; more than bpf_seq_read() returns at a time (8 pages, kernel/bpf/bpf_iter.c)

_TEXT = (bpf_folder() / "census.h").read_text()
_KINDS = enum_names(_TEXT, "vpmu_census_kind")
_VCPU = Layout("vpmu_census_vcpu", text=_TEXT)
_PMC = Layout("vpmu_census_pmc", text=_TEXT)
_HOST_EVENT = Layout("vpmu_census_host_event", text=_TEXT)
_STRAY = Layout("vpmu_census_stray", text=_TEXT)
_SIZE = _VCPU.size
_vcpus = _VCPU.reader(*(name for name in _VCPU.fields if name != "kind" and not name.startswith("unused")))
_pmcs = _PMC.reader(*(name for name in _PMC.fields if name != "kind"))
_host_events = _HOST_EVENT.reader(
    *(name for name in _HOST_EVENT.fields if name not in ("kind", "unused", "comm")), raw=("comm",)
)
_strays = _STRAY.reader(*(name for name in _STRAY.fields if name != "kind" and not name.startswith("unused")))

PINNED, EXCLUDE_GUEST = 1 << 2, 1 << 20
"""Bits of `attr_flags` (struct perf_event_attr)."""

# The records are NamedTuples, because a host may have 64,000 of them and a frozen dataclass takes three times
# as long to create. Their fields are those of the C structs, in order.


class Vcpu(NamedTuple):
    """A vCPU, found through one of the open files that refer to it: its PMU, and its VM's, according to KVM.

    `vm` is the same for all vCPUs of a VM, `address` is the vCPU's. They are kernel addresses, and must not
    be shown to users.
    """

    tgid: int
    address: int
    vm: int
    global_ctrl: int
    has_filter: bool
    """Whether the VMM has set an event filter (KVM_SET_PMU_EVENT_FILTER)."""
    tsc_set_ns: int | None
    """When the VMM last set its VM's TSC, as at a reset, on a clock of KVM's; None if that is not known."""
    kvmclock_offset: int
    """Of its VM: the VMM sets this, too, when it restores one, or goes on with one that it stopped."""
    cpu: int
    """The CPU that it ran on last; -1 if it never ran."""
    awaits_init: bool
    """Whether the VMM has put it into the state after a reset, in which it waits for an INIT."""
    has_irqchip: bool
    """Whether its VM's interrupt controller is in the kernel, or at least the local APICs ("split")."""
    has_cpuid: bool
    """Whether the vCPU has its CPUID, which brings its PMU (KVM_SET_CPUID2)."""
    vcpu_id: int
    gp: int
    """How many general-purpose counters its PMU has."""
    fixed: int
    vm_pmu: bool
    """`kvm->arch.enable_pmu`: whether KVM gives this VM a PMU at all."""
    mediated: bool
    """`kvm->arch.created_mediated_pmu`; False if the kernel has no such field."""
    pmu_version: int
    """0 if the vCPU has no PMU."""


class Pmc(NamedTuple):
    """One event of a counter, or a counter that the guest has enabled and that has none (`event` is 0).

    `vcpu` is the address of its Vcpu, `event` the kernel's address of the event: neither must be shown.
    """

    tgid: int
    vcpu: int
    control: int
    """A gp counter's event select; a fixed counter's four bits of IA32_FIXED_CTR_CTRL."""
    event: int
    enabled_ns: int
    running_ns: int
    counted: int
    """`perf_event.count`: what KVM has not yet added to the counter's value."""
    config: int
    attr_flags: int
    vcpu_id: int
    state: int
    """`enum perf_event_state`."""
    oncpu: int
    """The CPU that the event is on; -1 if it is on none."""
    thread_runs: bool
    """Whether the vCPU's thread has a CPU; 0 or 1."""
    pmc_type: int
    pmc_idx: int
    event_index: int
    size: int
    """`max_nr_events`; 1 if the kernel has no such field."""
    event_id: int
    """The lowest 32 bits of `perf_event.id`, which tell events apart; 0 if it has none."""


class HostEvent(NamedTuple):
    """An event of the CPU's own PMU that a process has open, through one of its files.

    `event` is the kernel's address, and must not be shown.
    """

    tgid: int
    event: int
    enabled_ns: int
    running_ns: int
    config: int
    attr_flags: int
    comm: str
    """The name of the process."""
    type: int
    cpu: int
    """The CPU that it is bound to; -1 if it follows a thread."""
    state: int
    oncpu: int

    @property
    def is_pinned(self) -> bool:
        """Whether it must be on the PMU or fails."""
        return bool(self.attr_flags & PINNED)

    @property
    def excludes_guests(self) -> bool:
        """Whether it does not count while guests run."""
        return bool(self.attr_flags & EXCLUDE_GUEST)


class Stray(NamedTuple):
    """An event that KVM made for a counter, on its vCPU's thread, and that the counter does not hold.

    It is being made or released at this moment, or it is leaked. Or it is one that KVM made for the guest's
    LBR, in Look.guest_lbr: no counter ever holds that. `vcpu` is the address of its Vcpu, and must not be
    shown.
    """

    tgid: int
    vcpu: int
    id: int
    """Unique since the host booted; 0 if this is no event: the thread has more than were looked at."""
    config: int
    attr_flags: int
    type: int
    vcpu_id: int
    state: int
    """`enum perf_event_state`."""
    pmc_type: int
    pmc_idx: int


@dataclass(frozen=True, slots=True)
class Look:
    """What one pull found, each thing once."""

    time: float = 0.0
    """time.monotonic() when it began."""
    vcpus: list[Vcpu] = field(default_factory=list)
    pmcs: list[Pmc] = field(default_factory=list)
    host_events: list[HostEvent] = field(default_factory=list)
    strays: list[Stray] = field(default_factory=list)
    guest_lbr: list[Stray] = field(default_factory=list)
    """The events for guests' LBR; a vCPU has one at most."""
    size: int = 0
    """How much was read, in bytes."""


def decode(data: bytes, at: float = 0.0) -> Look:
    """Return what the data of a pull have. Raise struct.error if it is not a whole number of records.

    Several files can lead to one vCPU or event (dup(), fork()). An event is its opener's then, if that lives:
    the iterator goes by process number.
    """
    if len(data) % _SIZE:
        raise struct.error(f"{len(data)} bytes are not a whole number of records of {_SIZE}")
    vcpus: dict[int, Vcpu] = {}
    pmcs: list[Pmc] = []
    host_events: dict[int, HostEvent] = {}
    strays: list[Stray] = []
    guest_lbr: list[Stray] = []
    is_new = False
    kinds = data[0::_SIZE]  # the first field of each record is a small number
    for start, kind in zip(range(0, len(data), _SIZE), kinds, strict=True):
        if kind == _PMC_KIND:
            if is_new:
                pmcs.append(_new_pmc(_pmcs.unpack_from(data, start)))
        elif kind == _VCPU_KIND:  # which its counters follow, and then its strays
            vcpu = _vcpu(*_vcpus.unpack_from(data, start))
            is_new = vcpu.address not in vcpus
            vcpus.setdefault(vcpu.address, vcpu)
        elif kind == _STRAY_KIND:
            if is_new:
                stray = Stray._make(_strays.unpack_from(data, start))
                (guest_lbr if stray.pmc_type == PMC_TYPE_LBR else strays).append(stray)
        else:
            event = _host_event(*_host_events.unpack_from(data, start))
            host_events.setdefault(event.event, event)
    return Look(at, list(vcpus.values()), pmcs, list(host_events.values()), strays, guest_lbr, len(data))


_VCPU_KIND, _PMC_KIND, _STRAY_KIND = (
    _KINDS.index(f"VPMU_CENSUS_{name}") for name in ("VCPU", "PMC", "STRAY")
)
_new_pmc = Pmc._make
_UNKNOWN_NS = 2**64 - 1
_UNINITIALIZED = 1  # KVM_MP_STATE_UNINITIALIZED (include/uapi/linux/kvm.h)


def _vcpu(
    tgid: int,
    address: int,
    vm: int,
    global_ctrl: int,
    event_filter: int,
    tsc_set_ns: int,
    kvmclock_offset: int,
    cpu: int,
    mp_state: int,
    irqchip_mode: int,
    cpuid_nent: int,
    vcpu_id: int,
    gp: int,
    fixed: int,
    enable_pmu: int,
    mediated: int,
    version: int,
) -> Vcpu:
    return Vcpu(
        tgid=tgid,
        address=address,
        vm=vm,
        global_ctrl=global_ctrl,
        has_filter=event_filter != 0,
        tsc_set_ns=None if tsc_set_ns == _UNKNOWN_NS else tsc_set_ns,
        kvmclock_offset=kvmclock_offset,
        cpu=cpu,
        awaits_init=mp_state == _UNINITIALIZED,
        has_irqchip=irqchip_mode != 0,
        has_cpuid=cpuid_nent > 0,
        vcpu_id=vcpu_id,
        gp=gp,
        fixed=fixed,
        vm_pmu=enable_pmu != 0,
        mediated=mediated != 0,
        pmu_version=version,
    )


def _host_event(
    tgid: int,
    event: int,
    enabled_ns: int,
    running_ns: int,
    config: int,
    attr_flags: int,
    comm: bytes,
    event_type: int,
    cpu: int,
    state: int,
    oncpu: int,
) -> HostEvent:
    name = clean_name(comm.split(b"\0")[0].decode(errors="replace"))  # a process can choose it
    return HostEvent(
        tgid, event, enabled_ns, running_ns, config, attr_flags, name, event_type, cpu, state, oncpu
    )


class Census:
    """An attached iterator. Without one, or after it failed, a pull finds nothing and `missing` says why.

    `no_host_events` says why pulls find no events of the host; it is empty if they do.
    """

    def __init__(
        self,
        link: int | None,
        missing: str = "",
        *,
        no_host_events: str = "",
        program: int | None = None,
    ) -> None:
        """Take ownership of the descriptors; without that of the `program` there are no walks."""
        self.missing = missing
        self.no_host_events = no_host_events
        self._link = link
        self._program = program

    def pull(self) -> Look:
        """Return what there is on the host now."""
        if self._link is None:
            return Look()
        try:
            return decode(_read_all(self._link), time.monotonic())
        except KernelError as error:
            self.missing = str(error)
            self.close()
            return Look()

    @property
    def can_walk(self) -> bool:
        """Whether walk() may work: it needs Linux 6.1, and is not tried again once it has failed."""
        return self._program is not None

    def walk(self, tgids: Iterable[int]) -> Look | None:
        """Return what these processes have, without a look at the files of any other; None if it cannot.

        That takes no privileges: the program is loaded already, and a link of it needs none.
        `Look.host_events` has only those of these processes.
        """
        at = time.monotonic()
        data = bytearray()
        try:
            for tgid in tgids:
                link = self._link_for(tgid)
                if link is None:
                    continue  # it is gone
                try:
                    data += _read_all(link)
                finally:
                    os.close(link)
        except KernelError:
            self._end_walks()
            return None
        return decode(bytes(data), at)

    def _link_for(self, tgid: int) -> int | None:
        """Return a link for the files of one process (union bpf_iter_link_info, task); None if it is gone."""
        info = (ctypes.c_uint32 * _LINK_INFO_WORDS)(0, tgid, 0)  # tid, pid, pid_fd
        options = _LinkOptions(
            sz=ctypes.sizeof(_LinkOptions),
            iter_info=ctypes.addressof(info),
            iter_info_len=ctypes.sizeof(info),
        )
        with quiet():
            ctypes.set_errno(0)
            link = int(libbpf().bpf_link_create(self._program, 0, BPF_TRACE_ITER, ctypes.byref(options)))
        if link >= 0:
            return link
        if ctypes.get_errno() == errno.ESRCH:
            return None
        raise KernelError(f"cannot walk a process's files: {strerror(ctypes.get_errno())}")

    def _end_walks(self) -> None:
        if self._program is not None:
            os.close(self._program)
            self._program = None

    def close(self) -> None:
        """Detach the iterator."""
        if self._link is not None:
            os.close(self._link)
            self._link = None
        self._end_walks()


BPF_TRACE_ITER = 28
"""The attach type of iterators (include/uapi/linux/bpf.h, enum bpf_attach_type)."""

_LINK_INFO_WORDS = 4  # of union bpf_iter_link_info


class _LinkOptions(ctypes.Structure):
    """The head of `struct bpf_link_create_opts` (tools/lib/bpf/bpf.h)."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("flags", ctypes.c_uint32),
        ("iter_info", ctypes.c_void_p),
        ("iter_info_len", ctypes.c_uint32),
    )


def _read_all(link: int) -> bytes:
    with quiet():
        ctypes.set_errno(0)
        pull = int(libbpf().bpf_iter_create(link))
    if pull < 0:
        raise KernelError(f"cannot start to read the census: {strerror(ctypes.get_errno())}")
    data = bytearray()
    try:
        while True:
            try:
                chunk = os.read(pull, _READ_SIZE)
            except BlockingIOError:
                continue  # a million files in a row without a vCPU (MAX_ITER_OBJECTS): continue from there
            if not chunk:
                return bytes(data)
            data += chunk
    except OSError as error:
        raise KernelError(f"cannot read the census: {error.strerror}") from error
    finally:
        os.close(pull)
