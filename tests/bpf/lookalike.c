// SPDX-License-Identifier: GPL-2.0-only
/*
 * Functions that look like the kernel's to the probes, so that these can run, as uprobes, where a kernel takes
 * no kprobes: same names, same arguments, same return values, structs with the same fields elsewhere.
 *
 * usage: lookalike layout                  prints the VPMU_* constants for this program, as JSON
 *        lookalike offsets                 prints where in its file the functions are, as JSON
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
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define NOINLINE               __attribute__((noinline, noclone))
#define MAX_EVENTS             8
#define INTEL_FIXED_VLBR_EVENT 0x1b00
#define INTEL_PMC_IDX_FIXED    32

/*
 * In a kernel no two objects have the same address, whatever process they are for. So each process has its objects
 * in an arena of its own, whose address follows from its pid: above everything that the linker places, and below
 * what mmap() chooses, since pids end at 1 << 22 (PID_MAX_LIMIT in include/linux/threads.h).
 */
#define ARENA_BASE 0x100000000000
#define ARENA_SIZE (1 << 24)

struct perf_event {
	char somewhere[24];
	struct perf_event *group_leader;
	int state;
	struct perf_event_attr attr;
	void (*overflow_handler)(void);
	void *overflow_handler_context;
};

enum perf_event_state {
	PERF_EVENT_STATE_ERROR = -2,
	PERF_EVENT_STATE_OFF = -1,
	PERF_EVENT_STATE_INACTIVE = 0,
	PERF_EVENT_STATE_ACTIVE = 1,
};

struct kvm_vcpu {
	long others[5];
	int vcpu_id;
	struct {
		struct {
			unsigned char event_count;
		} pmu;
	} arch;
	struct perf_event *lbr_event; /* KVM's is in struct vcpu_vmx */
};

struct kvm_pmc {
	unsigned int type;
	unsigned char idx;
	unsigned char max_nr_events;
	struct kvm_vcpu *vcpu;
	struct perf_event *perf_events[MAX_EVENTS];
	int held; /* of perf_events; KVM has no such field */
};

static struct {
	int threads, rounds, size, fail_at, sleep_us, others, lbr, jump;
	int reverse;     /* enable and release the members of a group from the last to the first */
	int pmcs;        /* of each thread, one after the other */
	int gp;          /* so many of them are general-purpose; the others are fixed */
	int bursts;      /* in each round: global control stops and starts all pmcs of the thread */
	int generations; /* of threads, one after the other, each with a vCPU and pmcs of its own */
	int step;    /* before each call print its name, and wait for a line on stdin; of one thread only */
	int rate;    /* calls a second of the whole program, but for others, lbr and jump; 0: no limit */
	int reads;   /* of each event while it is enabled, and as many new periods */
	int starved; /* there is no room for events once they are enabled: the leader's state is in error */
	int warm; /* once so many rounds are made print `warm`, and wait for a line on stdin; of one thread only */
	int hold; /* once all is printed, stay until killed, as a VM that goes on running */
} plan = { .threads = 1, .rounds = 1, .size = 1, .fail_at = -1, .pmcs = 1, .generations = 1 };

static atomic_long creates, enables, pauses, releases, reads, periods, failed;
static _Thread_local jmp_buf out;
static _Thread_local int jump_now;

static char *arena;
static _Thread_local struct {
	char *next, *end;
	struct free_event {
		struct free_event *next;
	} *events; /* the last one freed is the first to be used again, as in a slab */
} mine;            /* one thread's part of the arena, so that no call waits for another thread */

void kvm_perf_overflow(void) {}
void watchdog_overflow_callback(void) {}

static void make_arena(void)
{
	char *at = (char *)ARENA_BASE + (long)getpid() * ARENA_SIZE;

	arena = mmap(at, ARENA_SIZE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
	if (arena != at) {
		fprintf(stderr, "lookalike: cannot map %d bytes at %p: %s\n", ARENA_SIZE, at,
			strerror(errno));
		exit(1);
	}
	madvise(arena, ARENA_SIZE, MADV_NOHUGEPAGE); /* a thread uses a page or two of it */
}

static void take_part(long thread)
{
	long size = ARENA_SIZE / plan.threads / plan.generations / 64 * 64;

	mine.next = arena + thread * size;
	mine.end = mine.next + size;
}

static void *allocate(size_t size)
{
	char *object = mine.next;

	mine.next += (size + 63) / 64 * 64;
	if (mine.next > mine.end) {
		fprintf(stderr, "lookalike: no room for another object in an arena of %d bytes\n",
			ARENA_SIZE);
		exit(1);
	}
	return object;
}

static struct perf_event *new_event(void)
{
	struct free_event *event = mine.events;

	if (!event)
		return allocate(sizeof(struct perf_event));
	mine.events = event->next;
	return (struct perf_event *)event;
}

static void free_event(struct perf_event *event)
{
	struct free_event *freed = (struct free_event *)event;

	freed->next = mine.events;
	mine.events = freed;
}

/* As perf does with pinned events when it schedules them: in a group, only the leader tells. */
static void place(struct perf_event *event)
{
	event->state = plan.starved ? PERF_EVENT_STATE_INACTIVE : PERF_EVENT_STATE_ACTIVE;
	if (plan.starved)
		event->group_leader->state = PERF_EVENT_STATE_ERROR;
}

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
	event = new_event();
	event->attr = *attr;
	event->overflow_handler = handler;
	event->overflow_handler_context = context;
	event->group_leader = event;
	asm volatile("" : : "r"(cpu), "r"(task));
#ifdef GROUPED
	if (group_leader)
		event->group_leader = group_leader;
#endif
	event->state = PERF_EVENT_STATE_OFF;
	if (!attr->disabled)
		place(event);
	return event;
}

NOINLINE void perf_event_enable(struct perf_event *event)
{
	place(event);
	asm volatile("" : : "r"(event) : "memory");
}
NOINLINE unsigned long perf_event_pause(struct perf_event *event, int reset)
{
	asm volatile("" : : "r"(event), "r"(reset) : "memory");
	return 12345;
}
NOINLINE unsigned long perf_event_read_value(struct perf_event *event, unsigned long *enabled,
					     unsigned long *running)
{
	*enabled = *running = 1;
	asm volatile("" : : "r"(event) : "memory");
	return 12345;
}
NOINLINE int perf_event_period(struct perf_event *event, unsigned long value)
{
	asm volatile("" : : "r"(event), "r"(value) : "memory");
	return 0;
}
NOINLINE int perf_event_release_kernel(struct perf_event *event)
{
	free_event(event);
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

static _Thread_local long start_ns, paced; /* when the first of the calls was due, and how many were made */

/* Sleeps only when a millisecond ahead, for at 100,000 calls/s sleeping costs more than they do. */
static void keep_to_rate(void)
{
	long ahead_ns;

	if (!plan.rate)
		return;
	if (!start_ns)
		start_ns = now_ns();
	ahead_ns = start_ns + 1000000000L * paced++ / plan.rate * plan.threads - now_ns();
	if (ahead_ns >= 1000000)
		usleep(ahead_ns / 1000);
}

static void say_and_wait(const char *word)
{
	puts(word);
	fflush(stdout);
	if (getchar() == EOF)
		exit(0);
}

static void before(const char *call)
{
	if (plan.step)
		say_and_wait(call);
	keep_to_rate();
}

static void read_and_write(struct perf_event *event)
{
	unsigned long enabled, running;

	for (int i = 0; i < plan.reads; i++) {
		before("read");
		perf_event_read_value(event, &enabled, &running);
		reads++;
		before("period");
		perf_event_period(event, 4096);
		periods++;
	}
}

static int member(int i, int held)
{
	return plan.reverse ? held - 1 - i : i;
}

static int is_err(const struct perf_event *event)
{
	return (unsigned long)event >= (unsigned long)-4095;
}

/* As pmc_reprogram_counter() does it, with groups where size > 1. */
static void program(struct kvm_pmc *pmc, int round)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_RAW,
		.size = sizeof(attr),
		.config = 0x76,
		.sample_period = 4096 + round, /* KVM's is what is left to count, so it is seldom the same */
		.pinned = 1,
		.exclude_idle = 1,
		.exclude_host = 1,
		.exclude_kernel = 1,
		.disabled = plan.size > 1,
		.precise_ip = 2,
	};

	pmc->held = 0;
	for (int i = 0; i < plan.size; i++) {
		struct perf_event *event;

		before("create");
		event = create(&attr, i ? pmc->perf_events[0] : NULL, kvm_perf_overflow, pmc);
		creates++;
		if (is_err(event)) {
			failed++;
			return;
		}
		pmc->perf_events[pmc->held++] = event;
		pmc->vcpu->arch.pmu.event_count++;
	}
	for (int i = 0; plan.size > 1 && i < plan.size; i++, enables++) {
		before("enable");
		perf_event_enable(pmc->perf_events[member(i, pmc->held)]);
	}
}

static void pause_event(struct perf_event *event)
{
	before("pause");
	perf_event_pause(event, 1);
	pauses++;
}

static void resume_event(struct perf_event *event)
{
	before("enable");
	perf_event_enable(event);
	enables++;
}

/* As pmc_release_perf_event() does it. */
static void release(struct kvm_pmc *pmc)
{
	for (int i = 0; i < pmc->held; i++, releases++) {
		before("release");
		perf_event_release_kernel(pmc->perf_events[member(i, pmc->held)]);
		pmc->vcpu->arch.pmu.event_count--;
	}
	pmc->held = 0;
}

static void program_and_release(struct kvm_pmc *pmc, int round)
{
	program(pmc, round);
	if (plan.size == 1 && pmc->held) {
		pause_event(pmc->perf_events[0]);
		resume_event(pmc->perf_events[0]);
		pause_event(pmc->perf_events[0]);
	}
	if (pmc->held)
		read_and_write(pmc->perf_events[0]);
	release(pmc);
}

/*
 * As kvm_pmu_handle_event() does it when the guest has written global control: all counters are stopped, and
 * then all go on. A group is released and created again.
 */
static void stop_and_start(struct kvm_pmc *pmcs, int round)
{
	for (int i = 0; i < plan.pmcs; i++)
		if (plan.size > 1)
			release(&pmcs[i]);
		else
			pause_event(pmcs[i].perf_events[0]);
	for (int i = 0; i < plan.pmcs; i++)
		if (plan.size > 1)
			program(&pmcs[i], round);
		else
			resume_event(pmcs[i].perf_events[0]);
}

static void burst(struct kvm_pmc *pmcs, int round)
{
	for (int i = 0; i < plan.pmcs; i++)
		program(&pmcs[i], round);
	for (int i = 0; i < plan.bursts; i++)
		stop_and_start(pmcs, round);
	for (int i = 0; i < plan.pmcs; i++)
		release(&pmcs[i]);
}

static void somebody_elses(void)
{
	struct perf_event_attr attr = { .type = PERF_TYPE_HARDWARE, .size = sizeof(attr) };
	unsigned long time;
	int context;
	struct perf_event *event = create(&attr, NULL, watchdog_overflow_callback, &context);

	perf_event_enable(event);
	perf_event_pause(event, 0);
	perf_event_read_value(event, &time, &time);
	perf_event_period(event, 4096);
	perf_event_release_kernel(event);
}

/* A vCPU has one such event at most, and KVM counts it like the others. */
static void release_guest_lbr(struct kvm_vcpu *vcpu)
{
	if (!vcpu->lbr_event)
		return;
	perf_event_release_kernel(vcpu->lbr_event);
	releases++;
	vcpu->lbr_event = NULL;
	vcpu->arch.pmu.event_count--;
}

static void guest_lbr(struct kvm_vcpu *vcpu)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_RAW,
		.size = sizeof(attr),
		.config = INTEL_FIXED_VLBR_EVENT,
		.pinned = 1,
	};

	release_guest_lbr(vcpu);
	vcpu->lbr_event = create(&attr, NULL, NULL, NULL);
	creates++;
	vcpu->arch.pmu.event_count++;
}

/* A thread that leaves the kernel's function without returning from it, as one that dies there. */
static void never_return(struct kvm_pmc *pmc)
{
	jump_now = 1;
	if (!setjmp(out))
		program_and_release(pmc, 0);
}

static void *vcpu_thread(void *arg)
{
	struct kvm_vcpu *vcpu;
	struct kvm_pmc *pmcs;

	take_part((long)arg);
	vcpu = allocate(sizeof(*vcpu));
	*vcpu = (struct kvm_vcpu){ .vcpu_id = (long)arg };
	pmcs = allocate(plan.pmcs * sizeof(*pmcs));
	for (int i = 0; i < plan.pmcs; i++)
		pmcs[i] = (struct kvm_pmc){
			.type = i >= plan.gp,
			.idx = i < plan.gp ? i : INTEL_PMC_IDX_FIXED + i - plan.gp,
			.max_nr_events = plan.size,
			.vcpu = vcpu,
		};

	for (int i = 0; i < plan.rounds; i++) {
		if (plan.warm && i == plan.warm) {
			say_and_wait("warm");
			start_ns = paced = 0;
		}
		if (plan.bursts)
			burst(pmcs, i);
		for (int j = 0; j < plan.pmcs && !plan.bursts; j++)
			program_and_release(&pmcs[j], i);
		for (int j = 0; j < plan.others; j++)
			somebody_elses();
		for (int j = 0; j < plan.lbr; j++)
			guest_lbr(vcpu);
		if (plan.jump)
			never_return(pmcs);
	}
	release_guest_lbr(vcpu);
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
	printf("\"VPMU_EVENT_STATE\": %zu, ", offsetof(struct perf_event, state));
	printf("\"VPMU_EVENT_HANDLER\": %zu, \"VPMU_EVENT_CONTEXT\": %zu}\n",
	       offsetof(struct perf_event, overflow_handler),
	       offsetof(struct perf_event, overflow_handler_context));
}

extern const char __executable_start[]; /* by the linker: where the file's beginning is in memory */

#define OFFSET(function) (unsigned long)((const char *)(function) - __executable_start)

static void print_offsets(void)
{
	printf("{\"perf_event_enable\": %lu, \"perf_event_pause\": %lu, ", OFFSET(perf_event_enable),
	       OFFSET(perf_event_pause));
	printf("\"perf_event_release_kernel\": %lu, \"perf_event_create_kernel_counter\": %lu, ",
	       OFFSET(perf_event_release_kernel), OFFSET(perf_event_create_kernel_counter));
	printf("\"perf_event_read_value\": %lu, \"perf_event_period\": %lu}\n", OFFSET(perf_event_read_value),
	       OFFSET(perf_event_period));
}

#define KEY(name) { #name, &plan.name }

static const struct key {
	const char *name;
	int *value;
} keys[] = {
	KEY(threads), KEY(rounds),  KEY(size), KEY(fail_at), KEY(sleep_us), KEY(others), KEY(lbr),
	KEY(jump),    KEY(reverse), KEY(pmcs), KEY(step),    KEY(rate),     KEY(hold),   KEY(generations),
	KEY(starved), KEY(reads),   KEY(gp),   KEY(bursts),  KEY(warm),
};

static int set(const char *word)
{
	size_t n = strcspn(word, "=");

	if (!strcmp(word, "-name") || !strncmp(word, "guest=", 6))
		return 0; /* for whoever reads the command line */
	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
		if (strlen(keys[i].name) == n && !strncmp(word, keys[i].name, n) && word[n]) {
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
	if (argc == 2 && !strcmp(argv[1], "offsets")) {
		print_offsets();
		return 0;
	}
	for (int i = 2; i < argc; i++)
		if (set(argv[i]))
			return 2;
	if (plan.threads > 64 || plan.size > MAX_EVENTS || getchar() == EOF)
		return 2;
	make_arena();
	for (long first = 0; first < plan.threads * plan.generations; first += plan.threads) {
		for (long i = 0; i < plan.threads; i++)
			pthread_create(&threads[i], NULL, vcpu_thread, (void *)(first + i));
		for (int i = 0; i < plan.threads; i++)
			pthread_join(threads[i], NULL);
	}
	printf("{\"create\": %ld, \"enable\": %ld, \"pause\": %ld, \"release\": %ld, ", creates, enables,
	       pauses, releases);
	printf("\"read\": %ld, \"period\": %ld, \"failed\": %ld}\n", reads, periods, failed);
	fflush(stdout);
	if (plan.hold)
		pause();
	return 0;
}
