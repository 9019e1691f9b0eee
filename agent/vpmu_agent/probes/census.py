"""Pulls of the census: every vCPU of the host, by the descriptor of an iterator that a loader attached.

A pull takes no privileges where the kernel lets unprivileged processes use BPF descriptors (Linux 5.19 on):
attaching takes them, and has been done.
"""

from __future__ import annotations

import ctypes
import os
from typing import NamedTuple

from vpmu_agent.kernel.errors import KernelError
from vpmu_agent.kernel.libbpf import libbpf, quiet, strerror
from vpmu_agent.probes.layout import Layout
from vpmu_agent.probes.sources import bpf_folder

_READ_SIZE = 64 * 1024  # more than bpf_seq_read() gives at a time (8 pages, kernel/bpf/bpf_iter.c)

_VCPU = Layout("vpmu_census_vcpu", text=(bpf_folder() / "census.h").read_text())


class Vcpu(NamedTuple):
    """One vCPU, by one of the open files that lead to it: what KVM says of its PMU and of its VM's.

    `vm` is the same for all vCPUs of one VM. It is a kernel address, and must not be shown to anybody.
    A tuple because a host may have 16,000 of these, and a frozen dataclass takes three times as long to make.
    """

    vm: int
    tgid: int
    has_irqchip: bool
    """Whether its VM's interrupt controller is in the kernel, or the local APICs at least ("split")."""
    has_cpuid: bool
    """Whether the vCPU was given its CPUID yet; its PMU comes with that."""
    vm_pmu: bool
    """`kvm->arch.enable_pmu`: whether KVM gives this VM a PMU at all."""
    mediated: bool
    """`kvm->arch.created_mediated_pmu`; False where the kernel has none."""
    pmu_version: int
    """0 if the vCPU has no PMU."""


def decode(data: bytes) -> list[Vcpu]:
    """What the records of one pull say. Raises struct.error if that is no whole number of them."""
    return [
        Vcpu(vm, tgid, irqchip_mode != 0, cpuid_nent > 0, enable_pmu != 0, mediated != 0, version)
        for vm, tgid, irqchip_mode, cpuid_nent, enable_pmu, mediated, version, _ in _VCPU.struct.iter_unpack(
            data
        )
    ]


class Census:
    """An attached iterator. Without one, or once it fails, it finds nothing, and `missing` says why."""

    def __init__(self, link: int | None, missing: str = "") -> None:
        """Owns the descriptor from now on."""
        self.missing = missing
        self._link = link

    def pull(self) -> list[Vcpu]:
        """Every vCPU that the host has now, once for each file that its own process has of it."""
        if self._link is None:
            return []
        try:
            return decode(_read_all(self._link))
        except KernelError as error:
            self.missing = str(error)
            self.close()
            return []

    def close(self) -> None:
        """Takes the iterator off."""
        if self._link is not None:
            os.close(self._link)
            self._link = None


def _read_all(link: int) -> bytes:
    with quiet():
        ctypes.set_errno(0)
        pull = int(libbpf().bpf_iter_create(link))
    if pull < 0:
        raise KernelError(f"cannot begin a pull of the census: {strerror(ctypes.get_errno())}")
    data = bytearray()
    try:
        while True:
            try:
                chunk = os.read(pull, _READ_SIZE)
            except BlockingIOError:
                continue  # a million files in a row of which none was a vCPU (MAX_ITER_OBJECTS): go on there
            if not chunk:
                return bytes(data)
            data += chunk
    except OSError as error:
        raise KernelError(f"cannot read the census: {error.strerror}") from error
    finally:
        os.close(pull)
