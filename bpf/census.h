/* SPDX-License-Identifier: GPL-2.0-only */
/* What the census shares with user space. probes/census.py reads this text; the rules of vpmu.h apply. */
#ifndef VPMU_CENSUS_H
#define VPMU_CENSUS_H

/*
 * Four kinds of records, all of one size, `kind` first. Addresses tell things of one kind apart, as a file can be
 * met more than once; they are never shown.
 */
enum vpmu_census_kind {
	VPMU_CENSUS_VCPU,
	VPMU_CENSUS_PMC,
	VPMU_CENSUS_HOST_EVENT,
	VPMU_CENSUS_STRAY,
};

/* One vCPU, by one of the open files that lead to it. */
struct vpmu_census_vcpu {
	__u32 kind;
	__u32 tgid;
	__u64 kvm_vcpu;
	__u64 kvm; /* its VM's struct kvm, to tell two VMs of a process apart */
	__u64 global_ctrl;
	__u64 event_filter; /* of the VM: 0 if it has none */
	/* When the VMM last set the VM's TSC, in ns of a clock of KVM's; all ones: not known. */
	__u64 tsc_set_ns;
	__u64 kvmclock_offset; /* of the VM, which the VMM sets when it restores one */
	__u64 unused_a;
	__s32 cpu;          /* the CPU that it ran on last, or -1 */
	__u32 mp_state;     /* KVM_MP_STATE_*; all ones: not known */
	__u32 irqchip_mode; /* 0, KVM_IRQCHIP_NONE: the interrupt controller is not in the kernel */
	__u32 cpuid_nent;   /* 0: the vCPU has not been given its CPUID yet, and so no PMU either */
	__s32 vcpu_id;
	__u32 nr_gp; /* counters of the vCPU's PMU */
	__u32 nr_fixed;
	__u8 enable_pmu;           /* of the VM */
	__u8 created_mediated_pmu; /* of the VM */
	__u8 pmu_version;          /* of the vCPU's PMU; 0 if its CPUID describes none */
	__u8 unused_b;
};

/* One counter of a vCPU that the guest has enabled or KVM has events for; a record for each of its events. */
struct vpmu_census_pmc {
	__u32 kind;
	__u32 tgid;
	__u64 kvm_vcpu;
	__u64 control; /* gp: its event select; fixed: its four bits of fixed_ctr_ctrl */
	__u64 event;   /* 0 if it has none */
	__u64 enabled_ns;
	__u64 running_ns;
	__u64 count;
	__u64 config;
	__u64 attr_flags; /* the bits behind read_format in struct perf_event_attr */
	__s32 vcpu_id;
	__s32 state;
	__s32 oncpu;  /* the CPU that the event is on, or -1 */
	__u32 on_cpu; /* whether the vCPU's thread has a CPU now */
	__u8 pmc_type;
	__u8 pmc_idx;
	__u8 event_index;
	__u8 max_nr_events;
	__u32 event_id; /* the lowest bits of perf_event.id, which no other event has */
};

/*
 * An event that KVM made for a counter, on the vCPU's thread, and that the counter does not hold: it is being made or
 * released at this moment, or it is leaked. Or, with pmc_type 2, KVM's event for the guest's LBR, which is for no
 * counter.
 */
struct vpmu_census_stray {
	__u32 kind;
	__u32 tgid;
	__u64 kvm_vcpu;
	__u64 id; /* unique since the host booted; 0: the thread has more events than were looked at */
	__u64 config;
	__u64 attr_flags;
	__u64 unused_a[4];
	__u32 type;
	__s32 vcpu_id;
	__s32 state;
	__u8 pmc_type;
	__u8 pmc_idx;
	__u8 unused_b[2];
	__u64 unused_c;
};

/* An event on the host's PMU that a process has open. */
struct vpmu_census_host_event {
	__u32 kind;
	__u32 tgid;
	__u64 event;
	__u64 enabled_ns;
	__u64 running_ns;
	__u64 config;
	__u64 attr_flags;
	__u64 comm[2]; /* the process's name, as TASK_COMM_LEN bytes */
	__u32 type;
	__s32 cpu; /* the CPU that it is bound to, or -1: it follows a task */
	__s32 state;
	__s32 oncpu;
	__u64 unused[2];
};

#endif
