// SPDX-License-Identifier: GPL-2.0-only
/*
 * The census: every vCPU of the host, and what KVM says of its VM's PMU.
 *
 * A BPF iterator over the open files of all processes (kernel/bpf/task_iter.c). It creates no events and
 * changes nothing. Reading it once to its end is one pull. It is compiled together with vpmu.bpf.c, with
 * the same constants, or alone. Pointers are numbers here, except for the one that bpf_seq_write() takes:
 * offsets are passed in as VPMU_* constants by agent/vpmu_agent/kernel/census.py.
 */
#include <linux/types.h>
#include "census.h"

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

static __always_inline u64 census_pointer(u64 from)
{
	u64 pointer = 0;

	census_read(&pointer, sizeof(pointer), from);
	return pointer;
}

int bpf_iter__task_file(struct bpf_iter__task_file *ctx)
{
	struct vpmu_census_vcpu found = {};
	u64 task = ctx->task, file = ctx->file, vcpu, mm;
	long failed;

	if (!task || !file) /* the end */
		return 0;
	if (census_pointer(census_pointer(file + VPMU_FILE_F_OP) + VPMU_F_OP_IOCTL) != VPMU_VCPU_IOCTL)
		return 0;
	vcpu = census_pointer(file + VPMU_FILE_PRIVATE_DATA);
	found.kvm = census_pointer(vcpu + VPMU_VCPU_KVM);
	/* Not a child that inherited the file, nor a process that was sent it: kvm_vcpu_ioctl(). */
	mm = census_pointer(found.kvm + VPMU_KVM_MM);
	if (!mm || mm != census_pointer(task + VPMU_TASK_MM))
		return 0;

	failed = census_read(&found.tgid, sizeof(found.tgid), task + VPMU_TASK_TGID);
	failed |= census_read(&found.irqchip_mode, sizeof(found.irqchip_mode),
			      found.kvm + VPMU_KVM_IRQCHIP_MODE);
	failed |= census_read(&found.enable_pmu, sizeof(found.enable_pmu), found.kvm + VPMU_KVM_ENABLE_PMU);
#ifdef VPMU_KVM_CREATED_MEDIATED_PMU
	failed |= census_read(&found.created_mediated_pmu, sizeof(found.created_mediated_pmu),
			      found.kvm + VPMU_KVM_CREATED_MEDIATED_PMU);
#endif
	failed |= census_read(&found.cpuid_nent, sizeof(found.cpuid_nent), vcpu + VPMU_VCPU_CPUID_NENT);
	failed |= census_read(&found.pmu_version, sizeof(found.pmu_version), vcpu + VPMU_VCPU_PMU_VERSION);
	if (!failed)
		bpf_seq_write(ctx->meta->seq, &found, sizeof(found));
	return 0;
}
