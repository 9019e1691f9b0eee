"""Which vPMU each VM of the host has, by what the census finds."""

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
"""How often to pull the census, at the most."""

SHARE = 0.01
"""Of a processor's time, what pulls may take: they cost in proportion to the files that a host has open."""

FORGET_S = 60.0
"""How long a VM that the census finds no more keeps its name, which calls still in the ring may need."""


@dataclass(frozen=True, slots=True)
class KvmPmu:
    """KVM's own settings, for the whole host; None if they cannot be read."""

    enabled: bool | None
    mediated: bool | None


def kvm_pmu() -> KvmPmu:
    """Those of the running kernel. KVM turns off by itself what the host has no PMU for."""
    mediated = kvm.mediated_vpmu().values()
    known = None if any(value is None for value in mediated) else False
    return KvmPmu(kvm.vpmu_enabled(), True if any(mediated) else known)


def pmus(found: Iterable[Vcpu], kvm: KvmPmu) -> dict[int, list[Pmu]]:
    """Of each process that has VMs: the PMUs that these have, each once.

    A VM whose vCPUs are still being set up is left out: what it will have cannot be known yet.
    """
    vms: defaultdict[tuple[int, int], list[Vcpu]] = defaultdict(list)
    for vcpu in found:
        vms[vcpu.tgid, vcpu.vm].append(vcpu)
    processes: dict[int, list[Pmu]] = {}
    for (tgid, _), vcpus in vms.items():
        pmu = _pmu(vcpus, kvm)
        if pmu and pmu not in (has := processes.setdefault(tgid, [])):
            has.append(pmu)
    return processes


def _pmu(vcpus: Sequence[Vcpu], kvm: KvmPmu) -> Pmu | None:
    vm = vcpus[0]
    if not vm.vm_pmu:
        return Pmu(Mode.OFF, _why_off(vm, kvm))
    if any(vcpu.pmu_version for vcpu in vcpus):
        # kvm_vcpu_has_mediated_pmu() asks for the host's setting, by which the VM's first vCPU was made.
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
    """The PMUs of all VMs that run now, by name, for whoever has no probes but the privileges for them.

    Raises KernelError where the kernel or bcc will not have the census.
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
    """Whoever knows which VM a process is; `vms.Vms` does."""

    def name(self, tgid: int) -> str:
        """The VM's name."""

    def forget(self, tgid: int) -> None:
        """Drops what is remembered of a process."""


class Modes:
    """Keeps up with the PMUs of all VMs, for one thread; `by_vm` is for any.

    The census is pulled at PULL_S, or less often where that would take more than SHARE of a processor.
    """

    def __init__(self, vms: Names, kvm: Callable[[], KvmPmu] = kvm_pmu) -> None:
        self.by_vm: Mapping[str, Sequence[Pmu]] = {}
        """By the VM's name, as of the last pull. One process may have several VMs."""
        self._vms = vms
        self._kvm = kvm
        self._told: dict[int, list[Pmu]] = {}
        self._gone: dict[int, float] = {}  # processes that have no VM any more, and since when
        self._missing = ""
        self._next_at = 0.0

    def sweep(self, census: Census) -> list[tuple[str, Pmu]]:
        """Pulls the census if it is time; returns the VMs that are new, or have another PMU than before."""
        if time.monotonic() < self._next_at:
            return []
        before = time.thread_time()
        new = self._take(pmus(census.pull(), self._kvm()))
        now = time.monotonic()
        self._next_at = now + max(PULL_S, (time.thread_time() - before) / SHARE)
        for tgid, since in list(self._gone.items()):
            if now - since >= FORGET_S:
                del self._gone[tgid]
                self._vms.forget(tgid)
        return new

    def newly_missing(self, census: Census) -> str:
        """Why there is no census; empty if there is one, or this was said before."""
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
