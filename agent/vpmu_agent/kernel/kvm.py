"""The loaded KVM and its parameters. What cannot be read is None, not a guess."""

from __future__ import annotations

from pathlib import Path

from vpmu_agent.kernel.facts import HYBRID, ROOT, can_see_pmus, flag, pmu_devices, read
from vpmu_agent.kernel.layout import KVM_MODULE


def kvm_is_module(*, root: Path = ROOT) -> bool:
    """Return whether KVM was loaded as a module: only a module has an `initstate`."""
    return (root / KVM_MODULE / "initstate").exists()


def kvm_instance(*, root: Path = ROOT) -> int | None:
    """Return a number that differs for each load of KVM; None if KVM is not loaded, or not ready yet.

    It is the inode number of its folder: sysfs gives each new folder a new one (fs/kernfs/dir.c,
    __kernfs_new_node()).
    """
    try:
        inode = (root / KVM_MODULE).stat().st_ino
    except OSError:
        return None
    state = read(root / KVM_MODULE / "initstate")  # not there if KVM is built in
    return inode if state in (None, "live") else None


def kvm_vendor_modules(*, root: Path = ROOT) -> tuple[str, ...]:
    """Return KVM's vendor modules, loaded or built in, such as ("kvm_amd",)."""
    # Not only the names in Arch: some kernels have others (kvm_pvm).
    return tuple(sorted(path.name for path in (root / KVM_MODULE.parent).glob("kvm_*")))


def vpmu_enabled(*, root: Path = ROOT) -> bool | None:
    """Return KVM's `enable_pmu`.

    KVM itself sets it to N if it cannot use the host's PMU (arch/x86/kvm/pmu.h, kvm_init_pmu_capability()).
    """
    return flag(root / KVM_MODULE / "parameters/enable_pmu")


def why_no_vpmu(*, root: Path = ROOT) -> tuple[str, str] | None:
    """Return why no guest of this host has a vPMU, and what to do about it; None if guests can have one.

    None also where that cannot be read.
    """
    if vpmu_enabled(root=root) is not False:
        return None
    devices = pmu_devices(root=root)
    if HYBRID & set(devices):
        # kvm_init_pmu_capability(); before Linux 6.2 KVM gave guests what all cores have.
        return (
            f"this host's processor has cores of two kinds (PMUs {', '.join(devices)}), for which KVM gives "
            "its guests no PMU (enable_pmu=N), and there is nothing to trace",
            "nothing: loading kvm with enable_pmu=1 does not change it; run such guests on another host",
        )
    if can_see_pmus(root=root) and not devices:
        return (
            "this host has no hardware PMU, so KVM gives its guests none (enable_pmu=N), and there is "
            "nothing to trace",
            "run vpmu-agent on the physical host; on a VM, have its host give it a PMU",
        )
    return (
        "enable_pmu=N: KVM gives its guests no PMU, and there is nothing to trace",
        "stop the guests and load kvm with enable_pmu=1 (on the kernel's command line kvm.enable_pmu=1)",
    )


def mediated_vpmu(*, root: Path = ROOT) -> dict[str, bool | None]:
    """Return whether the mediated vPMU is on, by module that has it; empty before Linux 7.0."""
    # By pattern: the parameter was renamed between versions of the patch series.
    found = sorted((root / KVM_MODULE.parent).glob("kvm*/parameters/*mediated*"))
    return {path.parts[-3]: flag(path) for path in found}
