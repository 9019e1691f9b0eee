"""Compiles bpf/vpmu.bpf.c with bcc for one kernel, without its headers."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING

from vpmu_agent.kernel.errors import ProbeError
from vpmu_agent.loader.reason import compiler_refused
from vpmu_agent.model.call import CallName, UncheckedCall
from vpmu_agent.model.rules import SLOTS, Kind, State
from vpmu_agent.probes.layout import pmc_room
from vpmu_agent.probes.sources import bpf_folder

if TYPE_CHECKING:
    import bcc

PROBES, UNCHECKED, CENSUS = "vpmu.bpf.c", "unchecked.bpf.c", "census.bpf.c"

MAX_ENTRIES = {
    "pmcs": 65536,
    "vcpus": 16384,
    "threads": 8192,  # a power of two; one that finds no room takes that of a thread that was quiet
    "errors": 4096,  # failed creations, by VM and errno
    "left_behind": 4096,  # events that KVM forgot
    "processes": 16384,
}
"""The room of each map, in entries. The metrics show how full each is, and what was lost for lack of room.

`slots` has room for all entries of `pmcs` and `vcpus`.
"""

RING_PAGES = 1024
"""Pages of the ring buffer, a power of two: 4 MiB hold about 30,000 calls that user space has yet to read."""

FEW_RING_PAGES = 512
"""The same in the daemon, whose memory it counts as: only those calls are sent that user space must see."""

BCC_TODO = (
    "install it, but not from PyPI (Debian, Ubuntu: apt install python3-bpfcc; Fedora, RHEL: dnf install "
    "python3-bcc; Arch: pacman -S python-bcc), and run vpmu-agent with /usr/bin/python3 or a virtual "
    "environment of it made with --system-site-packages"
)
"""What to do if bcc is missing."""

BROKEN_BCC_TODO = (
    "reinstall it and the libraries that it needs, all from one release of the distribution (Debian, Ubuntu: "
    "apt install --reinstall python3-bpfcc libbpfcc; Fedora, RHEL: dnf reinstall python3-bcc bcc)"
)
"""What to do if bcc is installed but does not load."""


def find_bcc() -> Path:
    """Return bcc's Python package, without loading it; raise ProbeError if there is none."""
    spec = find_spec("bcc")
    if spec is None:
        raise ProbeError(f"cannot load bcc: {sys.executable} finds no module of that name", BCC_TODO)
    # Not found out by importing it: the import of PyPI's bcc can fail in many ways.
    for folder in spec.submodule_search_locations or ():
        if (Path(folder) / "libbcc.py").exists():
            return Path(folder)
    found = f"cannot load bcc: {spec.origin} is not the BPF Compiler Collection, but PyPI's bcc or another"
    raise ProbeError(found, f"pip uninstall bcc, and {BCC_TODO}")


def bcc_version() -> str:
    """Load bcc and return its version; raise ProbeError if there is none that works here."""
    find_bcc()
    try:
        import bcc
    except Exception as error:
        # OSError: libbcc.so.0 or a library that it needs is missing or lacks a symbol; AttributeError: the
        # Python part belongs to another libbcc.
        raise ProbeError(f"cannot load bcc: {error}", BROKEN_BCC_TODO) from error
    version = str(getattr(bcc, "__version__", "of unknown version"))
    if not hasattr(bcc.BPF, "ring_buffer_poll"):
        raise ProbeError(f"bcc {version} is too old: it has no ring buffers", BCC_TODO)
    return version


_COMPILERS = (
    ("LLVM", re.compile(r"/libLLVM(?:-(\d+))?\.so(?:\.(\d+(?:\.\d+)?))?")),
    ("clang", re.compile(r"/libclang-cpp\.so\.(\d+(?:\.\d+)?)")),
)


def compiler(maps: str) -> str:
    """Return the compiler that a process has loaded, such as "LLVM 19.1", from its /proc/PID/maps."""
    for name, library in _COMPILERS:
        if found := library.search(maps):
            version = next((part for part in found.groups() if part), "")
            return f"{name} {version}".strip()
    return "a built-in compiler"  # LLVM is part of libbcc.so, which does not say its version


def toolchain() -> str:
    """Return what compiles the programs, such as "bcc 0.31.0 and LLVM 19.1"; raise as bcc_version()."""
    version = bcc_version()
    try:
        maps = Path("/proc/self/maps").read_text(errors="replace")
    except OSError:
        return f"bcc {version} and an unknown compiler (there is no /proc)"
    return f"bcc {version} and {compiler(maps)}"


_TOOL = re.compile(r"/\S*/lib(?:bcc|LLVM|clang)[^/\s]*$", re.MULTILINE)


def toolchain_files() -> tuple[Path, ...]:
    """Return the files of the compiler that this process has loaded: bcc, its library, LLVM, clang."""
    maps = Path("/proc/self/maps").read_text(errors="replace")
    return (find_bcc() / "__init__.py", *sorted({Path(found) for found in _TOOL.findall(maps)}))


@dataclass(frozen=True, slots=True)
class Source:
    """What bcc compiles: files of bpf/, one after the other, and the flags of the compiler."""

    files: tuple[str, ...]
    flags: tuple[str, ...]

    def fingerprint(self) -> str:
        """Return a hash of all that the compiled programs depend on, but for the compiler."""
        folder = bpf_folder()
        contents = {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*.[ch]")
        }
        return hashlib.sha256(
            json.dumps([self.files, self.flags, sorted(contents.items())]).encode()
        ).hexdigest()


def program_source(
    constants: Mapping[str, int],
    *,
    fexit: bool = False,
    durations: bool = True,
    reads: bool = True,
    twins: bool = False,
    user_memory: bool = False,
    ring_pages: int = RING_PAGES,
    max_entries: Mapping[str, int] | None = None,
) -> Source:
    """Return the source of the probes.

    Args:
        constants: the VPMU_* that bpf/vpmu.bpf.c needs. If those of bpf/census.bpf.c are among them, the
            census is compiled in.
        fexit: whether they are fentry/fexit programs. Otherwise they are kprobes or uprobes.
        durations: whether to measure how long calls take; see seen_at_return().
        reads: whether there are probes for the calls that are only counted.
        twins: whether they are raw-tracepoint programs with the same bodies, which BPF_PROG_TEST_RUN accepts.
        user_memory: whether to read user memory, as uprobes have to.
        ring_pages: pages of the ring buffer, a power of two.
        max_entries: sizes that replace those in MAX_ENTRIES.
    """
    rooms = {**MAX_ENTRIES, **(max_entries or {})}
    rooms["slots"] = rooms["pmcs"] + rooms["vcpus"]
    slots = SLOTS if "VPMU_PMC_MAX_NR_EVENTS" in constants else 1
    defines = {
        **constants,
        **{f"VPMU_MAX_{name.upper()}": room for name, room in rooms.items()},
        "VPMU_RING_PAGES": ring_pages,
        "VPMU_KINDS": len(Kind),
        "VPMU_STATES": len(State),
        "VPMU_SLOTS": slots,
        "VPMU_ROOM": pmc_room(slots),
    }
    forms = {
        "VPMU_FEXIT": fexit,
        "VPMU_NO_DURATIONS": not durations,
        "VPMU_TWINS": twins,
        "VPMU_USER_MEMORY": user_memory,
    }
    flags = [*_defines(defines), *(f"-D{name}" for name, is_wanted in forms.items() if is_wanted)]
    # Compiled apart, the census would take eight times as long.
    wanted = {PROBES: True, UNCHECKED: reads, CENSUS: "VPMU_VCPU_IOCTL" in constants}
    return Source(tuple(name for name, is_wanted in wanted.items() if is_wanted), tuple(flags))


def census_source(constants: Mapping[str, int]) -> Source:
    """Return the source of the census alone; `constants` are the VPMU_* that bpf/census.bpf.c needs."""
    return Source((CENSUS,), tuple(_defines(constants)))


def _defines(values: Mapping[str, int]) -> list[str]:
    return [
        f"-D{name}={value}ULL" if value > 2**31 else f"-D{name}={value}" for name, value in values.items()
    ]


def compile_source(source: Source) -> bcc.BPF:
    """Compile with bcc, which also makes the maps. Raise ProbeError if the compiler refuses."""
    import bcc

    folder = bpf_folder()
    text = b"".join((folder / name).read_bytes() for name in source.files)
    with kernel_source(), captured_stderr() as printed:
        try:
            return bcc.BPF(text=text, cflags=[*source.flags, f"-I{folder}"])
        except Exception as error:  # bcc raises nothing more specific
            raise compiler_refused(error, printed()) from error


def seen_at_entry(*, reads: bool = True) -> tuple[CallName | UncheckedCall, ...]:
    """Return the calls that have a program at their entry, vpmu_NAME_entry."""
    return (*CallName, *UncheckedCall) if reads else tuple(CallName)


def seen_at_return(*, durations: bool, reads: bool = True) -> tuple[CallName | UncheckedCall, ...]:
    """Return the calls that have a program at their return, vpmu_NAME_return.

    All are checked at their entry but `create`, whose event does not exist before its return. So without
    durations no other call has anything to do there.
    """
    return seen_at_entry(reads=reads) if durations else (CallName.CREATE,)


@contextmanager
def kernel_source() -> Iterator[None]:
    """Make bcc compile against our few headers instead of the kernel's, which need not be installed.

    By the environment, which is restored afterwards: libbcc looks up BCC_KERNEL_SOURCE in C++ (getenv() in
    loader.cc), and neither bcc.BPF() nor `cflags` can set this folder.
    """
    before = os.environ.get("BCC_KERNEL_SOURCE")
    try:
        os.environ["BCC_KERNEL_SOURCE"] = str(bpf_folder() / "headers")
        yield
    finally:
        if before is None:
            os.environ.pop("BCC_KERNEL_SOURCE", None)
        else:
            os.environ["BCC_KERNEL_SOURCE"] = before


@contextmanager
def captured_stderr() -> Iterator[Callable[[], str]]:
    """Capture what bcc's C code writes to file descriptor 2; give a function that returns the text so far.

    Raise ProbeError if there is no writable folder for temporary files.
    """
    saved = os.dup(2)
    with _scratch_file() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _scratch_file() -> IO[bytes]:
    try:
        # Not memfd_create(), which the filter of vpmu-agent.service refuses.
        return tempfile.TemporaryFile()
    except OSError as error:
        raise ProbeError(
            f"there is nowhere to keep the compiler's output: {error.strerror or error}",
            "give it a writable /tmp (podman: --tmpfs=/tmp; Kubernetes: an emptyDir at /tmp)",
        ) from error
