// SPDX-License-Identifier: GPL-2.0-only
/*
 * Probes on the calls that KVM makes to perf for its guests' counters, and the monitor that checks them. Those
 * on calls that are only counted are in unchecked.bpf.c.
 *
 * The same functions are attached as fentry/fexit programs (VPMU_FEXIT) or as kprobes and kretprobes. The
 * latter also serve as uprobes (VPMU_USER_MEMORY) where a kernel offers nothing else to attach to, and as
 * raw-tracepoint programs (VPMU_TWINS), which BPF_PROG_TEST_RUN can run. Everything that depends on the
 * kernel is passed in as VPMU_* constants, which agent/vpmu_agent/kernel/ reads from BTF and kallsyms. The
 * check itself is in monitor.h, which is generated from the model (docs/model.md).
 *
 * Whose event is it? KVM's events have KVM's overflow handler, and the pmc as its context. So an event
 * shows that it is KVM's, even if it was created before the probes were attached. An event of anybody else
 * costs one or two reads.
 *
 * A guest waits while this runs, and after a while of its own little of it is in any cache: what a call costs
 * is the number of cache lines that it touches. So the usual call, one as predicted of an event that was seen
 * before, takes a way of its own (is_usual()), which asks neither KVM nor a hash map for anything.
 */
#include <uapi/linux/ptrace.h>
#include "vpmu.h"

#define PERF_TYPE_RAW          4
#define INTEL_FIXED_VLBR_EVENT 0x1b00 /* arch/x86/include/asm/perf_event.h */
#define MAX_ERRNO              4095   /* include/linux/err.h */
#define PERF_EVENT_STATE_ERROR (-2)   /* include/linux/perf_event.h */
#define ATTR_DISABLED          (1 << 0)
#define ATTR_PINNED            (1 << 2)
#define NOT_FOUND              0xff

#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* The start of struct perf_event_attr, which is ABI (include/uapi/linux/perf_event.h). */
struct vpmu_attr {
	u32 type;
	u32 size;
	u64 config;
	u64 sample_period;
	u64 sample_type;
	u64 read_format;
	u64 flags;
};

/* An event that no entry of perf_events holds any more. */
struct vpmu_left_key {
	u64 event;
	u64 pmc;
	u32 tgid;
	u32 epoch;
};

#define IS_POWER_OF_2(n) (((n) & ((n) - 1)) == 0)

_Static_assert(IS_POWER_OF_2(VPMU_STATES), "a state is masked to stay within bounds");
_Static_assert(IS_POWER_OF_2(VPMU_SLOTS), "and so is an index into events[]");
_Static_assert(IS_POWER_OF_2(VPMU_MAX_THREADS), "and so is a hash");
_Static_assert(VPMU_ALL_BUCKETS == VPMU_CALLS * VPMU_BUCKETS, "all calls have the same buckets");

#define CACHE_LINE 64

_Static_assert(__builtin_offsetof(struct vpmu_pmc, pmc) == CACHE_LINE, "the registers have a line");
_Static_assert(__builtin_offsetof(struct vpmu_pmc, create_ns) == 2 * CACHE_LINE, "and what a create writes");
_Static_assert(__builtin_offsetof(struct vpmu_pmc, verdicts) == 6 * CACHE_LINE, "and each call's durations");
_Static_assert(__builtin_offsetof(struct vpmu_pmc, due) % CACHE_LINE == 0, "and a group's members");
_Static_assert(sizeof(struct vpmu_pmc) % CACHE_LINE == 0, "and no line is two entries'");
_Static_assert(sizeof(struct vpmu_vcpu) % CACHE_LINE == 0, "and no line is two entries'");
_Static_assert(__builtin_offsetof(struct vpmu_vcpu, reads) % CACHE_LINE == 0, "and reads have lines");
_Static_assert(__builtin_offsetof(struct vpmu_vcpu, periods) % CACHE_LINE == 0, "and periods, too");
_Static_assert(sizeof(struct vpmu_thread) % CACHE_LINE == 0, "and no line is two entries'");
_Static_assert(__builtin_offsetof(struct vpmu_thread, event) == CACHE_LINE,
	       "a usual call's is the first line");
_Static_assert(__builtin_offsetof(struct vpmu_thread, at) == 2 * CACHE_LINE, "any other's the second, too");
_Static_assert(__builtin_offsetof(struct vpmu_thread, hints) % CACHE_LINE == 0, "and hints have lines");

/* Only an array that could be mapped begins at a page, so that its entries begin at cache lines. */
#define ARRAY(value, name, entries) \
	BPF_F_TABLE("array", u32, value, name, entries, 1 << 10 /* BPF_F_MMAPABLE */)

ARRAY(struct vpmu_pmc, pmcs, VPMU_MAX_PMCS);
ARRAY(struct vpmu_vcpu, vcpus, VPMU_MAX_VCPUS);
ARRAY(struct vpmu_thread, threads, VPMU_MAX_THREADS);
/* A small one that cannot be mapped is kmalloc()ed: in memory that the kernel has mapped by big pages. */
BPF_ARRAY(control, struct vpmu_control, 1);
BPF_HASH(slots, struct vpmu_slot_key, u32, VPMU_MAX_SLOTS);
BPF_STACK(free_pmcs, u32, VPMU_MAX_PMCS);
BPF_STACK(free_vcpus, u32, VPMU_MAX_VCPUS);
BPF_ARRAY(was_used, u64, 2); /* enum vpmu_array */
BPF_HASH(processes, u32, struct vpmu_share, VPMU_MAX_PROCESSES);
BPF_HASH(given_back, u32, struct vpmu_given_back, VPMU_MAX_PROCESSES);
BPF_HASH(errors, struct vpmu_error_key, u64, VPMU_MAX_ERRORS);
BPF_TABLE("lru_hash", struct vpmu_left_key, u8, left_behind, VPMU_MAX_LEFT_BEHIND);
BPF_ARRAY(lost, u64, VPMU_LOST_REASONS);
BPF_ARRAY(starvations, u64, 1); /* of all pmcs: user space then looks at the census sooner */
BPF_ARRAY(self_tests, u64, VPMU_TEST_ENDS);
BPF_RINGBUF_OUTPUT(calls, VPMU_RING_PAGES);

static __always_inline void vpmu_read(void *to, u32 size, u64 from)
{
#ifdef VPMU_USER_MEMORY
	bpf_probe_read_user(to, size, (void *)from);
#else
	bpf_probe_read_kernel(to, size, (void *)from);
#endif
}

static __always_inline void count_lost(int reason)
{
	u64 *count = lost.lookup(&reason);

	if (count)
		__sync_fetch_and_add(count, 1);
}

static __always_inline u64 all_lost(void)
{
	u64 *count, sum = 0;

#pragma unroll
	for (int i = 0; i < VPMU_LOST_REASONS; i++) {
		int reason = i;

		count = lost.lookup(&reason);
		if (count)
			sum += *count;
	}
	return sum;
}

static __always_inline struct vpmu_control *control_now(void)
{
	u32 first = 0;

	return control.lookup(&first);
}

/*
 * Hides a value from the compiler's optimiser, so that the verifier sees what is written here. Otherwise
 * LLVM 16 and later turn popcount((x & -x) - 1) into a table in .rodata, which bcc does not relocate, and
 * LLVM 19 drops a mask after a comparison that bounds its operand, which the verifier has forgotten by
 * then. And an address in the kernel stays an instruction of its own, in which the loader puts that of this boot
 * (agent/vpmu_agent/loader/image.py).
 */
static __always_inline u64 opaque(u64 value)
{
	asm volatile("" : "+r"(value));
	return value;
}

/* A call for an event that is not KVM's: the tester's releases show that the programs run. */
static __always_inline void count_test(u32 name, int end)
{
	struct vpmu_control *now;
	u64 *count;

	if (name != VPMU_RELEASE)
		return;
	now = control_now();
	if (!now || now->tester != bpf_get_current_pid_tgid() >> 32)
		return;
	count = self_tests.lookup(&end);
	if (count)
		__sync_fetch_and_add(count, 1);
}

static __always_inline bool is_kvm_handler(u64 handler)
{
	if (!handler)
		return 0;
#if VPMU_HANDLER_INTR
	/* Before 5.17 KVM had a second handler, for counters that raise an interrupt. */
	if (handler == opaque(VPMU_HANDLER_INTR))
		return 1;
#endif
	return handler == opaque(VPMU_HANDLER);
}

/* An event's overflow handler, and what it is given: of KVM's events the pmc. */
static __always_inline void read_handler(u64 *handler, u64 event)
{
#if VPMU_EVENT_CONTEXT == VPMU_EVENT_HANDLER + 8
	vpmu_read(handler, 2 * sizeof(*handler), event + VPMU_EVENT_HANDLER);
#else
	vpmu_read(&handler[0], sizeof(handler[0]), event + VPMU_EVENT_HANDLER);
	vpmu_read(&handler[1], sizeof(handler[1]), event + VPMU_EVENT_CONTEXT);
#endif
}

static __always_inline bool is_guest_lbr(const struct vpmu_attr *attr)
{
	/* intel_pmu_create_guest_lbr_event() gives neither handler nor context. */
	return attr->type == PERF_TYPE_RAW && attr->config == INTEL_FIXED_VLBR_EVENT;
}

/* An index into events[] that the verifier knows to be in bounds. */
static __always_inline u64 in_bounds(u64 index)
{
	return opaque(index) & (VPMU_SLOTS - 1);
}

/* The functions that the model's rules use (monitor.h): bits of a mask, and the events behind them. */

#define BIT(i)       (1U << (i))
#define BIT_ULL(i)   (1ULL << (i))
#define BELOW(i)     (BIT_ULL(i) - 1)
#define LOWEST(mask) ((mask) & -(mask))

static __always_inline u64 mask_count(u64 mask)
{
	mask -= (mask >> 1) & 0x5555555555555555ULL;
	mask = (mask & 0x3333333333333333ULL) + ((mask >> 2) & 0x3333333333333333ULL);
	mask = (mask + (mask >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return (mask * 0x0101010101010101ULL) >> 56;
}

static __always_inline u64 mask_low(u64 mask)
{
	return mask ? mask_count(opaque(mask & -mask) - 1) : 0;
}

static __always_inline u64 mask_width(u64 mask)
{
	mask |= mask >> 1;
	mask |= mask >> 2;
	mask |= mask >> 4;
	mask |= mask >> 8;
	mask |= mask >> 16;
	mask |= mask >> 32;
	return mask_count(mask);
}

#if VPMU_SLOTS > 1
#define EVENT_AT(pmc, index) ((pmc)->events[in_bounds(index)])
#else
#define EVENT_AT(pmc, index) ((pmc)->event)
#endif

static __always_inline s32 find_event(struct vpmu_pmc *pmc, u64 event, u64 mask)
{
	/* Through memory: otherwise the verifier explores all that follows once for each index. */
	volatile u8 *found = &pmc->found;
	s32 index;

	*found = NOT_FOUND;
	if (!event)
		return -1;
	for (int i = 0; i < VPMU_SLOTS && mask >> i; i++)
		if (((mask >> i) & 1) && EVENT_AT(pmc, i) == event) {
			*found = i;
			break;
		}
	index = *found;
	return index == NOT_FOUND ? -1 : index;
}

static __always_inline s32 index_of(struct vpmu_pmc *pmc, u64 event)
{
	return find_event(pmc, event, pmc->members | pmc->orphans);
}

static __always_inline bool was_released(struct vpmu_pmc *pmc, u64 event)
{
	return find_event(pmc, event, pmc->gone & ~(pmc->members | pmc->orphans)) >= 0;
}

static __always_inline void put_event(struct vpmu_pmc *pmc, u64 index, u64 event)
{
	if (!index)
		pmc->event = event;
#if VPMU_SLOTS > 1
	pmc->events[in_bounds(index)] = event;
#endif
}

static __always_inline struct vpmu_left_key left_key(const struct vpmu_pmc *pmc, u64 event)
{
	struct vpmu_left_key key = {
		.event = event, .pmc = pmc->pmc, .tgid = pmc->tgid, .epoch = pmc->epoch
	};

	return key;
}

static __always_inline bool is_left_behind(struct vpmu_pmc *pmc, u64 event)
{
	struct vpmu_left_key key = left_key(pmc, event);

	return pmc->left && left_behind.lookup(&key);
}

static __always_inline void leave_event(struct vpmu_pmc *pmc, u64 index)
{
	struct vpmu_left_key key = left_key(pmc, EVENT_AT(pmc, index));
	u8 there = 1;

	/* Fails if the event is there already. The map is never full: it evicts its oldest entry. */
	if (!left_behind.insert(&key, &there))
		pmc->left++;
}

static __always_inline void leave_events(struct vpmu_pmc *pmc, u64 mask)
{
	for (int i = 0; i < VPMU_SLOTS && mask >> i; i++)
		if ((mask >> i) & 1)
			leave_event(pmc, i);
}

static __always_inline void find_again(struct vpmu_pmc *pmc, u64 event)
{
	struct vpmu_left_key key = left_key(pmc, event);

	if (pmc->left && left_behind.lookup(&key)) {
		left_behind.delete(&key);
		pmc->left--;
	}
}

#include "monitor.h"

struct vpmu_process_command {
	struct vpmu_process process;
	char command[VPMU_COMMAND_SIZE];
};

static __always_inline void tell_process(u32 tgid, struct vpmu_share *share)
{
	u64 task = bpf_get_current_task(), mm = 0, start = 0, end = 0;
	struct vpmu_process_command *record;
	u32 size;

	bpf_probe_read_kernel(&mm, sizeof(mm), (void *)(task + VPMU_TASK_MM));
	if (!mm)
		return; /* it is exiting and has no command line any more */
	if (share->mm == mm)
		return;
	record = calls.ringbuf_reserve(sizeof(*record));
	if (!record) {
		count_lost(VPMU_LOST_RING_FULL);
		return; /* the first call of its next vCPU tries again */
	}
	bpf_probe_read_kernel(&start, sizeof(start), (void *)(mm + VPMU_MM_ARG_START));
	bpf_probe_read_kernel(&end, sizeof(end), (void *)(mm + VPMU_MM_ARG_END));
	size = end - start < VPMU_COMMAND_SIZE ? end - start : VPMU_COMMAND_SIZE - 1;
	record->process.tgid = tgid;
	record->process.size = size & (VPMU_COMMAND_SIZE - 1);
	if (bpf_probe_read_user(record->command, record->process.size, (void *)start))
		record->process.size = 0;
	calls.ringbuf_submit(record, 0);
	share->mm = mm;
}

/* Threads: the call that each is in, and hints. */

#define GOLDEN 0x9e3779b97f4a7c15ULL /* 2^64 divided by the golden ratio: Knuth's multiplicative hash */
#define TRIES  4                     /* entries where a thread's may be */

/* The entry of this thread; NULL if it has none. */
static __always_inline struct vpmu_thread *this_thread(void)
{
	u64 task = bpf_get_current_task();
	u32 first = (task * GOLDEN) >> 32;
	struct vpmu_thread *thread;

#pragma unroll
	for (int i = 0; i < TRIES; i++) {
		u32 at = (first + i) & (VPMU_MAX_THREADS - 1);

		thread = threads.lookup(&at);
		if (unlikely(!thread))
			return 0;
		if (likely(thread->task == task))
			return thread;
	}
	return 0;
}

static __always_inline u64 *hints_of(struct vpmu_thread *thread, u64 address)
{
	u32 line = (address * GOLDEN) >> 61;

	return &thread->hints[(opaque(line) & (VPMU_HINT_LINES - 1)) * (VPMU_ALL_HINTS / VPMU_HINT_LINES)];
}

static __always_inline bool find_hint(struct vpmu_thread *thread, u64 address, u32 *slot, u32 *index)
{
	u64 *hints = hints_of(thread, address);

#pragma unroll
	for (int i = 0; i < 4; i++)
		if (hints[i] == address) {
			*slot = hints[4 + i];
			*index = hints[4 + i] >> 32;
			return 1;
		}
	return 0;
}

/* Puts a hint first on its line, where the oldest one falls out. */
static __always_inline void put_hint(struct vpmu_thread *thread, u64 address, u32 slot, u32 index)
{
	u64 *hints = hints_of(thread, address);

	if (hints[0] != address) {
		if (hints[1] != address) {
			if (hints[2] != address) {
				hints[3] = hints[2];
				hints[7] = hints[6];
			}
			hints[2] = hints[1];
			hints[6] = hints[5];
		}
		hints[1] = hints[0];
		hints[5] = hints[4];
	}
	hints[0] = address;
	hints[4] = (u64)index << 32 | slot;
}

/* Entries of `pmcs` and `vcpus`: found, or taken from those that are free. */

/*
 * One that was given back, or the next one that nobody ever had, whose number is `was_used`. Two who want
 * that one at once see each other, and both try again.
 */
#define TRIES_TO_TAKE 16

static __always_inline struct vpmu_pmc *take_pmc(u32 *slot)
{
	u32 array = VPMU_PMCS;
	u64 *was = was_used.lookup(&array);
	struct vpmu_pmc *pmc;

	if (!free_pmcs.pop(slot))
		return pmcs.lookup(slot);
#pragma clang loop unroll(disable)
	for (int i = 0; i < TRIES_TO_TAKE && was; i++) {
		*slot = *(volatile u64 *)was;
		pmc = pmcs.lookup(slot);
		if (!pmc)
			return 0;
		__sync_fetch_and_add(&pmc->claims, 1);
		if (*(volatile u32 *)&pmc->claims == 1) {
			__sync_fetch_and_add(was, 1);
			return pmc;
		}
		__sync_fetch_and_add(&pmc->claims, -1);
	}
	return 0;
}

static __always_inline struct vpmu_vcpu *take_vcpu(u32 *slot)
{
	u32 array = VPMU_VCPUS;
	u64 *was = was_used.lookup(&array);
	struct vpmu_vcpu *vcpu;

	if (!free_vcpus.pop(slot))
		return vcpus.lookup(slot);
#pragma clang loop unroll(disable)
	for (int i = 0; i < TRIES_TO_TAKE && was; i++) {
		*slot = *(volatile u64 *)was;
		vcpu = vcpus.lookup(slot);
		if (!vcpu)
			return 0;
		__sync_fetch_and_add(&vcpu->claims, 1);
		if (*(volatile u32 *)&vcpu->claims == 1) {
			__sync_fetch_and_add(was, 1);
			return vcpu;
		}
		__sync_fetch_and_add(&vcpu->claims, -1);
	}
	return 0;
}

static __always_inline struct vpmu_share *share_of(u32 tgid, u32 born)
{
	struct vpmu_share none = { .born = born };

	return processes.lookup_or_try_init(&tgid, &none);
}

/* The lowest bits of when this thread was born: a load, for this is asked at every create. */
static __always_inline u32 thread_born(void)
{
	u32 born;

	asm volatile("%0 = *(u32 *)(%1 + %2)"
		     : "=r"(born)
		     : "r"(bpf_get_current_task_btf()), "i"(VPMU_TASK_START_BOOTTIME));
	return born;
}

static __always_inline u32 born_at(u64 task)
{
	u32 born = 0;

	bpf_probe_read_kernel(&born, sizeof(born), (void *)(task + VPMU_TASK_START_BOOTTIME));
	return born;
}

/* When this process was born, of its thread group the first: with its tgid it tells it from all others. */
static __always_inline u32 process_born(u64 task)
{
	u64 leader = 0;

	bpf_probe_read_kernel(&leader, sizeof(leader), (void *)(task + VPMU_TASK_GROUP_LEADER));
	return born_at(leader);
}

/* A call that cannot be followed, because of this. */
static __always_inline void refuse(struct vpmu_share *share, int reason)
{
	count_lost(reason);
	if (share)
		__sync_fetch_and_add(&share->refused, 1);
}

static __always_inline struct vpmu_pmc *find_pmc(u64 address, u32 tgid, u32 *slot)
{
	struct vpmu_slot_key key = { .address = address, .tgid = tgid };
	u32 *found = slots.lookup(&key);

	if (!found)
		return 0;
	*slot = *found;
	return pmcs.lookup(slot);
}

static __always_inline struct vpmu_pmc *add_pmc(u64 address, u32 tgid, u32 born, u32 *slot)
{
	struct vpmu_slot_key key = { .address = address, .tgid = tgid };
	struct vpmu_given_back *given = given_back.lookup(&tgid);
	struct vpmu_share *share = share_of(tgid, born);
	struct vpmu_pmc *pmc;

	if (share && share->born != born) {
		count_lost(VPMU_LOST_TGID_REUSED);
		return 0;
	}
	if (!share || share->pmcs - (given ? given->pmcs : 0) >= VPMU_MAX_PMCS / VPMU_SHARES) {
		refuse(share, share ? VPMU_LOST_OVER_SHARE : VPMU_LOST_PMCS_FULL);
		return 0;
	}
	pmc = take_pmc(slot);
	if (!pmc) {
		refuse(share, VPMU_LOST_PMCS_FULL);
		return 0;
	}
	/* What was counted is 0 by now. */
	pmc->pmc = address;
	pmc->kvm_vcpu = 0;
	pmc->state = VPMU_STATE_UNKNOWN;
	pmc->size = 1;
	pmc->paused = 0;
	pmc->epoch = 0;
	pmc->members = pmc->enabled = pmc->orphans = pmc->walk = pmc->gone = 0;
	pmc->left = pmc->faults = pmc->error = 0;
	pmc->attr_type = pmc->attr_config = pmc->attr_sample_period = pmc->attr_flags = 0;
	pmc->born = born;
	pmc->tgid = tgid;
	if (slots.insert(&key, slot)) {
		pmc->tgid = 0;
		free_pmcs.push(slot, 0);
		refuse(share, VPMU_LOST_PMCS_FULL);
		return 0;
	}
	__sync_fetch_and_add(&share->pmcs, 1);
	return pmc;
}

static __always_inline struct vpmu_vcpu *vcpu_of(u64 kvm_vcpu, u32 tgid, u32 born, s32 vcpu_id, u32 *slot)
{
	struct vpmu_slot_key key = { .address = kvm_vcpu, .tgid = tgid, .vcpu_id = vcpu_id };
	struct vpmu_given_back *given;
	struct vpmu_share *share;
	struct vpmu_vcpu *vcpu;
	u32 *found;

	found = slots.lookup(&key);
	if (found) {
		*slot = *found;
		return vcpus.lookup(slot);
	}
	given = given_back.lookup(&tgid);
	share = share_of(tgid, born);
	if (!share || share->vcpus - (given ? given->vcpus : 0) >= VPMU_MAX_VCPUS / VPMU_SHARES) {
		refuse(share, share ? VPMU_LOST_OVER_SHARE : VPMU_LOST_VCPUS_FULL);
		return 0;
	}
	vcpu = take_vcpu(slot);
	if (!vcpu) {
		refuse(share, VPMU_LOST_VCPUS_FULL);
		return 0;
	}
	vcpu->kvm_vcpu = kvm_vcpu;
	vcpu->vcpu_id = vcpu_id;
	vcpu->event_count = -1;
	vcpu->epoch = 0;
	vcpu->tgid = tgid;
	if (slots.insert(&key, slot)) {
		vcpu->tgid = 0;
		free_vcpus.push(slot, 0);
		refuse(share, VPMU_LOST_VCPUS_FULL);
		return 0;
	}
	__sync_fetch_and_add(&share->vcpus, 1);
	tell_process(tgid, share);
	return vcpu;
}

/*
 * A call was lost, and it may have been a create: nothing is known of its pmc any more, nor of its vCPU's
 * count of events.
 */
static __always_inline void forget_pmc(u64 kvm_pmc, u32 tgid)
{
	struct vpmu_vcpu *vcpu;
	struct vpmu_pmc *pmc;
	u32 slot = 0;

	pmc = find_pmc(kvm_pmc, tgid, &slot);
	if (!pmc)
		return;
	pmc->epoch = 0;
	vcpu = vcpus.lookup(&pmc->vcpu_slot);
	if (vcpu && pmc->kvm_vcpu)
		vcpu->event_count = -1;
}

/* KVM's calls are not nested: the return of the thread's previous call was missed. */
static __always_inline void miss_return(struct vpmu_thread *thread)
{
	count_lost(VPMU_LOST_MISSED_RETURN);
	if (thread->name == VPMU_CREATE)
		forget_pmc(thread->pmc, thread->tgid);
	thread->name = VPMU_CALLS;
}

/*
 * An entry for a thread that has none: one that nobody has, or that of the thread whose last call is the
 * longest ago, for most likely it is gone. NULL if another thread is taking it at the same time.
 */
static __always_inline struct vpmu_thread *take_entry(void)
{
	struct vpmu_thread *thread, *oldest = 0;
	u64 task = bpf_get_current_task(), time_ns;
	u32 first = (task * GOLDEN) >> 32, takes;

#pragma unroll
	for (int i = 0; i < TRIES; i++) {
		u32 at = (first + i) & (VPMU_MAX_THREADS - 1);

		thread = threads.lookup(&at);
		if (!thread)
			return 0;
		if (!oldest || thread->time_ns < oldest->time_ns)
			oldest = thread;
	}
	time_ns = oldest->time_ns;
	takes = *(volatile u32 *)&oldest->takes;
	__sync_fetch_and_add(&oldest->takes, 1);
	if (*(volatile u32 *)&oldest->takes != takes + 1 || *(volatile u64 *)&oldest->time_ns != time_ns)
		return 0;
	oldest->time_ns = bpf_ktime_get_ns();
	if (oldest->task && oldest->name != VPMU_CALLS)
		miss_return(oldest);
	oldest->task = task;
	oldest->name = VPMU_CALLS;
	return oldest;
}

/*
 * The entry of this thread for a call of this pmc: the one that it has, or one that it takes. NULL if it
 * cannot have one; then the call is lost.
 */
static __always_inline struct vpmu_thread *thread_for(struct vpmu_thread *thread, u64 kvm_pmc)
{
	u32 since = thread_born();

	if (unlikely(!thread))
		thread = take_entry();
	if (unlikely(!thread)) {
		count_lost(VPMU_LOST_MISSED_RETURN);
		forget_pmc(kvm_pmc, bpf_get_current_pid_tgid() >> 32);
		return 0;
	}
	if (unlikely(thread->since != since)) {
		/* The entry was that of a thread at the same place in memory, perhaps of another process. */
		thread->since = since;
		thread->born = process_born(bpf_get_current_task());
		thread->tgid = bpf_get_current_pid_tgid() >> 32;
#pragma clang loop unroll(disable)
		for (int i = 0; i < VPMU_ALL_HINTS; i++)
			thread->hints[i] = 0;
	}
	return thread;
}

/* The last thing that is done at the entry of a call. */
static __always_inline void begin_call(u32 name, struct vpmu_thread *thread)
{
	thread->name = name;
	thread->time_ns = bpf_ktime_get_ns();
}

/* The same of a call that has a program at its return only to be timed. */
static __always_inline void begin_timed(u32 name, struct vpmu_thread *thread)
{
#ifndef VPMU_NO_DURATIONS
	begin_call(name, thread);
#endif
}

/* What KVM holds now: read rarely, for each read costs as much as the rest of a usual call's check. */

static __always_inline u32 max_nr_events_of(u64 kvm_pmc)
{
#ifdef VPMU_PMC_MAX_NR_EVENTS
	u8 byte = 0;

	if (kvm_pmc) {
		vpmu_read(&byte, sizeof(byte), kvm_pmc + VPMU_PMC_MAX_NR_EVENTS);
		return byte ? byte : 1;
	}
#endif
	return 1;
}

/* -1 if not known. */
static __always_inline s32 event_count_of(u64 kvm_vcpu)
{
#ifdef VPMU_VCPU_EVENT_COUNT
	u8 byte = 0;

	if (kvm_vcpu) {
		vpmu_read(&byte, sizeof(byte), kvm_vcpu + VPMU_VCPU_EVENT_COUNT);
		return byte;
	}
#endif
	return -1;
}

/*
 * Whether perf has no room for the event on the PMU. KVM's events are pinned: perf does not put one that finds
 * no room off until later, but in error (merge_sched_in() in kernel/events/core.c).
 */
static __always_inline bool is_starved(u64 event)
{
	s32 state = 0;

	vpmu_read(&state, sizeof(state), event + VPMU_EVENT_STATE);
	return state == PERF_EVENT_STATE_ERROR;
}

static __always_inline void count_starvation(struct vpmu_pmc *pmc)
{
	u32 first = 0;
	u64 *all = starvations.lookup(&first);

	pmc->starvations++;
	if (all)
		__sync_fetch_and_add(all, 1);
}

/*
 * The event whose state shows, when an enable of `event` returns, whether perf had room: the first one of a
 * group, which has room as a whole or not at all, and of which perf puts only the leader in error. 0 as long
 * as other members are still to be enabled.
 */
static __always_inline u64 placed_by(const struct vpmu_pmc *pmc, u64 event)
{
	if (pmc->state == VPMU_STATE_ENABLING)
		return 0;
	return pmc->state != VPMU_STATE_UNKNOWN && (pmc->members & 1) ? pmc->event : event;
}

/* KVM stops counting an event after it was released: u8 event_count. */
static __always_inline void count_release(struct vpmu_vcpu *vcpu)
{
#ifdef VPMU_VCPU_EVENT_COUNT
	if (vcpu->event_count >= 0)
		vcpu->event_count = (vcpu->event_count - 1) & 0xff;
#endif
}

static __always_inline void note_guest_lbr(u32 tgid, u32 born)
{
	struct vpmu_share *share = share_of(tgid, born);

	if (share)
		share->guest_lbr = 1;
}

static __always_inline bool has_guest_lbr(u32 tgid)
{
	struct vpmu_share *share = processes.lookup(&tgid);

	return share && share->guest_lbr;
}

/*
 * Compares the vCPU's count of events with KVM's at a create, when the event is not in KVM's count yet. KVM
 * counts an event after it was created. It also counts the vCPU's event of guest LBR, which does not say
 * whose it is: in a process that has such events, a difference of one tells nothing.
 */
static __always_inline bool is_miscounted(struct vpmu_vcpu *vcpu, bool failed, s32 event_count, s64 *expected)
{
	*expected = vcpu->event_count;
	if (event_count < 0)
		return 0;
	vcpu->event_count = (event_count + !failed) & 0xff;
	if (*expected < 0 || *expected == event_count)
		return 0;
	return ((event_count - *expected + 1) & 0xff) > 2 || !has_guest_lbr(vcpu->tgid);
}

/* Of guest LBR, or one that is not needed after all: else user space gives entries back. */
static __always_inline void free_pmc(struct vpmu_pmc *pmc, u32 slot)
{
	struct vpmu_slot_key key = { .address = pmc->pmc, .tgid = pmc->tgid };
	struct vpmu_share *share = processes.lookup(&key.tgid);

	slots.delete(&key);
	pmc->members = pmc->orphans = pmc->left = 0;
	pmc->tgid = 0;
	free_pmcs.push(&slot, 0);
	if (share)
		__sync_fetch_and_add(&share->pmcs, -1);
}

/* Whether the vCPU that a pmc names is still the one that has this entry; else user space may have freed it. */
static __always_inline bool is_vcpu_of(const struct vpmu_pmc *pmc, const struct vpmu_vcpu *vcpu)
{
	s32 vcpu_id = 0;

	vpmu_read(&vcpu_id, sizeof(vcpu_id), pmc->kvm_vcpu + VPMU_VCPU_ID);
	return vcpu->kvm_vcpu == pmc->kvm_vcpu && vcpu->vcpu_id == vcpu_id;
}

/*
 * Which pmc it is. Its memory may belong to another VM of the process by now, so that this is asked for each
 * program: who has its vCPU's memory. Of guest LBR, a thread stands for the vCPU. Returns the vCPU's entry,
 * NULL if there is no room for one.
 */
static __always_inline struct vpmu_vcpu *identify(struct vpmu_pmc *pmc, u64 kvm_pmc)
{
	s32 vcpu_id = -1 - (s32)bpf_get_current_pid_tgid();
	struct vpmu_vcpu *vcpu;
	u64 type = 0; /* and the field after it; little-endian */
	u32 slot = 0;

	if (pmc->kvm_vcpu) {
		vcpu = vcpus.lookup(&pmc->vcpu_slot);
		if (vcpu && is_vcpu_of(pmc, vcpu))
			return vcpu;
	}
	if (kvm_pmc) {
#if VPMU_PMC_IDX == VPMU_PMC_TYPE + 4
		vpmu_read(&type, 5, kvm_pmc + VPMU_PMC_TYPE);
		pmc->pmc_idx = type >> 32;
#else
		vpmu_read(&type, 4, kvm_pmc + VPMU_PMC_TYPE);
		vpmu_read(&pmc->pmc_idx, sizeof(pmc->pmc_idx), kvm_pmc + VPMU_PMC_IDX);
#endif
		pmc->pmc_type = type;
		vpmu_read(&pmc->kvm_vcpu, sizeof(pmc->kvm_vcpu), kvm_pmc + VPMU_PMC_VCPU);
		vpmu_read(&vcpu_id, sizeof(vcpu_id), pmc->kvm_vcpu + VPMU_VCPU_ID);
		pmc->vcpu_id = vcpu_id;
	} else {
		pmc->pmc_type = VPMU_LBR;
		pmc->vcpu_id = -1;
	}
	vcpu = vcpu_of(pmc->kvm_vcpu, pmc->tgid, pmc->born, vcpu_id, &slot);
	if (vcpu) {
		pmc->vcpu_slot = slot;
	} else {
		pmc->kvm_vcpu = 0; /* asked again at the next call */
		pmc->epoch = 0;
	}
	return vcpu;
}

/*
 * The entries of the pmc and the vCPU that a call is about; false if there is no room for them, or if they would
 * be counted for an earlier process with this tgid, which user space has not found to be gone yet. An event of
 * guest LBR, which has no pmc, has an entry of its own: `address` is that of the pmc, or of such an event.
 */
static __always_inline bool find_entries(struct vpmu_thread *call, u64 address, bool is_create,
					 struct vpmu_pmc **pmc, struct vpmu_vcpu **vcpu)
{
	bool is_new = 0;
	u32 slot = 0;

	*pmc = find_pmc(address, call->tgid, &slot);
	if (!*pmc) {
		*pmc = add_pmc(address, call->tgid, call->born, &slot);
		is_new = 1;
	} else if ((*pmc)->born != call->born) {
		count_lost(VPMU_LOST_TGID_REUSED);
		return 0;
	}
	if (!*pmc)
		return 0;
	if (is_create && call->pmc)
		put_hint(call, address, slot, 0);
	if ((is_create && !call->leader) || !(*pmc)->kvm_vcpu)
		*vcpu = identify(*pmc, call->pmc);
	else
		*vcpu = vcpus.lookup(&(*pmc)->vcpu_slot);
	if (!*vcpu && (is_new || !call->pmc))
		free_pmc(*pmc, slot);
	call->pmc_slot = slot;
	call->vcpu_slot = (*pmc)->vcpu_slot;
	return *vcpu;
}

static __always_inline void count_call(struct vpmu_pmc *pmc, u32 name)
{
	if (unlikely(!++pmc->calls[name]))
		pmc->calls_high[name]++;
}

/* On the line that the call's durations have. */
static __always_inline void count_duration(struct vpmu_pmc *pmc, u32 name, u64 duration)
{
	u64 *line = &pmc->create_ns + name * (CACHE_LINE / sizeof(u64));
	u32 bucket = duration_bucket(duration);
	u32 *count = (u32 *)(line + 1) + bucket;

	*line += duration;
	if (unlikely(!++*count))
		line[7] += 1ULL << (5 * bucket);
}

static __always_inline void count_error(u32 tgid, s64 result)
{
	struct vpmu_error_key key = { .tgid = tgid, .error = -result };
	u64 none = 0, *count = errors.lookup_or_try_init(&key, &none);

	if (count)
		__sync_fetch_and_add(count, 1);
	else
		count_lost(VPMU_LOST_ERRORS_FULL);
}

/*
 * What the model says of a call: its verdict goes to `call`, and what it changes to the registers and
 * counts.
 */
static __always_inline void judge(u32 name, struct vpmu_thread *call, struct vpmu_pmc *pmc,
				  struct vpmu_vcpu *vcpu, u32 epoch)
{
	s64 due[VPMU_CALLS] = {}, expected;
	u32 kind;

	/* A call that began before the end (epoch 0) is still judged. */
	if (epoch && pmc->epoch != epoch) {
		pmc->epoch = epoch;
		pmc->state = VPMU_STATE_UNKNOWN;
		pmc->left = 0;
	}
	call->n = vpmu_n_is_read(name, pmc) ? max_nr_events_of(call->pmc) : pmc->size;
	call->event_count = -1;
	if (name == VPMU_CREATE) {
		if (epoch && vcpu->epoch != epoch) {
			vcpu->epoch = epoch;
			vcpu->event_count = -1;
		}
		call->event_count = event_count_of(pmc->kvm_vcpu);
	}

	/* Makes the verifier forget these values, so that it explores what follows only once. */
	asm volatile("" : : : "memory");
	VPMU_CHECK(name, pmc, call, due);
	if (name == VPMU_CREATE && is_miscounted(vcpu, call->failed, call->event_count, &expected) &&
	    (call->kind == VPMU_KIND_PREDICTED || call->kind == VPMU_KIND_UNKNOWN)) {
		call->kind = VPMU_KIND_EVENT_COUNT_MISMATCH;
		call->expected = VPMU_EXPECTED_EVENT_COUNT;
		call->at = expected;
		call->size = 1;
	}
	if (name == VPMU_RELEASE)
		count_release(vcpu);
	asm volatile("" : : : "memory");
	kind = call->kind;
	count_call(pmc, name);
	due[name]--;
#pragma unroll
	for (int i = 0; i < VPMU_CALLS; i++)
		add_due(pmc, i, due[i]);
	if (kind != VPMU_KIND_PREDICTED)
		pmc->verdicts[kind & VPMU_KINDS_MASK]++;
	if (call->event && call->pmc && call->event_index >= 0)
		put_hint(call, call->event, call->pmc_slot, call->event_index);
}

static __always_inline void keep_attr(struct vpmu_pmc *pmc, const struct vpmu_attr *attr)
{
	pmc->attr_type = attr->type;
	pmc->attr_config = attr->config;
	pmc->attr_sample_period = attr->sample_period;
	pmc->attr_flags = attr->flags;
}

static __always_inline void send_record(u32 name, struct vpmu_thread *call, struct vpmu_pmc *pmc,
					u64 duration, s64 result, bool starved)
{
	struct vpmu_call *record = calls.ringbuf_reserve(sizeof(*record));

	if (!record) {
		count_lost(VPMU_LOST_RING_FULL);
		return;
	}
	record->time_ns = call->time_ns;
	record->duration_ns = duration;
	record->pmc = call->pmc;
	record->event = call->event;
	record->leader = call->leader;
	record->result = result;
	record->lost = all_lost();
	record->attr_config = pmc->attr_config;
	record->attr_sample_period = pmc->attr_sample_period;
	record->attr_flags = pmc->attr_flags;
	record->attr_type = pmc->attr_type;
	record->expected_at = call->at;
	record->tgid = call->tgid;
	record->tid = bpf_get_current_pid_tgid();
	record->vcpu_id = pmc->vcpu_id;
	record->event_count = call->event_count;
	record->name = name;
	record->pmc_type = pmc->pmc_type;
	record->pmc_idx = pmc->pmc_idx;
	record->max_nr_events = call->n;
	record->verdict = call->kind;
	record->expected = call->expected;
	record->event_index = call->event_index;
	record->leader_index = call->leader_index;
	record->expected_size = call->size;
	record->starved = starved;
	record->unused = 0;
	calls.ringbuf_submit(record, 0);
}

/* An event of guest LBR is gone, and its entry goes with it. */
static __always_inline void end_guest_lbr(u32 slot, struct vpmu_pmc *pmc, struct vpmu_vcpu *vcpu)
{
	for (int i = 0; i < VPMU_CALLS; i++) {
		u64 *line = &pmc->create_ns + i * (CACHE_LINE / sizeof(u64));
		u32 *counts = (u32 *)(line + 1);

		vcpu->calls[i] += pmc->calls[i];
		vcpu->due[i] += pmc->due[i];
		vcpu->durations_ns[i] += *line;
		pmc->calls[i] = 0;
		pmc->due[i] = 0;
		*line = 0;
#pragma clang loop unroll(disable)
		for (int j = 0; j < VPMU_BUCKETS; j++) {
			vcpu->buckets[i * VPMU_BUCKETS + j] += counts[j];
			counts[j] = 0;
		}
	}
#pragma clang loop unroll(disable)
	for (int i = 0; i < VPMU_KINDS; i++) {
		vcpu->verdicts[i] += pmc->verdicts[i];
		pmc->verdicts[i] = 0;
	}
	vcpu->starvations += pmc->starvations;
	pmc->starvations = 0;
	free_pmc(pmc, slot);
}

/* What is to be done for a call that was not a usual one, when it returns. */
static __always_inline void finish(u32 name, struct vpmu_thread *call, struct vpmu_pmc *pmc, u64 duration,
				   s64 result, bool starved)
{
	struct vpmu_vcpu *vcpu;

	if (call->todo & VPMU_SEND)
		send_record(name, call, pmc, duration, result, starved);
	if ((name == VPMU_CREATE || name == VPMU_RELEASE) && call->todo & VPMU_END) {
		vcpu = vcpus.lookup(&call->vcpu_slot);
		if (vcpu)
			end_guest_lbr(call->pmc_slot, pmc, vcpu);
	}
}

/* enable, pause and release: judged at their entry, for what they return is of no importance. */

/*
 * A call as predicted of an event that the thread has seen before. That a pmc holds the event shows that it
 * is KVM's, without a look at the event: nobody else can have it before its release was seen here. All that
 * the model says is in vpmu_is_usual_*(), which is generated from its rules.
 *
 * A release also counts for its vCPU, which is the one that the thread worked on before: so the CPU can fetch
 * that entry without waiting for the pmc's.
 */
static __always_inline bool is_usual(u32 name, u64 event, const struct vpmu_control *now,
				     struct vpmu_thread *thread)
{
	u32 slot = 0, index = 0, n = 1;
	struct vpmu_vcpu *vcpu;
	struct vpmu_pmc *pmc;

	if (unlikely(!find_hint(thread, event, &slot, &index)))
		return 0;
	pmc = pmcs.lookup(&slot);
	if (unlikely(!pmc || pmc->epoch != now->epoch || now->stream))
		return 0;
#if VPMU_SLOTS > 1
	n = vpmu_n_is_read(name, pmc) ? max_nr_events_of(pmc->pmc) : pmc->size;
	index &= VPMU_SLOTS - 1;
	if (unlikely((index ? EVENT_AT(pmc, index) : pmc->event) != event))
		return 0;
#else
	index = 0;
	if (unlikely(pmc->event != event))
		return 0;
#endif
	if (unlikely(!(((pmc->members | pmc->orphans) >> index) & 1)))
		return 0;
#ifdef VPMU_VCPU_EVENT_COUNT
	if (name == VPMU_RELEASE && unlikely(thread->vcpu_slot != pmc->vcpu_slot))
		return 0;
#endif
	if (unlikely(!VPMU_IS_USUAL(name, pmc, index, n)))
		return 0;
	count_call(pmc, name);
#ifdef VPMU_VCPU_EVENT_COUNT
	if (name == VPMU_RELEASE) {
		vcpu = vcpus.lookup(&thread->vcpu_slot);
		if (vcpu)
			count_release(vcpu);
	}
#endif
	thread->pmc_slot = slot;
	thread->todo = 0;
	if (name == VPMU_ENABLE)
		thread->placed = placed_by(pmc, event);
	return 1;
}

/* Any other call. Returns the entry of its thread, NULL if no return is waited for. */
static __always_inline struct vpmu_thread *follow(u32 name, u64 event, struct vpmu_thread *call, u32 epoch,
						  u32 stream)
{
	struct vpmu_attr attr = {};
	struct vpmu_vcpu *vcpu;
	struct vpmu_pmc *pmc;
	u64 handler[2] = {};
	bool is_kvms;

	if (!event)
		return 0;
	read_handler(handler, event);
	is_kvms = is_kvm_handler(handler[0]);
	if (!is_kvms) {
		vpmu_read(&attr, sizeof(attr), event + VPMU_EVENT_ATTR);
		if (!is_guest_lbr(&attr)) {
			count_test(name, VPMU_TEST_ENTRY);
#ifdef VPMU_NO_DURATIONS
			count_test(name, VPMU_TEST_RETURN);
#endif
			return 0;
		}
	}
	call = thread_for(call, is_kvms ? handler[1] : event);
	if (!call)
		return 0;
	call->pmc = is_kvms ? handler[1] : 0;
	if (!is_kvms)
		note_guest_lbr(call->tgid, call->born);
	if (!find_entries(call, is_kvms ? handler[1] : event, 0, &pmc, &vcpu))
		return 0;
	if (stream || !is_kvms || !pmc->attr_flags) {
		vpmu_read(&attr, sizeof(attr), event + VPMU_EVENT_ATTR);
		keep_attr(pmc, &attr);
	}
	call->event = event;
	call->leader = 0;
	call->failed = 0;
	call->disabled = 0;
	judge(name, call, pmc, vcpu, epoch);
	call->todo = stream || call->kind > VPMU_KIND_UNKNOWN ? VPMU_SEND : 0;
	if (!is_kvms && pmc->state == VPMU_STATE_EMPTY)
		call->todo |= VPMU_END;
	if (name == VPMU_ENABLE)
		call->placed = placed_by(pmc, event);
#ifdef VPMU_NO_DURATIONS
	call->time_ns = bpf_ktime_get_ns();
	if (call->todo)
		finish(name, call, pmc, 0, 0, 0);
#endif
	return call;
}

static __always_inline int event_entry(u32 name, u64 event)
{
	struct vpmu_thread *thread = this_thread();
	struct vpmu_control *now = control_now();

	if (unlikely(!now || !now->epoch))
		return 0;
	if (likely(thread && thread->name == VPMU_CALLS && is_usual(name, event, now, thread))) {
		begin_timed(name, thread);
		return 0;
	}
	if (thread && thread->name != VPMU_CALLS)
		miss_return(thread);
	thread = follow(name, event, thread, now->epoch, now->stream);
	if (thread)
		begin_timed(name, thread);
	return 0;
}

static __always_inline void end_event_call(u32 name, struct vpmu_thread *call, u64 duration)
{
	struct vpmu_pmc *pmc;
	bool starved = 0;

	call->name = VPMU_CALLS;
	pmc = pmcs.lookup(&call->pmc_slot);
	if (unlikely(!pmc))
		return;
	count_duration(pmc, name, duration);
	if (name == VPMU_ENABLE && call->placed) {
		starved = is_starved(call->placed);
		if (unlikely(starved))
			count_starvation(pmc);
	}
	if (unlikely(call->todo))
		finish(name, call, pmc, duration, 0, starved);
}

static __always_inline int event_return(u32 name)
{
	u64 now_ns = bpf_ktime_get_ns();
	struct vpmu_thread *call = this_thread();

	if (likely(call && call->name == name))
		end_event_call(name, call, now_ns - call->time_ns);
	else
		count_test(name, VPMU_TEST_RETURN);
	return 0;
}

/* create: judged at its return, which has the event. */

/* How large a new group is, and how many creates begin no program. */
static __always_inline void count_size(const struct vpmu_thread *call, const struct vpmu_pmc *pmc,
				       struct vpmu_vcpu *vcpu, bool failed, u32 n)
{
	if (call->leader || failed) {
		vcpu->siblings++;
		vcpu->pinned_siblings += call->leader && pmc->attr_flags & ATTR_PINNED;
	} else if (n > 1) {
		vcpu->sizes[size_bucket(n)]++;
		vcpu->sizes_sum += n;
	}
}

/*
 * A create as predicted, of a pmc that the thread has worked on before and that has left no event behind: the
 * same as follow_create() does, without a look-up in a hash map.
 */
static __always_inline bool is_usual_create(struct vpmu_thread *call, u64 event,
					    const struct vpmu_control *now, u64 duration)
{
	u32 slot = 0, index_of_pmc, n;
	struct vpmu_attr attr = {};
	struct vpmu_vcpu *vcpu;
	struct vpmu_pmc *pmc;
	s32 event_count;
	u64 index = 0;

	if (unlikely(now->stream || !now->epoch || !call->pmc || event >= (u64)-MAX_ERRNO))
		return 0;
	if (unlikely(!find_hint(call, call->pmc, &slot, &index_of_pmc)))
		return 0;
	pmc = pmcs.lookup(&slot);
	if (unlikely(!pmc || pmc->epoch != now->epoch || pmc->pmc != call->pmc))
		return 0;
	if (unlikely(pmc->tgid != bpf_get_current_pid_tgid() >> 32 || pmc->orphans || pmc->left))
		return 0;
	vcpu = vcpus.lookup(&pmc->vcpu_slot);
	if (unlikely(!vcpu || vcpu->epoch != now->epoch))
		return 0;
	if (unlikely(!call->leader && !is_vcpu_of(pmc, vcpu)))
		return 0;
	event_count = event_count_of(pmc->kvm_vcpu);
	if (unlikely(event_count != vcpu->event_count))
		return 0;
	n = max_nr_events_of(call->pmc);
	vpmu_read(&attr, sizeof(attr), call->attr);
	if (unlikely(!vpmu_is_usual_create(pmc, event, call->leader, attr.flags & ATTR_DISABLED, n, &index)))
		return 0;
	if (event_count >= 0)
		vcpu->event_count = (event_count + 1) & 0xff;
	call->pmc_slot = slot;
	call->vcpu_slot = pmc->vcpu_slot;
	keep_attr(pmc, &attr);
	pmc->error = 0;
	count_call(pmc, VPMU_CREATE);
	count_duration(pmc, VPMU_CREATE, duration);
	count_size(call, pmc, vcpu, 0, n);
	put_hint(call, event, slot, index);
	/* One that is created disabled is not put on the PMU yet. */
	if (!(attr.flags & ATTR_DISABLED) && unlikely(is_starved(event)))
		count_starvation(pmc);
	return 1;
}

/* Any other create. */
static __always_inline void follow_create(struct vpmu_thread *call, u64 returned,
					  const struct vpmu_control *now, u64 duration)
{
	struct vpmu_attr attr = {};
	struct vpmu_vcpu *vcpu;
	struct vpmu_pmc *pmc;
	bool starved = 0;
	s64 result = 0;
	u64 address;

	vpmu_read(&attr, sizeof(attr), call->attr);
	call->disabled = attr.flags & ATTR_DISABLED;
	call->failed = returned >= (u64)-MAX_ERRNO;
	call->event = call->failed ? 0 : returned;
	if (call->failed)
		result = (s64)returned;
	/* An event of guest LBR that could not be created has no address; its thread stands for it. */
	address = call->pmc ? call->pmc : call->failed ? (u32)bpf_get_current_pid_tgid() : returned;
	if (!find_entries(call, address, 1, &pmc, &vcpu))
		return;
	keep_attr(pmc, &attr);
	pmc->error = -result;
	judge(VPMU_CREATE, call, pmc, vcpu, now->epoch);
	call->todo = now->stream || result || call->kind > VPMU_KIND_UNKNOWN ? VPMU_SEND : 0;
	if (!call->pmc && pmc->state == VPMU_STATE_EMPTY)
		call->todo |= VPMU_END;
	if (result)
		count_error(call->tgid, result);
	count_duration(pmc, VPMU_CREATE, duration);
	count_size(call, pmc, vcpu, call->failed, call->n);
	if (!call->failed && !call->disabled) {
		starved = is_starved(call->leader ? call->leader : call->event);
		if (starved)
			count_starvation(pmc);
	}
	if (call->todo)
		finish(VPMU_CREATE, call, pmc, duration, result, starved);
}

static __always_inline int create_entry(u64 attr_addr, u64 leader, u64 handler, u64 context)
{
	struct vpmu_control *now = control_now();
	bool is_kvms = is_kvm_handler(handler);
	struct vpmu_attr attr = {};
	struct vpmu_thread *call;

	if (unlikely(!now || !now->epoch))
		return 0;
	if (unlikely(!is_kvms)) {
		if (handler || context)
			return 0;
		vpmu_read(&attr, sizeof(attr), attr_addr);
		if (!is_guest_lbr(&attr))
			return 0;
	}
	call = thread_for(this_thread(), context);
	if (unlikely(!call))
		return 0;
	if (unlikely(!is_kvms))
		note_guest_lbr(call->tgid, call->born);
	if (unlikely(call->name != VPMU_CALLS))
		miss_return(call);
	call->pmc = context;
	call->leader = leader;
	call->attr = attr_addr;
	begin_call(VPMU_CREATE, call);
	return 0;
}

static __always_inline int create_return(u64 returned)
{
	u64 now_ns = bpf_ktime_get_ns(), duration;
	struct vpmu_thread *call = this_thread();
	struct vpmu_control *now = control_now();

	if (unlikely(!now || !call || call->name != VPMU_CREATE))
		return 0;
	call->name = VPMU_CALLS;
	duration = now_ns - call->time_ns;
	if (unlikely(!is_usual_create(call, returned, now, duration)))
		follow_create(call, returned, now, duration);
	return 0;
}

/*
 * Entry points. VPMU_CREATE_ARGS is 5 in mainline: (attr, cpu, task, overflow_handler, context), and 6 with
 * grouped events, which put group_leader after task.
 */
#ifdef VPMU_FEXIT

/* bpf_get_func_arg() (5.17), because 6.1 lets no program read an argument that is a function pointer. */
static __always_inline u64 func_arg(void *ctx, u32 n)
{
	u64 value = 0;

	bpf_get_func_arg(ctx, n, &value);
	return value;
}

static __always_inline u64 func_ret(void *ctx)
{
	u64 value = 0;

	bpf_get_func_ret(ctx, &value);
	return value;
}

#define PROBE_ENTRY(probe)  int vpmu_##probe##_entry(u64 *ctx)
#define PROBE_RETURN(probe) int vpmu_##probe##_return(u64 *ctx)
#define ARG(n)              func_arg(ctx, n)
#define RETURNED            func_ret(ctx)

#elif defined(VPMU_TWINS)

#define PROBE_ENTRY(probe)  int vpmu_##probe##_entry(struct bpf_raw_tracepoint_args *ctx)
#define PROBE_RETURN(probe) int vpmu_##probe##_return(struct bpf_raw_tracepoint_args *ctx)
#define ARG(n)              ctx->args[n]
#define RETURNED            ctx->args[0]

#else

#define PROBE_ENTRY(probe)  int vpmu_##probe##_entry(struct pt_regs *ctx)
#define PROBE_RETURN(probe) int vpmu_##probe##_return(struct pt_regs *ctx)
#define ARG(n)              ARG_##n
#define ARG_0               PT_REGS_PARM1(ctx)
#define ARG_3               PT_REGS_PARM4(ctx)
#define ARG_4               PT_REGS_PARM5(ctx)
#define ARG_5               PT_REGS_PARM6(ctx)
#define RETURNED            PT_REGS_RC(ctx)

#endif

#ifdef VPMU_NO_DURATIONS
#define RETURN_PROBE(probe, value)
#else
#define RETURN_PROBE(probe, value) \
	PROBE_RETURN(probe)        \
	{                          \
		return value;      \
	}
#endif

#define EVENT_PROBES(probe, name)                 \
	RETURN_PROBE(probe, event_return(name))   \
	PROBE_ENTRY(probe)                        \
	{                                         \
		return event_entry(name, ARG(0)); \
	}

EVENT_PROBES(enable, VPMU_ENABLE)
EVENT_PROBES(pause, VPMU_PAUSE)
EVENT_PROBES(release, VPMU_RELEASE)

PROBE_RETURN(create)
{
	return create_return(RETURNED);
}

PROBE_ENTRY(create)
{
#if VPMU_CREATE_ARGS == 6
	return create_entry(ARG(0), ARG(3), ARG(4), ARG(5));
#else
	return create_entry(ARG(0), 0, ARG(3), ARG(4));
#endif
}
