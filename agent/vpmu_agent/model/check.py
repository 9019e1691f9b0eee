"""The check in Python: observed calls in, one verdict for each out. The rules are in compiled_rules.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vpmu_agent.model.call import Call, CallName
from vpmu_agent.model.compiled_rules import STEPS
from vpmu_agent.model.registers import Registers
from vpmu_agent.model.rules import Expected, Kind, State
from vpmu_agent.model.verdict import Verdict, verdict

MAX_PMCS = 1 << 16
"""How many pmcs are followed at once, about; each takes some 700 bytes."""


@dataclass(frozen=True, slots=True)
class Group:
    """A pmc that holds events now, or has left some behind.

    `size` is `max_nr_events` as it was when the pmc was programmed, `events` how many it holds, `orphans` how
    many of those it once held were never released and cannot be any more.
    """

    vm: str
    tgid: int
    vcpu: int
    pmc: str
    state: State
    size: int
    events: int
    orphans: int


class Checker:
    """Follows the pmcs that calls are about, by its VM's process and its address.

    Of more than MAX_PMCS, those that have been quiet for longest are forgotten: their state is unknown then,
    as that of a pmc that was never met.
    """

    def __init__(self) -> None:
        self._pmcs: dict[tuple[int, int], Registers] = {}
        self._quiet: dict[tuple[int, int], Registers] = {}  # in no call since MAX_PMCS / 2 others were met
        self._event_counts: dict[tuple[int, int], int] = {}
        self._with_guest_lbr: set[int] = set()  # by tgid
        self._epoch = 0

    def observe(self, call: Call) -> Verdict:
        """Return the verdict on the next call, and follow it."""
        if call.lost:
            # They may have been of any pmc: no state is known any more, nor any vCPU's count.
            self._epoch += 1
            self._event_counts.clear()
        # The guest-LBR event belongs to no pmc: it has registers of its own.
        key = call.tgid, call.pmc or call.event
        pmc = self._pmcs.get(key)
        if pmc is None:
            pmc = self._meet(key, call)
        if pmc.epoch != self._epoch:
            pmc.epoch = self._epoch
            pmc.state = State.UNKNOWN
            pmc.left = 0
            pmc.left_events.clear()
        name, event_count = call.name, call.event_count
        found = STEPS[name][pmc.state](
            pmc, call.event, call.leader, call.result < 0, call.attr.disabled, call.max_nr_events or 1
        )
        if not call.pmc:
            self._with_guest_lbr.add(call.tgid)
            if pmc.state is State.EMPTY:
                del self._pmcs[key]
        # KVM counts an event after it was created, and stops counting it after it was released
        # (pmc_reprogram_counter, pmc_release_perf_event). Its count is read at creates only, when the event
        # is not in it yet; in between it is worked out.
        vcpu = call.tgid, call.vcpu
        if name is CallName.RELEASE and vcpu in self._event_counts:
            self._event_counts[vcpu] = (self._event_counts[vcpu] - 1) & 0xFF  # u8 event_count
        if name is not CallName.CREATE or event_count < 0:
            return found
        expected = self._event_counts.get(vcpu, event_count)
        if len(self._event_counts) >= MAX_PMCS or len(self._with_guest_lbr) >= MAX_PMCS:
            self._event_counts.clear()
            self._with_guest_lbr.clear()
        self._event_counts[vcpu] = (event_count + (1 if call.result == 0 else 0)) & 0xFF
        if expected == event_count or found.kind.is_divergence:
            return found
        # KVM counts a vCPU's guest-LBR event, too, and that does not say which vCPU it belongs to.
        if call.tgid in self._with_guest_lbr and (event_count - expected + 1) & 0xFF <= 2:
            return found
        event, leader = (-1 if index is None else index for index in (found.event, found.leader))
        return verdict(
            Kind.EVENT_COUNT_MISMATCH,
            event,
            leader,
            found.counts,
            Expected.EVENT_COUNT,
            at=expected,
            event_count=event_count,
        )

    def _meet(self, key: tuple[int, int], call: Call) -> Registers:
        """Return the registers of a pmc that was in none of the last calls, and keep them at hand."""
        if len(self._pmcs) >= MAX_PMCS // 2:
            self._pmcs, self._quiet = {}, self._pmcs
        pmc = self._quiet.pop(key) if key in self._quiet else Registers(call, self._epoch)
        self._pmcs[key] = pmc
        return pmc

    def registers(self, call: Call) -> Registers:
        """Return what is kept of the pmc that a call is about. Raise KeyError if it was in no call."""
        return self._all()[call.tgid, call.pmc or call.event]

    def _all(self) -> dict[tuple[int, int], Registers]:
        return self._quiet | self._pmcs

    def groups(self) -> Iterator[Group]:
        """Yield the pmcs that hold events now, or have left some behind."""
        for pmc in self._all().values():
            events = pmc.members.bit_count()
            orphans = pmc.left + pmc.orphans.bit_count()
            if events or orphans:
                yield Group(pmc.vm, pmc.tgid, pmc.vcpu, pmc.name, pmc.state, pmc.size, events, orphans)

    def forget(self, tgid: int) -> None:
        """Forget a VM that is gone."""
        self._pmcs = {key: pmc for key, pmc in self._all().items() if key[0] != tgid}
        self._quiet = {}
        self._event_counts = {key: n for key, n in self._event_counts.items() if key[0] != tgid}
        self._with_guest_lbr.discard(tgid)
