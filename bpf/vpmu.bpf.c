// SPDX-License-Identifier: GPL-2.0-only
/*
 * Probes on the calls that KVM makes to perf for its guests' counters.
 *
 * The same bodies stand behind fentry/fexit (VPMU_FEXIT) and behind kprobe/kretprobe entry points; the latter
 * also serve as uprobes (VPMU_USER_MEMORY) where a kernel offers nothing else to attach to. Everything that
 * depends on the kernel comes in as VPMU_* constants, read from its BTF and kallsyms by
 * agent/vpmu_agent/kernel/.
 *
 * Whose event is it? KVM's events carry KVM's overflow handler and the pmc as its context, so an event says
 * for itself that it is KVM's, also when it was created before these probes came, and no map of known events
 * has to be kept, filled up, or cleaned. An event of anybody else costs a read or two.
 */
#include <uapi/linux/ptrace.h>
#include "vpmu.h"

#define PERF_TYPE_RAW		4
#define INTEL_FIXED_VLBR_EVENT	0x1b00	/* arch/x86/include/asm/perf_event.h */
#define MAX_ERRNO		4095	/* include/linux/err.h */

/* The start of struct perf_event_attr, which is ABI (include/uapi/linux/perf_event.h). */
struct vpmu_attr {
	u32 type;
	u32 size;
	u64 config;
	u64 sample_period;
	u64 sample_type;
	u64 read_format;
	u64 flags;
};

/* Calls under way, by thread and call: creation sleeps, so a CPU is no key. */
BPF_HASH(inflight, u64, struct vpmu_call, VPMU_MAX_INFLIGHT);
BPF_ARRAY(lost, u64, VPMU_LOST_REASONS);
/* Processes that user space was told of, by tgid: their struct mm_struct, for a tgid comes back. */
BPF_TABLE("lru_hash", u32, u64, processes, VPMU_MAX_PROCESSES);
/*
 * Set once every probe is attached, cleared before the first is taken off: a call is then seen with all its
 * neighbours or not at all.
 */
BPF_ARRAY(live, u32, 1);
BPF_RINGBUF_OUTPUT(calls, VPMU_RING_PAGES);

static __always_inline void vpmu_read(void *to, u32 size, u64 from)
{
#ifdef VPMU_USER_MEMORY
	bpf_probe_read_user(to, size, (void *)from);
#else
	bpf_probe_read_kernel(to, size, (void *)from);
#endif
}

static __always_inline void count_lost(int reason)
{
	int total = VPMU_LOST_TOTAL;
	u64 *count = lost.lookup(&reason);

	if (count)
		__sync_fetch_and_add(count, 1);
	count = lost.lookup(&total);
	if (count)
		__sync_fetch_and_add(count, 1);
}

static __always_inline bool is_kvm_handler(u64 handler)
{
	/* Before 5.17 KVM had a second handler, for counters that raise an interrupt. */
	return handler && (handler == VPMU_HANDLER || handler == VPMU_HANDLER_INTR);
}

static __always_inline bool is_guest_lbr(const struct vpmu_attr *attr)
{
	/* intel_pmu_create_guest_lbr_event() gives neither handler nor context. */
	return attr->type == PERF_TYPE_RAW && attr->config == INTEL_FIXED_VLBR_EVENT;
}

static __always_inline u64 inflight_key(u32 tid, u8 call)
{
	return (u64)tid << 8 | call;
}

static __always_inline void fill_pmc(struct vpmu_call *c, u64 pmc)
{
	u64 vcpu = 0;
	u32 type = 0;
	u8 event_count = 0;

	c->pmc = pmc;
	c->max_nr_events = 1;
	c->event_count = -1;
	if (!pmc) {
		c->pmc_type = VPMU_LBR;
		c->vcpu_id = -1;
		return;
	}
	vpmu_read(&type, sizeof(type), pmc + VPMU_PMC_TYPE);
	c->pmc_type = type;
	vpmu_read(&c->pmc_idx, sizeof(c->pmc_idx), pmc + VPMU_PMC_IDX);
	vpmu_read(&vcpu, sizeof(vcpu), pmc + VPMU_PMC_VCPU);
	vpmu_read(&c->vcpu_id, sizeof(c->vcpu_id), vcpu + VPMU_VCPU_ID);
#ifdef VPMU_VCPU_EVENT_COUNT
	vpmu_read(&event_count, sizeof(event_count), vcpu + VPMU_VCPU_EVENT_COUNT);
	c->event_count = event_count;
#endif
#ifdef VPMU_PMC_MAX_NR_EVENTS
	vpmu_read(&c->max_nr_events, sizeof(c->max_nr_events), pmc + VPMU_PMC_MAX_NR_EVENTS);
#endif
}

struct vpmu_process_command {
	struct vpmu_process process;
	char command[VPMU_COMMAND_SIZE];
};

static __always_inline void tell_process(u32 tgid)
{
	u64 task = bpf_get_current_task(), mm = 0, start = 0, end = 0, *told;
	struct vpmu_process_command *p;
	u32 size;

	bpf_probe_read_kernel(&mm, sizeof(mm), (void *)(task + VPMU_TASK_MM));
	if (!mm)
		return;	/* it is on its way out and has no command line any more */
	told = processes.lookup(&tgid);
	if (told && *told == mm)
		return;
	p = calls.ringbuf_reserve(sizeof(*p));
	if (!p)
		return;	/* at the next call, then */
	bpf_probe_read_kernel(&start, sizeof(start), (void *)(mm + VPMU_MM_ARG_START));
	bpf_probe_read_kernel(&end, sizeof(end), (void *)(mm + VPMU_MM_ARG_END));
	size = end - start < VPMU_COMMAND_SIZE ? end - start : VPMU_COMMAND_SIZE - 1;
	p->process.tgid = tgid;
	p->process.size = size & (VPMU_COMMAND_SIZE - 1);
	if (bpf_probe_read_user(p->command, p->process.size, (void *)start))
		p->process.size = 0;
	calls.ringbuf_submit(p, 0);
	processes.update(&tgid, &mm);
}

/* Keeps the call until its return; `c` has everything but time, thread and result. */
static __always_inline int begin(struct vpmu_call *c, const struct vpmu_attr *attr)
{
	u64 id = bpf_get_current_pid_tgid();
	u64 key = inflight_key(id, c->call);
	int first = 0;
	u32 *is_live = live.lookup(&first);

	if (!is_live || !*is_live)
		return 0;
	c->tgid = id >> 32;
	c->tid = id;
	c->attr_type = attr->type;
	c->attr_config = attr->config;
	c->attr_sample_period = attr->sample_period;
	c->attr_flags = attr->flags;

	/* The same thread cannot be in the same call twice: the last one's return was missed. */
	if (inflight.lookup(&key))
		count_lost(VPMU_LOST_MISSED_RETURN);
	tell_process(c->tgid);
	c->time_ns = bpf_ktime_get_ns();
	if (inflight.update(&key, c))
		count_lost(VPMU_LOST_INFLIGHT_FULL);
	return 0;
}

static __always_inline int create_entry(u64 attr_addr, u64 leader, u64 handler, u64 context)
{
	struct vpmu_call c = { .call = VPMU_CREATE, .leader = leader };
	struct vpmu_attr attr = {};

	if (is_kvm_handler(handler)) {
		vpmu_read(&attr, sizeof(attr), attr_addr);
		fill_pmc(&c, context);
		return begin(&c, &attr);
	}
	if (handler || context)
		return 0;
	vpmu_read(&attr, sizeof(attr), attr_addr);
	if (!is_guest_lbr(&attr))
		return 0;
	fill_pmc(&c, 0);
	return begin(&c, &attr);
}

static __always_inline int event_entry(u8 call, u64 event)
{
	struct vpmu_call c = { .call = call, .event = event };
	struct vpmu_attr attr = {};
	u64 handler = 0, context = 0;

	if (!event)
		return 0;
	vpmu_read(&handler, sizeof(handler), event + VPMU_EVENT_HANDLER);
	if (is_kvm_handler(handler)) {
		vpmu_read(&context, sizeof(context), event + VPMU_EVENT_CONTEXT);
		vpmu_read(&attr, sizeof(attr), event + VPMU_EVENT_ATTR);
	} else {
		vpmu_read(&attr, sizeof(attr), event + VPMU_EVENT_ATTR);
		if (!is_guest_lbr(&attr))
			return 0;
	}
	fill_pmc(&c, context);
	return begin(&c, &attr);
}

static __always_inline int call_return(u8 call, u64 returned)
{
	u64 now = bpf_ktime_get_ns();
	u64 key = inflight_key(bpf_get_current_pid_tgid(), call);
	struct vpmu_call *c = inflight.lookup(&key);
	int total = VPMU_LOST_TOTAL;
	u64 *lost_total;

	if (!c)
		return 0;
	c->duration_ns = now - c->time_ns;
	if (call == VPMU_CREATE) {
		if (returned >= (u64)-MAX_ERRNO)
			c->result = (s64)returned;
		else
			c->event = returned;
	}
	lost_total = lost.lookup(&total);
	if (lost_total)
		c->lost = *lost_total;
	if (calls.ringbuf_output(c, sizeof(*c), 0))
		count_lost(VPMU_LOST_RING_FULL);
	inflight.delete(&key);
	return 0;
}

/*
 * Entry points. VPMU_CREATE_ARGS is 5 in mainline: (attr, cpu, task, overflow_handler, context), and 6 with
 * grouped events, which put group_leader after task.
 */
#ifdef VPMU_FEXIT

/*
 * Arguments through bpf_get_func_arg() (5.17), for 6.1 refuses to let a program read the function pointer
 * directly.
 */
static __always_inline u64 func_arg(void *ctx, u32 n)
{
	u64 value = 0;

	bpf_get_func_arg(ctx, n, &value);
	return value;
}

static __always_inline u64 func_ret(void *ctx)
{
	u64 value = 0;

	bpf_get_func_ret(ctx, &value);
	return value;
}

#define PROBE_ENTRY(function, name)	KFUNC_PROBE(function)
#define PROBE_RETURN(function, name)	KRETFUNC_PROBE(function)
#define ARG(n)				func_arg(ctx, n)
#define RETURNED			func_ret(ctx)

#else

#define PROBE_ENTRY(function, name)	int vpmu_##name##_entry(struct pt_regs *ctx)
#define PROBE_RETURN(function, name)	int vpmu_##name##_return(struct pt_regs *ctx)
#define ARG(n)				ARG_##n
#define ARG_0				PT_REGS_PARM1(ctx)
#define ARG_3				PT_REGS_PARM4(ctx)
#define ARG_4				PT_REGS_PARM5(ctx)
#define ARG_5				PT_REGS_PARM6(ctx)
#define RETURNED			PT_REGS_RC(ctx)

#endif

#define EVENT_PROBES(function, name, call)	\
PROBE_RETURN(function, name)			\
{						\
	return call_return(call, 0);		\
}						\
						\
PROBE_ENTRY(function, name)			\
{						\
	return event_entry(call, ARG(0));	\
}

EVENT_PROBES(perf_event_enable, enable, VPMU_ENABLE)
EVENT_PROBES(perf_event_pause, pause, VPMU_PAUSE)
EVENT_PROBES(perf_event_release_kernel, release, VPMU_RELEASE)

PROBE_RETURN(perf_event_create_kernel_counter, create)
{
	return call_return(VPMU_CREATE, RETURNED);
}

PROBE_ENTRY(perf_event_create_kernel_counter, create)
{
#if VPMU_CREATE_ARGS == 6
	return create_entry(ARG(0), ARG(3), ARG(4), ARG(5));
#else
	return create_entry(ARG(0), 0, ARG(3), ARG(4));
#endif
}
