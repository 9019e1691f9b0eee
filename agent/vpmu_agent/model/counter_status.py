"""The status of one counter, from what KVM and perf hold of it at a moment: one word for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum, StrEnum
from operator import attrgetter
from typing import NamedTuple

MIN_RUNNING = 0.99
"""An event that has run for a smaller part of the time it was enabled is starved."""

MIN_LACKING_NS = 1_000_000
"""How much of that time an event must lack, in nanoseconds: perf writes the two times one after the other."""


class CounterStatus(StrEnum):
    """What a counter of a guest does."""

    COUNTING = "counting"
    """Its event is on the host's PMU."""
    IDLE = "idle"
    """The guest does not want it to count."""
    DESCHEDULED = "descheduled"
    """Its event waits for the vCPU to run."""
    STARVED = "starved"
    """The guest wants it to count, and its event does not run, or not all the time."""
    DENIED = "denied"
    """The guest wants it to count, and there is no event: its creation failed."""
    FILTERED = "filtered"
    """The guest wants it to count, and there is no event: the VMM's event filter does not allow it."""
    PARTIAL = "partial"
    """Its group lacks members."""
    ORPHANED = "orphaned"
    """KVM has forgotten events that it made for it, which still exist."""
    MEDIATED = "mediated"
    """The guest uses the host's counter itself."""
    UNKNOWN = "unknown"
    """KVM is about to change it, or what it holds fits no other word."""

    @property
    def is_failing(self) -> bool:
        """Whether the guest is told wrong numbers because of it."""
        return self in _FAILING


_FAILING = {CounterStatus.STARVED, CounterStatus.DENIED, CounterStatus.PARTIAL, CounterStatus.ORPHANED}


def failing(statuses: Mapping[str, int] | Mapping[CounterStatus, int]) -> int:
    """Return how many counters, given by status, tell their guest wrong numbers."""
    return sum(statuses.get(status, 0) for status in _FAILING)


class EventState(IntEnum):
    """`enum perf_event_state` (include/linux/perf_event.h), as far as a live event can have one of these."""

    ERROR = -2
    OFF = -1
    INACTIVE = 0
    ACTIVE = 1


# A host may have 64,000 of each of these: NamedTuples, which take a third of the time to create.


class Event(NamedTuple):
    """One event of a counter. The times are perf's, in nanoseconds, and never go down.

    `id` is the same as long as it is the same event.
    """

    id: int
    state: int
    enabled_ns: int
    running_ns: int
    thread_runs: bool = False
    """Whether the thread that it counts for has a CPU."""


class Held(NamedTuple):
    """What a counter's guest asked for, and what KVM holds for it."""

    control: int
    """As in Counter.control: another one since the last look means that KVM was at work in between."""
    wanted: bool
    size: int = 1
    """How many events there should be: `max_nr_events`."""
    events: Sequence[Event] = ()
    outlived_reset: bool = False
    """As outlived_reset() says."""


def is_wanted(*, fixed: bool, index: int, control: int, global_ctrl: int, pmu_version: int) -> bool:
    """Return whether the guest wants a counter to count: enabled in its own control, and globally.

    `control` is a gp counter's event select, or a fixed counter's four bits of IA32_FIXED_CTR_CTRL. A PMU of
    version 1 has no global control (pmc_is_globally_enabled() in arch/x86/kvm/pmu.h; AMD's before PerfMonV2
    has this version in KVM).
    """
    is_enabled = control & _FIXED_ENABLE if fixed else control & _EVENTSEL_ENABLE
    return bool(is_enabled) and (pmu_version < 2 or bool(global_ctrl >> (index + 32 * fixed) & 1))


_EVENTSEL_ENABLE = 1 << 22  # ARCH_PERFMON_EVENTSEL_ENABLE
_FIXED_ENABLE = 0b11  # in the kernel, in user space


def times(events: Sequence[Event], before: Sequence[Event] = ()) -> tuple[int, int]:
    """Return for how long the events were enabled and for how long they ran, in nanoseconds, added up.

    That is since `before` for those that are in it.
    """
    if len(events) == len(before) == 1 and events[0].id == before[0].id:  # the usual counter
        (event,), (then,) = events, before
        return event.enabled_ns - then.enabled_ns, event.running_ns - then.running_ns
    past = {event.id: event for event in before}
    enabled = running = 0
    for event in events:
        then = past.get(event.id, _NEVER)
        enabled += event.enabled_ns - then.enabled_ns
        running += event.running_ns - then.running_ns
    return enabled, running


_NEVER = Event(id=0, state=EventState.OFF, enabled_ns=0, running_ns=0)


def running_ratio(enabled_ns: int, running_ns: int) -> float | None:
    """Return which part of the time() that events were enabled they ran; None if there was no such time."""
    if enabled_ns <= 0:
        return None
    return running_ns / enabled_ns if running_ns < enabled_ns else 1.0


def counter_status(
    held: Held, before: Held | None = None, *, filtered: bool = False, mediated: bool = False, errno: int = 0
) -> CounterStatus:
    """Return a counter's status.

    KVM changes a counter in several steps, and a look can come between two of them: what only such a moment
    would explain is said if it was the same `before`, in the look before this one, and is UNKNOWN until then.

    Args:
        held: what is there now.
        before: what was there then; None if there was no such look.
        filtered: whether the VM has an event filter.
        mediated: whether its vPMU is mediated.
        errno: what its last creation failed with, if that is known and nothing was created since; else 0.
    """
    if not held.wanted:
        return CounterStatus.IDLE
    if mediated:
        return CounterStatus.MEDIATED
    events = held.events
    if not events:
        if errno:
            return CounterStatus.DENIED
        if not _same(held, before):
            return CounterStatus.UNKNOWN
        return CounterStatus.FILTERED if filtered else CounterStatus.DENIED
    if len(events) == held.size == 1:  # the usual counter
        _, state, enabled_ns, running_ns, thread_runs = events[0]
        if enabled_ns - running_ns < MIN_LACKING_NS:
            if state == _ACTIVE:
                return _COUNTING
            if state == _INACTIVE and not thread_runs:
                return _DESCHEDULED
    states = set(map(_state, events))
    if EventState.ERROR in states:
        return CounterStatus.STARVED
    if len(events) < held.size:
        return CounterStatus.PARTIAL if _same(held, before) else CounterStatus.UNKNOWN
    if states == _ALL_OFF:
        return CounterStatus.FILTERED if filtered and _same(held, before) else CounterStatus.UNKNOWN
    for event in events:
        if event.enabled_ns - event.running_ns >= MIN_LACKING_NS and _lacks(event, before):
            return CounterStatus.STARVED
    if states == _ALL_ACTIVE:
        return CounterStatus.COUNTING
    if not any(map(_thread_runs, events)):
        return CounterStatus.DESCHEDULED
    # perf puts a thread's events on the PMU right after the thread has come to its CPU.
    if before is not None and _same(held, before) and any(map(_thread_runs, before.events)):
        return CounterStatus.STARVED
    return CounterStatus.UNKNOWN


# Looked up once: counter_status() is called for every counter of a host.
_state, _thread_runs = attrgetter("state"), attrgetter("thread_runs")
_ACTIVE, _INACTIVE = EventState.ACTIVE.value, EventState.INACTIVE.value
_COUNTING, _DESCHEDULED = CounterStatus.COUNTING, CounterStatus.DESCHEDULED
_ALL_ACTIVE, _ALL_OFF = {EventState.ACTIVE}, {EventState.OFF}


def orphaned_status(status: CounterStatus) -> CounterStatus:
    """Return the status of a counter with this one, of which KVM has forgotten events.

    What tells the guest wrong numbers for certain goes first.
    """
    return status if status.is_failing else CounterStatus.ORPHANED


def guest_lbr_status(state: int) -> CounterStatus:
    """Return the status of the event that KVM made for a guest's LBR, by its `enum perf_event_state`.

    It has no counter, and wants the CPU's branch records. KVM makes it when the guest wants them and releases
    it some time after, so there is no such event that is idle.
    """
    return _GUEST_LBR.get(state, CounterStatus.UNKNOWN)


_GUEST_LBR: dict[int, CounterStatus] = {
    EventState.ACTIVE: CounterStatus.COUNTING,
    EventState.INACTIVE: CounterStatus.DESCHEDULED,
    EventState.ERROR: CounterStatus.STARVED,
}


def _same(held: Held, before: Held | None) -> bool:
    """Return whether nothing but times and states differs from the look before."""
    if before is None or held[:3] != before[:3]:
        return False
    return [event.id for event in held.events] == [event.id for event in before.events]


def outlived_reset(held: Held, before: Held | None, *, was_reset: bool, awaits_init: bool) -> bool:
    """Return whether the guest was reset and its counter has gone on as if it was not.

    It has the events that it had `before`, in the look before this one, and they are still wanted.
    `was_reset`: whether the VM was, between the two; `awaits_init`: whether the vCPU still is in the state
    after a reset.
    """
    if not held.wanted or not held.events:
        return False
    if awaits_init:
        return True
    return before is not None and (was_reset or before.outlived_reset) and _same(held, before)


def _lacks(event: Event, before: Held | None) -> bool:
    enabled, running = times([event], before.events if before else ())
    return enabled - running >= MIN_LACKING_NS and running < MIN_RUNNING * enabled
