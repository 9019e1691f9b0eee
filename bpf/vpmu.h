/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the probes share with user space: the keys and values of the maps, and the records in the ring.
 *
 * agent/vpmu_agent/probes/layout.py reads this text, so that the layout is written in one place. A struct
 * may have `__uN name;`, `__sN name;` and arrays of these only, naturally
 * aligned and without padding; an enum only names, counted from 0. VPMU_KINDS, VPMU_STATES and VPMU_SLOTS
 * come from the model (model/rules.py).
 */
#ifndef VPMU_H
#define VPMU_H

enum vpmu_call_name {
	VPMU_CREATE,  /* perf_event_create_kernel_counter() */
	VPMU_ENABLE,  /* perf_event_enable() */
	VPMU_PAUSE,   /* perf_event_pause() */
	VPMU_RELEASE, /* perf_event_release_kernel() */
};

/* The first two are the kernel's enum pmc_type. */
enum vpmu_pmc_type {
	VPMU_GP,
	VPMU_FIXED,
	VPMU_LBR, /* the guest-LBR event, which has no pmc */
};

/* Index into the map `lost`, a count for each reason. */
enum vpmu_lost {
	VPMU_LOST_RING_FULL,     /* a record: user space did not keep up. The counts include the call. */
	VPMU_LOST_INFLIGHT_FULL, /* more threads in a call than there is room for */
	VPMU_LOST_MISSED_RETURN, /* an entry whose return was never seen (kretprobe: nmissed) */
	VPMU_LOST_PMCS_FULL,     /* a call of a pmc for which there is no room */
	VPMU_LOST_VCPUS_FULL,    /* a call of a vCPU for which there is no room */
	VPMU_LOST_ERRORS_FULL,   /* the errno of a failed creation. The other counts include it. */
	VPMU_LOST_REASONS,
};

#define VPMU_CALLS       4  /* enum vpmu_call_name */
#define VPMU_BUCKETS     12 /* of durations: model/buckets.py, and one for the rest */
#define VPMU_ALL_BUCKETS 48 /* VPMU_CALLS * VPMU_BUCKETS */
#define VPMU_SIZES       6  /* of group sizes: model/buckets.py, and one for the rest */

/* The one entry of the map `control`, which user space writes. */
struct vpmu_control {
	__u32 epoch;  /* 0: ignore new calls; changed: calls were lost, of any pmc */
	__u32 stream; /* send every call, not only those that user space must see */
};

/* Key of the map `vcpus`. */
struct vpmu_vcpu_key {
	__u32 tgid;
	__s32 vcpu_id; /* of guest LBR, whose vCPU is not known: -1 minus the thread's number */
};

/*
 * Value of the map `vcpus`: what was counted for one vCPU, and what its pmcs hold now. KVM makes one call
 * at a time for a vCPU (vcpu->mutex), so that no two CPUs write here at once.
 */
struct vpmu_vcpu {
	__u64 calls[VPMU_CALLS];
	__u64 predicted[VPMU_CALLS];
	__u64 duration_ns[VPMU_CALLS];
	__u64 duration_buckets[VPMU_ALL_BUCKETS]; /* those of one call after those of another */
	__u64 verdicts[VPMU_KINDS];               /* by enum vpmu_kind */
	__u64 pinned_siblings;
	__u64 sizes[VPMU_SIZES];
	__u64 sizes_sum;
	__s64 groups[VPMU_STATES]; /* pmcs that hold events now, by enum vpmu_state */
	__s64 events;
	__s64 orphans;
	__s64 event_count; /* what kvm_pmu.event_count should be at the next call, -1 if not known */
	__u64 epoch;
};

/* Key of the map `pmcs`. */
struct vpmu_pmc_key {
	__u64 pmc; /* struct kvm_pmc *; of guest LBR the event */
	__u32 tgid;
	__u32 unused;
};

/* Value of the map `pmcs`: the registers of the model's rules (docs/model.md), and which pmc it is. */
struct vpmu_pmc {
	__u64 calls[VPMU_CALLS];
	__u64 members; /* bit i: perf_events[i] is held */
	__u64 enabled;
	__u64 orphans; /* bit i: perf_events[i] is there, but a release passed it by */
	__u64 walk;    /* while releasing: what is still to come */
	__u64 gone;    /* bit i: released in this program */
	__u64 vcpu;    /* struct kvm_vcpu *, 0 for guest LBR */
	__u32 left;    /* events that no entry of perf_events holds any more */
	__u32 faults;  /* bit of each Kind that this program has had */
	__u32 epoch;
	__s32 vcpu_id;
	__u8 state; /* enum vpmu_state */
	__u8 size;
	__u8 paused;
	__u8 found; /* scratch */
	__u8 pmc_type;
	__u8 pmc_idx;
	__u8 unused[2];
	__u32 verdicts[VPMU_KINDS]; /* by enum vpmu_kind; what was predicted is not counted */
	__u32 attr_type;            /* of the last create, like the next three */
	__u64 attr_config;
	__u64 attr_sample_period;
	__u64 attr_flags;
	__u64 events[VPMU_SLOTS]; /* struct perf_event * */
};

/* Value of the map `inflight`, by thread: the call that it is in. Threads keep their entry. */
struct vpmu_inflight {
	__u64 time_ns;
	__u64 pmc;
	__u64 event;
	__u64 leader;
	__u64 attr_config;
	__u64 attr_sample_period;
	__u64 attr_flags;
	__u32 attr_type;
	__u32 has_attr;
	__u32 tgid;
	__u32 name;   /* enum vpmu_call_name, VPMU_CALLS if in none */
	__u32 failed; /* this and what follows is known at the return */
	__u32 disabled;
	__u32 n; /* max_nr_events */
	__s32 event_count;
	__u64 at; /* the verdict, as in struct vpmu_call */
	__u32 kind;
	__u32 expected;
	__u32 size;
	__s32 event_index;
	__s32 leader_index;
	__u32 unused;
};

/* Key of the map `errors`, whose value is a __u64: creations that failed. */
struct vpmu_error_key {
	__u32 tgid;
	__u32 error; /* errno, positive */
};

/*
 * In the ring, before the first call of a vCPU of a process. A guest can be gone after a tenth of a
 * second, before user space has looked at its process: then its name is only here.
 */
struct vpmu_process {
	__u32 tgid;
	__u32 size; /* bytes of the command line that follow in VPMU_COMMAND_SIZE bytes */
};

#define VPMU_COMMAND_SIZE 512

/* In the ring: a divergence, a creation that failed, or any call while `stream` is set. */
struct vpmu_call {
	__u64 time_ns; /* bpf_ktime_get_ns() at entry */
	__u64 duration_ns;
	__u64 pmc;    /* struct kvm_pmc *, 0 for guest LBR */
	__u64 event;  /* struct perf_event *, 0 if it could not be created */
	__u64 leader; /* group_leader, 0 if none */
	__s64 result; /* 0 or a negative errno */
	__u64 lost;   /* all losses so far, as this record was sent */
	__u64 attr_config;
	__u64 attr_sample_period;
	__u64 attr_flags;  /* the bit field of struct perf_event_attr that starts with `disabled` */
	__u64 expected_at; /* the number that goes with `expected`: an index, a size, a count or a mask */
	__u32 attr_type;
	__u32 tgid;
	__u32 tid;
	__s32 vcpu_id;       /* -1 for guest LBR */
	__s32 event_count;   /* kvm_pmu.event_count of the vCPU at entry, -1 if not known */
	__u8 name;           /* enum vpmu_call_name */
	__u8 pmc_type;       /* enum vpmu_pmc_type */
	__u8 pmc_idx;        /* kvm_pmc.idx: fixed counters start at 32 */
	__u8 max_nr_events;  /* at entry; 1 where struct kvm_pmc has no such field */
	__u8 verdict;        /* enum vpmu_kind */
	__u8 expected;       /* enum vpmu_expected */
	__s8 event_index;    /* -1: not known */
	__s8 leader_index;   /* -1: none, or not known */
	__u32 expected_size; /* N of the group that `expected` is about */
};

#endif
