"""kallsyms: the functions under the names that compilers give them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tree import plant
from vpmu_agent.kernel.errors import SymbolError
from vpmu_agent.kernel.symbols import Symbol, find_functions, function_addresses

NAMES = ("kvm_perf_overflow", "kvm_perf_overflow_intr")

# In the kernel's own format: a tab stands before the module.
OLD_KERNEL = """\
ffffffff81000000 T _text
ffffffff812ccfb0 t __pfx_kvm_perf_overflow	[kvm]
ffffffffc08b1d50 t kvm_perf_overflow	[kvm]
ffffffffc08b1d90 t kvm_perf_overflow.cold	[kvm]
ffffffffc08b1e00 t kvm_perf_overflow_intr	[kvm]
ffffffffc08b1e80 t kvm_perf_overflow_intr.part.0	[kvm]
ffffffffc08b1f00 t __kvm_perf_overflow	[kvm]
ffffffffc08b2000 d kvm_perf_overflow_count	[kvm]
ffffffffc08b3000 t kvm_perf_overflower	[kvm]
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc").mkdir()
    return tmp_path


def kallsyms(root: Path, text: str) -> Path:
    (root / "proc/kallsyms").write_text(text)
    return root


def test_both_handlers_in_the_order_asked_for(root: Path) -> None:
    assert function_addresses(NAMES, root=kallsyms(root, OLD_KERNEL)) == (
        Symbol("kvm_perf_overflow", 0xFFFFFFFFC08B1D50, "kvm"),
        Symbol("kvm_perf_overflow_intr", 0xFFFFFFFFC08B1E00, "kvm"),
    )


def test_built_in_and_alone(root: Path) -> None:
    text = "ffffffff812ccfc0 t kvm_perf_overflow"  # and no newline at the end
    found = function_addresses(NAMES, root=kallsyms(root, text))
    assert found == (Symbol("kvm_perf_overflow", 0xFFFFFFFF812CCFC0, ""),)


@pytest.mark.parametrize(
    ("suffix", "is_clone"),
    [
        (".constprop.0", True),
        (".isra.0", True),
        (".constprop.0.isra.0", True),
        (".llvm.1234567890", True),
        (".cold", False),
        (".part.0", False),
        (".constprop.0.cold", False),
        (".isra.0.part.1", False),
        ("_more", False),
    ],
)
def test_suffixes(root: Path, suffix: str, is_clone: bool) -> None:
    kallsyms(root, f"ffffffff81000010 t kvm_perf_overflow{suffix}\n")
    found = [symbol.name for symbol in find_functions(["kvm_perf_overflow"], root=root)]
    assert found == ([f"kvm_perf_overflow{suffix}"] if is_clone else [])


def test_data_is_no_function(root: Path) -> None:
    kallsyms(root, "ffffffff81000010 d kvm_perf_overflow\nffffffff81000020 D kvm_perf_overflow\n")
    assert find_functions(NAMES, root=root) == ()


def test_hidden_addresses(root: Path) -> None:
    kallsyms(root, "0000000000000000 t kvm_perf_overflow\t[kvm]\n")
    with pytest.raises(SymbolError, match=r"kvm_perf_overflow.*is hidden.*CAP_SYSLOG.*kptr_restrict"):
        function_addresses(NAMES, root=root)


def test_no_such_function(root: Path) -> None:
    kallsyms(root, "ffffffff81000000 T _text\n")
    with pytest.raises(
        SymbolError, match=r"no function kvm_perf_overflow or kvm_perf_overflow_intr in .*proc"
    ):
        function_addresses(NAMES, root=root)


def test_no_kallsyms(tmp_path: Path) -> None:
    with pytest.raises(SymbolError, match=r"cannot read .*kallsyms.*mount /proc$"):
        find_functions(NAMES, root=tmp_path)


def test_a_proc_of_processes_only(tmp_path: Path) -> None:
    with pytest.raises(SymbolError, match=r"cannot read .*kallsyms.*subset=pid.*CONFIG_KALLSYMS"):
        find_functions(NAMES, root=plant(tmp_path, {"proc/self/": ""}))


def test_masked(root: Path) -> None:
    kallsyms(root, "")
    with pytest.raises(SymbolError, match=r"kallsyms is empty: it is masked.*procMount: Unmasked"):
        find_functions(NAMES, root=root)


def test_this_kernel() -> None:
    """Against a plain reading of every line."""
    if not Path("/proc/kallsyms").exists():
        pytest.skip("this kernel has no kallsyms")
    lines = [line.split() for line in Path("/proc/kallsyms").read_text().splitlines()]
    expected = [
        (line[2], int(line[0], 16)) for line in lines if line[2] == "perf_event_create_kernel_counter"
    ]
    found = find_functions(["perf_event_create_kernel_counter"])
    assert len(expected) == 1
    assert [(symbol.name, symbol.address) for symbol in found] == expected
