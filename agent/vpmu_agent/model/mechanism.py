"""The mechanism: what KVM does with one counter's events, step by step, as small executable definitions.

Each step is a generator named for the kernel function that it stands for: it yields the calls that KVM makes
and is sent what the kernel answers, changes the state as the kernel does, and returns what the function
returns. So a step can be run with made-up answers (a prediction) or random ones (a test).

Sources: arch/x86/kvm/pmu.c, pmu.h and vmx/pmu_intel.c of Linux 6.1; for groups "KVM: x86/pmu: Use flex
*event arrays to implement grouped events" (RFC 7/8, Like Xu, 2022-12-12), failure paths included.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, field

from vpmu_agent.model.call import CallName

ALL_COUNTERS = 2**64 - 1


@dataclass(slots=True)
class Pmu:
    """`struct kvm_pmu`, as far as its events go: one for each vCPU.

    `global_ctrl` has a bit for each counter; a PMU without that register lets all of them count.
    `lbr_event` is the guest-LBR event, which no pmc holds (`struct lbr_desc`).
    """

    event_count: int = 0
    global_ctrl: int = ALL_COUNTERS
    lbr_event: int | None = None


@dataclass(slots=True)
class Pmc:
    """`struct kvm_pmc`. An entry of `perf_events` is what the kernel answered to its creation, None for NULL.

    `idx` is its bit in global control; fixed counters begin at FIXED_BASE. `config` is what the guest wrote
    to the counter's own control, in the form of `current_config`; 0 if that does not enable it. `pebs` is its
    bit in `pebs_enable`, `precise` whether its events were created for PEBS (`attr.precise_ip`).
    `max_nr_events` is 1 as amd_pmu_init() and intel_pmu_init() leave it; the hardware definition of the
    counter sets it when the guest accesses the counter.
    """

    pmu: Pmu
    idx: int = 0
    config: int = 0
    pebs: bool = False
    precise: bool = False
    max_nr_events: int = 1
    is_paused: bool = False
    intr: bool = False
    counter: int = 0
    current_config: int = 0
    perf_events: list[int | None] = field(default_factory=lambda: [None] * MAX_EVENTS)


MAX_EVENTS = 255
"""`max_nr_events` is a u8; the RFC bounds its array by nothing else."""

FIXED_BASE = 32
"""INTEL_PMC_IDX_FIXED: the `idx` of the first fixed counter."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call that KVM makes: `event` and `leader` are indices in the pmc's `perf_events`.

    The guest-LBR event, which is in none, has index 0.
    `leader` is None for a creation without one, and for the other calls, as `disabled` is.
    """

    name: CallName
    event: int
    leader: int | None = None
    disabled: bool | None = None


Steps = Generator[Step, int, int]
"""Yields calls, is sent answers: to a create the event (positive) or -errno, to a pause what was counted.

Returns 0 or -errno.
"""


def pmc_reprogram_counter(pmc: Pmc, *, intr: bool = False) -> Steps:
    """Create the pmc's events and, of a group, enable them once the last exists.

    A creation that fails ends it: the members before it stay, disabled, and the state of the counter is not
    updated.
    """
    pmc.precise = pmc.pebs
    disabled = pmc.max_nr_events > 1
    for i in range(pmc.max_nr_events):
        answer = yield Step(CallName.CREATE, i, leader=0 if i else None, disabled=disabled)
        if answer < 0:
            return answer
        pmc.perf_events[i] = answer
        pmc.pmu.event_count += 1
    pmc.is_paused = False
    pmc.intr = intr or pmc.pebs
    if disabled:
        for i in range(pmc.max_nr_events):
            yield Step(CallName.ENABLE, i)
    return 0


def pmc_pause_counter(pmc: Pmc) -> Steps:
    """Pause a single event and add up its count; a group is stopped instead."""
    if pmc.max_nr_events > 1:
        yield from pmc_stop_counter(pmc)
    if pmc.perf_events[0] is None or pmc.is_paused:
        return 0
    pmc.counter += yield Step(CallName.PAUSE, 0)
    pmc.is_paused = True
    return 0


def pmc_resume_counter(pmc: Pmc) -> Steps:
    """Enable the event; return -1 (the kernel's false) if it cannot serve.

    That is if there is none, as after a group was stopped, or if the guest has turned PEBS on or off since.
    """
    if pmc.perf_events[0] is None or pmc.precise != pmc.pebs:
        return -1
    yield Step(CallName.ENABLE, 0)
    pmc.is_paused = False
    return 0


def pmc_stop_counter(pmc: Pmc) -> Steps:
    """Release all events, if there is an event 0 to read the counter from."""
    if pmc.perf_events[0] is not None:
        yield from pmc_release_perf_event(pmc)
    return 0


def pmc_release_perf_event(pmc: Pmc) -> Steps:
    """Release what exists among the first `max_nr_events`, in order, and forget that there was a group.

    Events past `max_nr_events` are not looked at.
    """
    for i in range(pmc.max_nr_events):
        if pmc.perf_events[i] is not None:
            yield Step(CallName.RELEASE, i)
            pmc.perf_events[i] = None
            pmc.pmu.event_count -= 1
    pmc.current_config = 0
    pmc.max_nr_events = 1
    return 0


def pmc_is_enabled(pmc: Pmc) -> bool:
    """Return whether the guest lets the counter count: in its own control, and globally."""
    return bool(pmc.config) and bool(pmc.pmu.global_ctrl >> pmc.idx & 1)


def reprogram_counter(pmc: Pmc, *, hardware_nr_events: int | None = 1) -> Steps:
    """Do what a guest's write to one of the counter's registers, or a counter overflow, leads to.

    `hardware_nr_events` is the N that the hardware definition gives the counter that the guest accesses; None
    if the guest did not access the counter itself.
    """
    yield from pmc_pause_counter(pmc)
    if not pmc_is_enabled(pmc):
        return 0
    if pmc.current_config == pmc.config and (yield from pmc_resume_counter(pmc)) == 0:
        return 0
    yield from pmc_release_perf_event(pmc)
    pmc.current_config = pmc.config
    if hardware_nr_events is not None:
        pmc.max_nr_events = hardware_nr_events
    return (yield from pmc_reprogram_counter(pmc))


def write_global_ctrl(pmu: Pmu, pmcs: Iterable[Pmc], value: int) -> list[Pmc]:
    """Write IA32_PERF_GLOBAL_CTRL, or AMD's PerfCntrGlobalCtl; return the counters that KVM then reprograms.

    They are those whose bit changes, in the order of the bits (global_ctrl_changed(), later
    reprogram_counters()). Linux 6.1 calls reprogram_counter() for each of them at once; 6.2 and later mark
    them, and do that at the next entry into the guest (kvm_pmu_handle_event()). The guest has accessed none
    of them itself.
    """
    changed = pmu.global_ctrl ^ value
    pmu.global_ctrl = value
    return sorted((pmc for pmc in pmcs if changed >> pmc.idx & 1), key=lambda pmc: pmc.idx)


def intel_pmu_create_guest_lbr_event(pmu: Pmu) -> Steps:
    """Create the event that lets the guest have the CPU's branch records; it counts as one of the vCPU's."""
    if pmu.lbr_event is not None:
        return 0
    answer = yield Step(CallName.CREATE, 0, disabled=False)
    if answer < 0:
        return answer
    pmu.lbr_event = answer
    pmu.event_count += 1
    return 0


def intel_pmu_release_guest_lbr_event(pmu: Pmu) -> Steps:
    """Release it, after a time slice without use, or with the vCPU."""
    if pmu.lbr_event is not None:
        yield Step(CallName.RELEASE, 0)
        pmu.lbr_event = None
        pmu.event_count -= 1
    return 0
