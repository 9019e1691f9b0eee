"""What the probes need to know of one kernel: struct offsets, the create call's arguments, KVM's handlers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vpmu_agent.kernel import btf
from vpmu_agent.kernel.arch import Arch, current_arch
from vpmu_agent.kernel.btf import NEW_TO_US, Btf
from vpmu_agent.kernel.container import has_sysfs
from vpmu_agent.kernel.errors import BtfError, KernelError, KvmNotLoadedError
from vpmu_agent.kernel.symbols import function_addresses

_POINTER = 8  # bytes
KVM_MODULE = Path("sys/module/kvm")
CREATE = "perf_event_create_kernel_counter"
EVENT_COUNT = "arch.pmu.event_count"  # of struct kvm_vcpu

# The arguments of the create call, by the kernel's names for them (kernel/events/core.c): in mainline, and in
# the grouped-events series. The probes would misread any others.
_SIGNATURES = (
    ("attr", "cpu", "task", "overflow_handler", "context"),
    ("attr", "cpu", "task", "group_leader", "overflow_handler", "context"),
)


@dataclass(frozen=True, slots=True)
class EventArray:
    """The array of events in `struct kvm_pmc` on a kernel with grouped events.

    `room` is how many events fit before the end of the struct, where the next pmc begins: KVM keeps pmcs in
    arrays. A flexible array declares no size, so nothing keeps KVM from writing more events than that.
    """

    room: int
    is_flexible: bool


@dataclass(frozen=True, slots=True)
class KernelLayout:
    """Byte offsets in this kernel's structs, and how it calls `perf_event_create_kernel_counter()`.

    `pmc_max_nr_events` is None where the kernel has no grouped events, `vcpu_event_count` where it does not
    count a vCPU's events. `create_args` is 5, or 6 with group_leader. `overflow_handlers` are addresses,
    newest name first; they are wrong once the kvm module has been reloaded.
    """

    pmc_size: int
    pmc_type: int
    pmc_idx: int
    pmc_vcpu: int
    pmc_max_nr_events: int | None
    pmc_events: EventArray | None
    vcpu_id: int
    vcpu_event_count: int | None
    event_attr: int
    event_state: int
    event_overflow_handler: int
    event_overflow_handler_context: int
    task_mm: int
    task_group_leader: int
    task_start_boottime: int
    mm_arg_start: int
    mm_arg_end: int
    create_args: int
    overflow_handlers: tuple[int, ...]


def read_layout(*, root: Path = Path("/"), arch: Arch | None = None, symbols: bytes = b"") -> KernelLayout:
    """Return the running kernel's layout; `symbols` is the text of kallsyms if that was read already.

    Raise KvmNotLoadedError if KVM is not loaded, BtfError if a type is missing or not as known here, and
    SymbolError if the handlers' addresses are missing or hidden.
    """
    arch = arch or current_arch()
    require_kvm(root=root, arch=arch)
    types = kvm_types(root=root)
    handlers = function_addresses(arch.overflow_handlers, root=root, symbols=symbols)
    return layout_of(types, overflow_handlers=tuple(symbol.address for symbol in handlers))


def require_kvm(*, root: Path = Path("/"), arch: Arch | None = None) -> None:
    """Raise KvmNotLoadedError if KVM is neither loaded nor built in, KernelError if /sys is not mounted."""
    arch = arch or current_arch()
    if not has_sysfs(root=root):
        raise KernelError(
            f"cannot see whether KVM is loaded: {root / 'sys'} is not the kernel's sysfs",
            "mount the host's /sys, read-only is enough",
        )
    if not (root / KVM_MODULE).exists():
        raise KvmNotLoadedError(
            f"KVM is not loaded: there is no {root / KVM_MODULE}",
            f"load it ({' or '.join(f'modprobe {name}' for name in arch.vendor_modules)})",
        )


def kvm_types(*, root: Path = Path("/")) -> Btf:
    """Return the BTF that has KVM's types: the kvm module's on top of the kernel's, or the kernel's alone.

    Both are searched: a kernel with KVM as a module can still have these structs in its own BTF. Raise
    BtfError if neither has them.
    """
    types = btf.vmlinux(root=root)
    try:
        types = btf.module("kvm", base=types, root=root)
    except BtfError as error:
        if not types.has_struct("kvm_pmc"):
            raise BtfError(
                f"no struct kvm_pmc in the BTF of {types.source}, and {error.found}", error.todo
            ) from error
    return types


def layout_of(types: Btf, *, overflow_handlers: tuple[int, ...]) -> KernelLayout:
    """Return the layout that `types` describe; raise BtfError, which names the field, if one does not fit."""

    def offset(struct: str, field: str, size: int) -> int:
        member = types.member(struct, field)
        if member.bits or (size and member.size != size):
            shape = f"a bit field of {member.bits} bits" if member.bits else f"{member.size} bytes wide"
            raise BtfError(
                f"{field} of struct {struct} is {shape} in the BTF of {types.source}, not {size} bytes",
                NEW_TO_US,
            )
        return member.offset

    _check_floor(types)
    _check_enumerators(types)
    args = _create_signature(types)
    grouped = types.has_member("kvm_pmc", "max_nr_events")
    counted = types.has_member("kvm_vcpu", EVENT_COUNT)
    return KernelLayout(
        pmc_size=types.struct_size("kvm_pmc"),
        pmc_type=offset("kvm_pmc", "type", 4),
        pmc_idx=offset("kvm_pmc", "idx", 1),
        pmc_vcpu=offset("kvm_pmc", "vcpu", 8),
        pmc_max_nr_events=offset("kvm_pmc", "max_nr_events", 1) if grouped else None,
        pmc_events=_event_array(types) if grouped else None,
        vcpu_id=offset("kvm_vcpu", "vcpu_id", 4),
        vcpu_event_count=offset("kvm_vcpu", EVENT_COUNT, 1) if counted else None,
        event_attr=offset("perf_event", "attr", 0),  # an ABI struct that grows at its end
        event_state=offset("perf_event", "state", 4),
        event_overflow_handler=offset("perf_event", "overflow_handler", 8),
        event_overflow_handler_context=offset("perf_event", "overflow_handler_context", 8),
        task_mm=offset("task_struct", "mm", 8),
        task_group_leader=offset("task_struct", "group_leader", 8),
        task_start_boottime=offset("task_struct", "start_boottime", 8),  # since Linux 5.5
        mm_arg_start=offset("mm_struct", "arg_start", 8),
        mm_arg_end=offset("mm_struct", "arg_end", 8),
        create_args=len(args),
        overflow_handlers=overflow_handlers,
    )


def _event_array(types: Btf) -> EventArray:
    member = types.member("kvm_pmc", "perf_events")
    size = member.size or types.struct_size("kvm_pmc") - member.offset
    return EventArray(room=size // _POINTER, is_flexible=member.size == 0)


def _create_signature(types: Btf) -> tuple[str, ...]:
    args = types.func_args(CREATE)
    names = tuple(arg.name for arg in args)
    if names not in _SIGNATURES:
        listed = ", ".join(f"{arg.type} {arg.name}".strip() for arg in args)
        raise BtfError(
            f"the arguments of {CREATE}() are ({listed}) in the BTF of {types.source}, not "
            + " or ".join(f"({', '.join(known)})" for known in _SIGNATURES),
            NEW_TO_US,
        )
    return names


def _check_floor(types: Btf) -> None:
    """Raise BtfError if `struct kvm_pmc` has no `is_paused`.

    Without it KVM pauses counters that are paused already, and the model has no rule for that. It came with
    "KVM: x86/pmu: Introduce pmc->is_paused to reduce the call time of perf interfaces" (e79f49c37ccf, Linux
    5.15).
    """
    if not types.has_member("kvm_pmc", "is_paused"):
        raise BtfError(
            f"no field is_paused in struct kvm_pmc in the BTF of {types.source}: without it KVM pauses "
            "counters that are paused already, and vpmu-agent would take that for a divergence",
            "boot a kernel that has it (it came with Linux 5.15)",
        )


# Enumerators that the probes take for these numbers: `kvm_pmc.type` is sent as it is.
_ENUMERATORS = (
    ("pmc_type", "KVM_PMC_GP", 0),
    ("pmc_type", "KVM_PMC_FIXED", 1),
    ("perf_event_state", "PERF_EVENT_STATE_ERROR", -2),
)


def _check_enumerators(types: Btf) -> None:
    """Raise BtfError, which names it, if one of `_ENUMERATORS` has another value."""
    for enum, name, known in _ENUMERATORS:
        value = types.enum_value(enum, name)
        if value != known:
            raise BtfError(
                f"{name} is {value} in the BTF of {types.source}, not {known}",
                NEW_TO_US,
            )
