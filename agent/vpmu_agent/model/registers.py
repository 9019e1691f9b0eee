"""The registers of one pmc, and what the rules do with them in Python (bpf/vpmu.bpf.c: `struct vpmu_pmc`)."""

from __future__ import annotations

from typing import TypeAlias

from vpmu_agent.model.call import Call
from vpmu_agent.model.rules import Expected, Kind, State
from vpmu_agent.model.verdict import NO_CALLS, Verdict, verdict

Instead: TypeAlias = tuple[Expected, int, int]
"""What was expected instead, the number that goes with it, and the size of its group."""

NOTHING: Instead = (Expected.NOTHING, 0, 1)


class Registers:
    """What is kept of one `struct kvm_pmc` (rules.REGISTERS), and the events that its entries hold."""

    __slots__ = (
        "enabled",
        "epoch",
        "events",
        "faults",
        "gone",
        "left",
        "left_events",
        "members",
        "name",
        "orphans",
        "paused",
        "size",
        "state",
        "tgid",
        "vcpu",
        "vm",
        "walk",
    )

    def __init__(self, call: Call, epoch: int) -> None:
        self.epoch = epoch
        self.vm = call.vm
        self.tgid = call.tgid
        self.vcpu = call.vcpu
        self.name = call.pmc_name
        self.state = State.UNKNOWN
        self.size = 1
        self.members = 0
        self.enabled = 0
        self.orphans = 0
        self.gone = 0
        self.walk = 0
        self.left = 0
        self.paused = 0
        self.faults = 0
        self.events: list[int] = []
        self.left_events: set[int] = set()

    def index_of(self, event: int) -> int:
        """Return where the event is held, -1 if it is not."""
        return self._find(event, self.members | self.orphans)

    def released(self, event: int) -> bool:
        """Return whether the event was released in this program."""
        return self._find(event, self.gone & ~(self.members | self.orphans)) >= 0

    def is_left_behind(self, event: int) -> bool:
        """Return whether the event was overwritten, so that nobody will release it."""
        return event in self.left_events

    def put(self, index: int, event: int) -> None:
        """Make the event perf_events[index]."""
        self.events += [0] * (index + 1 - len(self.events))
        self.events[index] = event

    def leave(self, mask: int) -> None:
        """Take what these entries hold for left behind, for they are overwritten."""
        if not mask:
            return
        self.left_events.update(event for i, event in enumerate(self.events) if (mask >> i) & 1)
        self.left = len(self.left_events)

    def find_again(self, event: int) -> None:
        """Take the event for left behind no more."""
        self.left_events.discard(event)
        self.left = len(self.left_events)

    def diverged(
        self, kind: Kind, event: int, leader: int, instead: Instead, counts: tuple[int, ...] = NO_CALLS
    ) -> Verdict:
        """Return the verdict for a divergence, which is unknown where it tells nothing new."""
        bit = fault(kind)
        if self.faults & bit or (kind is Kind.UNEXPECTED_CALL and self.faults):
            kind = Kind.UNKNOWN
        else:
            self.faults |= bit
        return verdict(kind, event, leader, counts, *instead)

    def _find(self, event: int, mask: int) -> int:
        if event:
            for i, held in enumerate(self.events):
                if held == event and (mask >> i) & 1:
                    return i
        return -1


def low(mask: int) -> int:
    """Return the index of the lowest bit of a mask, 0 if it has none."""
    return (mask & -mask).bit_length() - 1 if mask else 0


def fault(kind: Kind) -> int:
    """Return the bit of a kind of divergence in `faults`."""
    return _FAULTS[kind]


_FAULTS = {kind: 1 << place for place, kind in enumerate(Kind)}
