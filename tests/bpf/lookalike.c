// SPDX-License-Identifier: GPL-2.0-only
/*
 * Functions that look like the kernel's to the probes, so that these can run, as uprobes, where a kernel takes
 * no kprobes: same names, same arguments, same return values, structs with the same fields elsewhere.
 *
 * usage: lookalike layout                  prints the VPMU_* constants for this program, as JSON
 *        lookalike run KEY=VALUE ...       waits for a line on stdin, makes the calls, prints how many, as JSON
 * Built with -DGROUPED, creation takes a group_leader, as in the grouped-events series.
 */
#include <errno.h>
#include <linux/perf_event.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define NOINLINE               __attribute__((noinline, noclone))
#define MAX_EVENTS             8
#define INTEL_FIXED_VLBR_EVENT 0x1b00

struct perf_event {
	char somewhere[40];
	struct perf_event_attr attr;
	void (*overflow_handler)(void);
	void *overflow_handler_context;
};

struct kvm_vcpu {
	long others[5];
	int vcpu_id;
	struct {
		struct {
			unsigned char event_count;
		} pmu;
	} arch;
};

struct kvm_pmc {
	unsigned int type;
	unsigned char idx;
	unsigned char max_nr_events;
	struct kvm_vcpu *vcpu;
	struct perf_event *perf_events[MAX_EVENTS];
};

static struct {
	int threads, rounds, size, fail_at, sleep_us, others, lbr, jump;
	int reverse; /* enable and release the members of a group from the last to the first */
	int rate;    /* calls a second of the whole program, but for others, lbr and jump; 0: no limit */
	int hold;    /* once all is printed, stay until killed, as a VM that goes on running */
} plan = { .threads = 1, .rounds = 1, .size = 1, .fail_at = -1 };

static atomic_long creates, enables, pauses, releases, failed;
static _Thread_local jmp_buf out;
static _Thread_local int jump_now;

void kvm_perf_overflow(void) {}
void watchdog_overflow_callback(void) {}

NOINLINE struct perf_event *perf_event_create_kernel_counter(struct perf_event_attr *attr, int cpu,
							     void *task,
#ifdef GROUPED
							     struct perf_event *group_leader,
#endif
							     void (*handler)(void), void *context)
{
	static _Thread_local int nth;
	struct perf_event *event;

	if (plan.sleep_us)
		usleep(plan.sleep_us);
	if (jump_now) {
		jump_now = 0;
		longjmp(out, 1);
	}
	if (plan.fail_at >= 0 && nth++ % plan.size == plan.fail_at) {
		nth = 0;
		return (void *)-ENOSPC;
	}
	event = calloc(1, sizeof(*event));
	event->attr = *attr;
	event->overflow_handler = handler;
	event->overflow_handler_context = context;
	asm volatile("" : : "r"(cpu), "r"(task));
#ifdef GROUPED
	asm volatile("" : : "r"(group_leader));
#endif
	return event;
}

NOINLINE void perf_event_enable(struct perf_event *event)
{
	asm volatile("" : : "r"(event) : "memory");
}
NOINLINE unsigned long perf_event_pause(struct perf_event *event, int reset)
{
	asm volatile("" : : "r"(event), "r"(reset) : "memory");
	return 12345;
}
NOINLINE int perf_event_release_kernel(struct perf_event *event)
{
	free(event);
	return 0;
}

static struct perf_event *create(struct perf_event_attr *attr, struct perf_event *leader,
				 void (*handler)(void), void *context)
{
#ifdef GROUPED
	return perf_event_create_kernel_counter(attr, -1, NULL, leader, handler, context);
#else
	(void)leader;
	return perf_event_create_kernel_counter(attr, -1, NULL, handler, context);
#endif
}

static long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000L + now.tv_nsec;
}

/* Before each call. Sleeps only when a millisecond ahead, for at 100,000 calls/s sleeping costs more than they do. */
static void keep_to_rate(void)
{
	static _Thread_local long start_ns, calls;
	long ahead_ns;

	if (!plan.rate)
		return;
	if (!start_ns)
		start_ns = now_ns();
	ahead_ns = start_ns + 1000000000L * calls++ / plan.rate * plan.threads - now_ns();
	if (ahead_ns >= 1000000)
		usleep(ahead_ns / 1000);
}

static int member(int i, int held)
{
	return plan.reverse ? held - 1 - i : i;
}

static int is_err(const struct perf_event *event)
{
	return (unsigned long)event >= (unsigned long)-4095;
}

/* As pmc_reprogram_counter() and pmc_release_perf_event() do it, with groups where size > 1. */
static void program_and_release(struct kvm_pmc *pmc)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_RAW,
		.size = sizeof(attr),
		.config = 0x76,
		.sample_period = 4096,
		.pinned = 1,
		.exclude_idle = 1,
		.exclude_host = 1,
		.exclude_kernel = 1,
		.disabled = plan.size > 1,
		.precise_ip = 2,
	};
	int held = 0;

	for (int i = 0; i < plan.size; i++) {
		struct perf_event *event;

		keep_to_rate();
		event = create(&attr, i ? pmc->perf_events[0] : NULL, kvm_perf_overflow, pmc);
		creates++;
		if (is_err(event)) {
			failed++;
			break;
		}
		pmc->perf_events[held++] = event;
		pmc->vcpu->arch.pmu.event_count++;
	}
	if (held == plan.size) {
		for (int i = 0; plan.size > 1 && i < plan.size; i++, enables++) {
			keep_to_rate();
			perf_event_enable(pmc->perf_events[member(i, held)]);
		}
		if (plan.size == 1) {
			keep_to_rate();
			perf_event_pause(pmc->perf_events[0], 1);
			keep_to_rate();
			perf_event_enable(pmc->perf_events[0]);
			keep_to_rate();
			perf_event_pause(pmc->perf_events[0], 1);
			pauses += 2;
			enables++;
		}
	}
	for (int i = 0; i < held; i++, releases++) {
		keep_to_rate();
		perf_event_release_kernel(pmc->perf_events[member(i, held)]);
		pmc->vcpu->arch.pmu.event_count--;
	}
}

static void somebody_elses(void)
{
	struct perf_event_attr attr = { .type = PERF_TYPE_HARDWARE, .size = sizeof(attr) };
	int context;
	struct perf_event *event = create(&attr, NULL, watchdog_overflow_callback, &context);

	perf_event_enable(event);
	perf_event_pause(event, 0);
	perf_event_release_kernel(event);
}

static void guest_lbr(void)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_RAW,
		.size = sizeof(attr),
		.config = INTEL_FIXED_VLBR_EVENT,
		.pinned = 1,
	};

	perf_event_release_kernel(create(&attr, NULL, NULL, NULL));
	creates++;
	releases++;
}

/* A thread that leaves the kernel's function without returning from it, as one that dies there. */
static void never_return(struct kvm_pmc *pmc)
{
	jump_now = 1;
	if (!setjmp(out))
		program_and_release(pmc);
}

static void *vcpu_thread(void *arg)
{
	struct kvm_vcpu vcpu = { .vcpu_id = (long)arg };
	struct kvm_pmc pmc = { .type = 1, .idx = 33, .max_nr_events = plan.size, .vcpu = &vcpu };

	for (int i = 0; i < plan.rounds; i++) {
		program_and_release(&pmc);
		for (int j = 0; j < plan.others; j++)
			somebody_elses();
		for (int j = 0; j < plan.lbr; j++)
			guest_lbr();
		if (plan.jump)
			never_return(&pmc);
	}
	return NULL;
}

static void print_layout(void)
{
	printf("{\"VPMU_HANDLER\": %lu, \"VPMU_HANDLER_INTR\": 0, ", (unsigned long)kvm_perf_overflow);
#ifdef GROUPED
	printf("\"VPMU_CREATE_ARGS\": 6, \"VPMU_PMC_MAX_NR_EVENTS\": %zu, ",
	       offsetof(struct kvm_pmc, max_nr_events));
#else
	printf("\"VPMU_CREATE_ARGS\": 5, ");
#endif
	printf("\"VPMU_PMC_TYPE\": %zu, \"VPMU_PMC_IDX\": %zu, \"VPMU_PMC_VCPU\": %zu, ",
	       offsetof(struct kvm_pmc, type), offsetof(struct kvm_pmc, idx), offsetof(struct kvm_pmc, vcpu));
	printf("\"VPMU_VCPU_ID\": %zu, \"VPMU_VCPU_EVENT_COUNT\": %zu, \"VPMU_EVENT_ATTR\": %zu, ",
	       offsetof(struct kvm_vcpu, vcpu_id), offsetof(struct kvm_vcpu, arch.pmu.event_count),
	       offsetof(struct perf_event, attr));
	printf("\"VPMU_EVENT_HANDLER\": %zu, \"VPMU_EVENT_CONTEXT\": %zu}\n",
	       offsetof(struct perf_event, overflow_handler),
	       offsetof(struct perf_event, overflow_handler_context));
}

static int set(const char *word)
{
	const struct {
		const char *key;
		int *value;
	} keys[] = {
		{ "threads", &plan.threads },
		{ "rounds", &plan.rounds },
		{ "size", &plan.size },
		{ "fail_at", &plan.fail_at },
		{ "sleep_us", &plan.sleep_us },
		{ "others", &plan.others },
		{ "lbr", &plan.lbr },
		{ "jump", &plan.jump },
		{ "reverse", &plan.reverse },
		{ "rate", &plan.rate },
		{ "hold", &plan.hold },
		{ "--name", &(int){ 0 } }, /* for whoever reads the command line */
	};
	size_t n = strcspn(word, "=");

	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
		if (strlen(keys[i].key) == n && !strncmp(word, keys[i].key, n) && word[n]) {
			*keys[i].value = atoi(word + n + 1);
			return 0;
		}
	fprintf(stderr, "lookalike: not KEY=VALUE, or no such key: %s\n", word);
	return -1;
}

int main(int argc, char **argv)
{
	pthread_t threads[64];

	if (argc == 2 && !strcmp(argv[1], "layout")) {
		print_layout();
		return 0;
	}
	for (int i = 2; i < argc; i++)
		if (set(argv[i]))
			return 2;
	if (plan.threads > 64 || plan.size > MAX_EVENTS || getchar() == EOF)
		return 2;
	for (long i = 0; i < plan.threads; i++)
		pthread_create(&threads[i], NULL, vcpu_thread, (void *)i);
	for (int i = 0; i < plan.threads; i++)
		pthread_join(threads[i], NULL);
	printf("{\"create\": %ld, \"enable\": %ld, \"pause\": %ld, \"release\": %ld, \"failed\": %ld}\n",
	       creates, enables, pauses, releases, failed);
	fflush(stdout);
	if (plan.hold)
		pause();
	return 0;
}
