"""One observed kernel call: the only thing that the probes, a recording and the model have in common."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache


class CallName(StrEnum):
    """The kernel function that was called, by the short name that users see."""

    CREATE = "create"  # perf_event_create_kernel_counter()
    ENABLE = "enable"  # perf_event_enable()
    PAUSE = "pause"  # perf_event_pause()
    RELEASE = "release"  # perf_event_release_kernel()


class UncheckedCall(StrEnum):
    """A call that the model says nothing of, by the short name that users see. It is only counted."""

    READ = "read"  # perf_event_read_value(): the guest reads a counter
    PERIOD = "period"  # perf_event_period(): the guest writes a counter, or KVM resumes one


class PmcType(StrEnum):
    """`enum pmc_type`, and the guest-LBR event, which KVM makes without any counter."""

    GP = "gp"  # KVM_PMC_GP
    FIXED = "fixed"  # KVM_PMC_FIXED
    LBR = "lbr"  # intel_pmu_create_guest_lbr_event()


@dataclass(slots=True)
class Attr:
    """The fields of `struct perf_event_attr` that KVM sets (include/uapi/linux/perf_event.h).

    Treat it, and a call, as immutable. They are not frozen because a frozen dataclass takes five times as
    long to make, and a replay makes millions.
    """

    type: int
    config: int
    sample_period: int
    disabled: bool
    pinned: bool
    exclude_user: bool
    exclude_kernel: bool
    exclude_hv: bool
    exclude_idle: bool
    exclude_host: bool
    exclude_guest: bool
    precise_ip: int


@dataclass(slots=True)
class Call:
    """One call, as the probes saw it at its entry and its return.

    `time_ns` is the entry, in nanoseconds since the epoch; `duration_ns` the time to the return, 0 where it
    was not measured.
    `pmc`, `event` and `leader` tell the kernel's objects apart: each is the pseudonym of an address
    (probes/pseudonyms.py), or the address itself in recordings of agents before 0.4. 0 means none (`event`
    of a create that failed, `leader` of a create without a group leader, `pmc` of the guest-LBR event).
    `result` is 0 or a negative errno.
    `pmc_idx` counts from 0 within its type; `vcpu` is -1 where it cannot be known (guest LBR).
    `max_nr_events` is read at entry and is 1 where `struct kvm_pmc` has no such field. `event_count` is KVM's
    own count of the vCPU's events (`struct kvm_pmu`) at entry, -1 where it is not known (guest LBR).
    `lost` counts the records that were lost since the call before this one. `starved` says that perf had no
    room for the counter's events when a create or an enable returned: they are there and count nothing. It is
    False where nobody looked, which is at the return of an enable without durations.
    """

    time_ns: int
    duration_ns: int
    name: CallName
    pmc: int
    event: int
    leader: int
    result: int
    attr: Attr
    vm: str
    tgid: int
    tid: int
    vcpu: int
    pmc_type: PmcType
    pmc_idx: int
    max_nr_events: int
    event_count: int
    lost: int = 0
    starved: bool = False

    @property
    def pmc_name(self) -> str:
        """Return `gp0`, `fixed1`, or `lbr`."""
        return _pmc_name(self.pmc_type, self.pmc_idx)


@cache
def _pmc_name(pmc_type: PmcType, idx: int) -> str:
    return "lbr" if pmc_type is PmcType.LBR else f"{pmc_type}{idx}"
