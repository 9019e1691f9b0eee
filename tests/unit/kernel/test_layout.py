"""The layout of kernels with and without grouped events, made by the compiler from their structs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.compiled import object_file, printed
from tests.support.kernel_types import (
    FLEXIBLE_ARRAY,
    GROUPED_ARGUMENTS,
    GROUPED_FIELDS,
    MAINLINE_ARGUMENTS,
    SIZED_ARRAY,
    source,
)
from vpmu_agent.kernel.arch import X86_64, current_arch
from vpmu_agent.kernel.errors import BtfError, KernelError, KvmNotLoadedError, SymbolError
from vpmu_agent.kernel.layout import EventArray, read_layout

HANDLER = 0xFFFFFFFFC08B1D50


def kernel(root: Path, text: str, *, kallsyms: str = f"{HANDLER:x} t kvm_perf_overflow\t[kvm]\n") -> Path:
    """A root directory that looks like that of a kernel with these types and KVM in it."""
    for folder in ("sys/kernel/btf", "sys/module/kvm", "proc"):
        (root / folder).mkdir(parents=True)
    shutil.copy(object_file(text, root), root / "sys/kernel/btf/vmlinux")
    (root / "proc/kallsyms").write_text(kallsyms)
    return root


def offsets(text: str, tmp_path: Path, *members: str) -> list[int]:
    places = [member.split(".", 1) for member in members]
    return printed(text, [f"offsetof(struct {struct}, {field})" for struct, field in places], tmp_path)


def test_mainline(tmp_path: Path) -> None:
    text = source()
    layout = read_layout(root=kernel(tmp_path, text), arch=X86_64)
    assert [
        layout.pmc_type,
        layout.pmc_idx,
        layout.pmc_vcpu,
        layout.vcpu_id,
        layout.vcpu_event_count,
        layout.task_mm,
        layout.task_group_leader,
        layout.task_start_boottime,
        layout.mm_arg_start,
        layout.mm_arg_end,
        layout.event_attr,
        layout.event_state,
        layout.event_overflow_handler,
        layout.event_overflow_handler_context,
    ] == offsets(
        text,
        tmp_path,
        "kvm_pmc.type",
        "kvm_pmc.idx",
        "kvm_pmc.vcpu",
        "kvm_vcpu.vcpu_id",
        "kvm_vcpu.arch.pmu.event_count",
        "task_struct.mm",
        "task_struct.group_leader",
        "task_struct.start_boottime",
        "mm_struct.arg_start",
        "mm_struct.arg_end",
        "perf_event.attr",
        "perf_event.state",
        "perf_event.overflow_handler",
        "perf_event.overflow_handler_context",
    )
    assert layout.pmc_max_nr_events is None
    assert layout.create_args == 5
    assert layout.overflow_handlers == (HANDLER,)


def test_grouped_events(tmp_path: Path) -> None:
    text = source(fields=GROUPED_FIELDS, last=SIZED_ARRAY, arguments=GROUPED_ARGUMENTS)
    layout = read_layout(root=kernel(tmp_path, text), arch=X86_64)
    assert [layout.pmc_max_nr_events] == offsets(text, tmp_path, "kvm_pmc.max_nr_events")
    assert layout.create_args == 6
    assert layout.pmc_events == EventArray(room=4, is_flexible=False)


def test_the_rfcs_array_has_room_for_one_event(tmp_path: Path) -> None:
    text = source(fields=GROUPED_FIELDS, last=FLEXIBLE_ARRAY, arguments=GROUPED_ARGUMENTS)
    layout = read_layout(root=kernel(tmp_path, text), arch=X86_64)
    assert layout.pmc_events == EventArray(room=1, is_flexible=True)


def test_a_kernel_that_does_not_count_a_vcpus_events(tmp_path: Path) -> None:
    layout = read_layout(root=kernel(tmp_path, source(count="")), arch=X86_64)
    assert layout.vcpu_event_count is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (source(gone="overflow_handler_context"), "no field overflow_handler_context in struct perf_event"),
        (source(gone="pmc_type"), "no enum pmc_type"),
        (source(gone="kvm_vcpu"), "no struct kvm_vcpu"),
        (source(gone="kvm_pmc"), "no struct kvm_pmc"),
        (
            source(gone="perf_event_create_kernel_counter"),
            r"no function perf_event_create_kernel_counter\(\)",
        ),
        (source(fields="u64 max_nr_events : 1;"), "max_nr_events of struct kvm_pmc is a bit field of 1 bits"),
        (source(fields="u8 max_nr_events[2];"), "max_nr_events of struct kvm_pmc is 2 bytes wide"),
        (source(count="u64 event_count;"), "event_count of struct kvm_vcpu is 8 bytes wide"),
        (source(fixed=2), "KVM_PMC_FIXED is 2"),
        (source(error=-3), "PERF_EVENT_STATE_ERROR is -3 .*, not -2"),
        (source(state="enum perf_event_state old_state;"), "no field state in struct perf_event"),
        (source(state="long state;"), "state of struct perf_event is 8 bytes wide"),
        (source(paused=""), "no field is_paused in struct kvm_pmc .* would take that for a divergence"),
        (
            source(paused="", gone="perf_event_create_kernel_counter"),
            "no field is_paused",  # as on Debian's 5.10, which lacks both: one sentence
        ),
        (source(arguments=f"{MAINLINE_ARGUMENTS}, int flags"), r"\(.*void \* context, int flags\)"),
        (
            source(arguments=GROUPED_ARGUMENTS.replace("group_leader", "parent")),
            r"struct perf_event \* parent.*, not \(attr, cpu, ",
        ),
        (source(arguments="struct perf_event_attr *attr, int cpu"), r", not \(attr, cpu, "),
    ],
)
def test_a_kernel_of_another_shape_is_named_not_misread(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(BtfError, match=says) as caught:
        read_layout(root=kernel(tmp_path, text), arch=X86_64)
    assert "vmlinux" in caught.value.found
    assert caught.value.todo


def test_kvm_is_not_loaded(tmp_path: Path) -> None:
    root = kernel(tmp_path, source())
    (root / "sys/module/kvm").rmdir()
    with pytest.raises(KvmNotLoadedError, match=r"KVM is not loaded.*modprobe kvm_amd or modprobe kvm_intel"):
        read_layout(root=root, arch=X86_64)


def test_a_module_whose_btf_is_missing(tmp_path: Path) -> None:
    """Both places are named: the kernel's BTF, which has no KVM, and the module's, which is not there."""
    root = kernel(tmp_path, source(gone="kvm_pmc"))
    with pytest.raises(BtfError, match=r"no struct kvm_pmc in .*vmlinux, and .*btf/kvm is missing"):
        read_layout(root=root, arch=X86_64)


def test_no_handler(tmp_path: Path) -> None:
    root = kernel(tmp_path, source(), kallsyms="ffffffff81000000 T _text\n")
    with pytest.raises(SymbolError, match="kvm_perf_overflow"):
        read_layout(root=root, arch=X86_64)


def test_an_architecture_that_is_not_known() -> None:
    with pytest.raises(KernelError, match="riscv64"):
        current_arch("riscv64")
    assert current_arch("x86_64") is X86_64
