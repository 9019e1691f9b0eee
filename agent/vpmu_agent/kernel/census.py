"""Where this kernel's structs hold what the census reads: a host's vCPUs and the state of their PMUs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vpmu_agent.kernel.btf import NEW_TO_US, Btf
from vpmu_agent.kernel.errors import BtfError
from vpmu_agent.kernel.layout import kvm_types, require_kvm
from vpmu_agent.kernel.symbols import function_addresses

VCPU_IOCTL = "kvm_vcpu_ioctl"
"""The ioctl of a vCPU's file, and of no other (virt/kvm/kvm_main.c, kvm_vcpu_fops)."""

CREATED_MEDIATED = "arch.created_mediated_pmu"  # of struct kvm

# The VPMU_* constants of bpf/census.bpf.c: each is the offset of a field, given here with its size in bytes.
_FIELDS = {
    "VPMU_FILE_F_OP": ("file", "f_op", 8),
    "VPMU_FILE_PRIVATE_DATA": ("file", "private_data", 8),
    "VPMU_F_OP_IOCTL": ("file_operations", "unlocked_ioctl", 8),
    "VPMU_TASK_TGID": ("task_struct", "tgid", 4),
    "VPMU_TASK_MM": ("task_struct", "mm", 8),
    "VPMU_VCPU_KVM": ("kvm_vcpu", "kvm", 8),
    "VPMU_VCPU_CPUID_NENT": ("kvm_vcpu", "arch.cpuid_nent", 4),
    "VPMU_VCPU_PMU_VERSION": ("kvm_vcpu", "arch.pmu.version", 1),
    "VPMU_KVM_MM": ("kvm", "mm", 8),
    "VPMU_KVM_IRQCHIP_MODE": ("kvm", "arch.irqchip_mode", 4),
    "VPMU_KVM_ENABLE_PMU": ("kvm", "arch.enable_pmu", 1),  # since Linux 5.18
}


@dataclass(frozen=True, slots=True)
class CensusLayout:
    """What bpf/census.bpf.c is compiled with: offsets in bytes, and the address of KVM's ioctl for vCPUs.

    The address is wrong once the kvm module has been reloaded.
    """

    constants: dict[str, int]


def read_census_layout(*, root: Path = Path("/")) -> CensusLayout:
    """Return the running kernel's layout.

    Raise KvmNotLoadedError if KVM is not loaded, BtfError if a field is missing or of another size, and
    SymbolError if the address of the ioctl is missing or hidden.
    """
    require_kvm(root=root)
    ioctl, *_ = function_addresses([VCPU_IOCTL], root=root)
    return census_layout_of(kvm_types(root=root), vcpu_ioctl=ioctl.address)


def census_layout_of(types: Btf, *, vcpu_ioctl: int) -> CensusLayout:
    """Return the layout that `types` describe; raise BtfError, which names the field, if one does not fit."""
    none = types.enum_value("kvm_irqchip_mode", "KVM_IRQCHIP_NONE")
    if none != 0:
        raise BtfError(f"KVM_IRQCHIP_NONE is {none} in the BTF of {types.source}, not 0", NEW_TO_US)
    constants = {name: _offset(types, *field) for name, field in _FIELDS.items()}
    if types.has_member("kvm", CREATED_MEDIATED):
        constants["VPMU_KVM_CREATED_MEDIATED_PMU"] = _offset(types, "kvm", CREATED_MEDIATED, 1)
    return CensusLayout(constants | {"VPMU_VCPU_IOCTL": vcpu_ioctl})


def _offset(types: Btf, struct: str, path: str, size: int) -> int:
    member = types.member(struct, path)
    if member.bits or member.size != size:
        shape = f"a bit field of {member.bits} bits" if member.bits else f"{member.size} bytes wide"
        raise BtfError(
            f"{path} of struct {struct} is {shape} in the BTF of {types.source}, not {size} bytes", NEW_TO_US
        )
    return member.offset
