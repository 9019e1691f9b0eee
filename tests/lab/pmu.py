"""What the test PMU saw, and what it is told to refuse: the count that the agent's is held against."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

SEEN = Path("/proc/vpmu_test_pmu")
PARAMETERS = Path("/sys/module/vpmu_test_pmu/parameters")

# Of Skylake's IA32_PERF_CAPABILITIES: the format of its last branch records, and of its PEBS records.
LBR_FORMAT, PEBS_FORMAT = 5, 3 << 8


@dataclass(frozen=True, slots=True)
class Counts:
    """What happened to events, in the order of the columns of /proc/vpmu_test_pmu."""

    initialised: int = 0  # creations that came as far as the PMU and succeeded there
    destroyed: int = 0
    failed: int = 0  # creations that the PMU refused
    added: int = 0  # put on a CPU
    removed: int = 0  # taken off it
    refused: int = 0  # not put on a CPU for lack of room

    @property
    def alive(self) -> int:
        """Events that exist now."""
        return self.initialised - self.destroyed

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))


def kvm_counts(tgid: int | None = None) -> Counts:
    """KVM's events: one VM's (`tgid` is its process), or all."""
    return _counts("kvm", tgid)


def perf_counts(tgid: int | None = None) -> Counts:
    """Everybody else's events on the host."""
    return _counts("perf", tgid)


def set_room(events: int) -> None:
    """How many events fit on one CPU at a time; 0 is no limit."""
    _set("room", events)


def set_capabilities(bits: int) -> None:
    """Bits of IA32_PERF_CAPABILITIES that Intel guests have from their start, whatever KVM allows."""
    _set("perf_capabilities", bits)


def fail_creation(errno: int, *, after: int = 0) -> None:
    """KVM's creations fail with `errno` once `after` more have succeeded; errno 0 ends that."""
    _set("fail_after", after)
    _set("fail_errno", errno)


def _counts(owner: str, tgid: int | None) -> Counts:
    total = Counts()
    for line in SEEN.read_text().splitlines()[1:]:
        kind, process, *rest = line.split(maxsplit=8)
        if kind == owner and tgid in (None, int(process)):
            total += Counts(*map(int, rest[:6]))
    return total


def _set(parameter: str, value: int) -> None:
    (PARAMETERS / parameter).write_text(f"{value}\n")
