"""Why perf could not create an event for a guest's counter, by errno.

Only what perf_event_create_kernel_counter() can return to KVM on x86, read in Linux 6.1 and 7.3. That the
host's PMU is full is not among it: then the creation succeeds, and the event does not run.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a creation fails with one errno."""

    text: str
    functions: tuple[str, ...]
    """The kernel's functions that return it."""


CAUSES = {
    errno.ENOENT: Cause(
        "no PMU of the host has this type of event, or it has no such event",
        ("perf_init_event", "x86_setup_perfctr"),
    ),
    errno.EINVAL: Cause(
        "no counter of the host can count this event, or not with these settings",
        ("validate_event", "validate_group", "x86_setup_perfctr", "x86_pmu_hw_config"),
    ),
    errno.EOPNOTSUPP: Cause(
        "the host's PMU cannot count in this way, or there is a VM with a mediated vPMU",
        (
            "x86_pmu_hw_config",
            "hsw_hw_config",
            "intel_pmu_setup_lbr_filter",
            "mediated_pmu_account_event",
        ),
    ),
    errno.EBUSY: Cause(
        "the host's counters are reserved by something other than perf, or Intel PT or BTS excludes LBR",
        ("x86_reserve_hardware", "x86_add_exclusive"),
    ),
    errno.ENODEV: Cause(
        "perf has no PMU for the host's CPU",
        ("__x86_pmu_event_init", "perf_try_init_event"),
    ),
    errno.ENXIO: Cause(
        "the host cannot use an extra register that the event needs",
        ("x86_pmu_extra_regs",),
    ),
    errno.ENOMEM: Cause(
        "the host had no memory for it",
        ("perf_event_alloc", "find_get_context", "allocate_fake_cpuc"),
    ),
    errno.ESRCH: Cause(
        "the vCPU's thread is exiting",
        ("find_get_context", "perf_event_create_kernel_counter"),
    ),
    errno.EACCES: Cause("a Linux security module does not allow it", ("security_perf_event_alloc",)),
    errno.EPERM: Cause("a Linux security module does not allow it", ("security_perf_event_alloc",)),
}
"""By (positive) errno."""

UNKNOWN = "the cause is unknown, perf on x86 has no such error"


def cause(number: int) -> str:
    """Return the cause in words, given the (positive) errno; UNKNOWN if none is known."""
    return CAUSES[number].text if number in CAUSES else UNKNOWN
