"""How KVM gives a VM its PMU, and why there may be nothing to trace of a VM."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

MAX_NAMED = 5
"""How many VMs one sentence names; of the rest it gives the number."""


class Mode(StrEnum):
    """How KVM gives a VM its PMU."""

    EMULATED = "emulated"
    """With perf events of the host, which is what can be traced."""
    MEDIATED = "mediated"
    """With the host's counters themselves while the guest runs (Linux 7.0 and later)."""
    OFF = "off"
    """Not at all."""


class Why(StrEnum):
    """Why a VM has no PMU."""

    HOST = "host"
    """KVM's enable_pmu is N."""
    NO_IRQCHIP = "no_irqchip"
    """KVM's vPMU is mediated, and the VM has no in-kernel irqchip (x86.c, kvm_arch_vcpu_precreate())."""
    TURNED_OFF = "turned_off"
    """By the VMM (KVM_CAP_PMU_CAPABILITY); or it is a TDX guest, whose PMU is not KVM's."""
    NO_CPUID = "no_cpuid"
    """The VMM gave no vCPU a PMU in its CPUID (KVM_SET_CPUID2)."""
    UNKNOWN = "unknown"
    """KVM's parameters, which tell these apart, cannot be read."""


@dataclass(frozen=True, slots=True)
class Pmu:
    """The PMU of one VM; `why` it is off, or None if it is on."""

    mode: Mode
    why: Why | None = None


_REASONS = {
    Why.HOST: "KVM's parameter enable_pmu is N on this host",
    Why.NO_IRQCHIP: "KVM's vPMU is mediated on this host, and a mediated vPMU needs an in-kernel "
    "interrupt controller (started with kernel_irqchip=off?)",
    Why.TURNED_OFF: "its VMM turned it off (KVM_CAP_PMU_CAPABILITY), or it is a TDX guest",
    Why.NO_CPUID: "its CPUID describes none (QEMU's -cpu host,pmu=on gives it one)",
    Why.UNKNOWN: "KVM's parameters, which would say why, cannot be read",
}


def reason(pmu: Pmu) -> str:
    """Return why a PMU is off, in words, without full stop."""
    return _REASONS[pmu.why or Why.UNKNOWN]


def untraced(found: Iterable[tuple[str, Pmu]]) -> dict[Pmu, list[str]]:
    """Return the VMs that cannot be traced, by their PMU."""
    vms: dict[Pmu, list[str]] = {}
    for vm, pmu in found:
        if pmu.mode is not Mode.EMULATED:
            vms.setdefault(pmu, []).append(vm)
    return vms


def sentence(vms: Sequence[str], pmu: Pmu) -> str:
    """Return a sentence, without full stop: which PMU these VMs have and what that means for a trace."""
    shown = [*vms[:MAX_NAMED], f"{len(vms) - MAX_NAMED} more"] if len(vms) > MAX_NAMED else vms
    names = " and ".join((", ".join(shown[:-1]), shown[-1])) if len(shown) > 1 else shown[0]
    has = "have" if len(vms) > 1 else "has"
    match pmu.mode:
        case Mode.EMULATED:
            return f"{names} {has} an emulated vPMU"
        case Mode.MEDIATED:
            return (
                f"{names} {has} a mediated vPMU: the guest owns the host's counters while it runs, and KVM "
                "creates no perf events for it, so there is nothing to trace"
            )
        case Mode.OFF:
            lost = f"{has} lost the vPMU" if pmu.why is Why.NO_IRQCHIP else f"{has} no vPMU"
            return f"{names} {lost}: {reason(pmu)}, so there is nothing to trace"
