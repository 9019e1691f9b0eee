"""BTF against what the compiler itself says of the same structs."""

from __future__ import annotations

import gc
import lzma
import os
from pathlib import Path

import pytest

from tests.lab.places import lab_dir
from tests.support.compiled import object_file, printed
from tests.support.tree import plant
from vpmu_agent.kernel import btf
from vpmu_agent.kernel.btf import Arg, Btf, Member
from vpmu_agent.kernel.errors import BtfError

SOURCE = """
typedef unsigned char u8;
typedef unsigned long long u64;

enum pmc_type { KVM_PMC_GP = 0, KVM_PMC_FIXED, KVM_PMC_GONE = -4 };

struct attr {
	unsigned type, size;
	u64 config;
	u64 disabled : 1, inherit : 1, pinned : 1, filler : 12, precise_ip : 2;
	union { unsigned wakeup_events; unsigned wakeup_watermark; };
};

struct kvm_pmc {
	enum pmc_type type;
	u8 idx;
	u8 max_nr_events;
	_Bool is_paused;
	const volatile u64 counter;
	u64 history[3];
	struct {
		u8 first;
		struct { u64 deep; } named;
		union { struct attr attr; u8 raw[64]; };
	};
	struct kvm_vcpu *vcpu;
	union {
		struct perf_event *perf_event;
		struct { struct { } empty; struct perf_event *perf_events[]; };
	};
};

struct attr *create(struct attr *attr, int cpu, void (*handler)(int), const char *const *names, void *context)
{
	return (void *)handler == context && names ? attr : attr + cpu;
}
int say(const char *format, ...) { return format[0]; }
"""

FIELDS = [
    "type",
    "idx",
    "max_nr_events",
    "is_paused",
    "counter",
    "history",
    "first",
    "named.deep",
    "attr",
    "attr.config",
    "attr.wakeup_watermark",
    "raw",
    "vcpu",
    "perf_event",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("btf")


@pytest.fixture(scope="module")
def types(folder: Path) -> Btf:
    # A pointer to it keeps the struct in the BTF.
    return btf.parse(object_file(f"{SOURCE}\nstruct kvm_pmc *pmc;", folder))


def test_offsets_and_sizes_are_the_compilers(types: Btf, folder: Path) -> None:
    offsets = printed(SOURCE, [f"offsetof(struct kvm_pmc, {field})" for field in FIELDS], folder)
    sizes = printed(SOURCE, [f"sizeof(((struct kvm_pmc *)0)->{field})" for field in FIELDS], folder)
    expected = {
        field: Member(offset, size) for field, offset, size in zip(FIELDS, offsets, sizes, strict=True)
    }
    assert {field: types.member("kvm_pmc", field) for field in FIELDS} == expected
    assert types.struct_size("kvm_pmc") == printed(SOURCE, ["sizeof(struct kvm_pmc)"], folder)[0]


def test_a_flexible_array_has_an_offset_and_no_size(types: Btf, folder: Path) -> None:
    (offset,) = printed(SOURCE, ["offsetof(struct kvm_pmc, perf_events)"], folder)
    assert types.member("kvm_pmc", "perf_events") == Member(offset, 0)


def test_bit_fields(types: Btf) -> None:
    assert types.member("attr", "disabled") == Member(16, 8, 0, 1)
    assert types.member("attr", "pinned") == Member(16, 8, 2, 1)
    assert types.member("attr", "precise_ip") == Member(17, 8, 7, 2)
    within = types.member("kvm_pmc", "attr").offset
    assert types.member("kvm_pmc", "attr.pinned") == Member(within + 16, 8, 2, 1)


def test_arguments(types: Btf) -> None:
    assert types.func_args("create") == (
        Arg("attr", "struct attr *"),
        Arg("cpu", "int"),
        Arg("handler", "void (function) *"),
        Arg("names", "const char *const *"),
        Arg("context", "void *"),
    )
    assert types.func_args("say")[-1] == Arg("", "...")


def test_enumerators(types: Btf) -> None:
    names = ("KVM_PMC_GP", "KVM_PMC_FIXED", "KVM_PMC_GONE")
    assert [types.enum_value("pmc_type", name) for name in names] == [0, 1, -4]


def test_what_is_there_and_what_is_not(types: Btf) -> None:
    assert types.has_struct("kvm_pmc")
    assert not types.has_struct("kvm_vcpu"), "only declared, not defined"
    assert types.has_member("kvm_pmc", "max_nr_events")
    assert not types.has_member("kvm_pmc", "emulated_counter")
    assert types.has_func("create")
    assert not types.has_func("destroy")


@pytest.mark.parametrize(
    ("look", "names"),
    [
        (lambda types: types.member("kvm_vcpu", "vcpu_id"), ["struct kvm_vcpu"]),
        (lambda types: types.struct_size("kvm_vcpu"), ["struct kvm_vcpu"]),
        (lambda types: types.has_member("kvm_vcpu", "vcpu_id"), ["struct kvm_vcpu"]),
        (lambda types: types.member("kvm_pmc", "emulated"), ["emulated", "struct kvm_pmc"]),
        (lambda types: types.member("kvm_pmc", "attr.flags"), ["flags", "struct attr"]),
        (lambda types: types.member("kvm_pmc", "idx.more"), ["more", "unsigned char"]),
        (lambda types: types.enum_value("pmc_type", "KVM_PMC_NEW"), ["KVM_PMC_NEW", "pmc_type"]),
        (lambda types: types.enum_value("pmc_kind", "KVM_PMC_GP"), ["enum pmc_kind"]),
        (lambda types: types.func_args("destroy"), ["destroy()"]),
    ],
)
def test_what_is_missing_is_named_with_its_place(types: Btf, look: object, names: list[str]) -> None:
    assert callable(look)
    with pytest.raises(BtfError) as caught:
        look(types)
    for name in (*names, types.source):
        assert name in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not BTF at all", b"\x9f\xeb\x01\x00" + b"\xff" * 100])
def test_a_file_that_is_no_btf(tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "blob"
    path.write_bytes(content)
    with pytest.raises(BtfError, match=f"cannot read BTF from {path}"):
        btf.parse(path)
    assert capfd.readouterr().err == "", "libbpf must not speak to the user itself"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BtfError, match="No such file"):
        btf.parse(tmp_path / "nothing")


def test_a_kernel_without_btf(tmp_path: Path) -> None:
    plant(tmp_path, {"sys/kernel/": "", "sys/module/": ""})
    with pytest.raises(BtfError, match=r"sys/kernel/btf/vmlinux is missing.*CONFIG_DEBUG_INFO_BTF"):
        btf.vmlinux(root=tmp_path)


@pytest.mark.parametrize("config", [{}, {"proc/config.gz": "CONFIG_DEBUG_INFO_BTF=y\n"}])
def test_btf_that_is_masked(tmp_path: Path, config: dict[str, str]) -> None:
    """By an empty folder over it, or a device in its place."""
    plant(tmp_path, {"sys/kernel/btf/": "", "sys/module/": ""} | config)
    for _ in range(2):
        with pytest.raises(BtfError, match=r"hidden from this process; mount.*unmask=/sys/kernel/btf"):
            btf.vmlinux(root=tmp_path)
        (tmp_path / "sys/kernel/btf/vmlinux").mkdir(exist_ok=True)


def test_a_module_without_btf(types: Btf, tmp_path: Path) -> None:
    with pytest.raises(BtfError, match=r"sys/kernel/btf/kvm is missing.*CONFIG_DEBUG_INFO_BTF_MODULES"):
        btf.module("kvm", base=types, root=tmp_path)


needs_btf = pytest.mark.skipif(not (Path("/") / btf.VMLINUX).exists(), reason="this kernel has no BTF")


@needs_btf
def test_this_kernels_perf_event_attr_is_the_one_of_the_uapi_header(tmp_path: Path) -> None:
    """An ABI: the header comes from another package than the kernel, and must say the same."""
    include = "#include <linux/perf_event.h>"
    plain = ["type", "size", "config", "sample_period", "sample_type", "bp_type", "config2", "aux_watermark"]
    offsets = printed(include, [f"offsetof(struct perf_event_attr, {name})" for name in plain], tmp_path)
    # Which bit a bit field is: set it, and look at the 64 bits that start with `disabled`.
    flags = ["disabled", "pinned", "exclude_user", "exclude_host", "exclude_guest", "precise_ip"]
    start = "offsetof(struct perf_event_attr, read_format) + 8"
    bits = printed(
        include,
        [
            f"({{ struct perf_event_attr a = {{ .{name} = 1 }};"
            f" __builtin_ctzll(*(unsigned long long *)((char *)&a + {start})) + 8 * ({start}); }})"
            for name in flags
        ],
        tmp_path,
    )
    types = btf.vmlinux()
    assert [types.member("perf_event_attr", name).offset for name in plain] == offsets
    members = [types.member("perf_event_attr", name) for name in flags]
    assert [8 * member.offset + member.bit_offset for member in members] == bits
    inside = types.member("perf_event", "attr").offset
    assert types.member("perf_event", "attr.config").offset == inside + offsets[plain.index("config")]


@needs_btf
def test_this_kernels_create_call() -> None:
    args = btf.vmlinux().func_args("perf_event_create_kernel_counter")
    assert args[0] == Arg("attr", "struct perf_event_attr *")
    assert args[2] == Arg("task", "struct task_struct *")
    assert args[-1] == Arg("context", "void *")


def _debian_kernel() -> tuple[Path, Path] | None:
    """The image and the kvm module of a kernel that is installed, or that the lab has fetched."""
    for folder in (Path("/"), *sorted((lab_dir() / "kernels").glob("*"))):
        for image in sorted((folder / "boot").glob("vmlinuz-*")):
            release = image.name.removeprefix("vmlinuz-")
            kvm = folder / "lib/modules" / release / "kernel/arch/x86/kvm/kvm.ko"
            if kvm.exists() and os.access(image, os.R_OK) and b"\xfd7zXZ\0" in image.read_bytes():
                return image, kvm
    return None


@pytest.fixture(scope="module")
def debian(folder: Path) -> tuple[Path, Path]:
    """An unpacked kernel image, and a kvm module made for it."""
    found = _debian_kernel()
    if not found:
        pytest.skip("no Debian kernel with an xz image and an uncompressed kvm.ko is here")
    image, kvm = found
    packed = image.read_bytes()
    vmlinux = folder / "vmlinux"
    vmlinux.write_bytes(lzma.LZMADecompressor().decompress(packed[packed.index(b"\xfd7zXZ\0") :]))
    return vmlinux, kvm


def test_a_modules_btf_stands_on_the_kernels(debian: tuple[Path, Path]) -> None:
    vmlinux, kvm = debian
    types = btf.parse(kvm, base=btf.parse(vmlinux))
    gc.collect()  # nothing but `types` holds the kernel's now
    assert types.has_func("kvm_perf_overflow"), "of the module"
    assert types.has_func("perf_event_create_kernel_counter"), "of the kernel"
    assert types.member("kvm_pmc", "vcpu").size == 8
    assert not btf.parse(vmlinux).has_func("kvm_perf_overflow")


def test_a_modules_btf_does_not_stand_alone(debian: tuple[Path, Path]) -> None:
    with pytest.raises(BtfError, match="cannot read BTF"):
        btf.parse(debian[1])
