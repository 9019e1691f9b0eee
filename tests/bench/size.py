"""How much of the processor's caches a call needs: bytes of machine code, and cache lines of maps.

Both follow from the programs alone: they are the same on an idle machine and on a busy one.
"""

from __future__ import annotations

import mmap
from collections import Counter as Counted
from collections.abc import Iterator, Mapping, Set
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.bench import lookalike, monitor, stats
from tests.bench.errors import BenchError
from tests.bench.lookalike import Kernel
from tests.bench.progress import say
from tests.bench.report import Figure
from tests.bench.run_time import COUNTERS, Counter
from vpmu_agent.kernel import btf
from vpmu_agent.kernel.libbpf import libbpf, strerror
from vpmu_agent.probes.maps import Map

WORD, LINE, PAGE = 8, 64, 4096
_MMAPABLE = 1 << 10  # BPF_F_MMAPABLE (include/uapi/linux/bpf.h)
READ = frozenset({"control", "hints", "threads"})
"""Maps of which each call reads an entry and most calls write none: at least one line of each."""
_PMCS = 2
"""In turn: so a call finds in the maps what one of another pmc has left there, and what it writes shows."""
_ROUNDS = 3
"""The first finds nothing there, and after the last nobody looks: it is the second that is looked at."""


@dataclass(frozen=True, slots=True)
class Array:
    """A BPF array whose values are whole words, and how many bytes behind the start of a line they begin."""

    map: Map
    is_mmapable: bool
    offset: int

    def read(self) -> bytes:
        """All that is in it now."""
        if self.is_mmapable:
            size = self.map.room * self.map.value_size
            with mmap.mmap(self.map.descriptor, size, prot=mmap.PROT_READ) as values:
                return values[:]
        return b"".join(bytes(values) for _, values in self.map.chunks())


def lines_written(before: bytes, after: bytes, offset: int) -> int:
    """How many cache lines differ between two readings of an array; see Array.offset."""
    return len(
        {
            (offset + word) // LINE
            for page in range(0, len(after), PAGE)
            if before[page : page + PAGE] != after[page : page + PAGE]
            for word in range(page, min(page + PAGE, len(after)), WORD)
            if before[word : word + WORD] != after[word : word + WORD]
        }
    )


def measure(folder: Path) -> list[Figure]:
    """For each call on both kernels' functions; of several calls with one name, the one with most lines."""
    return [figure for kernel in COUNTERS for figure in _measure(folder, kernel)]


def _measure(folder: Path, kernel: Kernel) -> Iterator[Figure]:
    counter = COUNTERS[kernel]
    say(f"the size of the programs and of what they touch, on the {kernel} functions")
    path = lookalike.build(folder / f"size_{kernel}", kernel)
    with monitor.daemon(path) as daemon:
        programs = stats.programs(daemon.pids())
        lines = _lines(path, counter, {number for program in programs for number in program["map_ids"]})
    code = Counted[str]()
    for program in programs:
        if call := stats.call_of(program["name"]):
            code[call] += program["bytes_jited"]
            name = program["name"][:15]  # of some programs bpftool knows the rest, too
            what = f"{name}, {kernel}: machine code"
            yield Figure(f"size.{kernel}.{name}", what, program["bytes_jited"], "bytes", row=False)
    for call, most in lines.items():
        what = f"{call}{counter.what}"
        yield Figure(f"size.{kernel}.{call}.code", f"{what}: machine code", code[call], "bytes")
        yield Figure(f"size.{kernel}.{call}.lines", f"{what}: cache lines of maps", most, "lines")


def _lines(path: Path, counter: Counter, maps: Set[int]) -> Mapping[str, int]:
    most: dict[str, int] = {}
    with ExitStack() as stack:
        opened = list(arrays(maps))
        for array in opened:
            stack.callback(array.map.close)
        plan = {"step": 1, "pmcs": _PMCS, "rounds": _ROUNDS, **counter.plan}
        process = stack.enter_context(lookalike.started(path, "steps", **plan))
        made, before, calls = "", [b""] * len(opened), _PMCS * counter.calls
        for number, call in enumerate(lookalike.steps(process)):
            after = [array.read() for array in opened]
            if calls < number <= 2 * calls:
                touched = sum(
                    lines_written(was, now, array.offset) or array.map.name in READ
                    for array, was, now in zip(opened, before, after, strict=True)
                )
                most[made] = max(most.get(made, 0), touched)
            made, before = call, after
    return most


def arrays(maps: Set[int]) -> Iterator[Array]:
    """Those of these maps, by id, that are arrays, opened for the caller to close."""
    values = btf.vmlinux().member("bpf_array", "value").offset
    for shown in stats.bpftool("map", "show"):
        if shown["id"] in maps and shown["type"] == "array":
            descriptor = libbpf().bpf_map_get_fd_by_id(shown["id"])
            if descriptor < 0:
                raise BenchError(f"cannot open the BPF map {shown['name']}: {strerror(-descriptor)}")
            is_mmapable = bool(shown["flags"] & _MMAPABLE)
            # The values of an mmapable array begin a page, those of others follow the kernel's own struct.
            yield Array(Map(shown["name"], descriptor), is_mmapable, 0 if is_mmapable else values)
