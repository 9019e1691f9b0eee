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
# One that can be mediated. It has more counters than KVM gives to a guest (8): the global control of such a
# guest stays with KVM, while others write that register, which no emulated CPU has.
INTEL_MEDIATED = ("version=4", "gp=10", *INTEL_CAPABILITY[2:])

# Of kvm_intel's, in Bochs: no guest with an APIC in the kernel is entered where that may post interrupts.
INTEL_PARAMETERS = ("enable_apicv=0",)


def make_live(*, mediated: bool = False) -> None:
    """Loads the test PMU and then KVM, which looks for a PMU once, when it is loaded.

    Raises LabError where this is not the lab VM, a module cannot be loaded, or KVM still has no vPMU. With
    `mediated` that is one that its guests have to themselves.
    """
    if not places.in_vm():
        raise LabError("this replaces the kernel's KVM, so it runs in the lab VM only: make lab")
    unload_kvm()
    _unload("vpmu_test_pmu")
    options = [*(INTEL_MEDIATED if mediated else INTEL_CAPABILITY)] if is_intel() else []
    if mediated:
        options.append("mediated=1")
    _run("insmod", os.environ[TEST_PMU], *options)
    load_kvm(*(["enable_mediated_pmu=1"] if mediated else []))
    # KVM itself turns it off where it finds no PMU for it (kvm_init_pmu_capability()).
    parameter = Path(f"/sys/module/{vendor_module()}/parameters/enable_mediated_pmu")
    if mediated and parameter.read_text().strip() != "Y":
        raise LabError(f"KVM was to have a mediated vPMU and found no PMU for it ({parameter} is N)")


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


def load_kvm(*parameters: str) -> None:
    """With the test PMU in place. Raises LabError as make_live() does."""
    _run("modprobe", vendor_module(), *(INTEL_PARAMETERS if is_intel() else ()), *parameters)
    if ENABLE_PMU.read_text().strip() != "Y":
        raise LabError(f"KVM was loaded after the test PMU and has no vPMU all the same ({ENABLE_PMU} is N)")


def knows_mediated_vpmu() -> bool:
    """Whether this kernel's KVM has a mediated vPMU to be turned on, as Linux 7.0 and later have."""
    found = subprocess.run(
        ["modinfo", "-F", "parm", vendor_module()], capture_output=True, text=True, check=True
    )
    return "enable_mediated_pmu" in found.stdout


def has_global_control() -> bool:
    """Whether a guest's PMU can: Intel's, and AMD's with PerfMonV2, which KVM has from Linux 6.5 on."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    assert release
    return is_intel() or tuple(map(int, release.groups())) >= (6, 5)


def vendor_module() -> str:
    """The module that makes KVM this CPU's vendor's."""
    return "kvm_intel" if is_intel() else "kvm_amd"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(command)} failed: {done.stderr.strip()}")


if __name__ == "__main__":
    make_live()
