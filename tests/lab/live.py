"""Makes KVM's vPMU live in the lab VM: takes KVM out, gives the VM the test PMU, puts KVM back."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from . import places
from .errors import LabError

ENABLE_PMU = Path("/sys/module/kvm/parameters/enable_pmu")
TEST_PMU = "VPMU_LAB_TEST_PMU"  # where vpmu_test_pmu.ko is

# What the test PMU tells KVM on Intel, where that is not its default: as of a core that runs two threads.
INTEL_CAPABILITY = ("version=2", "gp=4", "fixed=3", "events_mask_len=7")


def make_live() -> None:
    """Loads the test PMU and then KVM, which looks for a PMU once, when it is loaded.

    Raises LabError where this is not the lab VM, a module cannot be loaded, or KVM still has no vPMU.
    """
    if not places.in_vm():
        raise LabError("this replaces the kernel's KVM, so it runs in the lab VM only: make lab")
    unload_kvm()
    _unload("vpmu_test_pmu")
    _run("insmod", os.environ[TEST_PMU], *(INTEL_CAPABILITY if is_intel() else ()))
    load_kvm()


def reload_kvm() -> None:
    """Takes KVM out and puts it back, as an upgrade of it does. Raises LabError as make_live() does."""
    unload_kvm()
    load_kvm()


def is_intel() -> bool:
    """Whether KVM is kvm_intel here: Bochs emulates VMX, QEMU SVM."""
    return " vmx " in Path("/proc/cpuinfo").read_text()


def unload_kvm() -> None:
    """Takes it out; there must be no VM."""
    _unload("kvm_amd", "kvm_intel", "kvm")


def _unload(*modules: str) -> None:
    for module in modules:
        if (Path("/sys/module") / module / "refcnt").exists():
            _run("rmmod", module)


def load_kvm() -> None:
    """With the test PMU in place. Raises LabError as make_live() does."""
    _run("modprobe", _vendor_module())
    if ENABLE_PMU.read_text().strip() != "Y":
        raise LabError(f"KVM was loaded after the test PMU and has no vPMU all the same ({ENABLE_PMU} is N)")


def knows_mediated_vpmu() -> bool:
    """Whether this kernel's KVM has a mediated vPMU to be turned on, as Linux 7.0 and later have."""
    found = subprocess.run(
        ["modinfo", "-F", "parm", _vendor_module()], capture_output=True, text=True, check=True
    )
    return "enable_mediated_pmu" in found.stdout


def has_global_control() -> bool:
    """Whether a guest's PMU can: Intel's, and AMD's with PerfMonV2, which KVM has from Linux 6.5 on."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    assert release
    return is_intel() or tuple(map(int, release.groups())) >= (6, 5)


def _vendor_module() -> str:
    return "kvm_intel" if is_intel() else "kvm_amd"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(command)} failed: {done.stderr.strip()}")


if __name__ == "__main__":
    make_live()
