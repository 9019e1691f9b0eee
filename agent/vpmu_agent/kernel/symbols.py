"""The addresses of the kernel's functions, from kallsyms."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpmu_agent.kernel.errors import SymbolError

KALLSYMS = Path("proc/kallsyms")

UNMASK_TODO = (
    "unmask it (podman: --security-opt unmask=/proc/kallsyms; docker: --security-opt systempaths=unconfined; "
    "Kubernetes: procMount: Unmasked)"
)

# A clone that the compiler made in place of a function. Not `.cold` and `.part.N`: those are parts of one,
# which nobody calls through a pointer.
_CLONE = re.compile(r"(\.(constprop|isra|llvm)\.\d+)*")


@dataclass(frozen=True, slots=True)
class Symbol:
    """A function in kallsyms: name with the compiler's suffixes, address, module ("" if built in)."""

    name: str
    address: int
    module: str


def kallsyms(*, root: Path = Path("/")) -> bytes:
    """Return the text of kallsyms, which takes the kernel some 50 ms to write.

    Raise SymbolError if it cannot be read.
    """
    path = root / KALLSYMS
    try:
        text = path.read_bytes()
    except OSError as error:
        todo = "mount /proc"
        if (root / "proc/self").exists():
            todo = (
                "mount all of /proc (not with subset=pid, as systemd's ProcSubset=pid does), or boot a "
                "kernel with CONFIG_KALLSYMS=y"
            )
        raise SymbolError(f"cannot read {path} ({error.strerror})", todo) from error
    if not text:
        raise SymbolError(f"{path} is empty: it is masked in this container", UNMASK_TODO)
    return text


def find_functions(
    names: Sequence[str], *, root: Path = Path("/"), symbols: bytes = b""
) -> tuple[Symbol, ...]:
    """Return every function compiled from one of `names`, in their order. A hidden address is 0.

    `symbols` is the text of kallsyms if that was read already. Raise SymbolError if it cannot be read.
    """
    text = symbols or kallsyms(root=root)
    return tuple(
        symbol
        for name in names
        for line in _lines_with(b" " + name.encode(), text)
        if (symbol := _symbol(line.decode(errors="replace"), name))
    )


def function_addresses(
    names: Sequence[str], *, root: Path = Path("/"), symbols: bytes = b""
) -> tuple[Symbol, ...]:
    """Return the functions compiled from any of `names`, with real addresses.

    `symbols` is as in find_functions(). Raise SymbolError if there is none, or if their addresses are hidden
    (kernel/ksyms_common.c, kallsyms_show_value()).
    """
    found = find_functions(names, root=root, symbols=symbols)
    path = root / KALLSYMS
    if not found:
        raise SymbolError(
            f"no function {' or '.join(names)} in {path}",
            "load KVM (modprobe kvm); if it is loaded, report the kernel release",
        )
    if hidden := [symbol.name for symbol in found if not symbol.address]:
        raise SymbolError(
            f"the address of {hidden[0]} in {path} is hidden (reads as 0)",
            "run as root (CAP_SYSLOG), with kernel.kptr_restrict below 2 (sysctl kernel.kptr_restrict=1)",
        )
    return found


def _lines_with(needle: bytes, text: bytes) -> Iterator[bytes]:
    """Yield the lines that contain `needle`: a few of two hundred thousand, so only these are cut out."""
    at = text.find(needle)
    while at >= 0:
        end = text.find(b"\n", at)
        end = len(text) if end < 0 else end
        yield text[text.rfind(b"\n", 0, at) + 1 : end]
        at = text.find(needle, end)


def _symbol(line: str, name: str) -> Symbol | None:
    """Return a kallsyms line, `address type name[\\t[module]]`, if it is a function compiled from `name`."""
    fields = line.split()
    if len(fields) < 3 or fields[1] not in "tTwW" or not fields[2].startswith(name):
        return None
    if not _CLONE.fullmatch(fields[2][len(name) :]):
        return None
    return Symbol(fields[2], int(fields[0], 16), fields[3].strip("[]") if len(fields) > 3 else "")
