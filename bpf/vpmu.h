/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the probes share with user space: the keys and values of the maps, and the records in the ring.
 *
 * agent/vpmu_agent/probes/layout.py reads this text, so that the layout is written in one place. A struct
 * may have `__uN name;`, `__sN name;` and arrays of these only, naturally
 * aligned and without padding; an enum only names, counted from 0. VPMU_KINDS, VPMU_STATES and VPMU_SLOTS
 * come from the model (model/rules.py), VPMU_ROOM from what fills the last cache line of struct vpmu_pmc.
 */
#ifndef VPMU_H
#define VPMU_H

enum vpmu_call_name {
	VPMU_CREATE,  /* perf_event_create_kernel_counter() */
	VPMU_ENABLE,  /* perf_event_enable() */
	VPMU_PAUSE,   /* perf_event_pause() */
	VPMU_RELEASE, /* perf_event_release_kernel() */
};

/* Calls of which the model says nothing: they are only counted. */
enum vpmu_unchecked_call {
	VPMU_READ,   /* perf_event_read_value() */
	VPMU_PERIOD, /* perf_event_period() */
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
	VPMU_LOST_MISSED_RETURN, /* what the return of a call tells: it was never seen (kretprobe: nmissed) */
	VPMU_LOST_PMCS_FULL,     /* a call of a pmc for which there is no room */
	VPMU_LOST_VCPUS_FULL,    /* a call of a vCPU for which there is no room */
	VPMU_LOST_ERRORS_FULL,   /* the errno of a failed creation. The other counts include it. */
	VPMU_LOST_OVER_SHARE,    /* a call of a process that has taken all the entries that one may take */
	VPMU_LOST_TGID_REUSED, /* a call of a process whose tgid another one had, of which there still are entries */
	VPMU_LOST_REASONS,
};

#define VPMU_CALLS       4  /* enum vpmu_call_name */
#define VPMU_BUCKETS     12 /* of durations: model/buckets.py, and one for the rest */
#define VPMU_ALL_BUCKETS 48 /* VPMU_CALLS * VPMU_BUCKETS */
#define VPMU_UNCHECKED   2  /* enum vpmu_unchecked_call */
#define VPMU_SIZES       6  /* of group sizes: model/buckets.py, and one for the rest */
#define VPMU_HINT_LINES  8  /* of a thread */
#define VPMU_ALL_HINTS   64 /* numbers on these lines */

/* The one entry of the map `control`, which user space writes. */
struct vpmu_control {
	__u32 epoch;  /* 0: ignore new calls; changed: calls were lost, of any pmc */
	__u32 stream; /* send every call, not only those that user space must see */
	__u32 tester; /* tgid of the process that releases events to test the probes, 0 if there is none */
};

/* Index into the map `self_tests`: at which ends of the tester's releases a program ran. */
enum vpmu_self_test {
	VPMU_TEST_ENTRY,
	VPMU_TEST_RETURN, /* with VPMU_NO_DURATIONS, which leaves no program there, as at the entry */
	VPMU_TEST_ENDS,
};

/*
 * Key of the map `slots`, whose value is a __u32: where in `pmcs` or `vcpus` the entry is. Both are arrays,
 * and an entry stays where it is, so that whoever has its number finds it without a look-up.
 */
struct vpmu_slot_key {
	__u64 address; /* struct kvm_pmc *, of guest LBR the event; or struct kvm_vcpu *, of guest LBR 0 */
	__u32 tgid;
	__s32 vcpu_id; /* 0 for a pmc */
};

/*
 * Entry of the array `vcpus`: what there is of a vCPU beside its pmcs. KVM makes one call at a time for a
 * vCPU (vcpu->mutex), so that no two CPUs write here or to its pmcs at once. Guest LBR does not say which
 * vCPU it belongs to: what a thread does with it is taken for that of a vCPU of its own.
 */
struct vpmu_vcpu {
	__u64 kvm_vcpu;    /* struct kvm_vcpu *, 0 for guest LBR */
	__u32 tgid;        /* 0: the entry is free */
	__s32 vcpu_id;     /* of guest LBR -1 minus the thread's number */
	__s32 event_count; /* what kvm_pmu.event_count should be at the next create, -1 if not known */
	__u32 epoch;       /* of event_count */
	__u32 claims;      /* by who takes it for the first time */
	__u32 starvations; /* of guest-LBR events that are gone */
	__u64 siblings;    /* creates that begin no program: with a group leader, or failed */
	__u64 pinned_siblings;
	__u64 sizes[VPMU_SIZES]; /* of groups; a single event is none */
	__u64 sizes_sum;
	__u64 calls[VPMU_CALLS]; /* this and what follows: of guest-LBR events that are gone */
	__s64 due[VPMU_CALLS];
	__u64 verdicts[VPMU_KINDS];
	__u64 durations_ns[VPMU_CALLS];
	__u64 buckets[VPMU_ALL_BUCKETS]; /* of one call's durations after those of another */

	/*
	 * Of all pmcs: these calls are not a pmc's, and short ones are on the first of two cache lines. With
	 * VPMU_NO_DURATIONS they are counted for their pmc.
	 */
	__u64 reads;
	__u64 read_ns;
	__u64 read_buckets[VPMU_BUCKETS];
	__u64 unused_read[2];
	__u64 periods;
	__u64 period_ns;
	__u64 period_buckets[VPMU_BUCKETS];
	__u64 unused_period[2];
};

/*
 * Entry of the array `pmcs`: the registers of the model's rules (docs/model.md), which pmc it is, and what
 * was counted for it. A usual call of a single event touches two cache lines of it: the first one and, at
 * the return, that of the call's durations. A create also touches the second, and that of a group's member the
 * line that begins with `due`.
 *
 * The line of a call's durations has their sum, how many fell into each bucket, and of each bucket in 5
 * bits how often that came to 1 << 32.
 */
struct vpmu_pmc {
	__u64 event; /* struct perf_event *: events[0] */
	__u8 state;  /* enum vpmu_state */
	__u8 size;
	__u8 paused;
	__u8 found;      /* scratch */
	__u32 vcpu_slot; /* its entry of `vcpus` */
	__u32 epoch;     /* of all registers; another one than that of `control`: the state is not known */
	__u32 members;   /* bit i: perf_events[i] is held */
	__u32 enabled;
	__u32 orphans; /* bit i: perf_events[i] is there, but a release passed it by */
	__u32 walk;    /* while releasing: what is still to come */
	__u32 gone;    /* bit i: released in this program */
	__u32 calls[VPMU_CALLS];
	__u16 calls_high[VPMU_CALLS]; /* bits 32 to 47 of `calls` */

	__u64 pmc;      /* struct kvm_pmc *; of guest LBR the event */
	__u64 kvm_vcpu; /* struct kvm_vcpu *, 0 for guest LBR */
	__u64 attr_config;
	__u64 attr_sample_period;
	__u64 attr_flags;
	__u32 attr_type; /* of the last create, or of the event that was seen first; like the three before */
	__u32 tgid;      /* 0: the entry is free */
	__s32 vcpu_id;
	__u32 left;   /* events that no entry of perf_events holds any more */
	__u32 faults; /* bit of each Kind that this program has had */
	__u8 pmc_type;
	__u8 pmc_idx;
	__u16 error; /* errno of the last create, 0 if it succeeded */

	__u64 create_ns;
	__u32 create_buckets[VPMU_BUCKETS];
	__u64 create_carries;
	__u64 enable_ns;
	__u32 enable_buckets[VPMU_BUCKETS];
	__u64 enable_carries;
	__u64 pause_ns;
	__u32 pause_buckets[VPMU_BUCKETS];
	__u64 pause_carries;
	__u64 release_ns;
	__u32 release_buckets[VPMU_BUCKETS];
	__u64 release_carries;

	__u64 verdicts[VPMU_KINDS]; /* by enum vpmu_kind; what was predicted is not counted */
	__u32 claims;               /* by who takes the entry for the first time */
	__u32 born;                 /* when its process was: a tgid is used again */

	__s64 due[VPMU_CALLS];   /* how many calls were predicted, less those that came */
	__u64 starvations;       /* creates and enables after which perf had no room for its events */
	__u64 events[VPMU_ROOM]; /* struct perf_event *; the first one is in `event` */
	__u64 reads;             /* with VPMU_NO_DURATIONS: a read then touches no page of its vCPU */
	__u64 periods;
};

/*
 * Entry of the array `threads`: the call that a thread is in, and the events and pmcs that it was seen to
 * work on. It is the thread's own until another one needs it.
 */
struct vpmu_thread {
	__u64 task;    /* struct task_struct * */
	__u64 time_ns; /* when its last call began */
	__u16 name;  /* enum vpmu_call_name, VPMU_CALLS if it is in none, VPMU_IN_* in one of the unchecked */
	__u16 todo;  /* at the return, beside the duration: VPMU_SEND, VPMU_END */
	__u32 since; /* when the thread was born, as the lowest bits of task_struct.start_boottime */
	__u32 pmc_slot;
	__u32 vcpu_slot;
	__u64 pmc; /* struct kvm_pmc *, 0 for guest LBR; of creates and of calls that are not usual */
	__u64 leader;
	__u64 attr;   /* struct perf_event_attr *, of a create */
	__u64 placed; /* struct perf_event *: whose state is read when an enable returns; 0: none's */

	__u64 event; /* not of a usual call, as all that follows, but for `tgid` and `born` */
	__u32 tgid;
	__u32 born;  /* when its process was */
	__u32 takes; /* how often a thread took the entry */
	__u32 n;     /* max_nr_events, where the model asks for it */
	__u8 failed;
	__u8 disabled;
	__u8 unused_bytes[6];
	__u64 unused_call[4];

	__u64 at; /* the verdict, as in struct vpmu_call */
	__u32 size;
	__s32 event_index;
	__s32 leader_index;
	__s32 event_count;
	__u8 kind;
	__u8 expected;
	__u8 unused_kind[2];
	__u32 unused_verdict[9];

	/*
	 * Hints, in VPMU_HINT_LINES cache lines: four addresses of a struct perf_event or kvm_pmc, the
	 * latest first; then where each was found, its entry of `pmcs` and, << 32, its index in events[].
	 * Whoever follows a hint looks at what is there: it can be old.
	 */
	__u64 hints[VPMU_ALL_HINTS];
};

#define VPMU_IN_READ   5 /* the name of a call that is not checked */
#define VPMU_IN_PERIOD 6

#define VPMU_SEND 1 /* a record */
#define VPMU_END  2 /* of a guest-LBR event, whose entry goes with it */

/* Value of the map `processes`, by tgid: what a process has taken, ever. Only the programs write here. */
struct vpmu_share {
	__u64 mm;      /* struct mm_struct *, because a tgid is used again */
	__u64 refused; /* calls that were not followed because it had taken too much */
	__u32 pmcs;
	__u32 vcpus;
	__u32 born;      /* when the process was */
	__u32 guest_lbr; /* 1: it has made a call for an event of guest LBR */
};

/*
 * Value of the map `given_back`, by tgid: how many of these user space has freed. Only user space writes
 * here.
 */
struct vpmu_given_back {
	__u32 pmcs;
	__u32 vcpus;
};

/* Index into the map `was_used`: how many entries of an array were ever in use. They are its first ones. */
enum vpmu_array {
	VPMU_PMCS,
	VPMU_VCPUS,
};

#define VPMU_SHARES 4 /* a process may take one of so many parts of an array */

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
	__u64 time_ns;     /* bpf_ktime_get_ns() at entry */
	__u64 duration_ns; /* 0: not measured */
	__u64 pmc;         /* struct kvm_pmc *, 0 for guest LBR */
	__u64 event;       /* struct perf_event *, 0 if it could not be created */
	__u64 leader;      /* group_leader, 0 if none */
	__s64 result;      /* 0 or a negative errno */
	__u64 lost;        /* all losses so far, as this record was sent */
	__u64 attr_config;
	__u64 attr_sample_period;
	__u64 attr_flags;  /* the bit field of struct perf_event_attr that starts with `disabled` */
	__u64 expected_at; /* the number that goes with `expected`: an index, a size, a count or a mask */
	__u32 attr_type;
	__u32 tgid;
	__u32 tid;
	__s32 vcpu_id;       /* -1 for guest LBR */
	__s32 event_count;   /* kvm_pmu.event_count of the vCPU at a create, -1 if not known */
	__u8 name;           /* enum vpmu_call_name */
	__u8 pmc_type;       /* enum vpmu_pmc_type */
	__u8 pmc_idx;        /* kvm_pmc.idx: fixed counters start at 32 */
	__u8 max_nr_events;  /* where the model asks for it, else as before; 1 where there are no groups */
	__u8 verdict;        /* enum vpmu_kind */
	__u8 expected;       /* enum vpmu_expected */
	__s8 event_index;    /* -1: not known */
	__s8 leader_index;   /* -1: none, or not known */
	__u16 expected_size; /* N of the group that `expected` is about */
	__u8 starved;        /* a create or an enable, after which perf had no room for the pmc's events */
	__u8 unused;
};

#endif
