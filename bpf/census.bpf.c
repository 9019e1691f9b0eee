// SPDX-License-Identifier: GPL-2.0-only
/*
 * The census: every vCPU of the host, what its guest asked of its counters and what these have of the host's PMU;
 * and every other user of that PMU.
 *
 * A BPF iterator over the open files of all processes (kernel/bpf/task_iter.c). It creates no events and
 * changes nothing. Reading it once to its end is one pull. It is compiled together with vpmu.bpf.c, with
 * the same constants, or alone. Pointers are numbers here, except for the one that bpf_seq_write() takes:
 * offsets are passed in as VPMU_* constants by agent/vpmu_agent/kernel/census.py.
 */
#include <linux/types.h>
#include "census.h"

/* struct perf_event_attr is an ABI (include/uapi/linux/perf_event.h). */
#define CENSUS_ATTR_CONFIG 8
#define CENSUS_ATTR_FLAGS  40

#define CENSUS_EVENTSEL_ENABLE (1ULL << 22) /* ARCH_PERFMON_EVENTSEL_ENABLE */
#define CENSUS_FIXED_ENABLE    3ULL         /* INTEL_FIXED_0_KERNEL | INTEL_FIXED_0_USER */
#define CENSUS_FIXED_BITS      4            /* of each counter in fixed_ctr_ctrl */
#define CENSUS_GP              0            /* enum pmc_type */
#define CENSUS_FIXED           1
#define CENSUS_LBR             2  /* as VPMU_LBR */
#define CENSUS_FIXED_BASE_IDX  32 /* KVM_FIXED_PMC_BASE_IDX, INTEL_PMC_IDX_FIXED */

#define CENSUS_TYPE_RAW   4      /* PERF_TYPE_RAW */
#define CENSUS_FIXED_VLBR 0x1b00 /* INTEL_FIXED_VLBR_EVENT */

#define CENSUS_THREAD_EVENTS 128 /* of a vCPU's thread, the newest: so many are looked at */

/* The kernel's context, of whose `meta` only the first member is used. */
struct bpf_iter__task_file {
	struct {
		void *seq;
	} *meta;
	u64 task;
	u64 fd;
	u64 file;
};

/* Returns 0 if it was read: what could not be read must not be taken for a zero in the kernel. */
static __always_inline long census_read(void *to, u32 size, u64 from)
{
	return bpf_probe_read_kernel(to, size, (void *)from);
}

/* An address in the kernel, which stays an instruction of its own for the loader to put this boot's in. */
static __always_inline u64 census_address(u64 address)
{
	asm volatile("" : "+r"(address));
	return address;
}

static __always_inline u64 census_pointer(u64 from)
{
	u64 pointer = 0;

	census_read(&pointer, sizeof(pointer), from);
	return pointer;
}

/* Returns 0 if the event was read, and still is that of the counter after it was: it can end at any time. */
static __always_inline long census_event(struct vpmu_census_pmc *found, u64 pmc, u64 slot)
{
	u64 event = found->event, task;
	u8 on_cpu = 0;
	long failed;

	failed = census_read(&found->state, sizeof(found->state), event + VPMU_EVENT_STATE);
	failed |= census_read(&found->enabled_ns, sizeof(found->enabled_ns),
			      event + VPMU_EVENT_TOTAL_TIME_ENABLED);
	failed |= census_read(&found->running_ns, sizeof(found->running_ns),
			      event + VPMU_EVENT_TOTAL_TIME_RUNNING);
	failed |= census_read(&found->count, sizeof(found->count), event + VPMU_EVENT_COUNT);
	failed |= census_read(&found->oncpu, sizeof(found->oncpu), event + VPMU_EVENT_ONCPU);
	failed |= census_read(&found->event_id, sizeof(found->event_id), event + VPMU_EVENT_ID);
	failed |= census_read(&found->config, sizeof(found->config),
			      event + VPMU_EVENT_ATTR + CENSUS_ATTR_CONFIG);
	failed |= census_read(&found->attr_flags, sizeof(found->attr_flags),
			      event + VPMU_EVENT_ATTR + CENSUS_ATTR_FLAGS);
	task = census_pointer(census_pointer(event + VPMU_EVENT_CTX) + VPMU_CONTEXT_TASK);
	/* Its lowest byte: 0 or 1, in an int or, as in Linux 7.3, in a byte. */
	failed |= census_read(&on_cpu, sizeof(on_cpu), task + VPMU_TASK_ON_CPU);
	found->on_cpu = on_cpu;
	if (census_pointer(event + VPMU_EVENT_CONTEXT) != pmc || census_pointer(slot) != event)
		return -1;
	return failed;
}

static __always_inline void census_pmc(void *seq, struct vpmu_census_pmc *found, u64 pmc, u64 enabled)
{
	u64 slot = pmc + VPMU_PMC_PERF_EVENT;
	int has_events = 0, i;

	found->max_nr_events = 1;
#ifdef VPMU_PMC_MAX_NR_EVENTS
	if (census_read(&found->max_nr_events, sizeof(found->max_nr_events), pmc + VPMU_PMC_MAX_NR_EVENTS))
		return;
#endif
	for (i = 0; i < VPMU_PMC_EVENTS; i++, slot += sizeof(u64)) {
		if (census_read(&found->event, sizeof(found->event), slot))
			return;
		if (!found->event)
			continue;
		has_events = 1;
		found->event_index = i;
		if (!census_event(found, pmc, slot))
			bpf_seq_write(seq, found, sizeof(*found));
	}
	if (has_events || !enabled)
		return;
	found->event = found->enabled_ns = found->running_ns = found->count = found->config = 0;
	found->attr_flags = found->state = found->on_cpu = found->event_id = 0;
	found->oncpu = -1;
	found->event_index = 0;
	bpf_seq_write(seq, found, sizeof(*found));
}

static __always_inline void census_pmcs(void *seq, u64 vcpu, const struct vpmu_census_vcpu *of)
{
	struct vpmu_census_pmc found = {
		.kind = VPMU_CENSUS_PMC, .tgid = of->tgid, .kvm_vcpu = vcpu, .vcpu_id = of->vcpu_id
	};
	u64 fixed_ctr_ctrl = census_pointer(vcpu + VPMU_VCPU_FIXED_CTR_CTRL);
	u64 pmc = vcpu + VPMU_VCPU_GP_COUNTERS;
	u32 i;

	found.pmc_type = CENSUS_GP;
	for (i = 0; i < VPMU_GP_ROOM; i++, pmc += VPMU_PMC_SIZE) {
		if (i >= of->nr_gp)
			break;
		found.pmc_idx = i;
		if (!census_read(&found.control, sizeof(found.control), pmc + VPMU_PMC_EVENTSEL))
			census_pmc(seq, &found, pmc, found.control & CENSUS_EVENTSEL_ENABLE);
	}
	found.pmc_type = CENSUS_FIXED;
	pmc = vcpu + VPMU_VCPU_FIXED_COUNTERS;
	for (i = 0; i < VPMU_FIXED_ROOM; i++, pmc += VPMU_PMC_SIZE) {
		if (i >= of->nr_fixed)
			break;
		found.pmc_idx = CENSUS_FIXED_BASE_IDX + i;
		found.control = (fixed_ctr_ctrl >> (CENSUS_FIXED_BITS * i)) & ((1 << CENSUS_FIXED_BITS) - 1);
		census_pmc(seq, &found, pmc, found.control & CENSUS_FIXED_ENABLE);
	}
}

/* Whether the counter has the event, so that KVM will release it; 1 if that cannot be known. */
static __always_inline int census_holds(u64 pmc, u64 event)
{
	u64 slot = pmc + VPMU_PMC_PERF_EVENT, held;
	u8 max_nr_events = 1;
	int i;

#ifdef VPMU_PMC_MAX_NR_EVENTS
	if (census_read(&max_nr_events, sizeof(max_nr_events), pmc + VPMU_PMC_MAX_NR_EVENTS))
		return 1;
#endif
	if (max_nr_events > VPMU_PMC_EVENTS)
		return 1;
	for (i = 0; i < VPMU_PMC_EVENTS; i++, slot += sizeof(u64)) {
		if (i >= max_nr_events)
			break;
		if (census_read(&held, sizeof(held), slot) || held == event)
			return 1;
	}
	return 0;
}

static __always_inline int census_is_guest_lbr(u64 event)
{
	u64 config = 0;
	u32 type = 0;

	if (census_read(&type, sizeof(type), event + VPMU_EVENT_ATTR) ||
	    census_read(&config, sizeof(config), event + VPMU_EVENT_ATTR + CENSUS_ATTR_CONFIG))
		return 0;
	return type == CENSUS_TYPE_RAW && config == CENSUS_FIXED_VLBR;
}

/*
 * An event of the vCPU's thread; written if it was made for a counter of the vCPU that does not hold it, or for
 * guest LBR.
 */
static __always_inline void census_thread_event(void *seq, struct vpmu_census_stray *found, u64 event)
{
	u64 pmc = census_pointer(event + VPMU_EVENT_CONTEXT), offset;
	long failed;

	offset = pmc - (found->kvm_vcpu + VPMU_VCPU_GP_COUNTERS);
	found->pmc_type = CENSUS_GP;
	found->pmc_idx = offset / VPMU_PMC_SIZE;
	if (offset >= VPMU_GP_ROOM * VPMU_PMC_SIZE) {
		offset = pmc - (found->kvm_vcpu + VPMU_VCPU_FIXED_COUNTERS);
		found->pmc_type = CENSUS_FIXED;
		found->pmc_idx = CENSUS_FIXED_BASE_IDX + offset / VPMU_PMC_SIZE;
		if (offset >= VPMU_FIXED_ROOM * VPMU_PMC_SIZE) {
			if (pmc || !census_is_guest_lbr(event))
				return; /* somebody else's */
			found->pmc_type = CENSUS_LBR;
			found->pmc_idx = 0;
		}
	}
	if (pmc && census_holds(pmc, event))
		return;
	failed = census_read(&found->id, sizeof(found->id), event + VPMU_EVENT_ID);
	failed |= census_read(&found->type, sizeof(found->type), event + VPMU_EVENT_ATTR);
	failed |= census_read(&found->config, sizeof(found->config),
			      event + VPMU_EVENT_ATTR + CENSUS_ATTR_CONFIG);
	failed |= census_read(&found->attr_flags, sizeof(found->attr_flags),
			      event + VPMU_EVENT_ATTR + CENSUS_ATTR_FLAGS);
	failed |= census_read(&found->state, sizeof(found->state), event + VPMU_EVENT_STATE);
	if (!failed && found->id)
		bpf_seq_write(seq, found, sizeof(*found));
}

/*
 * The events of the vCPU's thread, those that KVM has forgotten among them: the newest come first. An iterator runs
 * inside of rcu_read_lock(), so what is taken off this list meanwhile still leads on.
 */
static __always_inline void census_thread(void *seq, u64 vcpu, const struct vpmu_census_vcpu *of)
{
	struct vpmu_census_stray found = {
		.kind = VPMU_CENSUS_STRAY, .tgid = of->tgid, .kvm_vcpu = vcpu, .vcpu_id = of->vcpu_id
	};
	u64 pid = census_pointer(vcpu + VPMU_VCPU_PID), link, context, head, entry;
	int i;

	if (!pid) /* it never ran */
		return;
	link = census_pointer(pid + VPMU_PID_TASKS);
	if (!link) /* its thread is gone */
		return;
	/* Before 6.2 an array, the first of which is that for perf_hw_context. */
	context = census_pointer(link - VPMU_TASK_PID_LINKS + VPMU_TASK_PERF_EVENT_CTXP);
	if (!context)
		return;
	head = context + VPMU_CONTEXT_EVENT_LIST;
	entry = census_pointer(head);
#pragma clang loop unroll(disable)
	for (i = 0; i < CENSUS_THREAD_EVENTS; i++) {
		if (!entry || entry == head)
			return;
		census_thread_event(seq, &found, entry - VPMU_EVENT_ENTRY);
		entry = census_pointer(entry);
	}
	if (entry == head)
		return;
	found.id = found.config = found.attr_flags = 0;
	found.type = found.state = found.pmc_type = found.pmc_idx = 0;
	bpf_seq_write(seq, &found, sizeof(found));
}

static __always_inline void census_vcpu(void *seq, u64 task, u64 vcpu)
{
	struct vpmu_census_vcpu found = {
		.kind = VPMU_CENSUS_VCPU, .kvm_vcpu = vcpu, .tsc_set_ns = ~0ULL, .mp_state = ~0U
	};
	u64 mm;
	long failed;

	found.kvm = census_pointer(vcpu + VPMU_VCPU_KVM);
	/* Not a child that inherited the file, nor a process that was sent it: kvm_vcpu_ioctl(). */
	mm = census_pointer(found.kvm + VPMU_KVM_MM);
	if (!mm || mm != census_pointer(task + VPMU_TASK_MM))
		return;

	failed = census_read(&found.tgid, sizeof(found.tgid), task + VPMU_TASK_TGID);
	failed |= census_read(&found.vcpu_id, sizeof(found.vcpu_id), vcpu + VPMU_VCPU_ID);
	failed |= census_read(&found.cpu, sizeof(found.cpu), vcpu + VPMU_VCPU_CPU);
	failed |= census_read(&found.irqchip_mode, sizeof(found.irqchip_mode),
			      found.kvm + VPMU_KVM_IRQCHIP_MODE);
	failed |= census_read(&found.enable_pmu, sizeof(found.enable_pmu), found.kvm + VPMU_KVM_ENABLE_PMU);
#ifdef VPMU_KVM_CREATED_MEDIATED_PMU
	failed |= census_read(&found.created_mediated_pmu, sizeof(found.created_mediated_pmu),
			      found.kvm + VPMU_KVM_CREATED_MEDIATED_PMU);
#endif
	failed |= census_read(&found.event_filter, sizeof(found.event_filter),
			      found.kvm + VPMU_KVM_PMU_EVENT_FILTER);
	found.event_filter = !!found.event_filter;
#if defined(VPMU_KVM_LAST_TSC_NSEC) && defined(VPMU_KVM_KVMCLOCK_OFFSET)
	failed |=
		census_read(&found.tsc_set_ns, sizeof(found.tsc_set_ns), found.kvm + VPMU_KVM_LAST_TSC_NSEC);
	failed |= census_read(&found.kvmclock_offset, sizeof(found.kvmclock_offset),
			      found.kvm + VPMU_KVM_KVMCLOCK_OFFSET);
#endif
#ifdef VPMU_VCPU_MP_STATE
	failed |= census_read(&found.mp_state, sizeof(found.mp_state), vcpu + VPMU_VCPU_MP_STATE);
#endif
	failed |= census_read(&found.cpuid_nent, sizeof(found.cpuid_nent), vcpu + VPMU_VCPU_CPUID_NENT);
	failed |= census_read(&found.pmu_version, sizeof(found.pmu_version), vcpu + VPMU_VCPU_PMU_VERSION);
	failed |= census_read(&found.global_ctrl, sizeof(found.global_ctrl), vcpu + VPMU_VCPU_GLOBAL_CTRL);
	failed |= census_read(&found.nr_gp, sizeof(found.nr_gp), vcpu + VPMU_VCPU_NR_GP);
	failed |= census_read(&found.nr_fixed, sizeof(found.nr_fixed), vcpu + VPMU_VCPU_NR_FIXED);
	if (failed)
		return;
	bpf_seq_write(seq, &found, sizeof(found));
	if (found.pmu_version)
		census_pmcs(seq, vcpu, &found);
	census_thread(seq, vcpu, &found);
}

#ifdef VPMU_PERF_READ
static __always_inline void census_host_event(void *seq, u64 task, u64 event)
{
	struct vpmu_census_host_event found = { .kind = VPMU_CENSUS_HOST_EVENT, .event = event };
	s32 context = -1;
	long failed;

	/* 0, perf_hw_context: the events of the CPU's own PMU, which guests need too. */
	if (census_read(&context, sizeof(context),
			census_pointer(event + VPMU_EVENT_PMU) + VPMU_PMU_TASK_CTX_NR) ||
	    context)
		return;
	failed = census_read(&found.tgid, sizeof(found.tgid), task + VPMU_TASK_TGID);
	failed |= census_read(&found.comm, sizeof(found.comm), task + VPMU_TASK_COMM);
	failed |= census_read(&found.type, sizeof(found.type), event + VPMU_EVENT_ATTR);
	failed |= census_read(&found.config, sizeof(found.config),
			      event + VPMU_EVENT_ATTR + CENSUS_ATTR_CONFIG);
	failed |= census_read(&found.attr_flags, sizeof(found.attr_flags),
			      event + VPMU_EVENT_ATTR + CENSUS_ATTR_FLAGS);
	failed |= census_read(&found.state, sizeof(found.state), event + VPMU_EVENT_STATE);
	failed |= census_read(&found.cpu, sizeof(found.cpu), event + VPMU_EVENT_CPU);
	failed |= census_read(&found.oncpu, sizeof(found.oncpu), event + VPMU_EVENT_ONCPU);
	failed |= census_read(&found.enabled_ns, sizeof(found.enabled_ns),
			      event + VPMU_EVENT_TOTAL_TIME_ENABLED);
	failed |= census_read(&found.running_ns, sizeof(found.running_ns),
			      event + VPMU_EVENT_TOTAL_TIME_RUNNING);
	if (!failed)
		bpf_seq_write(seq, &found, sizeof(found));
}
#endif

int bpf_iter__task_file(struct bpf_iter__task_file *ctx)
{
	u64 task = ctx->task, file = ctx->file, operations;

	if (!task || !file) /* the end */
		return 0;
	operations = census_pointer(file + VPMU_FILE_F_OP);
	if (census_pointer(operations + VPMU_F_OP_IOCTL) == census_address(VPMU_VCPU_IOCTL))
		census_vcpu(ctx->meta->seq, task, census_pointer(file + VPMU_FILE_PRIVATE_DATA));
#ifdef VPMU_PERF_READ
	else if (census_pointer(operations + VPMU_F_OP_READ) == census_address(VPMU_PERF_READ))
		census_host_event(ctx->meta->seq, task, census_pointer(file + VPMU_FILE_PRIVATE_DATA));
#endif
	return 0;
}
