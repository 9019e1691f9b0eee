"""The vPMU of each VM of the host, according to the census."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from vpmu_agent.kernel import kvm
from vpmu_agent.kernel.errors import KernelError
from vpmu_agent.probes import attach_census
from vpmu_agent.probes.census import Census, Vcpu
from vpmu_agent.vms.modes import Mode, Pmu, Why

PULL_S = 1.0
"""Seconds from one pull of the census to the next, at least."""

CPU_SHARE = 0.01
"""The share of one CPU that pulls may take: their cost grows with the number of files open on the host."""

FORGET_S = 60.0
"""How long a VM that the census no longer finds keeps its name: calls in the ring may still need it."""


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


def pmus_now(vms: Names) -> dict[str, list[Pmu]]:
    """Return the PMUs of all VMs that run now, by name: one census, for a privileged caller without probes.

    Raise KernelError if the kernel or bcc refuses the census.
    """
    census = attach_census()
    try:
        found = pmus(census.pull(), kvm_pmu())
        if census.missing:
            raise KernelError(census.missing)
    finally:
        census.close()
    return {vms.name(tgid): has for tgid, has in found.items()}


class Names(Protocol):
    """What is needed here of `vms.names.Vms`."""

    def name(self, tgid: int) -> str:
        """Return the name of the VM that a process runs."""

    def forget(self, tgid: int) -> None:
        """Forget a process."""


class Modes:
    """Keeps track of the PMUs of all VMs. For one thread, except that any may read `by_vm`.

    The census is pulled every PULL_S, or less often if that would take more than CPU_SHARE of a CPU.
    """

    def __init__(self, vms: Names, kvm: Callable[[], KvmPmu] = kvm_pmu) -> None:
        self.by_vm: Mapping[str, Sequence[Pmu]] = {}
        """The PMUs by VM name, as of the last pull. One process may have several VMs."""
        self._vms = vms
        self._kvm = kvm
        self._told: dict[int, list[Pmu]] = {}
        self._gone: dict[int, float] = {}  # processes that no longer have a VM, and since when
        self._missing = ""
        self._next_at = 0.0

    def sweep(self, census: Census) -> list[tuple[str, Pmu]]:
        """Pull the census if it is time; return the VMs that are new or have another PMU than before."""
        if time.monotonic() < self._next_at:
            return []
        before = time.thread_time()
        new = self._take(pmus(census.pull(), self._kvm()))
        now = time.monotonic()
        self._next_at = now + max(PULL_S, (time.thread_time() - before) / CPU_SHARE)
        for tgid, since in list(self._gone.items()):
            if now - since >= FORGET_S:
                del self._gone[tgid]
                self._vms.forget(tgid)
        return new

    def newly_missing(self, census: Census) -> str:
        """Return why there is no census; "" if there is one, or if this was returned before."""
        before, self._missing = self._missing, census.missing
        return "" if self._missing == before else self._missing

    def _take(self, found: dict[int, list[Pmu]]) -> list[tuple[str, Pmu]]:
        names = {tgid: self._vms.name(tgid) for tgid in found}
        new = [
            (names[tgid], pmu)
            for tgid, has in found.items()
            for pmu in has
            if pmu not in self._told.get(tgid, ())
        ]
        now = time.monotonic()
        self._gone.update(dict.fromkeys(self._told.keys() - found.keys(), now))
        for tgid in found:
            self._gone.pop(tgid, None)
        self._told = found
        self.by_vm = {
            names[tgid]: has for tgid, has in sorted(found.items(), key=lambda each: names[each[0]])
        }
        return new
