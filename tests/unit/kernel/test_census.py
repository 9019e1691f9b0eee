"""Where the census looks, in kernels that the compiler makes from their structs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.compiled import object_file
from vpmu_agent.kernel import btf
from vpmu_agent.kernel.census import census_constants_of
from vpmu_agent.kernel.errors import BtfError

# In Linux 7.3's order, with other things between.
KERNEL = """
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;
struct file_operations {{
	void *llseek[2]; void (*read)(void); void *others[2]; long (*unlocked_ioctl)(void);
}} the_ops;
struct file {{ void *lock; const struct file_operations *f_op; void *mapping, *private_data; }} the_file;
struct hlist_node {{ struct hlist_node *next, **pprev; }};
struct list_head {{ struct list_head *next, *prev; }};
enum pid_type {{ PIDTYPE_PID = {pid}, PIDTYPE_TGID }} the_pid_type;
struct pid {{ int count; unsigned level; struct {{ struct hlist_node *first; }} tasks[2]; }} the_pid;
struct task_struct {{
	long others[3]; void *mm; int pid, tgid; {on_cpu} char comm[16];
	struct hlist_node pid_links[2]; void {ctxp};
}} the_task;
enum kvm_irqchip_mode {{ KVM_IRQCHIP_NONE = {none}, KVM_IRQCHIP_KERNEL, KVM_IRQCHIP_SPLIT }};
struct kvm_arch {{
	enum kvm_irqchip_mode irqchip_mode; u8 nr; _Bool x2apic; {enable} {mediated}
	void *pmu_event_filter; {tsc}
}};
struct kvm {{ long lock; void *mm; struct kvm_arch arch; }} the_kvm;
enum perf_event_state {{
	PERF_EVENT_STATE_ERROR = -2, PERF_EVENT_STATE_OFF, PERF_EVENT_STATE_INACTIVE, PERF_EVENT_STATE_ACTIVE
}};
enum perf_event_task_context {{
	perf_invalid_context = -1, perf_hw_context = {context}, perf_sw_context
}} the_context;
struct pmu {{ long list[2]; int task_ctx_nr; }};
struct perf_event_context {{ long lock; struct task_struct *task; struct list_head event_list; }};
struct perf_event {{
	struct pmu *pmu; enum perf_event_state state; u64 count, total_time_enabled, total_time_running;
	struct {{ u32 type, size; u64 config[20]; }} attr;
	struct perf_event_context *ctx; int oncpu, cpu; void *overflow_handler_context;
	struct list_head event_entry; u64 id;
}} the_event;
struct kvm_pmc {{ int type; u8 idx; {groups} u64 counter, eventsel; {event} }};
struct kvm_pmu {{
	u8 version; unsigned nr_arch_gp_counters, nr_arch_fixed_counters; u64 fixed_ctr_ctrl, global_ctrl;
	struct kvm_pmc gp_counters[8], fixed_counters[3];
}};
struct kvm_vcpu {{
	struct kvm *kvm;
	int cpu, vcpu_id; struct pid *pid;
	struct {{ long regs[4]; int cpuid_nent; {state} struct kvm_pmu pmu; }} arch;
}} the_vcpu;
"""


def layout(folder: Path, *, perf_read: int | None = None, **other: str | int) -> dict[str, int]:
    usual: dict[str, str | int] = {
        "none": 0,
        "enable": "_Bool enable_pmu;",
        "mediated": "",
        "tsc": "",
        "state": "",
        "on_cpu": "int on_cpu;",
        "context": 0,
        "pid": 0,
        "ctxp": "*perf_event_ctxp",
        "groups": "",
        "event": "struct perf_event *perf_event;",
    }
    types = btf.parse(object_file(KERNEL.format(**(usual | other)), folder))
    return census_constants_of(types, vcpu_ioctl=0xFFFFFFFF8127CA20, perf_read=perf_read)


EXPECTED = {
    "VPMU_VCPU_IOCTL": 0xFFFFFFFF8127CA20,
    "VPMU_F_OP_READ": 16,
    "VPMU_F_OP_IOCTL": 40,
    "VPMU_FILE_F_OP": 8,
    "VPMU_FILE_PRIVATE_DATA": 24,
    "VPMU_TASK_MM": 24,
    "VPMU_TASK_TGID": 36,
    "VPMU_TASK_ON_CPU": 40,
    "VPMU_TASK_COMM": 44,
    "VPMU_TASK_PID_LINKS": 64,
    "VPMU_TASK_PERF_EVENT_CTXP": 96,
    "VPMU_PID_TASKS": 8,
    "VPMU_KVM_MM": 8,
    "VPMU_KVM_IRQCHIP_MODE": 16,
    "VPMU_KVM_ENABLE_PMU": 22,
    "VPMU_KVM_PMU_EVENT_FILTER": 24,
    "VPMU_VCPU_KVM": 0,
    "VPMU_VCPU_CPU": 8,
    "VPMU_VCPU_ID": 12,
    "VPMU_VCPU_PID": 16,
    "VPMU_VCPU_CPUID_NENT": 56,
    "VPMU_VCPU_PMU_VERSION": 64,
    "VPMU_VCPU_NR_GP": 68,
    "VPMU_VCPU_NR_FIXED": 72,
    "VPMU_VCPU_FIXED_CTR_CTRL": 80,
    "VPMU_VCPU_GLOBAL_CTRL": 88,
    "VPMU_VCPU_GP_COUNTERS": 96,
    "VPMU_VCPU_FIXED_COUNTERS": 96 + 8 * 32,
    "VPMU_GP_ROOM": 8,
    "VPMU_FIXED_ROOM": 3,
    "VPMU_PMC_SIZE": 32,
    "VPMU_PMC_EVENTSEL": 16,
    "VPMU_PMC_PERF_EVENT": 24,
    "VPMU_PMC_EVENTS": 1,
    "VPMU_EVENT_PMU": 0,
    "VPMU_EVENT_STATE": 8,
    "VPMU_EVENT_COUNT": 16,
    "VPMU_EVENT_TOTAL_TIME_ENABLED": 24,
    "VPMU_EVENT_TOTAL_TIME_RUNNING": 32,
    "VPMU_EVENT_ATTR": 40,
    "VPMU_EVENT_CTX": 208,
    "VPMU_EVENT_ONCPU": 216,
    "VPMU_EVENT_CPU": 220,
    "VPMU_EVENT_CONTEXT": 224,
    "VPMU_EVENT_ENTRY": 232,
    "VPMU_EVENT_ID": 248,
    "VPMU_CONTEXT_EVENT_LIST": 16,
    "VPMU_CONTEXT_TASK": 8,
    "VPMU_PMU_TASK_CTX_NR": 16,
}


def test_a_kernel_before_the_mediated_vpmu(tmp_path: Path) -> None:
    assert layout(tmp_path) == EXPECTED


def test_a_kernel_with_it(tmp_path: Path) -> None:
    found = layout(tmp_path, mediated="_Bool created_mediated_pmu;")
    assert found == EXPECTED | {"VPMU_KVM_CREATED_MEDIATED_PMU": 23}


def test_a_kernel_that_says_when_a_vm_was_reset(tmp_path: Path) -> None:
    """As they all do at the time of writing."""
    found = layout(tmp_path, tsc="u64 last_tsc_nsec, kvmclock_offset;", state="int mp_state;")
    moved = {"VPMU_KVM_LAST_TSC_NSEC": 32, "VPMU_KVM_KVMCLOCK_OFFSET": 40, "VPMU_VCPU_MP_STATE": 60}
    assert found == EXPECTED | moved


def test_a_kernel_where_on_cpu_is_a_byte(tmp_path: Path) -> None:
    """As in Linux 7.3; in KERNEL the struct's next field comes after it at once."""
    found = layout(tmp_path, on_cpu="u8 on_cpu;")
    assert found == EXPECTED | {"VPMU_TASK_COMM": EXPECTED["VPMU_TASK_ON_CPU"] + 1}


def test_a_kernel_where_a_thread_has_two_contexts(tmp_path: Path) -> None:
    """Before Linux 6.2; the first is that of the CPU's own PMU."""
    assert layout(tmp_path, ctxp="*perf_event_ctxp[2]") == EXPECTED


def test_the_events_of_the_host_are_found_by_the_address_of_perf_read(tmp_path: Path) -> None:
    assert layout(tmp_path, perf_read=0xFFFFFFFF81345670) == EXPECTED | {"VPMU_PERF_READ": 0xFFFFFFFF81345670}


@pytest.mark.parametrize(
    ("event", "number"),
    [
        ("union { struct perf_event *perf_event; struct perf_event *perf_events[4]; };", 4),
        (
            "struct perf_event *perf_events[];",
            0,
        ),  # as in the seed
    ],
    ids=["array", "flexible"],
)
def test_a_kernel_with_grouped_events(tmp_path: Path, event: str, number: int) -> None:
    found = layout(tmp_path, groups="u8 max_nr_events;", event=event)
    assert found["VPMU_PMC_MAX_NR_EVENTS"] == 5
    assert (found["VPMU_PMC_PERF_EVENT"], found["VPMU_PMC_EVENTS"]) == (24, number)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"enable": ""}, "no field enable_pmu in struct kvm_arch"),  # before Linux 5.18
        ({"enable": "int enable_pmu;"}, "arch.enable_pmu of struct kvm is 4 bytes wide"),
        ({"mediated": "_Bool created_mediated_pmu : 1;"}, "arch.created_mediated_pmu of struct kvm is a bit"),
        ({"none": 1}, "KVM_IRQCHIP_NONE is 1 in the BTF of"),
        ({"pid": 1}, "PIDTYPE_PID is 1 in the BTF of"),
        ({"context": 2}, "perf_hw_context is 2 in the BTF of"),
    ],
)
def test_a_kernel_that_would_be_misread_is_refused(
    tmp_path: Path, change: dict[str, str | int], says: str
) -> None:
    with pytest.raises(BtfError, match=says):
        layout(tmp_path, **change)  # type: ignore[arg-type]  # none of them is perf_read
