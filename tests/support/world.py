"""A host whose KVM is the model's mechanism: random guests in, calls and the hazards that they meet out."""

from __future__ import annotations

import errno
import random
from collections import Counter
from dataclasses import dataclass, field, replace

from tests.support.scenes import USER_CYCLES
from vpmu_agent.model.call import Call, CallName, PmcType
from vpmu_agent.model.mechanism import Pmc, Pmu, Steps, pmc_stop_counter, reprogram_counter
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
    programmed: int = 1  # N of the last program
    orphans: set[int] = field(default_factory=set)  # indices that a release has passed by


class World:
    """Makes random guests' calls, one at a time, in `calls`; `hazards` counts what the design runs into."""

    def __init__(
        self,
        rng: random.Random,
        *,
        sizes: tuple[int, ...],
        vcpus: int = 2,
        pmcs: int = 3,
        reuses_addresses: bool = True,
    ) -> None:
        self.calls: list[Call] = []
        self.hazards: Counter[Kind] = Counter()
        self._rng = rng
        self._sizes = sizes
        self._reuses_addresses = reuses_addresses
        self._free: list[int] = []  # of perf_events: the kernel's allocator hands out the last freed first
        self._addresses = 0
        self.counters = []
        for vcpu in range(vcpus):
            pmu = Pmu()
            for idx in range(pmcs):
                address = 0xFFFF_8880_0000_0000 + (vcpu << 12) + (idx << 6)
                self.counters.append(VirtualCounter(Pmc(pmu), address, vcpu, idx))

    def run(self, actions: int, *, hazards: bool) -> None:
        """Lets the guests act so many times; with `hazards`, also in ways that the design does not bear."""
        for _ in range(actions):
            self.act(self._rng.choice(self.counters), hazards=hazards)

    def act(self, counter: VirtualCounter, *, hazards: bool) -> None:
        """One guest does one thing with one counter."""
        pmc = counter.pmc
        actions = ["program", "program", "pause", "resume", "stop"]
        if hazards:
            actions.append("resize")
        action = self._rng.choice(actions)
        config = pmc.current_config or 0x76
        if action == "resize":
            pmc.max_nr_events = self._rng.choice(self._sizes)
        elif action == "stop":
            self._drive(counter, pmc_stop_counter(pmc))
        elif action == "pause":
            self._drive(counter, reprogram_counter(pmc, config, enabled=False))
        else:
            if action == "program":
                config = self._rng.randrange(1, 256)
            # Without hazards the hardware's definition of a counter does not change.
            size = self._rng.choice(self._sizes) if hazards else self._sizes[counter.idx % len(self._sizes)]
            fail_at = self._rng.randrange(size) if hazards and self._rng.random() < 0.2 else None
            self._drive(counter, reprogram_counter(pmc, config, hardware_nr_events=size), fail_at=fail_at)

    def take(self, counter: VirtualCounter, name: str, *, size: int, fail_at: int | None = None) -> None:
        """One thing happens to a counter, as act() has it: "program", "pause", "resume", "stop", "resize".

        Every program selects another event.
        """
        pmc = counter.pmc
        config = pmc.current_config or 0x76
        match name:
            case "program":
                self._drive(
                    counter, reprogram_counter(pmc, config + 1, hardware_nr_events=size), fail_at=fail_at
                )
            case "pause":
                self._drive(counter, reprogram_counter(pmc, config, enabled=False))
            case "resume":
                self._drive(counter, reprogram_counter(pmc, config, hardware_nr_events=counter.programmed))
            case "stop":
                self._drive(counter, pmc_stop_counter(pmc))
            case "resize":
                pmc.max_nr_events = size

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
                self._emit(counter, step.name, event, leader or 0, result, bool(step.disabled))
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
        if name is not CallName.CREATE:
            event = counter.pmc.perf_events[index]
            assert event is not None
            if name is CallName.RELEASE:
                self._free.append(event)
            return event
        if failed:
            return 0
        if self._free and self._reuses_addresses:
            return self._free.pop()
        self._addresses += 1
        return 0x1000 * self._addresses

    def _emit(
        self, counter: VirtualCounter, name: CallName, event: int, leader: int, result: int, disabled: bool
    ) -> None:
        self.calls.append(
            Call(
                time_ns=1000 * len(self.calls),
                duration_ns=100,
                name=name,
                pmc=counter.address,
                event=event,
                leader=leader,
                result=result,
                attr=replace(USER_CYCLES, config=counter.pmc.current_config, disabled=disabled),
                vm="web01",
                tgid=TGID,
                tid=TGID + 1 + counter.vcpu,
                vcpu=counter.vcpu,
                pmc_type=PmcType.GP,
                pmc_idx=counter.idx,
                max_nr_events=counter.pmc.max_nr_events,
                event_count=counter.pmc.pmu.event_count & 0xFF,
            )
        )
