"""All that depends on the processor architecture: to support another one, add an entry to `ARCHES`."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from vpmu_agent.kernel.errors import KernelError


@dataclass(frozen=True, slots=True)
class Arch:
    """The names under which KVM and perf appear on one architecture.

    `overflow_handlers` are KVM's handlers of its own events, newest name first: x86 had a second one,
    `kvm_perf_overflow_intr`, before Linux 5.17. `vendor_modules` implement KVM for one vendor's processors.
    `pmu_devices` are the names a core PMU can have below /sys/bus/event_source/devices (cpu_core and cpu_atom
    on hybrid Intel, arch/x86/events/core.c). `perf_event_open` and `bpf` are the numbers of the system calls.
    """

    machine: str
    overflow_handlers: tuple[str, ...]
    vendor_modules: tuple[str, ...]
    pmu_devices: tuple[str, ...]
    perf_event_open: int
    bpf: int


X86_64 = Arch(
    machine="x86_64",
    overflow_handlers=("kvm_perf_overflow", "kvm_perf_overflow_intr"),
    vendor_modules=("kvm_amd", "kvm_intel"),
    pmu_devices=("cpu", "cpu_core", "cpu_atom"),
    perf_event_open=298,
    bpf=321,
)

ARCHES = {arch.machine: arch for arch in (X86_64,)}


def current_arch(machine: str = "") -> Arch:
    """Return the entry of `machine`, by default of this machine; raise KernelError if there is none."""
    machine = machine or platform.machine()
    if machine not in ARCHES:
        raise KernelError(
            f"vpmu-agent does not know KVM's vPMU on {machine}",
            f"run it on {' or '.join(ARCHES)}",
        )
    return ARCHES[machine]
