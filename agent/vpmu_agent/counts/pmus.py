"""The vPMU of each VM of the host, according to the census."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vpmu_agent.kernel import kvm
from vpmu_agent.probes.census import Vcpu
from vpmu_agent.vms.modes import Mode, Pmu, Why


@dataclass(frozen=True, slots=True)
class KvmPmu:
    """KVM's parameters, for the whole host; None if they cannot be read."""

    enabled: bool | None
    mediated: bool | None


def kvm_pmu() -> KvmPmu:
    """Return the running kernel's. KVM itself turns off what the host's PMU does not allow."""
    modules = kvm.mediated_vpmu().values()
    mediated: bool | None = any(modules)
    if not mediated and None in modules:
        mediated = None
    return KvmPmu(kvm.vpmu_enabled(), mediated)


def pmus(found: Iterable[Vcpu], kvm: KvmPmu) -> dict[int, list[Pmu]]:
    """Return the PMUs of each process's VMs, each once, by tgid.

    A VM whose vCPUs are still being set up is left out: its PMU is not known yet.
    """
    vms: defaultdict[tuple[int, int], list[Vcpu]] = defaultdict(list)
    for vcpu in found:
        vms[vcpu.tgid, vcpu.vm].append(vcpu)
    processes: dict[int, list[Pmu]] = {}
    for (tgid, _), vcpus in vms.items():
        pmu = _pmu(vcpus, kvm)
        if pmu is None:
            continue
        has = processes.setdefault(tgid, [])
        if pmu not in has:
            has.append(pmu)
    return processes


def _pmu(vcpus: Sequence[Vcpu], kvm: KvmPmu) -> Pmu | None:
    vm = vcpus[0]
    if not vm.vm_pmu:
        return Pmu(Mode.OFF, _why_off(vm, kvm))
    if any(vcpu.pmu_version for vcpu in vcpus):
        # kvm_vcpu_has_mediated_pmu() asks for the host's parameter, which the first vCPU was created under.
        return Pmu(Mode.MEDIATED if vm.mediated else Mode.EMULATED)
    if all(vcpu.has_cpuid for vcpu in vcpus):
        return Pmu(Mode.OFF, Why.NO_CPUID)
    return None


def _why_off(vm: Vcpu, kvm: KvmPmu) -> Why:
    if kvm.enabled is False:
        return Why.HOST
    if not vm.has_irqchip and kvm.mediated:
        return Why.NO_IRQCHIP
    if kvm.enabled and (vm.has_irqchip or kvm.mediated is False):
        return Why.TURNED_OFF
    return Why.UNKNOWN
