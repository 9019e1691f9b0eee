// SPDX-License-Identifier: GPL-2.0-only
/*
 * Guest A: the smallest guest that programs performance counters, so that what KVM must do is known exactly.
 *
 * The guest is one page of real-mode code with three instructions to run: wrmsr, rdmsr, and a loop. This program
 * is its VMM: it points the guest at one of them, sets the registers and enters it until it halts. With the AMD
 * counters (PERF_CTL at 0xC0010000, PERF_CTR at 0xC0010004), one round on C counters makes KVM do:
 *
 *	create x C, pause x C, enable x C, pause x C
 *
 * and the release x C when the counters get another event in the next round, or the VM is closed.
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

#define TSC       0x10u
#define PERF_CTL0 0xC0010000u
#define PERF_CTR0 0xC0010004u
#define CTL_USR   (1u << 16)
#define CTL_OS    (1u << 17)
#define CTL_EN    (1u << 22)

#define MAX_COUNTERS 4
#define MAX_ROUNDS   64
#define MAX_VCPUS    8
#define SPINS        20000

/* AMD's cycles, instructions, branches and branch misses; the round is added as a unit mask to tell rounds apart. */
static const uint8_t event_select[MAX_COUNTERS] = { 0x76, 0xc0, 0xc2, 0xc3 };

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
	uint64_t values[MAX_ROUNDS][MAX_COUNTERS];
};

static int counters = MAX_COUNTERS;
static int rounds = 1;
static int vcpu_count = 1;
static int linger_ms;
static bool stepwise;
static bool filtered;
static bool busy_reader;
static bool resets;
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

static void select_events(struct vcpu *vcpu, int round, uint32_t enable)
{
	for (int i = 0; i < counters; i++)
		guest_wrmsr(vcpu, PERF_CTL0 + i,
			    event_select[i] | (round & 0xff) << 8 | CTL_USR | CTL_OS | enable);
}

/* With --read: each counter is read while it counts, and written. */
static void read_and_write_back(struct vcpu *vcpu)
{
	for (int i = 0; i < counters; i++)
		guest_wrmsr(vcpu, PERF_CTR0 + i, guest_rdmsr(vcpu, PERF_CTR0 + i));
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

	stage(vcpu, "ready");
	for (int round = 0; round < rounds; round++) {
		select_events(vcpu, round, CTL_EN);
		guest_spin(vcpu);
		if (round == 0)
			stage(vcpu, "programmed");
		if (round == 0 && resets) {
			reset_all_else(vcpu);
			stage(vcpu, "reset");
		}
		select_events(vcpu, round, 0);
		select_events(vcpu, round, CTL_EN);
		guest_spin(vcpu);
		if (busy_reader)
			read_and_write_back(vcpu);
		select_events(vcpu, round, 0);
		for (int i = 0; i < counters; i++)
			vcpu->values[round][i] = guest_rdmsr(vcpu, PERF_CTR0 + i);
	}
	stage(vcpu, "done");
	return NULL;
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
			for (int i = 0; i < counters; i++)
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
		/* -name is for whoever reads the command line: the agent takes a VM's name from there. */
		if (!strcmp(*arg, "-name") && arg[1])
			arg++;
		else if (!strcmp(*arg, "--counters"))
			counters = number(*arg, *(arg + 1), MAX_COUNTERS), arg++;
		else if (!strcmp(*arg, "--rounds"))
			rounds = number(*arg, *(arg + 1), MAX_ROUNDS), arg++;
		else if (!strcmp(*arg, "--vcpus"))
			vcpu_count = number(*arg, *(arg + 1), MAX_VCPUS), arg++;
		else if (!strcmp(*arg, "--linger-ms"))
			linger_ms = number(*arg, *(arg + 1), 60000), arg++;
		else
			errx(2,
			     "usage: %s [-name guest=NAME] [--counters N] [--rounds N] [--vcpus N] "
			     "[--linger-ms N] [--wait] [--filter] [--read] [--reset]",
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
