"""Calls as KVM would make them, for tests of what comes after the model."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from dataclasses import replace

from vpmu_agent.model.call import Attr, Call, CallName, PmcType
from vpmu_agent.model.check import Checker
from vpmu_agent.model.verdict import Observation

START_NS = 1_766_000_000_123_456_789

USER_CYCLES = Attr(
    type=4,
    config=0x76,
    sample_period=0xFFFF_FFFF_FFFF,
    disabled=False,
    pinned=True,
    exclude_user=False,
    exclude_kernel=True,
    exclude_hv=False,
    exclude_idle=True,
    exclude_host=True,
    exclude_guest=False,
    precise_ip=0,
)


def as_guest_lbr(call: Call) -> Call:
    """The same call for KVM's guest-LBR event (intel_pmu_create_guest_lbr_event())."""
    attr = replace(
        call.attr,
        config=0x1B00,  # INTEL_FIXED_VLBR_EVENT
        sample_period=0,
        exclude_kernel=False,
        exclude_idle=False,
        exclude_host=False,
    )
    return replace(
        call,
        pmc=0,
        attr=attr,
        vcpu=-1,
        pmc_type=PmcType.LBR,
        pmc_idx=0,
        max_nr_events=1,
        event_count=-1,
    )


class Guest:
    """A VM with one process and as many counters as it is asked for; time goes by with every call."""

    def __init__(self, vm: str, tgid: int) -> None:
        self.vm = vm
        self.tgid = tgid
        self._time_ns = START_NS + tgid
        self._events = 0

    def call(
        self,
        name: CallName,
        event: int,
        *,
        leader: int = 0,
        size: int = 1,
        result: int = 0,
        vcpu: int = 0,
        pmc: int = 0,
        attr: Attr = USER_CYCLES,
    ) -> Call:
        """One call on counter gp`pmc`."""
        self._time_ns += 250_000
        return Call(
            time_ns=self._time_ns,
            duration_ns={"create": 23_400, "enable": 870, "pause": 1_340, "release": 1_456_000}[name],
            name=name,
            pmc=0xFFFF_8880_0000_0000 + (self.tgid << 16) + (vcpu << 12) + (pmc << 6),
            event=event,
            leader=leader,
            result=result,
            attr=attr,
            vm=self.vm,
            tgid=self.tgid,
            tid=self.tgid + 1 + vcpu,
            vcpu=vcpu,
            pmc_type=PmcType.GP,
            pmc_idx=pmc,
            max_nr_events=size,
            event_count=-1,
        )

    def new_event(self) -> int:
        """An address that no event had before."""
        self._events += 1
        return 0xFFFF_8881_0000_0000 + (self.tgid << 16) + self._events * 0x400

    def life(self, *, size: int = 1, vcpu: int = 0, pmc: int = 0, config: int = 0x76) -> Iterator[Call]:
        """A counter is programmed, paused and resumed where that can be, and released."""
        attr = replace(USER_CYCLES, config=config, disabled=size > 1)
        where = {"size": size, "vcpu": vcpu, "pmc": pmc}
        events = [self.new_event() for _ in range(size)]
        for event in events:
            leader = 0 if event == events[0] else events[0]
            yield self.call(CallName.CREATE, event, leader=leader, attr=attr, **where)
        if size > 1:
            for event in events:
                yield self.call(CallName.ENABLE, event, attr=attr, **where)
        else:
            yield self.call(CallName.PAUSE, events[0], attr=attr, **where)
            yield self.call(CallName.ENABLE, events[0], attr=attr, **where)
        for event in events:
            yield self.call(CallName.RELEASE, event, attr=attr, **where)

    def failed_create(self, *, pmc: int = 0) -> Call:
        """The host has no room for the event."""
        return self.call(CallName.CREATE, 0, result=-errno.ENOSPC, pmc=pmc)

    def unexpected_pause(self, *, pmc: int = 0) -> list[Call]:
        """A counter is paused twice, which KVM does not do."""
        event = self.new_event()
        calls = (CallName.CREATE, CallName.PAUSE, CallName.PAUSE)
        return [self.call(name, event, pmc=pmc) for name in calls]


def checked(calls: Iterable[Call]) -> Iterator[Observation]:
    """The calls, each with what the model says of it."""
    monitor = Checker()
    for call in calls:
        yield call, monitor.observe(call)
