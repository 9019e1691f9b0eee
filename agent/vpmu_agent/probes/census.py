"""The census: every vCPU of the host, read ("pulled") from a BPF iterator that a loader attached.

Attaching takes privileges; a pull takes none from Linux 5.19 on, which lets unprivileged processes use BPF
descriptors.
"""

from __future__ import annotations

import ctypes
import os
from typing import NamedTuple

from vpmu_agent.kernel.errors import KernelError
from vpmu_agent.kernel.libbpf import libbpf, quiet, strerror
from vpmu_agent.probes.layout import Layout
from vpmu_agent.probes.sources import bpf_folder

_READ_SIZE = 64 * 1024  # bytes; more than bpf_seq_read() returns at a time (8 pages, kernel/bpf/bpf_iter.c)

_VCPU = Layout("vpmu_census_vcpu", text=(bpf_folder() / "census.h").read_text())


class Vcpu(NamedTuple):
    """A vCPU, found through one of the open files that refer to it: its PMU, and its VM's, according to KVM.

    `vm` is the same for all vCPUs of a VM. It is a kernel address, and must not be shown to users. A tuple,
    because a host may have 16,000 of these and a frozen dataclass takes three times as long to create.
    """

    vm: int
    tgid: int
    has_irqchip: bool
    """Whether its VM's interrupt controller is in the kernel, or at least the local APICs ("split")."""
    has_cpuid: bool
    """Whether the vCPU has its CPUID, which brings its PMU (KVM_SET_CPUID2)."""
    vm_pmu: bool
    """`kvm->arch.enable_pmu`: whether KVM gives this VM a PMU at all."""
    mediated: bool
    """`kvm->arch.created_mediated_pmu`; False if the kernel has no such field."""
    pmu_version: int
    """0 if the vCPU has no PMU."""


def decode(data: bytes) -> list[Vcpu]:
    """Return the vCPUs in the data of a pull. Raise struct.error if it is not a whole number of records."""
    return [
        Vcpu(vm, tgid, irqchip_mode != 0, cpuid_nent > 0, enable_pmu != 0, mediated != 0, version)
        for vm, tgid, irqchip_mode, cpuid_nent, enable_pmu, mediated, version, _ in _VCPU.struct.iter_unpack(
            data
        )
    ]


class Census:
    """An attached iterator. Without one, or after it failed, a pull finds nothing and `missing` says why."""

    def __init__(self, link: int | None, missing: str = "") -> None:
        """Take ownership of the descriptor."""
        self.missing = missing
        self._link = link

    def pull(self) -> list[Vcpu]:
        """Return every vCPU of the host, once for each file that its own process has open for it."""
        if self._link is None:
            return []
        try:
            return decode(_read_all(self._link))
        except KernelError as error:
            self.missing = str(error)
            self.close()
            return []

    def close(self) -> None:
        """Detach the iterator."""
        if self._link is not None:
            os.close(self._link)
            self._link = None


def _read_all(link: int) -> bytes:
    with quiet():
        ctypes.set_errno(0)
        pull = int(libbpf().bpf_iter_create(link))
    if pull < 0:
        raise KernelError(f"cannot start to read the census: {strerror(ctypes.get_errno())}")
    data = bytearray()
    try:
        while True:
            try:
                chunk = os.read(pull, _READ_SIZE)
            except BlockingIOError:
                continue  # a million files in a row without a vCPU (MAX_ITER_OBJECTS): continue from there
            if not chunk:
                return bytes(data)
            data += chunk
    except OSError as error:
        raise KernelError(f"cannot read the census: {error.strerror}") from error
    finally:
        os.close(pull)
