// SPDX-License-Identifier: GPL-2.0-only
/*
 * Probes on KVM's calls to read a counter and to set its period. The model says nothing of them: they are counted and
 * timed for their vCPU, or without durations counted for their pmc. Compiled behind vpmu.bpf.c, whose maps and
 * functions these are, unless they are left out (--no-reads).
 */

/* Where a call of this pmc is counted: where its duration will be, or else on a page that the call has read already. */
static __always_inline u64 *count_for(struct vpmu_pmc *pmc, struct vpmu_vcpu *vcpu, u32 name)
{
#ifdef VPMU_NO_DURATIONS
	return name == VPMU_IN_READ ? &pmc->reads : &pmc->periods;
#else
	return name == VPMU_IN_READ ? &vcpu->reads : &vcpu->periods;
#endif
}

/* The same of the pmc that holds this event, if the thread has seen it before: as in is_usual(). */
static __always_inline u64 *known_count(u64 event, struct vpmu_thread *thread, u32 name)
{
	u32 slot = 0, index = 0;
	struct vpmu_vcpu *vcpu = 0;
	struct vpmu_pmc *pmc;

	if (unlikely(!find_hint(thread, event, &slot, &index)))
		return 0;
	pmc = pmcs.lookup(&slot);
	if (unlikely(!pmc))
		return 0;
#if VPMU_SLOTS > 1
	index &= VPMU_SLOTS - 1;
#else
	index = 0;
#endif
	if (unlikely(EVENT_AT(pmc, index) != event || !(((pmc->members | pmc->orphans) >> index) & 1)))
		return 0;
#ifndef VPMU_NO_DURATIONS
	if (unlikely(thread->vcpu_slot != pmc->vcpu_slot))
		return 0;
	vcpu = vcpus.lookup(&thread->vcpu_slot);
	if (unlikely(!vcpu))
		return 0;
#endif
	return count_for(pmc, vcpu, name);
}

/* The same of any other event that is KVM's, and the entry of the thread. */
static __always_inline u64 *find_count(u64 event, struct vpmu_thread **thread, u32 name)
{
	struct vpmu_vcpu *vcpu;
	struct vpmu_pmc *pmc;
	u64 handler[2] = {};

	if (!event)
		return 0;
	read_handler(handler, event);
	if (!is_kvm_handler(handler[0]))
		return 0;
	*thread = thread_for(*thread, handler[1]);
	if (!*thread)
		return 0;
	(*thread)->pmc = handler[1];
	return find_entries(*thread, handler[1], 0, &pmc, &vcpu) ? count_for(pmc, vcpu, name) : 0;
}

static __always_inline int unchecked_entry(u32 name, u64 event)
{
	struct vpmu_thread *thread = this_thread();
	struct vpmu_control *now = control_now();
	u64 *count;

	if (unlikely(!now || !now->epoch))
		return 0;
	if (likely(thread && thread->name == VPMU_CALLS && (count = known_count(event, thread, name)))) {
		++*count;
		begin_timed(name, thread);
		return 0;
	}
	if (thread && thread->name != VPMU_CALLS)
		miss_return(thread);
	count = find_count(event, &thread, name);
	if (count) {
		++*count;
		begin_timed(name, thread);
	}
	return 0;
}

static __always_inline int unchecked_return(u32 name)
{
	u64 now_ns = bpf_ktime_get_ns(), duration, *counts;
	struct vpmu_thread *call = this_thread();
	struct vpmu_vcpu *vcpu;

	if (unlikely(!call || call->name != name))
		return 0;
	call->name = VPMU_CALLS;
	duration = now_ns - call->time_ns;
	vcpu = vcpus.lookup(&call->vcpu_slot);
	if (unlikely(!vcpu))
		return 0;
	counts = name == VPMU_IN_READ ? &vcpu->reads : &vcpu->periods;
	counts[1] += duration;
	counts[2 + duration_bucket(duration)]++;
	return 0;
}

#define UNCHECKED_PROBES(probe, name)                 \
	RETURN_PROBE(probe, unchecked_return(name))   \
	PROBE_ENTRY(probe)                            \
	{                                             \
		return unchecked_entry(name, ARG(0)); \
	}

UNCHECKED_PROBES(read, VPMU_IN_READ)
UNCHECKED_PROBES(period, VPMU_IN_PERIOD)
