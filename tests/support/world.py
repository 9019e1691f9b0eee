"""A host whose KVM is the model's mechanism: random guests in, calls and the hazards that they meet out."""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter

from tests.support.scenes import USER_CYCLES, as_guest_lbr
from vpmu_agent.model.call import Call, CallName, PmcType
from vpmu_agent.model.mechanism import (
    ALL_COUNTERS,
    FIXED_BASE,
    Pmc,
    Pmu,
    Steps,
    intel_pmu_create_guest_lbr_event,
    intel_pmu_release_guest_lbr_event,
    pmc_stop_counter,
    reprogram_counter,
    write_global_ctrl,
)
from vpmu_agent.model.predict import STEPS
from vpmu_agent.model.rules import Kind

TGID = 100


@dataclass
class VirtualCounter:
    """One pmc, where it is, and what its guest last asked for."""

    pmc: Pmc
    address: int
    vcpu: int
    idx: int
    type: PmcType = PmcType.GP
    programmed: int = 1  # N of the last program
    orphans: set[int] = field(default_factory=set)  # indices that a release has passed by

    @property
    def name(self) -> str:
        """`gp0`, `fixed1`."""
        return f"{self.type}{self.idx}"


class World:
    """Makes random guests' calls, one at a time, in `calls`; `hazards` counts what the design runs into.

    Each vCPU has `pmcs` counters, of which the last `fixed` are fixed ones. With `lbr`, guests also want
    branch records.
    """

    def __init__(
        self,
        rng: random.Random,
        *,
        sizes: tuple[int, ...],
        vcpus: int = 2,
        pmcs: int = 3,
        fixed: int = 1,
        reuses_addresses: bool = True,
        lbr: bool = False,
    ) -> None:
        self.calls: list[Call] = []
        self.hazards: Counter[Kind] = Counter()
        self._rng = rng
        self._sizes = sizes
        self._reuses_addresses = reuses_addresses
        self._lbr = lbr
        self._free: list[int] = []  # of perf_events: the kernel's allocator hands out the last freed first
        self._addresses = 0
        self.counters = []
        for vcpu in range(vcpus):
            pmu = Pmu()
            for number in range(pmcs):
                address = 0xFFFF_8880_0000_0000 + (vcpu << 12) + (number << 6)
                idx, kind = number, PmcType.GP
                if pmcs > 1 and number >= pmcs - fixed:
                    idx, kind = number - (pmcs - fixed), PmcType.FIXED
                pmc = Pmc(pmu, idx=idx + (FIXED_BASE if kind is PmcType.FIXED else 0))
                self.counters.append(VirtualCounter(pmc, address, vcpu, idx, kind))

    def run(self, actions: int, *, hazards: bool) -> None:
        """Lets the guests act so many times; with `hazards`, also in ways that the design does not bear."""
        for _ in range(actions):
            self.act(self._rng.choice(self.counters), hazards=hazards)

    def act(self, counter: VirtualCounter, *, hazards: bool) -> None:
        """One guest does one thing with one counter, or with all of its vCPU."""
        rng, pmc = self._rng, counter.pmc
        actions = ["program", "program", "pause", "resume", "stop", "global", "global", "pebs"]
        if hazards:
            actions.append("resize")
        if self._lbr:
            actions.append("lbr")
        action = rng.choice(actions)
        size = self._defined(counter, hazards=hazards)
        fail_at = rng.randrange(size) if hazards and rng.random() < 0.2 else None
        match action:
            case "resize":
                pmc.max_nr_events = size
            case "stop":
                self._drive(counter, pmc_stop_counter(pmc))
            case "pause":
                pmc.config = 0
                self._drive(counter, reprogram_counter(pmc))
            case "global":
                some = sum(rng.randint(0, 1) << each.pmc.idx for each in self._of(counter))
                value = rng.choice((0, ALL_COUNTERS, ALL_COUNTERS, some))
                # The guest has not accessed the counter itself, so KVM may not ask for its definition.
                asks = not hazards or rng.random() < 0.5
                sizes = partial(self._defined, hazards=hazards) if asks else _none
                self._write_global(counter, value, sizes, fail_at=fail_at)
            case "lbr":
                self._switch_lbr(counter, fails=fail_at == 0)
            case _:
                if action == "program":
                    pmc.config = rng.randrange(1, 256)
                elif action == "pebs":
                    pmc.pebs = not pmc.pebs
                else:
                    pmc.config = pmc.current_config or 0x76
                self._drive(counter, reprogram_counter(pmc, hardware_nr_events=size), fail_at=fail_at)

    def take(self, counter: VirtualCounter, name: str, *, size: int, fail_at: int | None = None) -> None:
        """One thing happens to a counter, as act() has it: "program", "pause", "resume", "stop", "resize".

        Every program selects another event.
        """
        pmc = counter.pmc
        match name:
            case "program":
                pmc.config = (pmc.current_config or 0x76) + 1
                self._drive(counter, reprogram_counter(pmc, hardware_nr_events=size), fail_at=fail_at)
            case "pause":
                pmc.config = 0
                self._drive(counter, reprogram_counter(pmc))
            case "resume":
                pmc.config = pmc.current_config or 0x76
                self._drive(counter, reprogram_counter(pmc, hardware_nr_events=counter.programmed))
            case "stop":
                self._drive(counter, pmc_stop_counter(pmc))
            case "resize":
                pmc.max_nr_events = size

    def write_global_ctrl(self, vcpu: int, value: int) -> None:
        """A guest lets these counters of a vCPU count, and no other. Each has the N that it had."""
        first = next(counter for counter in self.counters if counter.vcpu == vcpu)
        self._write_global(first, value, attrgetter("programmed"))

    def _defined(self, counter: VirtualCounter, *, hazards: bool) -> int:
        """The N that the hardware defines for a counter. Without hazards it does not change."""
        if hazards:
            return self._rng.choice(self._sizes)
        return self._sizes[counter.idx % len(self._sizes)]

    def _write_global(
        self,
        counter: VirtualCounter,
        value: int,
        size_of: Callable[[VirtualCounter], int | None],
        *,
        fail_at: int | None = None,
    ) -> None:
        of_vcpu = {each.pmc.idx: each for each in self._of(counter)}
        pmcs = [each.pmc for each in of_vcpu.values()]
        for pmc in write_global_ctrl(counter.pmc.pmu, pmcs, value):
            each = of_vcpu[pmc.idx]
            self._drive(each, reprogram_counter(pmc, hardware_nr_events=size_of(each)), fail_at=fail_at)

    def _of(self, counter: VirtualCounter) -> list[VirtualCounter]:
        """All counters of its vCPU."""
        return [each for each in self.counters if each.vcpu == counter.vcpu]

    def _switch_lbr(self, counter: VirtualCounter, *, fails: bool) -> None:
        """A vCPU's guest wants branch records, or has not used them for a while."""
        pmu = counter.pmc.pmu
        if pmu.lbr_event is None:
            steps = intel_pmu_create_guest_lbr_event(pmu)
            event = self._new_event(failed=fails)
            result = -errno.EBUSY if fails else 0
        else:
            steps = intel_pmu_release_guest_lbr_event(pmu)
            event, result = pmu.lbr_event, 0
            self._free.append(event)
        call = self._call(counter, next(steps).name, event, 0, result, disabled=False)
        self.calls.append(as_guest_lbr(call))
        with suppress(StopIteration):
            steps.send(result or event)

    def step(self, counter: VirtualCounter, name: str, *, size: int, fail_at: int | None = None) -> None:
        """The guest takes one of the steps that predict.STEPS has, with a counter of `size` events."""
        self._drive(counter, STEPS[name](counter.pmc, size), fail_at=fail_at)

    def _drive(self, counter: VirtualCounter, steps: Steps, *, fail_at: int | None = None) -> None:
        answer = None
        released = False
        try:
            while True:
                step = next(steps) if answer is None else steps.send(answer)
                pmc = counter.pmc
                if released and step.name is not CallName.RELEASE:
                    self._after_release(counter)
                released = step.name is CallName.RELEASE
                result = -errno.ENOSPC if step.name is CallName.CREATE and step.event == fail_at else 0
                event = self._event(counter, step.name, step.event, failed=result < 0)
                if step.name is CallName.CREATE:
                    self._before_create(counter, step.event, failed=result < 0)
                leader = pmc.perf_events[step.leader] if step.leader is not None else 0
                disabled = bool(step.disabled)
                self.calls.append(
                    self._call(counter, step.name, event, leader or 0, result, disabled=disabled)
                )
                answer = result or event
        except StopIteration:
            if released:
                self._after_release(counter)

    def _before_create(self, counter: VirtualCounter, index: int, *, failed: bool) -> None:
        size = counter.pmc.max_nr_events
        if index == 0:
            if counter.programmed > 1 and size == 1:
                self.hazards[Kind.DEGRADED_GROUP] += 1
            counter.programmed = size
        elif failed:
            self.hazards[Kind.PARTIAL_GROUP] += 1
        if not failed:
            counter.orphans.discard(index)

    def _after_release(self, counter: VirtualCounter) -> None:
        """What is still there now, nobody will release, unless N grows again before it is overwritten."""
        left = {i for i, event in enumerate(counter.pmc.perf_events) if event is not None}
        if left - counter.orphans:
            self.hazards[Kind.ORPHANED_MEMBER] += 1
        counter.orphans = left

    def _event(self, counter: VirtualCounter, name: CallName, index: int, *, failed: bool) -> int:
        if name is CallName.CREATE:
            return self._new_event(failed=failed)
        event = counter.pmc.perf_events[index]
        assert event is not None
        if name is CallName.RELEASE:
            self._free.append(event)
        return event

    def _new_event(self, *, failed: bool) -> int:
        if failed:
            return 0
        if self._free and self._reuses_addresses:
            return self._free.pop()
        self._addresses += 1
        return 0x1000 * self._addresses

    def _call(
        self, counter: VirtualCounter, name: CallName, event: int, leader: int, result: int, *, disabled: bool
    ) -> Call:
        pmc = counter.pmc
        attr = replace(USER_CYCLES, config=pmc.current_config, disabled=disabled, precise_ip=int(pmc.precise))
        return Call(
            time_ns=1000 * len(self.calls),
            duration_ns=100,
            name=name,
            pmc=counter.address,
            event=event,
            leader=leader,
            result=result,
            attr=attr,
            vm="web01",
            tgid=TGID,
            tid=TGID + 1 + counter.vcpu,
            vcpu=counter.vcpu,
            pmc_type=counter.type,
            pmc_idx=counter.idx,
            max_nr_events=pmc.max_nr_events,
            event_count=pmc.pmu.event_count & 0xFF,
        )


def _none(_: VirtualCounter) -> None:
    """No N."""
