/* SPDX-License-Identifier: GPL-2.0-only */
/* What the census shares with user space. probes/census.py reads this text; the rules of vpmu.h apply. */
#ifndef VPMU_CENSUS_H
#define VPMU_CENSUS_H

/* One vCPU, by one of the open files that lead to it. */
struct vpmu_census_vcpu {
	__u64 kvm; /* its VM's struct kvm, to tell two VMs of a process apart; never shown */
	__u32 tgid;
	__u32 irqchip_mode;        /* 0, KVM_IRQCHIP_NONE: the interrupt controller is not in the kernel */
	__u32 cpuid_nent;          /* 0: the vCPU has not been given its CPUID yet, and so no PMU either */
	__u8 enable_pmu;           /* of the VM */
	__u8 created_mediated_pmu; /* of the VM */
	__u8 pmu_version;          /* of the vCPU's PMU; 0 if its CPUID describes none */
	__u8 unused;
};

#endif
