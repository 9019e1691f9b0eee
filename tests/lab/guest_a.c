// SPDX-License-Identifier: GPL-2.0-only
/*
 * Guest A: the smallest guest that programs performance counters, so that what KVM must do is known exactly.
 *
 * The guest is one page of real-mode code with three instructions to run: wrmsr, rdmsr, and a loop. This program
 * is its VMM: it points the guest at one of them, sets the registers and enters it until it halts. The counters are
 * those of the host's vendor. One round on C of them makes KVM do:
 *
 *	create x C, pause x C, enable x C, pause x C
 *
 * and the release x C when the counters get another event in the next round, or the VM is closed.
 *
 * With --global the counters are enabled once, each by itself, and keep their events. A round then is four writes to
 * the register that starts and stops all of them at once, which AMD has since PerfMonV2:
 *
 *	create x C in the first round, enable x C in the others, pause x C, enable x C, pause x C
 */

#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define TSC     0x10u
#define CTL_USR (1u << 16)
#define CTL_OS  (1u << 17)
#define CTL_EN  (1u << 22)

#define MSR_FIXED_CTR0        0x309u
#define MSR_PERF_CAPABILITIES 0x345u
#define MSR_LBR_TOS           0x1C9u
#define MSR_PEBS_ENABLE       0x3F1u
#define MSR_FIXED_CTR_CTRL    0x38Du
#define FIXED_CTR_OS_AND_USR  0x3u /* of the four bits that each fixed counter has */
#define GLOBAL_CTRL_OF_FIXED  32   /* the bit of fixed counter 0 */

#define CPUID_PDCM         (1u << 15) /* leaf 1, ECX: there is MSR_PERF_CAPABILITIES */
#define CPUID_PERFCTR_CORE (1u << 23) /* leaf 0x80000001, ECX: six counters, at 0xC0010200 */
#define CPUID_PERFMON_V2   (1u << 0)  /* leaf 0x80000022, EAX */

#define MAX_COUNTERS 4
#define MAX_FIXED    3
#define MAX_ROUNDS   64
#define MAX_VCPUS    8
#define MAX_CPUID    256
#define SPINS        20000

/* Where the general-purpose counters are, and what they count: cycles, instructions, branches, branch misses. */
struct pmu {
	uint32_t selector, counter; /* of counter 0 */
	uint32_t stride;
	uint32_t global_ctrl; /* 0 for none */
	uint8_t events[MAX_COUNTERS];
};

static const struct pmu amd = { 0xC0010000, 0xC0010004, 1, 0, { 0x76, 0xc0, 0xc2, 0xc3 } };
static const struct pmu amd_v2 = { 0xC0010200, 0xC0010201, 2, 0xC0000301, { 0x76, 0xc0, 0xc2, 0xc3 } };
static const struct pmu intel = { 0x186, 0xC1, 1, 0x38F, { 0x3c, 0xc0, 0xc4, 0xc5 } };

enum {
	AT_WRMSR = 0x00,
	AT_RDMSR = 0x10,
	AT_SPIN = 0x20
};

static const uint8_t code_wrmsr[] = { 0x0f, 0x30, 0xf4 };            /* wrmsr; hlt */
static const uint8_t code_rdmsr[] = { 0x0f, 0x32, 0xf4 };            /* rdmsr; hlt */
static const uint8_t code_spin[] = { 0x66, 0x49, 0x75, 0xfc, 0xf4 }; /* 1: dec ecx; jnz 1b; hlt */

struct vcpu {
	pthread_t thread;
	int id;
	int fd;
	struct kvm_run *run;
	uint64_t values[MAX_ROUNDS][MAX_COUNTERS + MAX_FIXED];
};

static const struct pmu *pmu = &amd;
static int counters = MAX_COUNTERS;
static int fixed;
static int rounds = 1;
static int vcpu_count = 1;
static int linger_ms;
static bool stepwise;
static bool filtered;
static bool busy_reader;
static bool resets;
static bool globally;
static bool pebs;
static bool lbr;
static struct vcpu vcpus[MAX_VCPUS];
static pthread_barrier_t stage_reached, stage_left;

static void enter(struct vcpu *vcpu, struct kvm_regs *regs)
{
	regs->rflags = 2;
	if (ioctl(vcpu->fd, KVM_SET_REGS, regs) < 0)
		err(1, "KVM_SET_REGS");
	while (ioctl(vcpu->fd, KVM_RUN, 0) < 0)
		if (errno != EINTR)
			err(1, "KVM_RUN");
	if (vcpu->run->exit_reason != KVM_EXIT_HLT)
		errx(1, "vCPU %d: expected to halt at %#llx, exit reason is %u", vcpu->id, regs->rip,
		     vcpu->run->exit_reason);
	if (ioctl(vcpu->fd, KVM_GET_REGS, regs) < 0)
		err(1, "KVM_GET_REGS");
}

static void guest_wrmsr(struct vcpu *vcpu, uint32_t msr, uint64_t value)
{
	struct kvm_regs regs = { .rip = AT_WRMSR, .rcx = msr, .rax = (uint32_t)value, .rdx = value >> 32 };

	enter(vcpu, &regs);
}

static uint64_t guest_rdmsr(struct vcpu *vcpu, uint32_t msr)
{
	struct kvm_regs regs = { .rip = AT_RDMSR, .rcx = msr };

	enter(vcpu, &regs);
	return (uint32_t)regs.rax | regs.rdx << 32;
}

static void guest_spin(struct vcpu *vcpu)
{
	struct kvm_regs regs = { .rip = AT_SPIN, .rcx = SPINS };

	enter(vcpu, &regs);
}

/* Each counter by itself. The round is in the unit mask of gp counters, so that one has its own event in each. */
static void switch_each(struct vcpu *vcpu, int round, bool on)
{
	uint64_t fixed_ctrl = 0;

	for (int i = 0; i < counters; i++)
		guest_wrmsr(vcpu, pmu->selector + i * pmu->stride,
			    pmu->events[i] | (round & 0xff) << 8 | CTL_USR | CTL_OS | (on ? CTL_EN : 0));
	if (!fixed)
		return;
	for (int i = 0; i < fixed; i++)
		fixed_ctrl |= FIXED_CTR_OS_AND_USR << 4 * i;
	guest_wrmsr(vcpu, MSR_FIXED_CTR_CTRL, on ? fixed_ctrl : 0);
}

/* All counters with one write. */
static void switch_all(struct vcpu *vcpu, bool on)
{
	uint64_t all = (1u << counters) - 1;

	all |= ((1ull << fixed) - 1) << GLOBAL_CTRL_OF_FIXED;
	guest_wrmsr(vcpu, pmu->global_ctrl, on ? all : 0);
}

static void switch_counters(struct vcpu *vcpu, int round, bool on)
{
	if (globally)
		switch_all(vcpu, on);
	else
		switch_each(vcpu, round, on);
}

/*
 * So that the rounds' switch is the only one that is off. With --pebs the gp counters are PEBS counters, with --lbr the
 * guest looks at its last branch records, for which KVM makes an event.
 */
static void prepare(struct vcpu *vcpu)
{
	if (pmu->global_ctrl)
		switch_all(vcpu, !globally);
	if (pebs)
		guest_wrmsr(vcpu, MSR_PEBS_ENABLE, (1u << counters) - 1);
	if (lbr)
		guest_rdmsr(vcpu, MSR_LBR_TOS);
	if (globally)
		switch_each(vcpu, 0, true);
}

/* The address of a counter, fixed ones after the others. */
static uint32_t counter_msr(int i)
{
	return i < counters ? pmu->counter + i * pmu->stride : MSR_FIXED_CTR0 + i - counters;
}

/* With --read: each counter is read while it counts, and written. */
static void read_and_write_back(struct vcpu *vcpu)
{
	for (int i = 0; i < counters + fixed; i++)
		guest_wrmsr(vcpu, counter_msr(i), guest_rdmsr(vcpu, counter_msr(i)));
}

/* With --reset: as a VMM that resets all but the counters. */
static void reset_all_else(struct vcpu *vcpu)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry tsc;
	} msrs = { { .nmsrs = 1 }, { .index = TSC } };

	if (ioctl(vcpu->fd, KVM_SET_MSRS, &msrs) != 1)
		err(1, "KVM_SET_MSRS of the TSC");
}

/* With --wait: all vCPUs stand still between two stages until a line comes in. */
static void stage(struct vcpu *vcpu, const char *name)
{
	char line[16];

	if (!stepwise)
		return;
	pthread_barrier_wait(&stage_reached);
	if (vcpu->id == 0) {
		printf("{\"stage\":\"%s\"}\n", name);
		fflush(stdout);
		if (!fgets(line, sizeof(line), stdin))
			errx(1, "stdin closed at stage \"%s\"", name);
	}
	pthread_barrier_wait(&stage_left);
}

static void *run_vcpu(void *arg)
{
	struct vcpu *vcpu = arg;

	prepare(vcpu);
	stage(vcpu, "ready");
	for (int round = 0; round < rounds; round++) {
		switch_counters(vcpu, round, true);
		guest_spin(vcpu);
		if (round == 0)
			stage(vcpu, "programmed");
		if (round == 0 && resets) {
			reset_all_else(vcpu);
			stage(vcpu, "reset");
		}
		switch_counters(vcpu, round, false);
		switch_counters(vcpu, round, true);
		guest_spin(vcpu);
		if (busy_reader)
			read_and_write_back(vcpu);
		switch_counters(vcpu, round, false);
		for (int i = 0; i < counters + fixed; i++)
			vcpu->values[round][i] = guest_rdmsr(vcpu, counter_msr(i));
	}
	stage(vcpu, "done");
	return NULL;
}

static struct kvm_cpuid2 *new_cpuid(void)
{
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + MAX_CPUID * sizeof(cpuid->entries[0]));

	if (!cpuid)
		err(1, "calloc");
	return cpuid;
}

/* A leaf of a CPUID, made if it is not there. */
static struct kvm_cpuid_entry2 *leaf(struct kvm_cpuid2 *cpuid, uint32_t function)
{
	for (uint32_t i = 0; i < cpuid->nent; i++)
		if (cpuid->entries[i].function == function)
			return &cpuid->entries[i];
	if (cpuid->nent == MAX_CPUID)
		errx(1, "no room for CPUID leaf %#x", function);
	cpuid->entries[cpuid->nent].function = function;
	return &cpuid->entries[cpuid->nent++];
}

/* What KVM supports. */
static struct kvm_cpuid2 *supported_cpuid(int kvm)
{
	struct kvm_cpuid2 *cpuid = new_cpuid();

	cpuid->nent = MAX_CPUID;
	if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid) < 0)
		err(1, "KVM_GET_SUPPORTED_CPUID");
	return cpuid;
}

static void choose_pmu(int kvm)
{
	struct kvm_cpuid2 *cpuid = supported_cpuid(kvm);
	bool is_intel = !memcmp(&leaf(cpuid, 0)->ebx, "Genu", 4);

	if (is_intel)
		pmu = &intel;
	else if (globally)
		pmu = &amd_v2;
	free(cpuid);
	if ((fixed || pebs || lbr) && !is_intel)
		errx(2, "--fixed, --pebs and --lbr are for Intel");
}

/*
 * A PMU is only what its CPUID says. Without any CPUID there are AMD's first four counters. Of Intel's, it says what
 * KVM supports. Of PerfMonV2 it says it whatever KVM supports: KVM need not have it from the host's CPU.
 */
static void set_cpuid(struct vcpu *vcpu, int kvm)
{
	struct kvm_cpuid2 *cpuid;

	if (pmu == &amd)
		return;
	cpuid = supported_cpuid(kvm);
	if (pmu == &intel) {
		leaf(cpuid, 1)->ecx |= CPUID_PDCM;
	} else {
		leaf(cpuid, 0x80000001)->ecx |= CPUID_PERFCTR_CORE;
		leaf(cpuid, 0x80000022)->eax |= CPUID_PERFMON_V2;
		leaf(cpuid, 0x80000022)->ebx = counters;
	}
	if (ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid) < 0)
		err(1, "KVM_SET_CPUID2");
	free(cpuid);
}

/* IA32_PERF_CAPABILITIES is what KVM supports, too. */
static void set_capabilities(struct vcpu *vcpu, int kvm)
{
	struct {
		struct kvm_msrs header;
		struct kvm_msr_entry entry;
	} msr = { .header.nmsrs = 1, .entry.index = MSR_PERF_CAPABILITIES };

	if (ioctl(kvm, KVM_GET_MSRS, &msr) != 1)
		err(1, "KVM_GET_MSRS of IA32_PERF_CAPABILITIES");
	if (ioctl(vcpu->fd, KVM_SET_MSRS, &msr) != 1)
		err(1, "KVM_SET_MSRS of IA32_PERF_CAPABILITIES");
}

static void make_vcpu(struct vcpu *vcpu, int kvm, int vm, int id)
{
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_sregs sregs;

	vcpu->id = id;
	vcpu->fd = ioctl(vm, KVM_CREATE_VCPU, id);
	if (vcpu->fd < 0)
		err(1, "KVM_CREATE_VCPU %d", id);
	vcpu->run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (vcpu->run == MAP_FAILED)
		err(1, "mmap of vCPU %d", id);
	set_cpuid(vcpu, kvm);
	if (pmu == &intel)
		set_capabilities(vcpu, kvm);
	if (ioctl(vcpu->fd, KVM_GET_SREGS, &sregs) < 0)
		err(1, "KVM_GET_SREGS");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	if (ioctl(vcpu->fd, KVM_SET_SREGS, &sregs) < 0)
		err(1, "KVM_SET_SREGS");
	/* Without an irqchip every vCPU but the first could be waiting for INIT. */
	if (id) {
		struct kvm_mp_state state = { .mp_state = KVM_MP_STATE_RUNNABLE };

		if (ioctl(vcpu->fd, KVM_SET_MP_STATE, &state) < 0)
			err(1, "KVM_SET_MP_STATE");
	}
}

/* With --filter: of no event may the guest count anything. */
static void deny_all_events(int vm)
{
	struct kvm_pmu_event_filter filter = { .action = KVM_PMU_EVENT_ALLOW, .nevents = 0 };

	if (ioctl(vm, KVM_SET_PMU_EVENT_FILTER, &filter) < 0)
		err(1, "KVM_SET_PMU_EVENT_FILTER");
}

static int make_vm(int kvm)
{
	size_t page = 4096;
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);
	uint8_t *code = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region region = { .memory_size = page,
						      .userspace_addr = (uintptr_t)code };

	if (vm < 0)
		err(1, "KVM_CREATE_VM");
	if (code == MAP_FAILED)
		err(1, "mmap of the guest's page");
	memcpy(code + AT_WRMSR, code_wrmsr, sizeof(code_wrmsr));
	memcpy(code + AT_RDMSR, code_rdmsr, sizeof(code_rdmsr));
	memcpy(code + AT_SPIN, code_spin, sizeof(code_spin));
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0)
		err(1, "KVM_SET_USER_MEMORY_REGION");
	if (filtered)
		deny_all_events(vm);
	return vm;
}

static void print_values(void)
{
	printf("{\"vcpus\":[");
	for (int v = 0; v < vcpu_count; v++) {
		printf("%s[", v ? "," : "");
		for (int r = 0; r < rounds; r++) {
			printf("%s[", r ? "," : "");
			for (int i = 0; i < counters + fixed; i++)
				printf("%s%llu", i ? "," : "", (unsigned long long)vcpus[v].values[r][i]);
			printf("]");
		}
		printf("]");
	}
	printf("]}\n");
	fflush(stdout);
}

static int number(const char *option, const char *value, int max)
{
	int n = value ? atoi(value) : 0;

	if (n < 1 || n > max)
		errx(2, "%s takes a number from 1 to %d", option, max);
	return n;
}

static void parse(char **argv)
{
	for (char **arg = argv + 1; *arg; arg++) {
		if (!strcmp(*arg, "--wait")) {
			stepwise = true;
			continue;
		}
		if (!strcmp(*arg, "--read")) {
			busy_reader = true;
			continue;
		}
		if (!strcmp(*arg, "--reset")) {
			resets = true;
			continue;
		}
		if (!strcmp(*arg, "--filter")) {
			filtered = true;
			continue;
		}
		if (!strcmp(*arg, "--global")) {
			globally = true;
			continue;
		}
		if (!strcmp(*arg, "--pebs")) {
			pebs = true;
			continue;
		}
		if (!strcmp(*arg, "--lbr")) {
			lbr = true;
			continue;
		}
		/* -name is for whoever reads the command line: the agent takes a VM's name from there. */
		if (!strcmp(*arg, "-name") && arg[1])
			arg++;
		else if (!strcmp(*arg, "--counters"))
			counters = number(*arg, *(arg + 1), MAX_COUNTERS), arg++;
		else if (!strcmp(*arg, "--fixed"))
			fixed = number(*arg, *(arg + 1), MAX_FIXED), arg++;
		else if (!strcmp(*arg, "--rounds"))
			rounds = number(*arg, *(arg + 1), MAX_ROUNDS), arg++;
		else if (!strcmp(*arg, "--vcpus"))
			vcpu_count = number(*arg, *(arg + 1), MAX_VCPUS), arg++;
		else if (!strcmp(*arg, "--linger-ms"))
			linger_ms = number(*arg, *(arg + 1), 60000), arg++;
		else
			errx(2,
			     "usage: %s [-name guest=NAME] [--counters N] [--fixed N] [--rounds N] [--vcpus N] "
			     "[--linger-ms N] [--wait] [--filter] [--read] [--global] [--pebs] [--lbr] [--reset]",
			     *argv);
	}
}

int main(int argc, char **argv)
{
	/* A vCPU that is preempted twice while a counter stands still has it released (kvm_pmu_cleanup()). */
	struct sched_param param = { .sched_priority = 1 };
	int kvm, vm;

	(void)argc;
	parse(argv);
	if (sched_setscheduler(0, SCHED_FIFO, &param) < 0)
		warn("no real-time priority: counters may be released early");

	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		err(1, "/dev/kvm");
	choose_pmu(kvm);
	vm = make_vm(kvm);
	pthread_barrier_init(&stage_reached, NULL, vcpu_count);
	pthread_barrier_init(&stage_left, NULL, vcpu_count);

	for (int i = 0; i < vcpu_count; i++)
		make_vcpu(&vcpus[i], kvm, vm, i);
	for (int i = 0; i < vcpu_count; i++)
		if (pthread_create(&vcpus[i].thread, NULL, run_vcpu, &vcpus[i]))
			errx(1, "cannot start vCPU %d", i);
	for (int i = 0; i < vcpu_count; i++)
		pthread_join(vcpus[i].thread, NULL);
	print_values();
	usleep(linger_ms * 1000);
	return 0;
}
