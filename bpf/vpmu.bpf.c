// SPDX-License-Identifier: GPL-2.0-only
/*
 * Probes on the calls that KVM makes to perf for its guests' counters, and the monitor that checks them.
 *
 * The same bodies stand behind fentry/fexit (VPMU_FEXIT) and behind kprobe/kretprobe entry points; the latter
 * also serve as uprobes (VPMU_USER_MEMORY) where a kernel offers nothing else to attach to, and behind
 * raw-tracepoint entry points (VPMU_TWINS), which BPF_PROG_TEST_RUN can run. Everything that depends on the
 * kernel comes in as VPMU_* constants, read from its BTF and kallsyms by agent/vpmu_agent/kernel/. The check
 * itself, vpmu_check_*(), is made from the model by agent/vpmu_agent/model/generate/c.py, and stands in the place
 * of the line that includes "monitor.h".
 *
 * Whose event is it? KVM's events carry KVM's overflow handler and the pmc as its context, so an event says
 * for itself that it is KVM's, also when it was created before these probes came. An event of anybody else
 * costs a read or two.
 *
 * A call that is as predicted costs look-ups and counters and sends nothing.
 */
#include <uapi/linux/ptrace.h>
#include "vpmu.h"

#define PERF_TYPE_RAW		4
#define INTEL_FIXED_VLBR_EVENT	0x1b00	/* arch/x86/include/asm/perf_event.h */
#define MAX_ERRNO		4095	/* include/linux/err.h */
#define ATTR_DISABLED		(1 << 0)
#define ATTR_PINNED		(1 << 2)
#define NOT_FOUND		0xff

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

_Static_assert((VPMU_STATES & (VPMU_STATES - 1)) == 0, "State is used as a mask");
_Static_assert((VPMU_SLOTS & (VPMU_SLOTS - 1)) == 0, "so is SLOTS");

/* Creation sleeps, so a CPU is no key. */
BPF_HASH(inflight, u32, struct vpmu_inflight, VPMU_MAX_INFLIGHT);
BPF_HASH(pmcs, struct vpmu_pmc_key, struct vpmu_pmc, VPMU_MAX_PMCS);
BPF_HASH(vcpus, struct vpmu_vcpu_key, struct vpmu_vcpu, VPMU_MAX_VCPUS);
BPF_HASH(errors, struct vpmu_error_key, u64, VPMU_MAX_ERRORS);
BPF_TABLE("lru_hash", struct vpmu_left_key, u8, left, VPMU_MAX_LEFT);
/* Processes that user space was told of, by tgid: their struct mm_struct, for a tgid comes back. */
BPF_TABLE("lru_hash", u32, u64, processes, VPMU_MAX_PROCESSES);
/* What new entries begin as: too large for the stack. */
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
	struct vpmu_control *c = control.lookup(&first);

	if (!c)
		return 0;
	*stream = c->stream;
	return c->epoch;
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
 * A value that the compiler knows nothing of, so that what is written is what the verifier sees. Without it:
 * LLVM 16 and later make a table in .rodata, which bcc does not relocate, of popcount((x & -x) - 1), and LLVM 19
 * drops a mask behind a comparison that bounds its operand, which the verifier has forgotten by then.
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

/* The functions of the automaton's language: bits of a mask, and the events behind them. */

static __always_inline u64 mask_count(u64 mask)
{
	mask -= mask >> 1 & 0x5555555555555555ULL;
	mask = (mask & 0x3333333333333333ULL) + (mask >> 2 & 0x3333333333333333ULL);
	mask = (mask + (mask >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return mask * 0x0101010101010101ULL >> 56;
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

static __always_inline s32 find_event(struct vpmu_pmc *p, u64 event, u64 mask)
{
	/* Through memory, so that the verifier does not look at all that follows once for each index. */
	volatile u8 *found = &p->found;
	s32 index;

	*found = NOT_FOUND;
	if (!event)
		return -1;
	for (int i = 0; i < VPMU_SLOTS && mask >> i; i++)
		if (mask >> i & 1 && p->events[i] == event) {
			*found = i;
			break;
		}
	index = *found;
	return index == NOT_FOUND ? -1 : index;
}

static __always_inline s32 index_of(struct vpmu_pmc *p, u64 event)
{
	return find_event(p, event, p->members | p->orphans);
}

static __always_inline bool was_released(struct vpmu_pmc *p, u64 event)
{
	return find_event(p, event, p->gone & ~(p->members | p->orphans)) >= 0;
}

static __always_inline bool is_left_behind(struct vpmu_pmc *p, const struct vpmu_pmc_key *key, u64 event)
{
	struct vpmu_left_key k = { .event = event, .pmc = key->pmc, .tgid = key->tgid, .epoch = p->epoch };

	return p->left && left.lookup(&k);
}

static __always_inline void put_event(struct vpmu_pmc *p, u64 index, u64 event)
{
	p->events[slot(index)] = event;
}

static __always_inline void leave_event(struct vpmu_pmc *p, const struct vpmu_pmc_key *key, u64 index)
{
	struct vpmu_left_key k = {
		.event = p->events[slot(index)], .pmc = key->pmc, .tgid = key->tgid, .epoch = p->epoch,
	};
	u8 there = 1;

	/* Fails where the event was left behind before; the map evicts its oldest rather than being full. */
	if (!left.insert(&k, &there))
		p->left++;
}

static __always_inline void leave_events(struct vpmu_pmc *p, const struct vpmu_pmc_key *key, u64 mask)
{
	for (int i = 0; i < VPMU_SLOTS && mask >> i; i++)
		if (mask >> i & 1)
			leave_event(p, key, i);
}

static __always_inline void find_again(struct vpmu_pmc *p, const struct vpmu_pmc_key *key, u64 event)
{
	struct vpmu_left_key k = { .event = event, .pmc = key->pmc, .tgid = key->tgid, .epoch = p->epoch };

	if (p->left && left.lookup(&k)) {
		left.delete(&k);
		p->left--;
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
	struct vpmu_process_command *p;
	u32 size;

	bpf_probe_read_kernel(&mm, sizeof(mm), (void *)(task + VPMU_TASK_MM));
	if (!mm)
		return;	/* it is on its way out and has no command line any more */
	told = processes.lookup(&tgid);
	if (told && *told == mm)
		return;
	p = calls.ringbuf_reserve(sizeof(*p));
	if (!p) {
		count_lost(VPMU_LOST_RING_FULL);
		return;	/* at its next vCPU's first call, then */
	}
	bpf_probe_read_kernel(&start, sizeof(start), (void *)(mm + VPMU_MM_ARG_START));
	bpf_probe_read_kernel(&end, sizeof(end), (void *)(mm + VPMU_MM_ARG_END));
	size = end - start < VPMU_COMMAND_SIZE ? end - start : VPMU_COMMAND_SIZE - 1;
	p->process.tgid = tgid;
	p->process.size = size & (VPMU_COMMAND_SIZE - 1);
	if (bpf_probe_read_user(p->command, p->process.size, (void *)start))
		p->process.size = 0;
	calls.ringbuf_submit(p, 0);
	processes.update(&tgid, &mm);
}

/* A call of this pmc was lost: nothing is known of it any more, nor of its vCPU's count of events. */
static __always_inline void forget(u64 pmc, u32 tgid)
{
	struct vpmu_pmc_key key = { .pmc = pmc, .tgid = tgid };
	struct vpmu_pmc *p = pmcs.lookup(&key);
	struct vpmu_vcpu_key vcpu_key = { .tgid = tgid };
	struct vpmu_vcpu *v;

	if (!p)
		return;
	p->epoch = 0;
	vcpu_key.vcpu_id = p->vcpu_id;
	v = vcpus.lookup(&vcpu_key);
	if (v)
		v->epoch = 0;
}

/* The thread's entry, for a call that begins; NULL if it cannot be followed. */
static __always_inline struct vpmu_inflight *begin(u32 call, u64 pmc, u64 event, u32 *stream)
{
	u64 id = bpf_get_current_pid_tgid();
	u32 tid = id;
	struct vpmu_inflight *c;

	if (!epoch_now(stream))
		return 0;
	c = inflight.lookup(&tid);
	if (!c) {
		struct vpmu_inflight idle = { .tgid = id >> 32, .call = VPMU_CALLS };

		inflight.update(&tid, &idle);
		c = inflight.lookup(&tid);
		if (!c) {
			count_lost(VPMU_LOST_INFLIGHT_FULL);
			forget(pmc ? pmc : event, id >> 32);
			return 0;
		}
	}
	/* KVM makes no call within a call: the former one's return was missed. */
	if (c->call != VPMU_CALLS) {
		count_lost(VPMU_LOST_MISSED_RETURN);
		forget(c->pmc ? c->pmc : c->event, c->tgid);
	}
	c->tgid = id >> 32;	/* the thread that had this number may have been another process's */
	c->call = call;
	c->pmc = pmc;
	c->event = event;
	c->leader = 0;
	c->has_attr = 0;
	return c;
}

static __always_inline void keep_attr(struct vpmu_inflight *c, const struct vpmu_attr *attr)
{
	c->has_attr = 1;
	c->attr_type = attr->type;
	c->attr_config = attr->config;
	c->attr_sample_period = attr->sample_period;
	c->attr_flags = attr->flags;
}

static __always_inline int create_entry(u64 attr_addr, u64 leader, u64 handler, u64 context)
{
	struct vpmu_attr attr = {};
	struct vpmu_inflight *c;
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
	c = begin(VPMU_CREATE, context, 0, &stream);
	if (!c)
		return 0;
	keep_attr(c, &attr);
	c->leader = leader;
	c->time_ns = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int event_entry(u8 call, u64 event)
{
	struct vpmu_attr attr = {};
	struct vpmu_inflight *c;
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
	c = begin(call, is_kvms ? handler[1] : 0, event, &stream);
	if (!c)
		return 0;
	if (stream) {
		vpmu_read(&attr, sizeof(attr), event + VPMU_EVENT_ATTR);
		keep_attr(c, &attr);
	}
	c->time_ns = bpf_ktime_get_ns();
	return 0;
}

/* Who the pmc is: read anew with each program, for another VM of the same process may have its memory now. */
static __always_inline void identify(struct vpmu_pmc *p, u64 pmc)
{
	u64 type = 0;	/* and what follows it; little endian */

	p->vcpu = 0;
	if (!pmc) {
		p->pmc_type = VPMU_LBR;
		p->vcpu_id = -1;
		return;
	}
#if VPMU_PMC_IDX == VPMU_PMC_TYPE + 4
	vpmu_read(&type, 5, pmc + VPMU_PMC_TYPE);
	p->pmc_idx = type >> 32;
#else
	vpmu_read(&type, 4, pmc + VPMU_PMC_TYPE);
	vpmu_read(&p->pmc_idx, sizeof(p->pmc_idx), pmc + VPMU_PMC_IDX);
#endif
	p->pmc_type = type;
	vpmu_read(&p->vcpu, sizeof(p->vcpu), pmc + VPMU_PMC_VCPU);
	vpmu_read(&p->vcpu_id, sizeof(p->vcpu_id), p->vcpu + VPMU_VCPU_ID);
}

static __always_inline struct vpmu_pmc *pmc_of(const struct vpmu_pmc_key *key, u64 pmc, bool is_program)
{
	struct vpmu_pmc *p = pmcs.lookup((struct vpmu_pmc_key *)key), *blank;
	int first = 0;

	if (!p) {
		blank = no_pmc.lookup(&first);
		if (blank)
			pmcs.insert((struct vpmu_pmc_key *)key, blank);
		p = pmcs.lookup((struct vpmu_pmc_key *)key);
		if (!p)
			return 0;
		p->size = 1;
		is_program = 1;
	}
	if (is_program)
		identify(p, pmc);
	return p;
}

static __always_inline struct vpmu_vcpu *vcpu_of(u32 tgid, s32 vcpu_id)
{
	struct vpmu_vcpu_key key = { .tgid = tgid, .vcpu_id = vcpu_id };
	struct vpmu_vcpu *v = vcpus.lookup(&key), *blank;
	int first = 0;

	if (v)
		return v;
	blank = no_vcpu.lookup(&first);
	if (blank)
		vcpus.insert(&key, blank);
	tell_process(tgid);
	return vcpus.lookup(&key);
}

/* What the pmc holds, taken out of its vCPU's gauges (sign -1) or put in. */
static __always_inline void count_held(struct vpmu_vcpu *v, const struct vpmu_pmc *p, s64 sign)
{
	if (p->members) {
		v->groups[p->state & (VPMU_STATES - 1)] += sign;
		v->events += sign * (s64)mask_count(p->members);
	}
	if (p->orphans | p->left)
		v->orphans += sign * (s64)(mask_count(p->orphans) + p->left);
}

/*
 * Holds the vCPU's count of events against KVM's, which counts an event once it was created, and no more after
 * it was released: at the entry and at the return of either call its count is still without it, or with it.
 */
static __always_inline bool is_miscounted(struct vpmu_vcpu *v, u8 call, bool failed, s32 event_count, s64 *expected)
{
	*expected = v->event_count;
	if (event_count < 0)
		return 0;
	if (call == VPMU_CREATE)
		v->event_count = (event_count + !failed) & 0xff;	/* u8 event_count */
	else if (call == VPMU_RELEASE)
		v->event_count = (event_count - 1) & 0xff;
	else
		v->event_count = event_count;
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

static __always_inline int call_return(u32 call, u64 returned)
{
	u64 now = bpf_ktime_get_ns(), id = bpf_get_current_pid_tgid(), duration;
	struct vpmu_pmc_key key = { .tgid = id >> 32 };
	u32 tid = id, stream = 0, epoch = epoch_now(&stream);
	struct vpmu_inflight *c = inflight.lookup(&tid);
	s64 result = 0, expected;
	struct vpmu_call *record;
	struct vpmu_pmc *p;
	struct vpmu_vcpu *v;
	bool is_program;
	u8 byte = 0;
	u32 kind;

	if (!c || c->call != call)
		return 0;
	duration = now - c->time_ns;
	c->failed = 0;
	c->disabled = 0;
	c->n = 1;
	c->event_count = -1;
	if (call == VPMU_CREATE) {
		c->disabled = c->attr_flags & ATTR_DISABLED;
		if (returned >= (u64)-MAX_ERRNO) {
			result = (s64)returned;
			c->failed = 1;
		} else {
			c->event = returned;
		}
	}
	key.pmc = c->pmc ? c->pmc : c->event;
	is_program = call == VPMU_CREATE && !c->leader;
	p = pmc_of(&key, c->pmc, is_program);
	if (!p) {
		count_lost(VPMU_LOST_PMCS_FULL);
		goto out;
	}
	v = vcpu_of(key.tgid, c->pmc ? p->vcpu_id : -1 - (s32)tid);
	if (!v) {
		count_lost(VPMU_LOST_VCPUS_FULL);
		p->epoch = 0;
		goto out;
	}
	count_held(v, p, -1);
	/* A call that was let in is judged as ever if the end (epoch 0) has come before its return. */
	if (epoch && p->epoch != epoch) {
		p->epoch = epoch;
		p->state = VPMU_STATE_UNKNOWN;
		p->left = 0;
	}
	if (epoch && v->epoch != epoch) {
		v->epoch = epoch;
		v->event_count = -1;
	}
#ifdef VPMU_PMC_MAX_NR_EVENTS
	if (c->pmc) {
		vpmu_read(&byte, sizeof(byte), c->pmc + VPMU_PMC_MAX_NR_EVENTS);
		c->n = byte ? byte : 1;
	}
#endif
#ifdef VPMU_VCPU_EVENT_COUNT
	if (p->vcpu) {
		byte = 0;
		vpmu_read(&byte, sizeof(byte), p->vcpu + VPMU_VCPU_EVENT_COUNT);
		c->event_count = byte;
	}
#endif

	/* The verifier forgets which way each of these came: what follows is then looked at once. */
	asm volatile("" : : : "memory");
	VPMU_CHECK(call, p, &key, c, v);
	if (is_miscounted(v, call, c->failed, c->event_count, &expected) &&
	    (c->kind == VPMU_KIND_PREDICTED || c->kind == VPMU_KIND_UNKNOWN)) {
		c->kind = VPMU_KIND_EVENT_COUNT_MISMATCH;
		c->expected = VPMU_EXPECTED_EVENT_COUNT;
		c->at = expected;
		c->size = 1;
	}
	count_held(v, p, 1);
	asm volatile("" : : : "memory");
	kind = c->kind;

	v->calls[call]++;
	p->calls[call]++;
	v->duration_ns[call] += duration;
	v->create_buckets[call * VPMU_BUCKETS + duration_bucket(duration)]++;
	v->verdicts[kind & VPMU_KINDS_MASK]++;
	if (kind != VPMU_KIND_PREDICTED)
		p->verdicts[kind & VPMU_KINDS_MASK]++;
	if (call == VPMU_CREATE) {
		p->attr_type = c->attr_type;
		p->attr_config = c->attr_config;
		p->attr_sample_period = c->attr_sample_period;
		p->attr_flags = c->attr_flags;
		if (c->leader) {
			v->pinned_siblings += !!(c->attr_flags & ATTR_PINNED);
		} else {
			v->sizes[size_bucket(c->n)]++;
			v->sizes_sum += c->n;
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
	record->time_ns = c->time_ns;
	record->duration_ns = duration;
	record->pmc = c->pmc;
	record->event = c->event;
	record->leader = c->leader;
	record->result = result;
	record->lost = all_lost();
	record->attr_config = c->has_attr ? c->attr_config : p->attr_config;
	record->attr_sample_period = c->has_attr ? c->attr_sample_period : p->attr_sample_period;
	record->attr_flags = c->has_attr ? c->attr_flags : p->attr_flags;
	record->attr_type = c->has_attr ? c->attr_type : p->attr_type;
	record->expected_at = c->at;
	record->tgid = key.tgid;
	record->tid = tid;
	record->vcpu_id = p->vcpu_id;
	record->event_count = c->event_count;
	record->call = call;
	record->pmc_type = p->pmc_type;
	record->pmc_idx = p->pmc_idx;
	record->max_nr_events = c->n;
	record->verdict = kind;
	record->expected = c->expected;
	record->event_index = c->event_index;
	record->leader_index = c->leader_index;
	record->expected_size = c->size;
	calls.ringbuf_submit(record, 0);
out:
	/* The guest-LBR event belongs to no pmc: it is one of its own, and gone with it. */
	if (!c->pmc && p && p->state == VPMU_STATE_EMPTY)
		pmcs.delete(&key);
	c->call = VPMU_CALLS;
	return 0;
}

/*
 * Entry points. VPMU_CREATE_ARGS is 5 in mainline: (attr, cpu, task, overflow_handler, context), and 6 with
 * grouped events, which put group_leader after task.
 */
#ifdef VPMU_FEXIT

/*
 * Arguments through bpf_get_func_arg() (5.17), for 6.1 refuses to let a program read the function pointer
 * directly.
 */
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

#define PROBE_ENTRY(function, name)	KFUNC_PROBE(function)
#define PROBE_RETURN(function, name)	KRETFUNC_PROBE(function)
#define ARG(n)				func_arg(ctx, n)
#define RETURNED			func_ret(ctx)

#elif defined(VPMU_TWINS)

#define PROBE_ENTRY(function, name)	int vpmu_##name##_entry(struct bpf_raw_tracepoint_args *ctx)
#define PROBE_RETURN(function, name)	int vpmu_##name##_return(struct bpf_raw_tracepoint_args *ctx)
#define ARG(n)				ctx->args[n]
#define RETURNED			ctx->args[0]

#else

#define PROBE_ENTRY(function, name)	int vpmu_##name##_entry(struct pt_regs *ctx)
#define PROBE_RETURN(function, name)	int vpmu_##name##_return(struct pt_regs *ctx)
#define ARG(n)				ARG_##n
#define ARG_0				PT_REGS_PARM1(ctx)
#define ARG_3				PT_REGS_PARM4(ctx)
#define ARG_4				PT_REGS_PARM5(ctx)
#define ARG_5				PT_REGS_PARM6(ctx)
#define RETURNED			PT_REGS_RC(ctx)

#endif

#define EVENT_PROBES(function, name, call)	\
PROBE_RETURN(function, name)			\
{						\
	return call_return(call, 0);		\
}						\
						\
PROBE_ENTRY(function, name)			\
{						\
	return event_entry(call, ARG(0));	\
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
