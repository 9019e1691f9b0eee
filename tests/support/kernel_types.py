"""The structs of kernels with and without grouped events, as C text for a compiler."""

from __future__ import annotations

COMMON = """
typedef unsigned char u8;
typedef unsigned long long u64;
struct mm_struct {{ struct {{ u64 others[7]; unsigned long arg_start, arg_end; }}; }} the_mm;
struct task_struct {{
	u64 others[9]; struct mm_struct *mm; u64 start_boottime; struct task_struct *group_leader;
}} the_task;
struct perf_event_attr {{ unsigned type, size; u64 config; u64 flags; }};
enum perf_event_state {{ PERF_EVENT_STATE_ERROR = {error} }};
struct perf_event {{
	u64 before[5];
	{state}
	struct perf_event_attr attr;
	u64 between;
	void (*overflow_handler)(struct perf_event *);
	void *overflow_handler_context;
}} the_event;
struct kvm_vcpu {{
	void *kvm;
	int cpu, vcpu_id;
	struct {{ u64 others[3]; struct {{ u8 counters; {count} }} pmu; }} arch;
}} the_vcpu;
enum pmc_type {{ KVM_PMC_GP = 0, KVM_PMC_FIXED = {fixed} }};
struct kvm_pmc {{
	enum pmc_type type;
	u8 idx;
	{fields}
	{paused}
	u64 counter;
	struct kvm_vcpu *vcpu;
	{last}
}} the_pmc;
struct perf_event *perf_event_create_kernel_counter({arguments})
{{
	return 0;
}}
"""

MAINLINE_ARGUMENTS = (
    "struct perf_event_attr *attr, int cpu, struct task_struct *task, "
    "void (*overflow_handler)(struct perf_event *), void *context"
)
GROUPED_ARGUMENTS = MAINLINE_ARGUMENTS.replace("task, ", "task, struct perf_event *group_leader, ")


GROUPED_FIELDS = "u8 max_nr_events;"
SIZED_ARRAY = "union { struct perf_event *perf_event; struct perf_event *perf_events[4]; };"
# As the RFC's DECLARE_FLEX_ARRAY() makes it.
FLEXIBLE_ARRAY = """union {
	struct perf_event *perf_event;
	struct { struct { } __empty_perf_events; struct perf_event *perf_events[]; };
};"""


def source(
    *,
    fields: str = "",
    last: str = "struct perf_event *perf_event;",
    count: str = "u8 event_count;",
    arguments: str = MAINLINE_ARGUMENTS,
    paused: str = "_Bool is_paused;",
    fixed: int = 1,
    state: str = "enum perf_event_state state;",
    error: int = -2,
    gone: str = "",
) -> str:
    """Return the C text of a kernel's structs and functions; `gone` is a text that this kernel has not."""
    text = COMMON.format(
        fields=fields,
        last=last,
        count=count,
        arguments=arguments,
        paused=paused,
        fixed=fixed,
        state=state,
        error=error,
    )
    return text.replace(gone, gone and "gone")
