"""Where the census looks, in kernels that the compiler makes from their structs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.compiled import object_file
from vpmu_agent.kernel import btf
from vpmu_agent.kernel.census import CensusLayout, census_layout_of
from vpmu_agent.kernel.errors import BtfError

# In Linux 7.3's order, with other things between.
KERNEL = """
typedef unsigned char u8;
typedef unsigned int u32;
struct file_operations {{ void *others[4]; long (*unlocked_ioctl)(void); }} the_operations;
struct file {{ void *lock; const struct file_operations *f_op; void *mapping, *private_data; }} the_file;
struct task_struct {{ long others[3]; void *mm; int pid, tgid; }} the_task;
enum kvm_irqchip_mode {{ KVM_IRQCHIP_NONE = {none}, KVM_IRQCHIP_KERNEL, KVM_IRQCHIP_SPLIT }};
struct kvm_arch {{ enum kvm_irqchip_mode irqchip_mode; u8 nr; _Bool x2apic; {enable} {mediated} }};
struct kvm {{ long lock; void *mm; struct kvm_arch arch; }} the_kvm;
struct kvm_pmu {{ u8 version; unsigned nr_arch_gp_counters; }};
struct kvm_vcpu {{
	struct kvm *kvm;
	int cpu, vcpu_id;
	struct {{ long regs[4]; int cpuid_nent; struct kvm_pmu pmu; }} arch;
}} the_vcpu;
"""


def layout(
    folder: Path, *, none: int = 0, enable: str = "_Bool enable_pmu;", mediated: str = ""
) -> CensusLayout:
    source = KERNEL.format(none=none, enable=enable, mediated=mediated)
    return census_layout_of(btf.parse(object_file(source, folder)), vcpu_ioctl=0xFFFFFFFF8127CA20)


EXPECTED = {
    "VPMU_VCPU_IOCTL": 0xFFFFFFFF8127CA20,
    "VPMU_F_OP_IOCTL": 32,
    "VPMU_FILE_F_OP": 8,
    "VPMU_FILE_PRIVATE_DATA": 24,
    "VPMU_TASK_MM": 24,
    "VPMU_TASK_TGID": 36,
    "VPMU_KVM_MM": 8,
    "VPMU_KVM_IRQCHIP_MODE": 16,
    "VPMU_KVM_ENABLE_PMU": 22,
    "VPMU_VCPU_KVM": 0,
    "VPMU_VCPU_CPUID_NENT": 48,
    "VPMU_VCPU_PMU_VERSION": 52,
}


def test_a_kernel_before_the_mediated_vpmu(tmp_path: Path) -> None:
    assert layout(tmp_path) == CensusLayout(EXPECTED)


def test_a_kernel_with_it(tmp_path: Path) -> None:
    found = layout(tmp_path, mediated="_Bool created_mediated_pmu;")
    assert found == CensusLayout(EXPECTED | {"VPMU_KVM_CREATED_MEDIATED_PMU": 23})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"enable": ""}, "no field enable_pmu in struct kvm_arch"),  # before Linux 5.18
        ({"enable": "int enable_pmu;"}, "arch.enable_pmu of struct kvm is 4 bytes wide"),
        ({"mediated": "_Bool created_mediated_pmu : 1;"}, "arch.created_mediated_pmu of struct kvm is a bit"),
        ({"none": 1}, "KVM_IRQCHIP_NONE is 1 in the BTF of"),
    ],
)
def test_a_kernel_that_would_be_misread_is_refused(tmp_path: Path, change: dict[str, str], says: str) -> None:
    with pytest.raises(BtfError, match=says):
        layout(tmp_path, **change)  # type: ignore[arg-type]  # by name, of several types
