"""Where this kernel's structs hold what the census reads: vCPUs, their counters, the host's perf events."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vpmu_agent.kernel.btf import NEW_TO_US, Btf
from vpmu_agent.kernel.errors import BtfError, SymbolError
from vpmu_agent.kernel.layout import kvm_types, require_kvm
from vpmu_agent.kernel.symbols import function_addresses, kallsyms

VCPU_IOCTL = "kvm_vcpu_ioctl"
"""The ioctl of a vCPU's file, and of no other (virt/kvm/kvm_main.c, kvm_vcpu_fops)."""

PERF_READ = "perf_read"
"""The read of a perf event's file, and of no other (kernel/events/core.c, perf_fops)."""

CREATED_MEDIATED = "arch.created_mediated_pmu"  # of struct kvm
_MAX_NR_EVENTS = "max_nr_events"  # of struct kvm_pmc, with grouped events

# The VPMU_* constants of bpf/census.bpf.c: each is the offset of a field, given here with its size in bytes,
# or 0 for a size that does not matter.
_FIELDS = {
    "VPMU_FILE_F_OP": ("file", "f_op", 8),
    "VPMU_FILE_PRIVATE_DATA": ("file", "private_data", 8),
    "VPMU_F_OP_IOCTL": ("file_operations", "unlocked_ioctl", 8),
    "VPMU_F_OP_READ": ("file_operations", "read", 8),
    "VPMU_TASK_TGID": ("task_struct", "tgid", 4),
    "VPMU_TASK_MM": ("task_struct", "mm", 8),
    "VPMU_TASK_COMM": ("task_struct", "comm", 16),
    "VPMU_TASK_PID_LINKS": ("task_struct", "pid_links", 0),  # an array, as those in the next two lines are
    "VPMU_TASK_PERF_EVENT_CTXP": ("task_struct", "perf_event_ctxp", 0),  # a pointer from Linux 6.2 on
    "VPMU_PID_TASKS": ("pid", "tasks", 0),
    "VPMU_TASK_ON_CPU": ("task_struct", "on_cpu", 0),  # 0 or 1: an int, or a byte as in Linux 7.3
    "VPMU_KVM_MM": ("kvm", "mm", 8),
    "VPMU_KVM_IRQCHIP_MODE": ("kvm", "arch.irqchip_mode", 4),
    "VPMU_KVM_ENABLE_PMU": ("kvm", "arch.enable_pmu", 1),  # since Linux 5.18
    "VPMU_KVM_PMU_EVENT_FILTER": ("kvm", "arch.pmu_event_filter", 8),
    "VPMU_VCPU_KVM": ("kvm_vcpu", "kvm", 8),
    "VPMU_VCPU_PID": ("kvm_vcpu", "pid", 8),
    "VPMU_VCPU_CPU": ("kvm_vcpu", "cpu", 4),
    "VPMU_VCPU_ID": ("kvm_vcpu", "vcpu_id", 4),
    "VPMU_VCPU_CPUID_NENT": ("kvm_vcpu", "arch.cpuid_nent", 4),
    "VPMU_VCPU_PMU_VERSION": ("kvm_vcpu", "arch.pmu.version", 1),
    "VPMU_VCPU_NR_GP": ("kvm_vcpu", "arch.pmu.nr_arch_gp_counters", 4),
    "VPMU_VCPU_NR_FIXED": ("kvm_vcpu", "arch.pmu.nr_arch_fixed_counters", 4),
    "VPMU_VCPU_GLOBAL_CTRL": ("kvm_vcpu", "arch.pmu.global_ctrl", 8),
    "VPMU_VCPU_FIXED_CTR_CTRL": ("kvm_vcpu", "arch.pmu.fixed_ctr_ctrl", 8),
    "VPMU_VCPU_GP_COUNTERS": ("kvm_vcpu", "arch.pmu.gp_counters", 0),
    "VPMU_VCPU_FIXED_COUNTERS": ("kvm_vcpu", "arch.pmu.fixed_counters", 0),
    "VPMU_PMC_EVENTSEL": ("kvm_pmc", "eventsel", 8),
    "VPMU_EVENT_STATE": ("perf_event", "state", 4),
    "VPMU_EVENT_TOTAL_TIME_ENABLED": ("perf_event", "total_time_enabled", 8),
    "VPMU_EVENT_TOTAL_TIME_RUNNING": ("perf_event", "total_time_running", 8),
    "VPMU_EVENT_COUNT": ("perf_event", "count", 8),
    "VPMU_EVENT_ATTR": ("perf_event", "attr", 0),  # an ABI struct that grows at its end
    "VPMU_EVENT_CONTEXT": ("perf_event", "overflow_handler_context", 8),
    "VPMU_EVENT_ENTRY": ("perf_event", "event_entry", 16),
    "VPMU_EVENT_ID": ("perf_event", "id", 8),
    "VPMU_EVENT_CTX": ("perf_event", "ctx", 8),
    "VPMU_EVENT_CPU": ("perf_event", "cpu", 4),
    "VPMU_EVENT_ONCPU": ("perf_event", "oncpu", 4),
    "VPMU_EVENT_PMU": ("perf_event", "pmu", 8),
    "VPMU_CONTEXT_TASK": ("perf_event_context", "task", 8),
    "VPMU_CONTEXT_EVENT_LIST": ("perf_event_context", "event_list", 16),
    "VPMU_PMU_TASK_CTX_NR": ("pmu", "task_ctx_nr", 4),
}

# As _FIELDS, of those that some kernels lack: what they say is unknown there.
_OPTIONAL_FIELDS = {
    "VPMU_KVM_CREATED_MEDIATED_PMU": ("kvm", CREATED_MEDIATED, 1),  # since Linux 7.0
    "VPMU_KVM_LAST_TSC_NSEC": ("kvm", "arch.last_tsc_nsec", 8),
    "VPMU_KVM_KVMCLOCK_OFFSET": ("kvm", "arch.kvmclock_offset", 8),
    "VPMU_VCPU_MP_STATE": ("kvm_vcpu", "arch.mp_state", 4),
}

# Enumerators that the census and its reader take for these numbers.
_ENUMERATORS = (
    ("kvm_irqchip_mode", "KVM_IRQCHIP_NONE", 0),
    ("perf_event_task_context", "perf_hw_context", 0),
    ("pid_type", "PIDTYPE_PID", 0),
    ("perf_event_state", "PERF_EVENT_STATE_ERROR", -2),
    ("perf_event_state", "PERF_EVENT_STATE_OFF", -1),
    ("perf_event_state", "PERF_EVENT_STATE_INACTIVE", 0),
    ("perf_event_state", "PERF_EVENT_STATE_ACTIVE", 1),
)


@dataclass(frozen=True, slots=True)
class CensusLayout:
    """What bpf/census.bpf.c is compiled with: offsets and sizes in bytes, and addresses of functions.

    The address of KVM's ioctl is wrong once the kvm module has been reloaded.
    """

    constants: dict[str, int]
    no_host_events: str = ""
    """Why the census finds no events of the host; empty if it does."""


def read_census_layout(*, root: Path = Path("/"), symbols: bytes = b"") -> CensusLayout:
    """Return the running kernel's layout; `symbols` is the text of kallsyms if that was read already.

    Raise KvmNotLoadedError if KVM is not loaded, BtfError if a field is missing or of another size, and
    SymbolError if the address of the ioctl is missing or hidden.
    """
    require_kvm(root=root)
    symbols = symbols or kallsyms(root=root)
    ioctl, *_ = function_addresses([VCPU_IOCTL], root=root, symbols=symbols)
    perf_read, no_host_events = None, ""
    try:
        perf_read = function_addresses([PERF_READ], root=root, symbols=symbols)[0].address
    except SymbolError as error:
        no_host_events = str(error)
    constants = census_constants_of(kvm_types(root=root), vcpu_ioctl=ioctl.address, perf_read=perf_read)
    return CensusLayout(constants, no_host_events)


def census_constants_of(types: Btf, *, vcpu_ioctl: int, perf_read: int | None) -> dict[str, int]:
    """Return the VPMU_* constants for `types`. Without `perf_read` the census finds no events of the host.

    Raise BtfError, which names the field, if one does not fit.
    """
    for enum, name, known in _ENUMERATORS:
        value = types.enum_value(enum, name)
        if value != known:
            raise BtfError(f"{name} is {value} in the BTF of {types.source}, not {known}", NEW_TO_US)
    constants = {name: _offset(types, *field) for name, field in _FIELDS.items()}
    size = constants["VPMU_PMC_SIZE"] = types.struct_size("kvm_pmc")
    for room, array in (("VPMU_GP_ROOM", "gp_counters"), ("VPMU_FIXED_ROOM", "fixed_counters")):
        constants[room] = types.member("kvm_vcpu", f"arch.pmu.{array}").size // size
    if types.has_member("kvm_pmc", _MAX_NR_EVENTS):
        constants["VPMU_PMC_MAX_NR_EVENTS"] = _offset(types, "kvm_pmc", _MAX_NR_EVENTS, 1)
        events = types.member("kvm_pmc", "perf_events")
        constants["VPMU_PMC_PERF_EVENT"] = events.offset
        # A flexible array has no size; what it holds beyond the struct is not the pmc's (model, hazard 4).
        constants["VPMU_PMC_EVENTS"] = (events.size or size - events.offset) // 8
    else:
        constants["VPMU_PMC_PERF_EVENT"] = _offset(types, "kvm_pmc", "perf_event", 8)
        constants["VPMU_PMC_EVENTS"] = 1
    for name, (struct, path, width) in _OPTIONAL_FIELDS.items():
        if types.has_member(struct, path):
            constants[name] = _offset(types, struct, path, width)
    if perf_read is not None:
        constants["VPMU_PERF_READ"] = perf_read
    return constants | {"VPMU_VCPU_IOCTL": vcpu_ioctl}


def _offset(types: Btf, struct: str, path: str, size: int) -> int:
    member = types.member(struct, path)
    if member.bits or (size and member.size != size):
        shape = f"a bit field of {member.bits} bits" if member.bits else f"{member.size} bytes wide"
        raise BtfError(
            f"{path} of struct {struct} is {shape} in the BTF of {types.source}, not {size} bytes", NEW_TO_US
        )
    return member.offset
