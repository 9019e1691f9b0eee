"""Events that KVM has leaked, from looks of the census: they exist, and their counter has let go of them.

An event that KVM made for a counter is on the vCPU's thread until KVM releases it or the thread ends. While
it is being made or released its counter does not hold it, so a *stray* is leaked only if it stays one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from vpmu_agent.model.counter_status import EventState
from vpmu_agent.probes.census import Look, Stray
from vpmu_agent.probes.decoder import attr_of
from vpmu_agent.probes.layout import pmc_name
from vpmu_agent.text import attr_text

LEAKED_S = 5.0
"""For how long, in seconds, an event must have been a stray: a thread that is making one or releasing one can
lose its CPU to others in the middle of that."""


@dataclass(frozen=True, slots=True)
class Leak:
    """An event that is leaked, and the counter that it was made for."""

    id: int
    """Unique since the host booted."""
    vm: str
    tgid: int
    vcpu: int
    pmc: str
    event: str
    """In perf's notation."""
    state: EventState | None
    """None if perf has one that is not known here."""
    age_s: float
    """For how many seconds its counter has not held it."""
    is_older: bool
    """Whether it may be older: it was a stray already when the agent first looked at its vCPU."""

    @property
    def takes_room(self) -> bool:
        """Whether it is on the host's PMU whenever the vCPU's thread runs."""
        return self.state in (EventState.ACTIVE, EventState.INACTIVE)


@dataclass(slots=True)
class _Suspect:
    stray: Stray
    since: float
    is_older: bool


@dataclass(slots=True)
class Leaks:
    """Keeps the strays of the last look: one that is in looks of LEAKED_S is leaked.

    It goes by the events' numbers, which the kernel does not give twice, and not by their addresses. The
    strays of a vCPU are forgotten when the census no longer finds it: the end of its thread has ended them.
    """

    _suspects: dict[int, _Suspect] = field(default_factory=dict)
    _known: dict[int, int] = field(default_factory=dict)
    """The vCPUs of the last look: their addresses, and the tgid of each."""

    def take(self, look: Look, names: Mapping[int, str]) -> dict[str, list[Leak]]:
        """Return the leaks of each VM that has any, those that are there for longest first.

        `names` has those of the VMs, by tgid; of others nothing is returned.
        """
        known = {vcpu.address: vcpu.tgid for vcpu in look.vcpus}
        found: dict[int, _Suspect] = {}
        unseen: set[tuple[int, int]] = set()  # vCPUs with more events than were looked at
        for stray in look.strays:
            vcpu = stray.vcpu, stray.tgid
            if not stray.id:
                unseen.add(vcpu)
            elif suspect := self._suspects.get(stray.id):
                suspect.stray = stray
                found[stray.id] = suspect
            else:
                found[stray.id] = _Suspect(stray, look.time, self._known.get(stray.vcpu) != stray.tgid)
        for suspect in self._suspects.values():
            stray = suspect.stray
            if (stray.vcpu, stray.tgid) in unseen:
                found.setdefault(stray.id, suspect)
        self._suspects, self._known = found, known
        leaks: defaultdict[str, list[Leak]] = defaultdict(list)
        for suspect in sorted(found.values(), key=lambda suspect: (suspect.since, suspect.stray.id)):
            age_s = look.time - suspect.since
            if age_s >= LEAKED_S and suspect.stray.tgid in names:
                name = names[suspect.stray.tgid]
                leaks[name].append(_leak(suspect, name, age_s))
        return dict(leaks)


def sentence(leak: Leak) -> str:
    """Return what is known of a leak, without full stop."""
    age = f"{leak.age_s:.0f} s" if leak.age_s < _MINUTES_S else f"{leak.age_s / 60:.0f} min"
    lasted = f"more than {age}" if leak.is_older else age
    if leak.takes_room:
        what = "it still counts, on one of the host's counters"
    elif leak.state is EventState.ERROR:
        what = "it is in error state, without one of the host's counters"
    elif leak.state is EventState.OFF:
        what = "it is off and counts nothing"
    else:
        what = "its state is unknown"
    return (
        f"{leak.vm}, vCPU {leak.vcpu}, {leak.pmc}: KVM has leaked an event ({leak.event}): for {lasted} the "
        f"counter has not held it, so nothing will release it; {what}"
    )


_MINUTES_S = 180.0


def _leak(suspect: _Suspect, name: str, age_s: float) -> Leak:
    stray = suspect.stray
    try:
        state = EventState(stray.state)
    except ValueError:
        state = None
    return Leak(
        id=stray.id,
        vm=name,
        tgid=stray.tgid,
        vcpu=stray.vcpu_id,
        pmc=pmc_name(stray.pmc_type, stray.pmc_idx),
        event=attr_text(attr_of(stray.type, stray.config, 0, stray.attr_flags)),
        state=state,
        age_s=age_s,
        is_older=suspect.is_older,
    )
