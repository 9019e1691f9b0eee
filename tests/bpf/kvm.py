"""`python -m tests.bpf.kvm VM…`: VMs that never run, by ioctl, until standard input ends.

A VM is how many vCPUs it has, and `i` if its interrupt controller is in the kernel: `2i`. Says "made" then.
"""

from __future__ import annotations

import fcntl
import os
import sys

# include/uapi/linux/kvm.h
KVM_CREATE_VM = 0xAE01
KVM_CREATE_VCPU = 0xAE41
KVM_CREATE_IRQCHIP = 0xAE60


def make_vm(kvm: int, *, vcpus: int, irqchip: bool) -> list[int]:
    """The descriptors of a VM and of its vCPUs."""
    vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
    if irqchip:
        fcntl.ioctl(vm, KVM_CREATE_IRQCHIP, 0)
    return [vm, *(fcntl.ioctl(vm, KVM_CREATE_VCPU, number) for number in range(vcpus))]


def main(*vms: str) -> None:
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    for vm in vms:
        made = make_vm(kvm, vcpus=int(vm.rstrip("i")), irqchip=vm.endswith("i"))
        os.dup(made[-1])  # as a VMM may: it is the same vCPU
    # A child that inherits a VM has none of its own.
    if not (child := os.fork()):
        sys.stdin.read()
        os._exit(0)
    print("made", child, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
