"""What the loaded KVM is and how it is set. What cannot be read is None, never a guess."""

from __future__ import annotations

from pathlib import Path

from vpmu_agent.kernel.facts import ROOT, flag, read
from vpmu_agent.kernel.layout import KVM_MODULE


def kvm_is_module(*, root: Path = ROOT) -> bool:
    """Whether KVM was loaded as a module: only these have an `initstate`."""
    return (root / KVM_MODULE / "initstate").exists()


def kvm_instance(*, root: Path = ROOT) -> int | None:
    """A number for the KVM that is loaded now, another one after every load; None without KVM, or before it
    is ready.

    The folder's inode number: sysfs gives a new folder a new one (fs/kernfs/dir.c, __kernfs_new_node()).
    """
    try:
        inode = (root / KVM_MODULE).stat().st_ino
    except OSError:
        return None
    state = read(root / KVM_MODULE / "initstate")  # not there if KVM is built in
    return inode if state in (None, "live") else None


def kvm_vendor_modules(*, root: Path = ROOT) -> tuple[str, ...]:
    """What is there of KVM for this host's processor, such as ("kvm_amd",), as a module or built in."""
    # Not only the names in Arch: some kernels bring others (kvm_pvm).
    return tuple(sorted(path.name for path in (root / KVM_MODULE.parent).glob("kvm_*")))


def vpmu_enabled(*, root: Path = ROOT) -> bool | None:
    """KVM's `enable_pmu`. KVM itself sets it to N where the host has no PMU that it can use."""
    return flag(root / KVM_MODULE / "parameters/enable_pmu")


def mediated_vpmu(*, root: Path = ROOT) -> dict[str, bool | None]:
    """The modules that know a mediated vPMU, and whether it is on. Empty before Linux 7.0."""
    # By the word, for the parameter was renamed between the versions of its series.
    found = sorted((root / KVM_MODULE.parent).glob("kvm*/parameters/*mediated*"))
    return {path.parts[-3]: flag(path) for path in found}
