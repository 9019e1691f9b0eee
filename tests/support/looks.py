"""What the census finds, made up."""

from __future__ import annotations

from typing import Any

from vpmu_agent.model.event_names import GUEST_LBR
from vpmu_agent.probes.census import PINNED, HostEvent, Look, Pmc, Stray, Vcpu
from vpmu_agent.probes.layout import PMC_TYPE_LBR, Layout
from vpmu_agent.probes.sources import bpf_folder

_TEXT = (bpf_folder() / "census.h").read_text()
VCPU, PMC, HOST_EVENT, STRAY = (
    Layout(f"vpmu_census_{name}", text=_TEXT) for name in ("vcpu", "pmc", "host_event", "stray")
)
"""The records, as the BPF program writes them."""

WEB = 4242
"""The process of a VM."""

ENABLED = 1 << 22
"""The bit of an event select that a guest enables a counter with."""


EXCLUDE_HOST = 1 << 19
"""A bit of `attr_flags`: KVM's events count in the guest only."""


def vcpu(**other: Any) -> Vcpu:
    """A vCPU with six counters and a global control that lets none of them count; guests.amd() has none."""
    usual: dict[str, Any] = {
        "tgid": WEB,
        "address": 0x10,
        "vm": 1,
        "global_ctrl": 0,
        "has_filter": False,
        "tsc_set_ns": 10**9,
        "kvmclock_offset": 0,
        "cpu": 3,
        "awaits_init": False,
        "has_irqchip": True,
        "has_cpuid": True,
        "vcpu_id": 0,
        "gp": 6,
        "fixed": 0,
        "vm_pmu": True,
        "mediated": False,
        "pmu_version": 2,
    }
    return Vcpu(**(usual | other))


def pmc(index: int = 0, **other: Any) -> Pmc:
    """A gp counter of that vCPU that its guest enabled, with an event that counts."""
    usual: dict[str, Any] = {
        "tgid": WEB,
        "vcpu": 0x10,
        "control": ENABLED | 0x76,
        "event": 0x100 + index,
        "enabled_ns": 10**9,
        "running_ns": 10**9,
        "counted": 0,
        "config": 0x76,
        "attr_flags": 0,
        "vcpu_id": 0,
        "state": 1,
        "oncpu": 3,
        "thread_runs": True,
        "pmc_type": 0,
        "pmc_idx": index,
        "event_index": 0,
        "size": 1,
        "event_id": 0x100 + index,
    }
    return Pmc(**(usual | other))


def starved(index: int = 0, **other: Any) -> Pmc:
    """A counter whose pinned event got no room."""
    return pmc(index, **({"state": -2, "enabled_ns": 0, "running_ns": 0, "oncpu": -1} | other))


def without_event(index: int = 0, **other: Any) -> Pmc:
    """A counter that its guest enabled and that has no event."""
    usual = {"event": 0, "event_id": 0, "state": 0, "config": 0, "thread_runs": False}
    return starved(index, **(usual | other))


def host_event(event: int = 0x900, **other: Any) -> HostEvent:
    """A pinned event of a profiler on CPU 3."""
    usual: dict[str, Any] = {
        "tgid": 99,
        "event": event,
        "enabled_ns": 10**9,
        "running_ns": 10**9,
        "config": 0xC0,
        "attr_flags": 1 << 2,
        "comm": "otel-profiler",
        "type": 4,
        "cpu": 3,
        "state": 1,
        "oncpu": 3,
    }
    return HostEvent(**(usual | other))


def stray(number: int = 0x500, **other: Any) -> Stray:
    """An event of that vCPU's gp0, which counts and which the counter does not hold."""
    usual: dict[str, Any] = {
        "tgid": WEB,
        "vcpu": 0x10,
        "id": number,
        "config": 0x76,
        "attr_flags": PINNED | EXCLUDE_HOST,
        "type": 4,
        "vcpu_id": 0,
        "state": 1,
        "pmc_type": 0,
        "pmc_idx": 0,
    }
    return Stray(**(usual | other))


def guest_lbr(**other: Any) -> Stray:
    """The event for that vCPU's LBR, which has the CPU's branch records."""
    return stray(**({"config": GUEST_LBR, "attr_flags": PINNED, "pmc_type": PMC_TYPE_LBR} | other))


Thing = Vcpu | Pmc | HostEvent | Stray
"""What a look can find."""


def look(*found: Thing, at: float = 0.0) -> Look:
    """A look that found these, at this time in seconds."""
    return Look(
        time=at,
        vcpus=[each for each in found if isinstance(each, Vcpu)],
        pmcs=[each for each in found if isinstance(each, Pmc)],
        host_events=[each for each in found if isinstance(each, HostEvent)],
        strays=[each for each in found if isinstance(each, Stray) and each.pmc_type != PMC_TYPE_LBR],
        guest_lbr=[each for each in found if isinstance(each, Stray) and each.pmc_type == PMC_TYPE_LBR],
    )
