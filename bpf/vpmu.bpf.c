// SPDX-License-Identifier: GPL-2.0-only
/*
 * Probes on the calls that KVM makes to perf for its guests' counters, and the monitor that checks them.
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
 * A call that is as predicted costs a few look-ups and counters, and sends nothing.
 */
#include <uapi/linux/ptrace.h>
#include "vpmu.h"

#define PERF_TYPE_RAW          4
#define INTEL_FIXED_VLBR_EVENT 0x1b00 /* arch/x86/include/asm/perf_event.h */
#define MAX_ERRNO              4095   /* include/linux/err.h */
#define ATTR_DISABLED          (1 << 0)
#define ATTR_PINNED            (1 << 2)
#define NOT_FOUND              0xff

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

_Static_assert((VPMU_STATES & (VPMU_STATES - 1)) == 0, "a state is masked to stay within bounds");
_Static_assert((VPMU_SLOTS & (VPMU_SLOTS - 1)) == 0, "and so is an index into events[]");
_Static_assert(VPMU_ALL_BUCKETS == VPMU_CALLS * VPMU_BUCKETS, "all calls have the same buckets");

/* By thread and not by CPU, because a creation can sleep. */
BPF_HASH(inflight, u32, struct vpmu_inflight, VPMU_MAX_INFLIGHT);
BPF_HASH(pmcs, struct vpmu_pmc_key, struct vpmu_pmc, VPMU_MAX_PMCS);
BPF_HASH(vcpus, struct vpmu_vcpu_key, struct vpmu_vcpu, VPMU_MAX_VCPUS);
BPF_HASH(errors, struct vpmu_error_key, u64, VPMU_MAX_ERRORS);
BPF_TABLE("lru_hash", struct vpmu_left_key, u8, left_behind, VPMU_MAX_LEFT_BEHIND);
/* Processes that user space was told of: their struct mm_struct by tgid, because a tgid is used again. */
BPF_TABLE("lru_hash", u32, u64, processes, VPMU_MAX_PROCESSES);
/* The initial value of new entries, which is too large for the stack. */
BPF_ARRAY(no_pmc, struct vpmu_pmc, 1);
BPF_ARRAY(no_vcpu, struct vpmu_vcpu, 1);
BPF_ARRAY(lost, u64, VPMU_LOST_REASONS);
BPF_ARRAY(control, struct vpmu_control, 1);
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

static __always_inline u32 epoch_now(u32 *stream)
{
	int first = 0;
	struct vpmu_control *now = control.lookup(&first);

	if (!now)
		return 0;
	*stream = now->stream;
	return now->epoch;
}

static __always_inline bool is_kvm_handler(u64 handler)
{
	/* Before 5.17 KVM had a second handler, for counters that raise an interrupt. */
	return handler && (handler == VPMU_HANDLER || handler == VPMU_HANDLER_INTR);
}

static __always_inline bool is_guest_lbr(const struct vpmu_attr *attr)
{
	/* intel_pmu_create_guest_lbr_event() gives neither handler nor context. */
	return attr->type == PERF_TYPE_RAW && attr->config == INTEL_FIXED_VLBR_EVENT;
}

/*
 * Hides a value from the compiler's optimiser, so that the verifier sees what is written here. Otherwise
 * LLVM 16 and later turn popcount((x & -x) - 1) into a table in .rodata, which bcc does not relocate, and
 * LLVM 19 drops a mask after a comparison that bounds its operand, which the verifier has forgotten by
 * then.
 */
static __always_inline u64 opaque(u64 value)
{
	asm volatile("" : "+r"(value));
	return value;
}

/* An index into events[] that the verifier knows to be in bounds. */
static __always_inline u64 slot(u64 index)
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

static __always_inline s32 find_event(struct vpmu_pmc *pmc, u64 event, u64 mask)
{
	/* Through memory: otherwise the verifier explores all that follows once for each index. */
	volatile u8 *found = &pmc->found;
	s32 index;

	*found = NOT_FOUND;
	if (!event)
		return -1;
	for (int i = 0; i < VPMU_SLOTS && mask >> i; i++)
		if (((mask >> i) & 1) && pmc->events[i] == event) {
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

static __always_inline bool is_left_behind(struct vpmu_pmc *pmc, const struct vpmu_pmc_key *key, u64 event)
{
	struct vpmu_left_key left_key = {
		.event = event, .pmc = key->pmc, .tgid = key->tgid, .epoch = pmc->epoch
	};

	return pmc->left && left_behind.lookup(&left_key);
}

static __always_inline void put_event(struct vpmu_pmc *pmc, u64 index, u64 event)
{
	pmc->events[slot(index)] = event;
}

static __always_inline void leave_event(struct vpmu_pmc *pmc, const struct vpmu_pmc_key *key, u64 index)
{
	struct vpmu_left_key left_key = {
		.event = pmc->events[slot(index)],
		.pmc = key->pmc,
		.tgid = key->tgid,
		.epoch = pmc->epoch,
	};
	u8 there = 1;

	/* Fails if the event is there already. The map is never full: it evicts its oldest entry. */
	if (!left_behind.insert(&left_key, &there))
		pmc->left++;
}

static __always_inline void leave_events(struct vpmu_pmc *pmc, const struct vpmu_pmc_key *key, u64 mask)
{
	for (int i = 0; i < VPMU_SLOTS && mask >> i; i++)
		if ((mask >> i) & 1)
			leave_event(pmc, key, i);
}

static __always_inline void find_again(struct vpmu_pmc *pmc, const struct vpmu_pmc_key *key, u64 event)
{
	struct vpmu_left_key left_key = {
		.event = event, .pmc = key->pmc, .tgid = key->tgid, .epoch = pmc->epoch
	};

	if (pmc->left && left_behind.lookup(&left_key)) {
		left_behind.delete(&left_key);
		pmc->left--;
	}
}

#include "monitor.h"

struct vpmu_process_command {
	struct vpmu_process process;
	char command[VPMU_COMMAND_SIZE];
};

static __always_inline void tell_process(u32 tgid)
{
	u64 task = bpf_get_current_task(), mm = 0, start = 0, end = 0, *told;
	struct vpmu_process_command *record;
	u32 size;

	bpf_probe_read_kernel(&mm, sizeof(mm), (void *)(task + VPMU_TASK_MM));
	if (!mm)
		return; /* it is exiting and has no command line any more */
	told = processes.lookup(&tgid);
	if (told && *told == mm)
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
	processes.update(&tgid, &mm);
}

/* A call of this pmc was lost: its state and its vCPU's count of events are unknown from now on. */
static __always_inline void forget_pmc(u64 kvm_pmc, u32 tgid)
{
	struct vpmu_pmc_key key = { .pmc = kvm_pmc, .tgid = tgid };
	struct vpmu_pmc *pmc = pmcs.lookup(&key);
	struct vpmu_vcpu_key vcpu_key = { .tgid = tgid };
	struct vpmu_vcpu *vcpu;

	if (!pmc)
		return;
	pmc->epoch = 0;
	vcpu_key.vcpu_id = pmc->vcpu_id;
	vcpu = vcpus.lookup(&vcpu_key);
	if (vcpu)
		vcpu->epoch = 0;
}

/* Returns the thread's entry for a call that begins, NULL if the call cannot be followed. */
static __always_inline struct vpmu_inflight *begin_call(u32 name, u64 kvm_pmc, u64 event, u32 *stream)
{
	u64 id = bpf_get_current_pid_tgid();
	u32 tid = id;
	struct vpmu_inflight *call;

	if (!epoch_now(stream))
		return 0;
	call = inflight.lookup(&tid);
	if (!call) {
		struct vpmu_inflight idle = { .tgid = id >> 32, .name = VPMU_CALLS };

		inflight.update(&tid, &idle);
		call = inflight.lookup(&tid);
		if (!call) {
			count_lost(VPMU_LOST_INFLIGHT_FULL);
			forget_pmc(kvm_pmc ? kvm_pmc : event, id >> 32);
			return 0;
		}
	}
	/* KVM's calls are not nested: the return of the previous one was missed. */
	if (call->name != VPMU_CALLS) {
		count_lost(VPMU_LOST_MISSED_RETURN);
		forget_pmc(call->pmc ? call->pmc : call->event, call->tgid);
	}
	call->tgid = id >> 32; /* a thread of another process may have had this number */
	call->name = name;
	call->pmc = kvm_pmc;
	call->event = event;
	call->leader = 0;
	call->has_attr = 0;
	return call;
}

static __always_inline void keep_attr(struct vpmu_inflight *call, const struct vpmu_attr *attr)
{
	call->has_attr = 1;
	call->attr_type = attr->type;
	call->attr_config = attr->config;
	call->attr_sample_period = attr->sample_period;
	call->attr_flags = attr->flags;
}

static __always_inline int create_entry(u64 attr_addr, u64 leader, u64 handler, u64 context)
{
	struct vpmu_attr attr = {};
	struct vpmu_inflight *call;
	u32 stream;

	if (!is_kvm_handler(handler)) {
		if (handler || context)
			return 0;
		vpmu_read(&attr, sizeof(attr), attr_addr);
		if (!is_guest_lbr(&attr))
			return 0;
	} else {
		vpmu_read(&attr, sizeof(attr), attr_addr);
	}
	call = begin_call(VPMU_CREATE, context, 0, &stream);
	if (!call)
		return 0;
	keep_attr(call, &attr);
	call->leader = leader;
	call->time_ns = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int event_entry(u8 name, u64 event)
{
	struct vpmu_attr attr = {};
	struct vpmu_inflight *call;
	u64 handler[2] = {};
	bool is_kvms;
	u32 stream;

	if (!event)
		return 0;
#if VPMU_EVENT_CONTEXT == VPMU_EVENT_HANDLER + 8
	vpmu_read(handler, sizeof(handler), event + VPMU_EVENT_HANDLER);
#else
	vpmu_read(&handler[0], sizeof(handler[0]), event + VPMU_EVENT_HANDLER);
	vpmu_read(&handler[1], sizeof(handler[1]), event + VPMU_EVENT_CONTEXT);
#endif
	is_kvms = is_kvm_handler(handler[0]);
	if (!is_kvms) {
		vpmu_read(&attr, sizeof(attr), event + VPMU_EVENT_ATTR);
		if (!is_guest_lbr(&attr))
			return 0;
	}
	call = begin_call(name, is_kvms ? handler[1] : 0, event, &stream);
	if (!call)
		return 0;
	if (stream) {
		vpmu_read(&attr, sizeof(attr), event + VPMU_EVENT_ATTR);
		keep_attr(call, &attr);
	}
	call->time_ns = bpf_ktime_get_ns();
	return 0;
}

/* Which pmc it is. Read again for each program: its memory may belong to another VM of the process by now. */
static __always_inline void identify(struct vpmu_pmc *pmc, u64 kvm_pmc)
{
	u64 type = 0; /* and the field after it; little-endian */

	pmc->vcpu = 0;
	if (!kvm_pmc) {
		pmc->pmc_type = VPMU_LBR;
		pmc->vcpu_id = -1;
		return;
	}
#if VPMU_PMC_IDX == VPMU_PMC_TYPE + 4
	vpmu_read(&type, 5, kvm_pmc + VPMU_PMC_TYPE);
	pmc->pmc_idx = type >> 32;
#else
	vpmu_read(&type, 4, kvm_pmc + VPMU_PMC_TYPE);
	vpmu_read(&pmc->pmc_idx, sizeof(pmc->pmc_idx), kvm_pmc + VPMU_PMC_IDX);
#endif
	pmc->pmc_type = type;
	vpmu_read(&pmc->vcpu, sizeof(pmc->vcpu), kvm_pmc + VPMU_PMC_VCPU);
	vpmu_read(&pmc->vcpu_id, sizeof(pmc->vcpu_id), pmc->vcpu + VPMU_VCPU_ID);
}

static __always_inline struct vpmu_pmc *pmc_of(const struct vpmu_pmc_key *key, u64 kvm_pmc, bool is_program)
{
	struct vpmu_pmc *pmc = pmcs.lookup((struct vpmu_pmc_key *)key), *blank;
	int first = 0;

	if (!pmc) {
		blank = no_pmc.lookup(&first);
		if (blank)
			pmcs.insert((struct vpmu_pmc_key *)key, blank);
		pmc = pmcs.lookup((struct vpmu_pmc_key *)key);
		if (!pmc)
			return 0;
		pmc->size = 1;
		is_program = 1;
	}
	if (is_program)
		identify(pmc, kvm_pmc);
	return pmc;
}

static __always_inline struct vpmu_vcpu *vcpu_of(u32 tgid, s32 vcpu_id)
{
	struct vpmu_vcpu_key key = { .tgid = tgid, .vcpu_id = vcpu_id };
	struct vpmu_vcpu *vcpu = vcpus.lookup(&key), *blank;
	int first = 0;

	if (vcpu)
		return vcpu;
	blank = no_vcpu.lookup(&first);
	if (blank)
		vcpus.insert(&key, blank);
	tell_process(tgid);
	return vcpus.lookup(&key);
}

/* Adds what the pmc holds to its vCPU's gauges, or subtracts it (sign -1). */
static __always_inline void count_held(struct vpmu_vcpu *vcpu, const struct vpmu_pmc *pmc, s64 sign)
{
	if (pmc->members) {
		vcpu->groups[pmc->state & (VPMU_STATES - 1)] += sign;
		vcpu->events += sign * (s64)mask_count(pmc->members);
	}
	if (pmc->orphans | pmc->left)
		vcpu->orphans += sign * (s64)(mask_count(pmc->orphans) + pmc->left);
}

/*
 * Compares the vCPU's count of events with KVM's. KVM counts an event after it was created, and stops
 * counting it after it was released: during a create the event is not in its count yet, during a release
 * it still is.
 */
static __always_inline bool is_miscounted(struct vpmu_vcpu *vcpu, u8 name, bool failed, s32 event_count,
					  s64 *expected)
{
	*expected = vcpu->event_count;
	if (event_count < 0)
		return 0;
	if (name == VPMU_CREATE)
		vcpu->event_count = (event_count + !failed) & 0xff; /* u8 event_count */
	else if (name == VPMU_RELEASE)
		vcpu->event_count = (event_count - 1) & 0xff;
	else
		vcpu->event_count = event_count;
	return *expected >= 0 && *expected != event_count;
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

static __always_inline int call_return(u32 name, u64 returned)
{
	u64 now = bpf_ktime_get_ns(), id = bpf_get_current_pid_tgid(), duration;
	struct vpmu_pmc_key key = { .tgid = id >> 32 };
	u32 tid = id, stream = 0, epoch = epoch_now(&stream);
	struct vpmu_inflight *call = inflight.lookup(&tid);
	s64 result = 0, expected;
	struct vpmu_call *record;
	struct vpmu_pmc *pmc;
	struct vpmu_vcpu *vcpu;
	bool is_program;
	u8 byte = 0;
	u32 kind;

	if (!call || call->name != name)
		return 0;
	duration = now - call->time_ns;
	call->failed = 0;
	call->disabled = 0;
	call->n = 1;
	call->event_count = -1;
	if (name == VPMU_CREATE) {
		call->disabled = call->attr_flags & ATTR_DISABLED;
		if (returned >= (u64)-MAX_ERRNO) {
			result = (s64)returned;
			call->failed = 1;
		} else {
			call->event = returned;
		}
	}
	key.pmc = call->pmc ? call->pmc : call->event;
	is_program = name == VPMU_CREATE && !call->leader;
	pmc = pmc_of(&key, call->pmc, is_program);
	if (!pmc) {
		count_lost(VPMU_LOST_PMCS_FULL);
		goto out;
	}
	vcpu = vcpu_of(key.tgid, call->pmc ? pmc->vcpu_id : -1 - (s32)tid);
	if (!vcpu) {
		count_lost(VPMU_LOST_VCPUS_FULL);
		pmc->epoch = 0;
		goto out;
	}
	count_held(vcpu, pmc, -1);
	/* A call that began before the end (epoch 0) is still judged at its return. */
	if (epoch && pmc->epoch != epoch) {
		pmc->epoch = epoch;
		pmc->state = VPMU_STATE_UNKNOWN;
		pmc->left = 0;
	}
	if (epoch && vcpu->epoch != epoch) {
		vcpu->epoch = epoch;
		vcpu->event_count = -1;
	}
#ifdef VPMU_PMC_MAX_NR_EVENTS
	if (call->pmc) {
		vpmu_read(&byte, sizeof(byte), call->pmc + VPMU_PMC_MAX_NR_EVENTS);
		call->n = byte ? byte : 1;
	}
#endif
#ifdef VPMU_VCPU_EVENT_COUNT
	if (pmc->vcpu) {
		byte = 0;
		vpmu_read(&byte, sizeof(byte), pmc->vcpu + VPMU_VCPU_EVENT_COUNT);
		call->event_count = byte;
	}
#endif

	/* Makes the verifier forget these values, so that it explores what follows only once. */
	asm volatile("" : : : "memory");
	VPMU_CHECK(name, pmc, &key, call, vcpu);
	if (is_miscounted(vcpu, name, call->failed, call->event_count, &expected) &&
	    (call->kind == VPMU_KIND_PREDICTED || call->kind == VPMU_KIND_UNKNOWN)) {
		call->kind = VPMU_KIND_EVENT_COUNT_MISMATCH;
		call->expected = VPMU_EXPECTED_EVENT_COUNT;
		call->at = expected;
		call->size = 1;
	}
	count_held(vcpu, pmc, 1);
	asm volatile("" : : : "memory");
	kind = call->kind;

	vcpu->calls[name]++;
	pmc->calls[name]++;
	vcpu->duration_ns[name] += duration;
	vcpu->duration_buckets[name * VPMU_BUCKETS + duration_bucket(duration)]++;
	vcpu->verdicts[kind & VPMU_KINDS_MASK]++;
	if (kind != VPMU_KIND_PREDICTED)
		pmc->verdicts[kind & VPMU_KINDS_MASK]++;
	if (name == VPMU_CREATE) {
		pmc->attr_type = call->attr_type;
		pmc->attr_config = call->attr_config;
		pmc->attr_sample_period = call->attr_sample_period;
		pmc->attr_flags = call->attr_flags;
		if (call->leader) {
			vcpu->pinned_siblings += !!(call->attr_flags & ATTR_PINNED);
		} else {
			vcpu->sizes[size_bucket(call->n)]++;
			vcpu->sizes_sum += call->n;
		}
		if (result)
			count_error(key.tgid, result);
	}
	if (!stream && !result && kind <= VPMU_KIND_UNKNOWN)
		goto out;

	record = calls.ringbuf_reserve(sizeof(*record));
	if (!record) {
		count_lost(VPMU_LOST_RING_FULL);
		goto out;
	}
	record->time_ns = call->time_ns;
	record->duration_ns = duration;
	record->pmc = call->pmc;
	record->event = call->event;
	record->leader = call->leader;
	record->result = result;
	record->lost = all_lost();
	record->attr_config = call->has_attr ? call->attr_config : pmc->attr_config;
	record->attr_sample_period = call->has_attr ? call->attr_sample_period : pmc->attr_sample_period;
	record->attr_flags = call->has_attr ? call->attr_flags : pmc->attr_flags;
	record->attr_type = call->has_attr ? call->attr_type : pmc->attr_type;
	record->expected_at = call->at;
	record->tgid = key.tgid;
	record->tid = tid;
	record->vcpu_id = pmc->vcpu_id;
	record->event_count = call->event_count;
	record->name = name;
	record->pmc_type = pmc->pmc_type;
	record->pmc_idx = pmc->pmc_idx;
	record->max_nr_events = call->n;
	record->verdict = kind;
	record->expected = call->expected;
	record->event_index = call->event_index;
	record->leader_index = call->leader_index;
	record->expected_size = call->size;
	calls.ringbuf_submit(record, 0);
out:
	/* The guest-LBR event belongs to no pmc: it has an entry of its own, which ends with it. */
	if (!call->pmc && pmc && pmc->state == VPMU_STATE_EMPTY)
		pmcs.delete(&key);
	call->name = VPMU_CALLS;
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

#define PROBE_ENTRY(function, probe)  KFUNC_PROBE(function)
#define PROBE_RETURN(function, probe) KRETFUNC_PROBE(function)
#define ARG(n)                        func_arg(ctx, n)
#define RETURNED                      func_ret(ctx)

#elif defined(VPMU_TWINS)

#define PROBE_ENTRY(function, probe)  int vpmu_##probe##_entry(struct bpf_raw_tracepoint_args *ctx)
#define PROBE_RETURN(function, probe) int vpmu_##probe##_return(struct bpf_raw_tracepoint_args *ctx)
#define ARG(n)                        ctx->args[n]
#define RETURNED                      ctx->args[0]

#else

#define PROBE_ENTRY(function, probe)  int vpmu_##probe##_entry(struct pt_regs *ctx)
#define PROBE_RETURN(function, probe) int vpmu_##probe##_return(struct pt_regs *ctx)
#define ARG(n)                        ARG_##n
#define ARG_0                         PT_REGS_PARM1(ctx)
#define ARG_3                         PT_REGS_PARM4(ctx)
#define ARG_4                         PT_REGS_PARM5(ctx)
#define ARG_5                         PT_REGS_PARM6(ctx)
#define RETURNED                      PT_REGS_RC(ctx)

#endif

#define EVENT_PROBES(function, probe, name)       \
	PROBE_RETURN(function, probe)             \
	{                                         \
		return call_return(name, 0);      \
	}                                         \
                                                  \
	PROBE_ENTRY(function, probe)              \
	{                                         \
		return event_entry(name, ARG(0)); \
	}

EVENT_PROBES(perf_event_enable, enable, VPMU_ENABLE)
EVENT_PROBES(perf_event_pause, pause, VPMU_PAUSE)
EVENT_PROBES(perf_event_release_kernel, release, VPMU_RELEASE)

PROBE_RETURN(perf_event_create_kernel_counter, create)
{
	return call_return(VPMU_CREATE, RETURNED);
}

PROBE_ENTRY(perf_event_create_kernel_counter, create)
{
#if VPMU_CREATE_ARGS == 6
	return create_entry(ARG(0), ARG(3), ARG(4), ARG(5));
#else
	return create_entry(ARG(0), 0, ARG(3), ARG(4));
#endif
}
