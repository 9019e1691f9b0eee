"""What the loaded KVM is, from files of a small /sys."""

from __future__ import annotations

from pathlib import Path

from tests.support.tree import plant
from vpmu_agent.kernel import kvm

MODULE = "sys/module/kvm"


def test_kvm(tmp_path: Path) -> None:
    assert kvm.kvm_vendor_modules(root=tmp_path) == ()
    plant(tmp_path, {f"{MODULE}/parameters/enable_pmu": "Y\n"})
    assert not kvm.kvm_is_module(root=tmp_path)
    plant(tmp_path, {f"{MODULE}/initstate": "live\n", "sys/module/kvm_amd/": "", "sys/module/kvmgt/": ""})
    assert kvm.kvm_is_module(root=tmp_path)
    assert kvm.kvm_vendor_modules(root=tmp_path) == ("kvm_amd",)


def test_mediated_vpmu(tmp_path: Path) -> None:
    plant(tmp_path, {"sys/module/kvm_intel/parameters/nested": "Y\n"})
    assert kvm.mediated_vpmu(root=tmp_path) == {}
    plant(tmp_path, {"sys/module/kvm_intel/parameters/enable_mediated_pmu": "N\n"})
    assert kvm.mediated_vpmu(root=tmp_path) == {"kvm_intel": False}
    plant(tmp_path, {"sys/module/kvm_intel/parameters/enable_mediated_pmu": "Y\n"})
    assert kvm.mediated_vpmu(root=tmp_path) == {"kvm_intel": True}


def test_kvm_is_another_one_after_every_load(tmp_path: Path) -> None:
    assert kvm.kvm_instance(root=tmp_path) is None
    plant(tmp_path, {f"{MODULE}/initstate": "coming\n"})
    assert kvm.kvm_instance(root=tmp_path) is None
    plant(tmp_path, {f"{MODULE}/initstate": "live\n"})
    first = kvm.kvm_instance(root=tmp_path)
    assert first is not None
    assert kvm.kvm_instance(root=tmp_path) == first
    # Beside the old one and then in its place: a file system may give the number of a deleted folder again.
    plant(tmp_path, {"next/initstate": "live\n", f"{MODULE}/initstate": None})
    (tmp_path / MODULE).rmdir()
    (tmp_path / "next").rename(tmp_path / MODULE)
    assert kvm.kvm_instance(root=tmp_path) not in (None, first)
    plant(tmp_path, {f"{MODULE}/initstate": None})  # as where KVM is built in
    assert kvm.kvm_instance(root=tmp_path) not in (None, first)


def test_why_guests_have_no_vpmu(tmp_path: Path) -> None:
    assert kvm.why_no_vpmu(root=tmp_path) is None
    plant(tmp_path, {f"{MODULE}/parameters/enable_pmu": "Y\n", "sys/bus/event_source/devices/": ""})
    assert kvm.why_no_vpmu(root=tmp_path) is None
    plant(tmp_path, {f"{MODULE}/parameters/enable_pmu": "N\n"})
    without_pmu = kvm.why_no_vpmu(root=tmp_path)
    assert without_pmu
    assert without_pmu[0].startswith("this host has no hardware PMU")
    plant(tmp_path, {"sys/bus/event_source/devices/cpu/": ""})
    with_pmu = kvm.why_no_vpmu(root=tmp_path)
    assert with_pmu
    assert "load kvm with enable_pmu=1" in with_pmu[1]


def test_guests_of_a_hybrid_processor_have_no_vpmu_whatever_kvm_is_loaded_with(tmp_path: Path) -> None:
    devices = "sys/bus/event_source/devices"
    plant(tmp_path, {f"{MODULE}/parameters/enable_pmu": "N\n", f"{devices}/cpu_core/": ""})
    plant(tmp_path, {f"{devices}/cpu_atom/": ""})
    why = kvm.why_no_vpmu(root=tmp_path)
    assert why
    assert "cores of two kinds (PMUs cpu_core, cpu_atom)" in why[0]
    assert "does not change it" in why[1]
    plant(tmp_path, {f"{MODULE}/parameters/enable_pmu": "Y\n"})  # Linux 6.1
    assert kvm.why_no_vpmu(root=tmp_path) is None
