/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Generated from agent/vpmu_agent/model/rules.py by `make generate`. Do not edit.
 *
 * The check of one call, a function for each of the four: model/compiled_rules.py in C. vpmu.bpf.c has the
 * structs, and the functions on masks and events that stand here.
 */
#ifndef VPMU_MONITOR_H
#define VPMU_MONITOR_H

/* Where the group of a pmc stands. */
enum vpmu_state {
	VPMU_STATE_UNKNOWN,
	VPMU_STATE_EMPTY,
	VPMU_STATE_CREATING,
	VPMU_STATE_ENABLING,
	VPMU_STATE_RUNNING,
	VPMU_STATE_PAUSED,
	VPMU_STATE_PARTIAL,
	VPMU_STATE_RELEASING,
};

/* What the model says of a call. */
enum vpmu_kind {
	VPMU_KIND_PREDICTED,
	VPMU_KIND_UNKNOWN,
	VPMU_KIND_PARTIAL_GROUP,
	VPMU_KIND_DEGRADED_GROUP,
	VPMU_KIND_ORPHANED_MEMBER,
	VPMU_KIND_MISSING_MEMBER,
	VPMU_KIND_EXTRA_MEMBER,
	VPMU_KIND_WRONG_LEADER,
	VPMU_KIND_ENABLED_EARLY,
	VPMU_KIND_ENABLED_OUT_OF_ORDER,
	VPMU_KIND_NOT_ENABLED,
	VPMU_KIND_RELEASED_OUT_OF_ORDER,
	VPMU_KIND_RELEASED_TWICE,
	VPMU_KIND_EVENT_COUNT_MISMATCH,
	VPMU_KIND_UNEXPECTED_CALL,
};

/* What was expected in place of a divergence. */
enum vpmu_expected {
	VPMU_EXPECTED_NOTHING,
	VPMU_EXPECTED_CREATE,
	VPMU_EXPECTED_CREATE_SUCCEEDS,
	VPMU_EXPECTED_PROGRAM,
	VPMU_EXPECTED_PROGRAM_OF,
	VPMU_EXPECTED_ENABLE,
	VPMU_EXPECTED_PAUSE_OR_RELEASE,
	VPMU_EXPECTED_ENABLE_OR_RELEASE,
	VPMU_EXPECTED_RELEASE,
	VPMU_EXPECTED_RELEASES,
	VPMU_EXPECTED_EVENT_COUNT,
	VPMU_EXPECTED_NEXT,
};

_Static_assert(VPMU_STATES == 8, "these are all states");
_Static_assert(VPMU_KINDS == 15, "these are all kinds");

/* For the verifier: an index of a kind that it knows to be in bounds. */
#define VPMU_KINDS_MASK 0xf

#define STATES_ALL   (BIT(VPMU_STATES) - 1)
#define STATES_KNOWN (STATES_ALL & ~BIT(VPMU_STATE_UNKNOWN))

/* Of a duration in nanoseconds. Without branches: above a bound, the sign bit of the difference is set. */
static __always_inline u32 duration_bucket(u64 value)
{
	u32 bucket = 0;

	bucket += (100ULL - value) >> 63;
	bucket += (500ULL - value) >> 63;
	bucket += (1000ULL - value) >> 63;
	bucket += (5000ULL - value) >> 63;
	bucket += (10000ULL - value) >> 63;
	bucket += (50000ULL - value) >> 63;
	bucket += (100000ULL - value) >> 63;
	bucket += (500000ULL - value) >> 63;
	bucket += (1000000ULL - value) >> 63;
	bucket += (5000000ULL - value) >> 63;
	bucket += (10000000ULL - value) >> 63;
	return bucket;
}

/* Of the size of a group. Without branches: above a bound, the sign bit of the difference is set. */
static __always_inline u32 size_bucket(u64 value)
{
	u32 bucket = 0;

	bucket += (1ULL - value) >> 63;
	bucket += (2ULL - value) >> 63;
	bucket += (4ULL - value) >> 63;
	bucket += (8ULL - value) >> 63;
	bucket += (16ULL - value) >> 63;
	return bucket;
}

/* Whether a call is held against max_nr_events as it is now; otherwise N is the size. */
static __always_inline bool vpmu_n_is_read(u32 name, const struct vpmu_pmc *pmc)
{
	if (name == VPMU_CREATE)
		return 1;
	if (name == VPMU_ENABLE)
		return pmc->state == VPMU_STATE_UNKNOWN || (pmc->size > 1 && pmc->paused);
	if (name == VPMU_PAUSE)
		return pmc->state == VPMU_STATE_UNKNOWN || pmc->size > 1;
	if (name == VPMU_RELEASE)
		return pmc->state != VPMU_STATE_RELEASING &&
		       (pmc->state == VPMU_STATE_UNKNOWN || pmc->size > 1 || pmc->orphans);
	return 1;
}

/* Macros, for a function would be compiled to other code than the assignments alone. */
#define say_expected(call, what, where)                  \
	do {                                             \
		(call)->expected = VPMU_EXPECTED_##what; \
		(call)->at = (where);                    \
	} while (0)

#define say(call, what, instead, where, of)         \
	do {                                        \
		(call)->kind = VPMU_KIND_##what;    \
		say_expected(call, instead, where); \
		(call)->size = (of);                \
	} while (0)

/* Instead of this call was expected what next_call() finds, which is asked at the end. */
#define say_next(call, what)                           \
	do {                                           \
		(call)->kind = VPMU_KIND_##what;       \
		(call)->expected = VPMU_EXPECTED_NEXT; \
	} while (0)

/* What NEXT looks at, as it was before the effects. */
struct vpmu_before {
	u64 state, size, members, enabled, walk;
};

static __always_inline void next_call(const struct vpmu_before *pmc, struct vpmu_thread *call)
{
	call->size = pmc->size;
	if (pmc->state == VPMU_STATE_CREATING)
		say_expected(call, CREATE, mask_count(pmc->members));
	else if (pmc->state == VPMU_STATE_ENABLING)
		say_expected(call, ENABLE, mask_low(pmc->members & ~pmc->enabled));
	else if (pmc->state == VPMU_STATE_RUNNING && pmc->size == 1)
		say_expected(call, PAUSE_OR_RELEASE, 0);
	else if (pmc->state == VPMU_STATE_PAUSED)
		say_expected(call, ENABLE_OR_RELEASE, 0);
	else if (pmc->state == VPMU_STATE_RELEASING)
		say_expected(call, RELEASE, mask_low(pmc->walk));
	else if (pmc->state == VPMU_STATE_RUNNING || pmc->state == VPMU_STATE_PARTIAL)
		say_expected(call, RELEASE, mask_low(pmc->members));
	else
		say_expected(call, PROGRAM, 0);
}

/* A divergence that tells nothing new is unknown. */
static __always_inline void report_once(struct vpmu_pmc *pmc, struct vpmu_thread *call)
{
	if (call->kind > VPMU_KIND_UNKNOWN) {
		if (((pmc->faults >> call->kind) & 1) ||
		    (call->kind == VPMU_KIND_UNEXPECTED_CALL && pmc->faults))
			call->kind = VPMU_KIND_UNKNOWN;
		else
			pmc->faults |= BIT(call->kind);
	}
}

static __always_inline void vpmu_check_create(struct vpmu_pmc *pmc, struct vpmu_thread *call, s64 *due)
{
	u64 event = call->event, leader = call->leader;
	u32 failed = call->failed, disabled = call->disabled, n = call->n;
	u32 from = BIT(pmc->state);
	struct vpmu_before before = {
		.state = pmc->state,
		.size = pmc->size,
		.members = pmc->members,
		.enabled = pmc->enabled,
		.walk = pmc->walk,
	};
	s32 index = index_of(pmc, event), leader_index = index_of(pmc, leader);

	if (n > VPMU_SLOTS) {
		/* The group has more members than are followed. */
		call->event_index = -1;
		call->leader_index = -1;
		say(call, UNKNOWN, NOTHING, 0, pmc->size);
		pmc->state = VPMU_STATE_UNKNOWN;
		pmc->members = 0;
		pmc->orphans = 0;
		pmc->gone = 0;
	} else if ((from & BIT(VPMU_STATE_CREATING)) && index >= 0) {
		/* The event is a member already. */
		call->event_index = index;
		call->leader_index = leader_index;
		say(call, EXTRA_MEMBER, CREATE, mask_count(pmc->members), pmc->size);
	} else if (from & BIT(VPMU_STATE_CREATING)) {
		/* The next member of the group. */
		u64 at = mask_count(pmc->members);

		call->event_index = at;
		call->leader_index = leader_index;
		due[VPMU_CREATE] += (!failed && at + 1 < pmc->size) ? 1 : 0;
		due[VPMU_ENABLE] += (!failed && at + 1 == pmc->size) ? pmc->size : 0;
		if (leader_index != 0)
			say(call, WRONG_LEADER, CREATE, at, pmc->size);
		else if (!disabled)
			say(call, ENABLED_EARLY, CREATE, at, pmc->size);
		else if (failed)
			say(call, PARTIAL_GROUP, CREATE_SUCCEEDS, at, pmc->size);
		else
			say(call, PREDICTED, NOTHING, 0, pmc->size);
		if (failed) {
			pmc->state = VPMU_STATE_PARTIAL;
		} else {
			if (pmc->orphans & BIT_ULL(at))
				leave_event(pmc, at);
			find_again(pmc, event);
			pmc->orphans &= ~BIT_ULL(at);
			pmc->gone &= ~BIT_ULL(at);
			pmc->members |= BIT_ULL(at);
			pmc->enabled =
				disabled ? (pmc->enabled & ~BIT_ULL(at)) : (pmc->enabled | BIT_ULL(at));
			put_event(pmc, at, event);
			if (at + 1 < pmc->size) {
				pmc->state = VPMU_STATE_CREATING;
			} else {
				pmc->state = pmc->size > 1 ? VPMU_STATE_ENABLING : VPMU_STATE_RUNNING;
				pmc->paused = 0;
			}
		}
	} else if (!leader || pmc->state == VPMU_STATE_EMPTY) {
		/*
		 * A program begins: a create without a leader opens one, whatever went before. If
		 * it names a leader and the pmc holds no events, that leader was never created;
		 * the calls that follow show whether a member is missing.
		 */
		u64 at = 0;

		call->event_index = 0;
		call->leader_index = -1;
		due[VPMU_CREATE] += (failed || n == 1) ? 1 : 2;
		if (leader)
			say(call, WRONG_LEADER, CREATE, 0, n);
		else if (pmc->members && pmc->state == VPMU_STATE_ENABLING)
			say_next(call, NOT_ENABLED);
		else if (pmc->members && pmc->state != VPMU_STATE_UNKNOWN)
			say_next(call, ORPHANED_MEMBER);
		else if (pmc->size > 1 && n == 1 && pmc->state != VPMU_STATE_UNKNOWN)
			say(call, DEGRADED_GROUP, PROGRAM_OF, pmc->size, pmc->size);
		else if (!disabled && n > 1)
			say(call, ENABLED_EARLY, CREATE, 0, n);
		else if (disabled && n == 1)
			say(call, NOT_ENABLED, CREATE, 0, n);
		else
			say(call, PREDICTED, NOTHING, 0, pmc->size);
		if (pmc->state == VPMU_STATE_UNKNOWN)
			pmc->orphans = 0;
		else
			leave_events(pmc, pmc->members);
		pmc->members = 0;
		pmc->enabled = 0;
		pmc->gone = 0;
		pmc->faults = 0;
		pmc->size = n;
		if (failed) {
			pmc->state = VPMU_STATE_EMPTY;
		} else {
			if (pmc->orphans & BIT_ULL(at))
				leave_event(pmc, at);
			find_again(pmc, event);
			pmc->orphans &= ~BIT_ULL(at);
			pmc->gone &= ~BIT_ULL(at);
			pmc->members |= BIT_ULL(at);
			pmc->enabled =
				disabled ? (pmc->enabled & ~BIT_ULL(at)) : (pmc->enabled | BIT_ULL(at));
			put_event(pmc, at, event);
			if (at + 1 < pmc->size) {
				pmc->state = VPMU_STATE_CREATING;
			} else {
				pmc->state = pmc->size > 1 ? VPMU_STATE_ENABLING : VPMU_STATE_RUNNING;
				pmc->paused = 0;
			}
		}
	} else if (from & BIT(VPMU_STATE_UNKNOWN)) {
		/* A member of a group whose beginning was not seen. */
		u64 free = mask_width(pmc->members | pmc->orphans);

		call->event_index = -1;
		call->leader_index = -1;
		say(call, UNKNOWN, NOTHING, 0, pmc->size);
		if (!failed && index < 0 && free < VPMU_SLOTS) {
			pmc->members |= BIT_ULL(free);
			pmc->enabled |= BIT_ULL(free);
			put_event(pmc, free, event);
		}
	} else if (from & (BIT(VPMU_STATE_ENABLING) | BIT(VPMU_STATE_RUNNING) | BIT(VPMU_STATE_PAUSED) |
			   BIT(VPMU_STATE_PARTIAL) | BIT(VPMU_STATE_RELEASING))) {
		/*
		 * One member too many: nothing says that it should be enabled, and no release will
		 * come to it.
		 */
		u64 free = mask_width(pmc->members | pmc->orphans);

		call->event_index = -1;
		call->leader_index = leader_index;
		if (leader_index == 0)
			say_next(call, EXTRA_MEMBER);
		else
			say_next(call, WRONG_LEADER);
		if (!failed && index < 0 && free < VPMU_SLOTS) {
			pmc->members |= BIT_ULL(free);
			pmc->enabled |= BIT_ULL(free);
			put_event(pmc, free, event);
		}
	}
	if (call->expected == VPMU_EXPECTED_NEXT && call->kind > VPMU_KIND_UNKNOWN)
		next_call(&before, call);
	report_once(pmc, call);
}

static __always_inline void vpmu_check_enable(struct vpmu_pmc *pmc, struct vpmu_thread *call, s64 *due)
{
	u64 event = call->event, leader = call->leader;
	u32 failed = call->failed, disabled = call->disabled, n = call->n;
	u32 from = BIT(pmc->state);
	struct vpmu_before before = {
		.state = pmc->state,
		.size = pmc->size,
		.members = pmc->members,
		.enabled = pmc->enabled,
		.walk = pmc->walk,
	};
	s32 index = index_of(pmc, event), leader_index = index_of(pmc, leader);

	if (n > VPMU_SLOTS) {
		/* The group has more members than are followed. */
		call->event_index = -1;
		call->leader_index = -1;
		say(call, UNKNOWN, NOTHING, 0, pmc->size);
		pmc->state = VPMU_STATE_UNKNOWN;
		pmc->members = 0;
		pmc->orphans = 0;
		pmc->gone = 0;
	} else if ((from & BIT(VPMU_STATE_UNKNOWN)) && pmc->size == 1 && n == 1) {
		/* Of a single event, this call tells the state. */
		call->event_index = 0;
		call->leader_index = -1;
		say(call, UNKNOWN, NOTHING, 0, pmc->size);
		pmc->members = 1;
		pmc->orphans = 0;
		pmc->gone = 0;
		pmc->faults = 0;
		put_event(pmc, 0, event);
		pmc->enabled = 1;
		pmc->state = VPMU_STATE_RUNNING;
		pmc->paused = 0;
	} else if (from & BIT(VPMU_STATE_UNKNOWN)) {
		/* A member of a group whose state is not known. */
		u64 free = mask_width(pmc->members | pmc->orphans);

		call->event_index = -1;
		call->leader_index = -1;
		say(call, UNKNOWN, NOTHING, 0, pmc->size);
		if (!failed && index < 0 && free < VPMU_SLOTS) {
			pmc->members |= BIT_ULL(free);
			pmc->enabled |= BIT_ULL(free);
			put_event(pmc, free, event);
		}
	} else if ((from & STATES_KNOWN) && index < 0) {
		/* The event is none that the pmc holds. */
		call->event_index = -1;
		call->leader_index = -1;
		if (pmc->state == VPMU_STATE_CREATING)
			say_next(call, MISSING_MEMBER);
		else
			say_next(call, UNEXPECTED_CALL);
	} else if ((from & (BIT(VPMU_STATE_PAUSED) | BIT(VPMU_STATE_PARTIAL))) && index == 0 && pmc->paused &&
		   n == 1) {
		/* The guest's counter resumes: pmc_resume_counter(). */
		call->event_index = 0;
		call->leader_index = -1;
		due[VPMU_ENABLE] += 1;
		say(call, PREDICTED, NOTHING, 0, pmc->size);
		pmc->enabled |= 1;
		pmc->paused = 0;
		if (pmc->state == VPMU_STATE_PAUSED)
			pmc->state = VPMU_STATE_RUNNING;
	} else if ((from & BIT(VPMU_STATE_ENABLING)) && !(pmc->enabled & BIT_ULL(index))) {
		/* The members of a group are enabled in order, once the last one was created. */
		call->event_index = index;
		call->leader_index = -1;
		if (pmc->members & ~pmc->enabled & BELOW(index))
			say_next(call, ENABLED_OUT_OF_ORDER);
		else
			say(call, PREDICTED, NOTHING, 0, pmc->size);
		pmc->enabled |= BIT_ULL(index);
		if (!(pmc->members & ~pmc->enabled))
			pmc->state = VPMU_STATE_RUNNING;
	} else if ((from & BIT(VPMU_STATE_CREATING)) && (pmc->faults & BIT(VPMU_KIND_ENABLED_EARLY))) {
		/* The second enable that comes too early: no create is to come any more. */
		call->event_index = index;
		call->leader_index = -1;
		say_next(call, MISSING_MEMBER);
		pmc->enabled |= BIT_ULL(index);
		pmc->state = (pmc->members & ~pmc->enabled) ? VPMU_STATE_ENABLING : VPMU_STATE_RUNNING;
	} else if (from & (BIT(VPMU_STATE_CREATING) | BIT(VPMU_STATE_PARTIAL))) {
		/* Not all members were created. */
		call->event_index = index;
		call->leader_index = -1;
		say_next(call, ENABLED_EARLY);
		pmc->enabled |= BIT_ULL(index);
	} else if (from & STATES_KNOWN) {
		/* Nothing is to be enabled. */
		call->event_index = index;
		call->leader_index = -1;
		say_next(call, UNEXPECTED_CALL);
		pmc->enabled |= BIT_ULL(index);
	}
	if (call->expected == VPMU_EXPECTED_NEXT && call->kind > VPMU_KIND_UNKNOWN)
		next_call(&before, call);
	report_once(pmc, call);
}

static __always_inline void vpmu_check_pause(struct vpmu_pmc *pmc, struct vpmu_thread *call, s64 *due)
{
	u64 event = call->event, leader = call->leader;
	u32 failed = call->failed, disabled = call->disabled, n = call->n;
	u32 from = BIT(pmc->state);
	struct vpmu_before before = {
		.state = pmc->state,
		.size = pmc->size,
		.members = pmc->members,
		.enabled = pmc->enabled,
		.walk = pmc->walk,
	};
	s32 index = index_of(pmc, event), leader_index = index_of(pmc, leader);

	if (n > VPMU_SLOTS) {
		/* The group has more members than are followed. */
		call->event_index = -1;
		call->leader_index = -1;
		say(call, UNKNOWN, NOTHING, 0, pmc->size);
		pmc->state = VPMU_STATE_UNKNOWN;
		pmc->members = 0;
		pmc->orphans = 0;
		pmc->gone = 0;
	} else if ((from & BIT(VPMU_STATE_UNKNOWN)) && pmc->size == 1 && n == 1) {
		/* Of a single event, this call tells the state. */
		call->event_index = 0;
		call->leader_index = -1;
		say(call, UNKNOWN, NOTHING, 0, pmc->size);
		pmc->members = 1;
		pmc->orphans = 0;
		pmc->gone = 0;
		pmc->faults = 0;
		put_event(pmc, 0, event);
		pmc->enabled = 0;
		pmc->state = VPMU_STATE_PAUSED;
		pmc->paused = 1;
	} else if (from & BIT(VPMU_STATE_UNKNOWN)) {
		/* A member of a group whose state is not known. */
		u64 free = mask_width(pmc->members | pmc->orphans);

		call->event_index = -1;
		call->leader_index = -1;
		say(call, UNKNOWN, NOTHING, 0, pmc->size);
		if (!failed && index < 0 && free < VPMU_SLOTS) {
			pmc->members |= BIT_ULL(free);
			pmc->enabled |= BIT_ULL(free);
			put_event(pmc, free, event);
		}
	} else if ((from & (BIT(VPMU_STATE_RUNNING) | BIT(VPMU_STATE_PARTIAL))) && index == 0 &&
		   !pmc->paused && n == 1) {
		/*
		 * pmc_pause_counter() stops a group and pauses only a single event; but what was a
		 * group may have become a single event since.
		 */
		call->event_index = 0;
		call->leader_index = -1;
		due[VPMU_PAUSE] += 1;
		say(call, PREDICTED, NOTHING, 0, pmc->size);
		pmc->paused = 1;
		if (pmc->state == VPMU_STATE_RUNNING)
			pmc->state = VPMU_STATE_PAUSED;
	} else if (from & STATES_KNOWN) {
		/* Nothing is to be paused. */
		call->event_index = index;
		call->leader_index = -1;
		if (pmc->state == VPMU_STATE_CREATING)
			say_next(call, MISSING_MEMBER);
		else if (pmc->state == VPMU_STATE_ENABLING)
			say_next(call, NOT_ENABLED);
		else
			say_next(call, UNEXPECTED_CALL);
	}
	if (call->expected == VPMU_EXPECTED_NEXT && call->kind > VPMU_KIND_UNKNOWN)
		next_call(&before, call);
	report_once(pmc, call);
}

static __always_inline void vpmu_check_release(struct vpmu_pmc *pmc, struct vpmu_thread *call, s64 *due)
{
	u64 event = call->event, leader = call->leader;
	u32 failed = call->failed, disabled = call->disabled, n = call->n;
	u32 from = BIT(pmc->state);
	struct vpmu_before before = {
		.state = pmc->state,
		.size = pmc->size,
		.members = pmc->members,
		.enabled = pmc->enabled,
		.walk = pmc->walk,
	};
	s32 index = index_of(pmc, event), leader_index = index_of(pmc, leader);

	if (n > VPMU_SLOTS) {
		/* The group has more members than are followed. */
		call->event_index = -1;
		call->leader_index = -1;
		say(call, UNKNOWN, NOTHING, 0, pmc->size);
		pmc->state = VPMU_STATE_UNKNOWN;
		pmc->members = 0;
		pmc->orphans = 0;
		pmc->gone = 0;
	} else if ((from & BIT(VPMU_STATE_UNKNOWN)) && pmc->size == 1 && n == 1) {
		/* Of a single event, this call tells the state. */
		call->event_index = 0;
		call->leader_index = -1;
		say(call, UNKNOWN, NOTHING, 0, pmc->size);
		pmc->members = 0;
		pmc->orphans = 0;
		pmc->gone = 0;
		pmc->faults = 0;
		pmc->paused = 0;
		pmc->state = VPMU_STATE_EMPTY;
	} else if (from & BIT(VPMU_STATE_UNKNOWN)) {
		/* A member of a group whose state is not known. */
		call->event_index = -1;
		call->leader_index = -1;
		say(call, UNKNOWN, NOTHING, 0, pmc->size);
		if (index >= 0) {
			pmc->members &= ~BIT_ULL(index);
			pmc->orphans &= ~BIT_ULL(index);
		}
	} else if ((from & STATES_KNOWN) && index < 0 && is_left_behind(pmc, event)) {
		/* The event was left behind, and is released after all. */
		call->event_index = -1;
		call->leader_index = -1;
		say_next(call, RELEASED_OUT_OF_ORDER);
		find_again(pmc, event);
	} else if ((from & STATES_KNOWN) && index < 0) {
		/* The event is none that the pmc holds. */
		call->event_index = -1;
		call->leader_index = -1;
		if (was_released(pmc, event))
			say_next(call, RELEASED_TWICE);
		else if (pmc->state == VPMU_STATE_CREATING)
			say_next(call, MISSING_MEMBER);
		else
			say_next(call, UNEXPECTED_CALL);
	} else if (from & BIT(VPMU_STATE_RELEASING)) {
		/* The next release of pmc_release_perf_event(). */
		u64 ahead = pmc->walk;

		call->event_index = index;
		call->leader_index = -1;
		if (ahead && LOWEST(ahead) != BIT_ULL(index))
			say(call, RELEASED_OUT_OF_ORDER, RELEASE, mask_low(ahead), pmc->size);
		else if (!ahead)
			say(call, RELEASED_OUT_OF_ORDER, PROGRAM, 0, pmc->size);
		else if (ahead == BIT_ULL(index) && (pmc->members & ~BIT_ULL(index)))
			say(call, ORPHANED_MEMBER, RELEASES, pmc->members & ~BIT_ULL(index), pmc->size);
		else
			say(call, PREDICTED, NOTHING, 0, pmc->size);
		pmc->members &= ~BIT_ULL(index);
		pmc->orphans &= ~BIT_ULL(index);
		pmc->gone |= BIT_ULL(index);
		pmc->walk = ahead & ~BIT_ULL(index);
		if (pmc->walk) {
			pmc->state = VPMU_STATE_RELEASING;
		} else {
			pmc->state = VPMU_STATE_EMPTY;
			pmc->orphans |= pmc->members;
			pmc->members = 0;
		}
	} else if (from & STATES_KNOWN) {
		/*
		 * The first release: pmc_release_perf_event() goes on to release what exists among
		 * i < max_nr_events, as that is now.
		 */
		u64 ahead = (pmc->members | pmc->orphans) & BELOW(n);

		call->event_index = index;
		call->leader_index = -1;
		due[VPMU_RELEASE] += mask_count(ahead);
		if (pmc->state == VPMU_STATE_CREATING)
			say_next(call, MISSING_MEMBER);
		else if (pmc->state == VPMU_STATE_ENABLING)
			say_next(call, NOT_ENABLED);
		else if (ahead && LOWEST(ahead) != BIT_ULL(index))
			say(call, RELEASED_OUT_OF_ORDER, RELEASE, mask_low(ahead), pmc->size);
		else if (!ahead)
			say(call, RELEASED_OUT_OF_ORDER, PROGRAM, 0, pmc->size);
		else if (ahead == BIT_ULL(index) && (pmc->members & ~BIT_ULL(index)))
			say(call, ORPHANED_MEMBER, RELEASES, pmc->members & ~BIT_ULL(index), pmc->size);
		else
			say(call, PREDICTED, NOTHING, 0, pmc->size);
		pmc->members &= ~BIT_ULL(index);
		pmc->orphans &= ~BIT_ULL(index);
		pmc->gone |= BIT_ULL(index);
		pmc->walk = ahead & ~BIT_ULL(index);
		if (pmc->walk) {
			pmc->state = VPMU_STATE_RELEASING;
		} else {
			pmc->state = VPMU_STATE_EMPTY;
			pmc->orphans |= pmc->members;
			pmc->members = 0;
		}
	}
	if (call->expected == VPMU_EXPECTED_NEXT && call->kind > VPMU_KIND_UNKNOWN)
		next_call(&before, call);
	report_once(pmc, call);
}

#define VPMU_CHECK(name, ...)                            \
	do {                                             \
		if ((name) == VPMU_CREATE)               \
			vpmu_check_create(__VA_ARGS__);  \
		else if ((name) == VPMU_ENABLE)          \
			vpmu_check_enable(__VA_ARGS__);  \
		else if ((name) == VPMU_PAUSE)           \
			vpmu_check_pause(__VA_ARGS__);   \
		else if ((name) == VPMU_RELEASE)         \
			vpmu_check_release(__VA_ARGS__); \
	} while (0)

/* Leaves the cache line alone where there is nothing to add, as for a single event. */
static __always_inline void add_due(struct vpmu_pmc *pmc, u32 name, s64 more)
{
	if (more)
		pmc->due[name] += more;
}

/*
 * Whether an enable of the event that the pmc holds at `index` is predicted.
 * If so, it does what vpmu_check_enable() does; if not, it changes nothing.
 */
static __always_inline bool vpmu_is_usual_enable(struct vpmu_pmc *pmc, u64 index, u64 n)
{
	u32 from = BIT(pmc->state);

	if (unlikely(n > VPMU_SLOTS))
		return 0;
	if ((from & (BIT(VPMU_STATE_PAUSED) | BIT(VPMU_STATE_PARTIAL))) && index == 0 && pmc->paused &&
	    n == 1) {
		/* The guest's counter resumes: pmc_resume_counter(). */
		pmc->enabled |= 1;
		pmc->paused = 0;
		if (pmc->state == VPMU_STATE_PAUSED)
			pmc->state = VPMU_STATE_RUNNING;
		return 1;
	}
#if VPMU_SLOTS > 1
	if ((from & BIT(VPMU_STATE_ENABLING)) && !(pmc->enabled & BIT_ULL(index))) {
		/* The members of a group are enabled in order, once the last one was created. */
		if (unlikely(pmc->members & ~pmc->enabled & BELOW(index)))
			return 0;
		pmc->due[VPMU_ENABLE]--;
		pmc->enabled |= BIT_ULL(index);
		if (!(pmc->members & ~pmc->enabled))
			pmc->state = VPMU_STATE_RUNNING;
		return 1;
	}
#endif
	return 0;
}

/*
 * Whether a pause of the event that the pmc holds at `index` is predicted.
 * If so, it does what vpmu_check_pause() does; if not, it changes nothing.
 */
static __always_inline bool vpmu_is_usual_pause(struct vpmu_pmc *pmc, u64 index, u64 n)
{
	u32 from = BIT(pmc->state);

	if (unlikely(n > VPMU_SLOTS))
		return 0;
	if ((from & (BIT(VPMU_STATE_RUNNING) | BIT(VPMU_STATE_PARTIAL))) && index == 0 && !pmc->paused &&
	    n == 1) {
		/*
		 * pmc_pause_counter() stops a group and pauses only a single event; but what was a
		 * group may have become a single event since.
		 */
		pmc->paused = 1;
		if (pmc->state == VPMU_STATE_RUNNING)
			pmc->state = VPMU_STATE_PAUSED;
		return 1;
	}
	return 0;
}

/*
 * Whether a release of the event that the pmc holds at `index` is predicted.
 * If so, it does what vpmu_check_release() does; if not, it changes nothing.
 */
static __always_inline bool vpmu_is_usual_release(struct vpmu_pmc *pmc, u64 index, u64 n)
{
	u32 from = BIT(pmc->state);

	if (unlikely(n > VPMU_SLOTS))
		return 0;
	if (from & BIT(VPMU_STATE_RELEASING)) {
		/* The next release of pmc_release_perf_event(). */
		u64 ahead = pmc->walk;

		if (unlikely(ahead && LOWEST(ahead) != BIT_ULL(index)))
			return 0;
		if (unlikely(!ahead))
			return 0;
		if (unlikely(ahead == BIT_ULL(index) && (pmc->members & ~BIT_ULL(index))))
			return 0;
		pmc->due[VPMU_RELEASE]--;
		pmc->members &= ~BIT_ULL(index);
		pmc->orphans &= ~BIT_ULL(index);
		pmc->gone |= BIT_ULL(index);
		pmc->walk = ahead & ~BIT_ULL(index);
		if (pmc->walk) {
			pmc->state = VPMU_STATE_RELEASING;
		} else {
			pmc->state = VPMU_STATE_EMPTY;
			pmc->orphans |= pmc->members;
			pmc->members = 0;
		}
		return 1;
	}
	if (from & STATES_KNOWN) {
		/*
		 * The first release: pmc_release_perf_event() goes on to release what exists among
		 * i < max_nr_events, as that is now.
		 */
		u64 ahead = (pmc->members | pmc->orphans) & BELOW(n);

		if (unlikely(pmc->state == VPMU_STATE_CREATING))
			return 0;
		if (unlikely(pmc->state == VPMU_STATE_ENABLING))
			return 0;
		if (unlikely(ahead && LOWEST(ahead) != BIT_ULL(index)))
			return 0;
		if (unlikely(!ahead))
			return 0;
		if (unlikely(ahead == BIT_ULL(index) && (pmc->members & ~BIT_ULL(index))))
			return 0;
		add_due(pmc, VPMU_RELEASE, (s64)(mask_count(ahead)) - 1);
		pmc->members &= ~BIT_ULL(index);
		pmc->orphans &= ~BIT_ULL(index);
		pmc->gone |= BIT_ULL(index);
		pmc->walk = ahead & ~BIT_ULL(index);
		if (pmc->walk) {
			pmc->state = VPMU_STATE_RELEASING;
		} else {
			pmc->state = VPMU_STATE_EMPTY;
			pmc->orphans |= pmc->members;
			pmc->members = 0;
		}
		return 1;
	}
	return 0;
}

/*
 * Whether a create that succeeded is predicted, of a pmc that has left no event behind.
 * If so, it does what vpmu_check_create() does; if not, it changes nothing.
 */
static __always_inline bool vpmu_is_usual_create(struct vpmu_pmc *pmc, u64 event, u64 leader, u32 disabled,
						 u64 n, u64 *index_of_event)
{
	if (unlikely(n > VPMU_SLOTS))
		return 0;
	if (pmc->state == VPMU_STATE_EMPTY) {
		/*
		 * A program begins: a create without a leader opens one, whatever went before. If
		 * it names a leader and the pmc holds no events, that leader was never created;
		 * the calls that follow show whether a member is missing.
		 */
		u64 at = 0;

		if (unlikely(leader))
			return 0;
		if (unlikely(pmc->size > 1 && n == 1))
			return 0;
		if (unlikely(!disabled && n > 1))
			return 0;
		if (unlikely(disabled && n == 1))
			return 0;
		*index_of_event = 0;
		add_due(pmc, VPMU_CREATE, (s64)(n == 1 ? 1 : 2) - 1);
		pmc->members = 0;
		pmc->enabled = 0;
		pmc->gone = 0;
		pmc->faults = 0;
		pmc->size = n;
		pmc->orphans &= ~BIT_ULL(at);
		pmc->gone &= ~BIT_ULL(at);
		pmc->members |= BIT_ULL(at);
		pmc->enabled = disabled ? (pmc->enabled & ~BIT_ULL(at)) : (pmc->enabled | BIT_ULL(at));
		put_event(pmc, at, event);
		if (at + 1 < pmc->size) {
			pmc->state = VPMU_STATE_CREATING;
		} else {
			pmc->state = pmc->size > 1 ? VPMU_STATE_ENABLING : VPMU_STATE_RUNNING;
			pmc->paused = 0;
		}
		return 1;
	}
#if VPMU_SLOTS > 1
	if (pmc->state == VPMU_STATE_CREATING) {
		s32 index = index_of(pmc, event), leader_index = index_of(pmc, leader);

		if (unlikely(index >= 0))
			return 0;
		/* The next member of the group. */
		u64 at = mask_count(pmc->members);

		if (unlikely(leader_index != 0))
			return 0;
		if (unlikely(!disabled))
			return 0;
		*index_of_event = at;
		add_due(pmc, VPMU_CREATE, (s64)(at + 1 < pmc->size ? 1 : 0) - 1);
		add_due(pmc, VPMU_ENABLE, at + 1 == pmc->size ? pmc->size : 0);
		pmc->orphans &= ~BIT_ULL(at);
		pmc->gone &= ~BIT_ULL(at);
		pmc->members |= BIT_ULL(at);
		pmc->enabled = disabled ? (pmc->enabled & ~BIT_ULL(at)) : (pmc->enabled | BIT_ULL(at));
		put_event(pmc, at, event);
		if (at + 1 < pmc->size) {
			pmc->state = VPMU_STATE_CREATING;
		} else {
			pmc->state = VPMU_STATE_ENABLING;
			pmc->paused = 0;
		}
		return 1;
	}
#endif
	return 0;
}

#define VPMU_IS_USUAL(name, ...)                                       \
	((name) == VPMU_ENABLE    ? vpmu_is_usual_enable(__VA_ARGS__)  \
	 : (name) == VPMU_PAUSE   ? vpmu_is_usual_pause(__VA_ARGS__)   \
	 : (name) == VPMU_RELEASE ? vpmu_is_usual_release(__VA_ARGS__) \
				  : 0)

#endif
