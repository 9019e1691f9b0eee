/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the probes send to user space.
 *
 * agent/vpmu_agent/probes/record.py reads this very text, so that the layout is written once: inside the
 * struct only `__uN name;` and `__sN name;`, each naturally aligned; in the enums only NAME, counted from 0.
 */
#ifndef VPMU_H
#define VPMU_H

enum vpmu_call_name {
	VPMU_CREATE,	/* perf_event_create_kernel_counter() */
	VPMU_ENABLE,	/* perf_event_enable() */
	VPMU_PAUSE,	/* perf_event_pause() */
	VPMU_RELEASE,	/* perf_event_release_kernel() */
};

/* The first two are the kernel's enum pmc_type. */
enum vpmu_pmc_type {
	VPMU_GP,
	VPMU_FIXED,
	VPMU_LBR,	/* the guest-LBR event, which has no pmc */
};

/* Index into the map `lost`: all losses, then the same by reason. */
enum vpmu_lost {
	VPMU_LOST_TOTAL,
	VPMU_LOST_RING_FULL,		/* user space did not keep up */
	VPMU_LOST_INFLIGHT_FULL,	/* more calls under way at once than there is room for */
	VPMU_LOST_MISSED_RETURN,	/* an entry whose return was never seen (kretprobe: nmissed) */
	VPMU_LOST_REASONS,
};

/*
 * Comes before the first call of a process. The process may be gone before user space has looked at it: a guest
 * can be as short-lived as a tenth of a second, and its name stands only here.
 */
struct vpmu_process {
	__u32 tgid;
	__u32 size;			/* bytes of the command line that follow in VPMU_COMMAND_SIZE bytes */
};

#define VPMU_COMMAND_SIZE 512

struct vpmu_call {
	__u64 time_ns;			/* bpf_ktime_get_ns() at entry */
	__u64 duration_ns;
	__u64 pmc;			/* struct kvm_pmc *, 0 for guest LBR */
	__u64 event;			/* struct perf_event *, 0 if it could not be created */
	__u64 leader;			/* group_leader, 0 if none */
	__s64 result;			/* 0 or a negative errno */
	__u64 lost;			/* VPMU_LOST_TOTAL as this record was sent */
	__u64 attr_config;
	__u64 attr_sample_period;
	__u64 attr_flags;		/* the bit field of struct perf_event_attr that starts with `disabled` */
	__u32 attr_type;
	__u32 tgid;
	__u32 tid;
	__s32 vcpu_id;			/* -1 for guest LBR */
	__u8 call;			/* enum vpmu_call_name */
	__u8 pmc_type;			/* enum vpmu_pmc_type */
	__u8 pmc_idx;			/* kvm_pmc.idx: fixed counters start at 32 */
	__u8 max_nr_events;		/* at entry; 1 where struct kvm_pmc has no such field */
	__s32 event_count;		/* kvm_pmu.event_count of the vCPU at entry, -1 if not known */
};

#endif
