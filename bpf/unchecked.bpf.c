// SPDX-License-Identifier: GPL-2.0-only
/*
 * Probes on KVM's calls to read a counter and to set its period. The model says nothing of them: they are counted
 * for their pmc, and timed for its vCPU. Compiled behind vpmu.bpf.c, whose maps and functions these are, unless
 * they are left out (--no-reads).
 */

/* The pmc that holds the event, if this thread has seen it before: as in is_usual(). */
static __always_inline struct vpmu_pmc *known_pmc(u64 event, struct vpmu_thread *thread)
{
	u32 slot = 0, index = 0;
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
	thread->vcpu_slot = pmc->vcpu_slot;
	return pmc;
}

/* The same of any other event that is KVM's, and the entry of the thread. */
static __always_inline struct vpmu_pmc *pmc_of(u64 event, struct vpmu_thread **thread)
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
	return find_entries(*thread, handler[1], 0, &pmc, &vcpu) ? pmc : 0;
}

static __always_inline void count_unchecked(struct vpmu_pmc *pmc, u32 name)
{
	if (name == VPMU_IN_READ)
		pmc->reads++;
	else
		pmc->periods++;
}

static __always_inline int unchecked_entry(u32 name, u64 event)
{
	struct vpmu_thread *thread = this_thread();
	struct vpmu_control *now = control_now();
	struct vpmu_pmc *pmc;

	if (unlikely(!now || !now->epoch))
		return 0;
	if (likely(thread && thread->name == VPMU_CALLS && (pmc = known_pmc(event, thread)))) {
		count_unchecked(pmc, name);
		begin_timed(name, thread);
		return 0;
	}
	if (thread && thread->name != VPMU_CALLS)
		miss_return(thread);
	pmc = pmc_of(event, &thread);
	if (pmc) {
		count_unchecked(pmc, name);
		begin_timed(name, thread);
	}
	return 0;
}

static __always_inline int unchecked_return(u32 name)
{
	u64 now_ns = bpf_ktime_get_ns(), duration, *sum_ns;
	struct vpmu_thread *call = this_thread();
	struct vpmu_vcpu *vcpu;

	if (unlikely(!call || call->name != name))
		return 0;
	call->name = VPMU_CALLS;
	duration = now_ns - call->time_ns;
	vcpu = vcpus.lookup(&call->vcpu_slot);
	if (unlikely(!vcpu))
		return 0;
	sum_ns = name == VPMU_IN_READ ? &vcpu->read_ns : &vcpu->period_ns;
	*sum_ns += duration;
	sum_ns[1 + duration_bucket(duration)]++;
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
