"""`python -m tests.bpf.kvm VM…`: VMs by ioctl, until standard input ends; says "made" once they are there.

A line "reset" on standard input has it reset the last VM, and say so.

A VM is how many vCPUs it has, and letters, as in `2ic`:
    i   its interrupt controller is in the kernel
    o   its PMU is turned off
    c   its vCPUs get all the CPUID that KVM has for them
    r   the first of them runs, and programs a counter as guests of this CPU's vendor do; the others never run
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import re
import struct
import sys
from pathlib import Path

# include/uapi/linux/kvm.h
KVM_CREATE_VM = 0xAE01
KVM_GET_VCPU_MMAP_SIZE = 0xAE04
KVM_GET_SUPPORTED_CPUID = 0xC008AE05
KVM_CREATE_VCPU = 0xAE41
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
KVM_CREATE_IRQCHIP = 0xAE60
KVM_RUN = 0xAE80
KVM_SET_REGS = 0x4090AE82
KVM_GET_SREGS, KVM_SET_SREGS = 0x8138AE83, 0x4138AE84
KVM_SET_MSRS = 0x4008AE89
KVM_SET_CPUID2 = 0x4008AE90
KVM_ENABLE_CAP = 0x4068AEA3
KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE = 212, 1
KVM_EXIT_IO = 2
IA32_TSC = 0x10

_PAGE = 4096
# Registers and their values: selector 0 (enabled, usr, os, cycles); on Intel the global control comes first.
_AMD = {0xC0010000: 0x430076}
_INTEL = {0x38F: 1, 0x186: 0x43003C}


def make_vm(kvm: int, letters: str, vcpus: int) -> list[int]:
    """The descriptors of a VM and of its vCPUs."""
    vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
    if "i" in letters:
        fcntl.ioctl(vm, KVM_CREATE_IRQCHIP, 0)
    if "o" in letters:
        capability = struct.pack("=IIQ", KVM_CAP_PMU_CAPABILITY, 0, KVM_PMU_CAP_DISABLE)
        fcntl.ioctl(vm, KVM_ENABLE_CAP, capability.ljust(104, b"\0"))
    made = [fcntl.ioctl(vm, KVM_CREATE_VCPU, number) for number in range(vcpus)]
    if "c" in letters:
        cpuid = bytearray(struct.pack("=II", 256, 0).ljust(8 + 256 * 40, b"\0"))
        fcntl.ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid)
        for vcpu in made:
            fcntl.ioctl(vcpu, KVM_SET_CPUID2, cpuid)
    if "r" in letters:
        run(kvm, vm, made[0])
    return [vm, *made]


def reset(vcpu: int) -> None:
    """Sets the TSC to 0, as VMMs do at a reset."""
    fcntl.ioctl(vcpu, KVM_SET_MSRS, struct.pack("=IIIIQ", 1, 0, IA32_TSC, 0, 0))


def run(kvm: int, vm: int, vcpu: int) -> None:
    """Runs the vCPU until it has programmed its counter."""
    memory = mmap.mmap(-1, _PAGE)
    memory.write(_program_a_counter())
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(vm, KVM_SET_USER_MEMORY_REGION, struct.pack("=IIQQQ", 0, 0, 0, _PAGE, address))
    sregs = bytearray(312)
    fcntl.ioctl(vcpu, KVM_GET_SREGS, sregs)
    struct.pack_into("=Q", sregs, 0, 0)  # cs.base
    struct.pack_into("=H", sregs, 12, 0)  # cs.selector
    fcntl.ioctl(vcpu, KVM_SET_SREGS, sregs)
    rip, rflags = 0, 2
    fcntl.ioctl(vcpu, KVM_SET_REGS, struct.pack("=18Q", *[0] * 16, rip, rflags))
    state = mmap.mmap(vcpu, fcntl.ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0))
    fcntl.ioctl(vcpu, KVM_RUN, 0)
    (reason,) = struct.unpack_from("=I", state, 8)
    if reason != KVM_EXIT_IO:
        sys.exit(f"the guest did not come to its end: exit reason {reason}")


def _program_a_counter() -> bytes:
    """For each register: mov ecx, register; mov eax, value; xor edx, edx; wrmsr. And then out 0, al."""
    registers = _INTEL if "GenuineIntel" in Path("/proc/cpuinfo").read_text() else _AMD
    write = "<HIHI5s"
    code = b"".join(
        struct.pack(write, 0xB966, register, 0xB866, value, bytes.fromhex("6631d2 0f30"))
        for register, value in registers.items()
    )
    return code + bytes.fromhex("e600")


def main(*vms: str) -> None:
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    for vm in vms:
        found = re.fullmatch(r"(\d+)([iocr]*)", vm)
        if found is None:
            sys.exit(__doc__)
        _, *vcpus = make_vm(kvm, found[2], int(found[1]))
        os.dup(vcpus[-1])  # as a VMM may: it is the same vCPU
    # A child that inherits a VM has none of its own.
    ours, theirs = os.pipe()
    if not (child := os.fork()):
        os.close(theirs)
        os.read(ours, 1)
        os._exit(0)
    print("made", child, flush=True)
    for line in sys.stdin:  # "reset"
        for vcpu in vcpus:
            reset(vcpu)
        print(line, end="", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
