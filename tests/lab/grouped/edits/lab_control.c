// SPDX-License-Identifier: GPL-2.0-only
/*
 * The lab's controls of grouped events: parameters of the kvm module, all writable at run time.
 *
 * The design leaves to "the hardware definition" how many events a counter has, which ones, and how their counts
 * make one value. No hardware defines such counters, so the parameters do; and they make KVM take every path of
 * the design, its failures included. With their defaults KVM does what the design says for counters of one event,
 * which is what it did before.
 */

#include <linux/kvm_host.h>
#include <linux/module.h>
#include <linux/perf_event.h>

#include "x86.h"
#include "pmu.h"
#include "lab_control.h"

#define MAX_FIELD_BITS 16

static int param_set_group_size(const char *val, const struct kernel_param *kp)
{
	return param_set_uint_minmax(val, kp, 1, KVM_PMC_MAX_NR_EVENTS);
}

static const struct kernel_param_ops param_ops_group_size = {
	.set = param_set_group_size,
	.get = param_get_uint,
};
#define param_check_group_size(name, p) param_check_uint(name, p)

static uint group_sizes[KVM_INTEL_PMC_MAX_GENERIC];
static uint group_sizes_given;
module_param_array(group_sizes, group_size, &group_sizes_given, 0644);
MODULE_PARM_DESC(group_sizes, "Events of gp counter 0, 1, ...; 1 for those not given");

static uint group_sizes_fixed[KVM_PMC_MAX_FIXED];
static uint group_sizes_fixed_given;
module_param_array(group_sizes_fixed, group_size, &group_sizes_fixed_given, 0644);
MODULE_PARM_DESC(group_sizes_fixed, "The same for Intel's fixed counters");

static bool group_sizes_once;
module_param(group_sizes_once, bool, 0644);
MODULE_PARM_DESC(group_sizes_once, "A counter gets its size the first time only: release leaves it at 1");

static unsigned long long member_configs[KVM_PMC_MAX_NR_EVENTS];
static uint member_configs_given;
module_param_array(member_configs, ullong, &member_configs_given, 0644);
MODULE_PARM_DESC(member_configs, "Raw config of member 0, 1, ...; 0 or not given: the leader's. Member 0's is the guest's");

static int fail_create_at = -1;
module_param(fail_create_at, int, 0644);
MODULE_PARM_DESC(fail_create_at, "The member whose creation fails in every group, -1 for none");

static ushort fail_create_errno = ENODEV;
module_param(fail_create_errno, ushort, 0644);
MODULE_PARM_DESC(fail_create_errno, "What it fails with");

static uint shrink_to;
module_param(shrink_to, uint, 0644);
MODULE_PARM_DESC(shrink_to, "The guest's access makes a larger group this small before anything is released, 0 for never");

static uint splice;

static int splice_set(const char *val, const struct kernel_param *kp)
{
	uint bits;
	int ret = kstrtouint(val, 0, &bits);

	if (ret)
		return ret;
	if (bits != 0 && bits != 8 && bits != MAX_FIELD_BITS)
		return -EINVAL;
	WRITE_ONCE(splice, bits);
	return 0;
}

static const struct kernel_param_ops splice_ops = { .set = splice_set, .get = param_get_uint };
module_param_cb(splice, &splice_ops, &splice, 0644);
MODULE_PARM_DESC(splice, "Bits of each member's field in what the guest reads: 0 (the leader's count alone), 8 or 16");

/* What the design never does. Each needs a group of two or more. */
enum misbehave {
	MISBEHAVE_NONE,
	MISBEHAVE_CREATE_ENABLED,	/* the last member is created enabled */
	MISBEHAVE_ENABLE_EARLY,		/* the leader is enabled before the second member exists */
	MISBEHAVE_WRONG_LEADER,		/* the last member is created without the leader */
	MISBEHAVE_SWAP_ENABLES,		/* the last two members are enabled the wrong way round */
	MISBEHAVE_SKIP_ENABLE,		/* the last member is not enabled */
	MISBEHAVE_RELEASE_BACKWARDS,
};

static const char * const misbehave_names[] = {
	[MISBEHAVE_NONE]		= "none",
	[MISBEHAVE_CREATE_ENABLED]	= "create_enabled",
	[MISBEHAVE_ENABLE_EARLY]	= "enable_early",
	[MISBEHAVE_WRONG_LEADER]	= "wrong_leader",
	[MISBEHAVE_SWAP_ENABLES]	= "swap_enables",
	[MISBEHAVE_SKIP_ENABLE]		= "skip_enable",
	[MISBEHAVE_RELEASE_BACKWARDS]	= "release_backwards",
};

static enum misbehave misbehave;

static int misbehave_set(const char *val, const struct kernel_param *kp)
{
	int found = sysfs_match_string(misbehave_names, val);

	if (found < 0)
		return found;
	WRITE_ONCE(misbehave, found);
	return 0;
}

static int misbehave_get(char *buf, const struct kernel_param *kp)
{
	return sysfs_emit(buf, "%s\n", misbehave_names[READ_ONCE(misbehave)]);
}

static const struct kernel_param_ops misbehave_ops = { .set = misbehave_set, .get = misbehave_get };
module_param_cb(misbehave, &misbehave_ops, NULL, 0644);
MODULE_PARM_DESC(misbehave, "none, create_enabled, enable_early, wrong_leader, swap_enables, skip_enable, release_backwards");

static int hazards_at[] = { -1, -1, -1 };
module_param_array(hazards_at, int, NULL, 0644);
MODULE_PARM_DESC(hazards_at, "Process, vCPU and counter (kvm_pmc.idx) that alone are failed, shrunk, sized once or misbehave; -1 for any");

static bool has_hazards(struct kvm_pmc *pmc)
{
	const int here[] = { pmc->vcpu->kvm->userspace_pid, pmc->vcpu->vcpu_id, pmc->idx };
	int i;

	for (i = 0; i < ARRAY_SIZE(here); i++) {
		int only = READ_ONCE(hazards_at[i]);

		if (only != -1 && only != here[i])
			return false;
	}
	return true;
}

static bool group_misbehaves(struct kvm_pmc *pmc, enum misbehave how)
{
	return pmc->max_nr_events > 1 && READ_ONCE(misbehave) == how && has_hazards(pmc);
}

/* How many events the hardware would say this counter has. */
static uint defined_size(struct kvm_pmc *pmc)
{
	const uint *sizes = group_sizes;
	uint given = READ_ONCE(group_sizes_given);
	uint i = pmc->idx;

	if (pmc_is_fixed(pmc)) {
		sizes = group_sizes_fixed;
		given = READ_ONCE(group_sizes_fixed_given);
		i -= INTEL_PMC_IDX_FIXED;
	}
	return i < given ? READ_ONCE(sizes[i]) : 1;
}

/* reprogram_counter() begins: the definition may have changed since the events were made. */
void lab_access(struct kvm_pmc *pmc)
{
	uint size = READ_ONCE(shrink_to);

	if (size && pmc->perf_event && pmc->max_nr_events > size && has_hazards(pmc))
		pmc->max_nr_events = size;
}

/*
 * "When the guest accesses this all-in-one counter, its pmc->max_nr_events changes according to the hardware
 * definition": after the release of the old events, which makes it 1, and before new ones are made.
 */
void lab_define(struct kvm_pmc *pmc)
{
	if (pmc->lab_defined && READ_ONCE(group_sizes_once) && has_hazards(pmc))
		return;
	pmc->lab_defined = true;
	pmc->max_nr_events = defined_size(pmc);
}

/* Before event i is created. */
void lab_member(struct kvm_pmc *pmc, unsigned int i, struct perf_event_attr *attr, struct perf_event **leader)
{
	bool last = i == pmc->max_nr_events - 1;

	if (i) {
		attr->config = i < READ_ONCE(member_configs_given) ? READ_ONCE(member_configs[i]) : 0;
		if (!attr->config)
			attr->config = pmc->perf_event->attr.config;
	}
	attr->__reserved_2 = i == READ_ONCE(fail_create_at) && has_hazards(pmc) ? READ_ONCE(fail_create_errno) : 0;

	if (last && group_misbehaves(pmc, MISBEHAVE_CREATE_ENABLED))
		attr->disabled = 0;
	if (last && group_misbehaves(pmc, MISBEHAVE_WRONG_LEADER))
		*leader = NULL;
	if (i == 1 && group_misbehaves(pmc, MISBEHAVE_ENABLE_EARLY))
		perf_event_enable(pmc->perf_event);
}

/* In place of perf_event_enable() of event i. */
void lab_enable(struct kvm_pmc *pmc, unsigned int i)
{
	unsigned int last = pmc->max_nr_events - 1;

	if (i == last && group_misbehaves(pmc, MISBEHAVE_SKIP_ENABLE))
		return;
	if (i >= last - 1 && group_misbehaves(pmc, MISBEHAVE_SWAP_ENABLES))
		i = i == last ? last - 1 : last;
	perf_event_enable(pmc->perf_events[i]);
}

unsigned int lab_release_nth(struct kvm_pmc *pmc, unsigned int i)
{
	return group_misbehaves(pmc, MISBEHAVE_RELEASE_BACKWARDS) ? pmc->max_nr_events - 1 - i : i;
}
EXPORT_SYMBOL_GPL(lab_release_nth);

/* What member i has counted since it was made; 0 for a member that does not exist. */
static u64 live_count(struct kvm_pmc *pmc, unsigned int i)
{
	u64 enabled, running;

	return pmc->perf_events[i] ? perf_event_read_value(pmc->perf_events[i], &enabled, &running) : 0;
}

/*
 * The members are about to be released with the group. KVM keeps the leader's count in pmc->counter; a counter
 * whose value has a field for each member keeps the others' too.
 */
void lab_keep_members(struct kvm_pmc *pmc)
{
	unsigned int i;

	for (i = 1; i < pmc->max_nr_events; i++)
		pmc->lab_counts[i] += live_count(pmc, i);
}
EXPORT_SYMBOL_GPL(lab_keep_members);

/*
 * What the guest reads from a counter: "reflect the values of multiple hardware events on different fields of the
 * same counter". The number of fields is the definition's, not that of the events that exist: the fields of
 * events that are missing stand still.
 */
u64 lab_guest_read(struct kvm_pmc *pmc)
{
	uint bits = READ_ONCE(splice);
	uint fields = defined_size(pmc);
	u64 value = pmc_read_counter(pmc);
	unsigned int i;

	if (!bits || fields == 1)
		return value;

	value &= GENMASK_ULL(bits - 1, 0);
	for (i = 1; i < fields; i++) {
		u64 count = pmc->lab_counts[i] + (i < pmc->max_nr_events ? live_count(pmc, i) : 0);

		value |= (count & GENMASK_ULL(bits - 1, 0)) << (i * bits);
	}
	return value;
}
EXPORT_SYMBOL_GPL(lab_guest_read);

/* The guest writes all fields at once; pmc_write_counter() sets the leader's. */
void lab_guest_write(struct kvm_pmc *pmc, u64 value)
{
	uint bits = READ_ONCE(splice);
	unsigned int i;

	if (!bits)
		return;
	BUILD_BUG_ON(KVM_PMC_MAX_NR_EVENTS * MAX_FIELD_BITS > 64);
	for (i = 1; i < KVM_PMC_MAX_NR_EVENTS; i++) {
		pmc->lab_counts[i] = (value >> (i * bits)) & GENMASK_ULL(bits - 1, 0);
		if (i < pmc->max_nr_events)
			pmc->lab_counts[i] -= live_count(pmc, i);
	}
}
EXPORT_SYMBOL_GPL(lab_guest_write);

static void reset_counters(struct kvm_pmc *counters, size_t number)
{
	size_t i;

	for (i = 0; i < number; i++) {
		memset(counters[i].lab_counts, 0, sizeof(counters[i].lab_counts));
		counters[i].lab_defined = false;
	}
}

void lab_reset(struct kvm_pmu *pmu)
{
	reset_counters(pmu->gp_counters, ARRAY_SIZE(pmu->gp_counters));
	reset_counters(pmu->fixed_counters, ARRAY_SIZE(pmu->fixed_counters));
}
