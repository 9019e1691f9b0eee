"""The state of one host, behind the page and its JSON: read from the maps at most once a second."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from heapq import nlargest
from importlib.metadata import version
from itertools import islice, starmap

from vpmu_agent.counts.counters import Counter, Holder, VmCounters
from vpmu_agent.counts.counts import ALL_CALLS, ALL_DURATIONS, FIELDS, Counts, Snapshot
from vpmu_agent.counts.failures import Story
from vpmu_agent.counts.guests import Found
from vpmu_agent.counts.leaks import Leak
from vpmu_agent.counts.leaks import sentence as leak_sentence
from vpmu_agent.counts.recent import Recent
from vpmu_agent.counts.resets import reset_sentence
from vpmu_agent.counts.starvation import failing_sentence, sentence
from vpmu_agent.counts.watch import Watch
from vpmu_agent.kernel import facts
from vpmu_agent.model.counter_status import CounterStatus
from vpmu_agent.model.create_errors import cause
from vpmu_agent.model.event_names import event_name
from vpmu_agent.model.rules import Kind, State
from vpmu_agent.model.verdict import Observation
from vpmu_agent.text import attr_text, errno_name
from vpmu_agent.trace.call_json import SCHEMA, call_json, dumps
from vpmu_agent.vms.modes import untraced
from vpmu_agent.vms.names import VmInfo
from vpmu_agent.web.counters import CounterState, counter_state, counters_json

ROWS = 50
"""How many VMs are listed, by tax or else by calls, and how many diverging counters, by divergences."""

SENTENCES = 20
"""Of how many VMs with failing counters there is a sentence: those with the most."""

COUNTERS = 16
"""How many failing counters of a VM are listed."""

MAX_AGE_S = 1.0
"""How old a state may be when it is served: however many clients ask, the maps are read no more often."""

NOW_S = 10.0
"""How long ago the previous read may be for its difference to this one to be called the present."""


@dataclass(frozen=True, slots=True)
class VmState:
    """One VM. Its *tax* is `host_ns`: the host time spent in its vPMU calls, in nanoseconds.

    It is None with --no-durations.
    """

    vm: str
    uuid: str
    vmm: str
    pid: int
    groups: Mapping[str, int]
    """Counters that hold events, by the state of their group; states without any are left out."""
    events: int
    orphans: int
    calls: int
    failed: int
    divergences: int
    host_ns: int | None
    host_share: float | None
    """Share of one CPU's time since the previous read, 1 being all of it; None if that is not known."""
    counters: Mapping[str, int] | None
    """How many there are by status, according to the census; None if that is not known."""
    running: float | None
    """Which part of the time that its events were enabled they ran; None if that is not known."""
    starved: str
    """A sentence about its starved counters, and who has what they lack; empty if none is."""
    reset: str
    """A sentence about its counters that went on after a reset; empty if none is known to."""
    failing: Sequence[CounterState]
    """The first of its counters that fail."""


@dataclass(frozen=True, slots=True)
class Starving:
    """A VM with counters that fail, most of them because they are starved."""

    vm: str
    failing: Mapping[str, int]
    """How many, by status."""
    sentence: str


@dataclass(frozen=True, slots=True)
class Leaked:
    """An event that KVM has leaked, and the counter that it was made for."""

    vm: str
    vcpu: int
    pmc: str
    event: str
    """In perf's notation."""
    takes_room: bool
    """Whether it is on the host's PMU whenever the vCPU's thread runs."""
    age_s: float
    """For how many seconds its counter has not held it."""
    is_older: bool
    """Whether it may be older."""
    sentence: str


@dataclass(frozen=True, slots=True)
class HolderState:
    """A process with events on the host's PMU; as in `counts.counters.Holder`."""

    pid: int
    comm: str
    events: int
    pinned: int
    cpus: Sequence[int]
    failed: int


@dataclass(frozen=True, slots=True)
class Diverging:
    """How often a counter diverged in one way; vCPU and counter are None with --no-per-counter."""

    vm: str
    vcpu: int | None
    pmc: str | None
    kind: str
    count: int


@dataclass(frozen=True, slots=True)
class Untraced:
    """A VM that cannot be traced: its PMU is mediated, or off for a reason."""

    vm: str
    mode: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class Failing:
    """A creation that failed, once or again and again. `vcpu` is -1 if it is not known (guest LBR)."""

    vm: str
    vcpu: int
    pmc: str
    event: str
    """In perf's notation."""
    event_name: str | None
    """As perf list has it; None if it has no name."""
    errno: str
    cause: str
    count: int
    since_ns: int
    last_ns: int


@dataclass(frozen=True, slots=True)
class HostState:
    """All that is shown of a host. The field names are the keys of the JSON."""

    time_ns: int
    host: str
    kernel: str
    version: str
    cpu_vendor: str
    """`vendor_id` of /proc/cpuinfo; empty if it is not known."""
    missing: str
    """Why no probes are attached; empty if they are."""
    mode: str
    functions: Sequence[str]
    since_ns: int
    loads: int
    lost: Mapping[str, int]
    """Lost records by reason; reasons without any are left out."""
    all_vms: int
    all_events: int
    all_failed: int
    all_divergences: int
    all_host_ns: int | None
    all_host_share: float | None
    vms: Sequence[VmState]
    all_untraced: int
    untraced: Sequence[Untraced]
    no_census: str
    """Why the census is not known; empty if it is. Without it what it finds is None or empty here."""
    all_starved: int | None
    """How many counters of all VMs are starved."""
    all_starving: int
    starving: Sequence[Starving]
    resets: Sequence[str]
    """Sentences about VMs whose counters went on after a reset, not of all VMs if there are many."""
    all_leaked: int | None
    """How many events KVM has leaked; None if that is not known."""
    leaked: Sequence[Leaked]
    """Those that are there for longest first."""
    no_holders: str
    """Why it is not known who has events on the host's PMU; empty if it is."""
    all_holders: int | None
    holders: Sequence[HolderState] | None
    """Who has events on the host's PMU, other than KVM, those with the most first; None if not known."""
    nmi_watchdog: bool | None
    """Whether the NMI watchdog has one more on each CPU; None if that is not known."""
    all_diverging: int
    diverging: Sequence[Diverging]
    failures: Sequence[Failing]
    """The last failed creations, each with how often it failed; the one that failed last first."""
    last: Sequence[Observation]
    """The latest divergences and failed creations, newest first."""


def state_json(state: HostState) -> str:
    """Return the state as a JSON object on one line, without a newline; `last` has calls as in a trace."""
    plain = {"schema": SCHEMA, "kind": "state"}
    plain |= {each.name: getattr(state, each.name) for each in fields(state) if each.name != "last"}
    plain |= {
        "vms": [asdict(vm) for vm in state.vms],
        "untraced": [asdict(each) for each in state.untraced],
        "starving": [asdict(each) for each in state.starving],
        "leaked": [asdict(each) for each in state.leaked],
        "holders": None if state.holders is None else [asdict(each) for each in state.holders],
        "diverging": [asdict(each) for each in state.diverging],
        "failures": [asdict(each) for each in state.failures],
    }
    last = ",".join(call_json(call, verdict) for call, verdict in state.last)
    return f'{dumps(plain)[:-1]},"last":[{last}]}}'


class Overview:
    """Makes the state for the threads that answer requests."""

    def __init__(
        self,
        watch: Watch,
        recent: Recent,
        missing: Callable[[], str],
        vendor: str = "",
        nmi_watchdog: Callable[[], bool | None] = facts.nmi_watchdog,
    ) -> None:
        """Take what is shown.

        Args:
            watch: the counts.
            recent: the last divergences and failed creations.
            missing: returns why no probes are attached.
            vendor: the CPU's, as in event_names.py.
            nmi_watchdog: returns whether it runs, None if that is not known.
        """
        self.missing = missing
        self._vendor = vendor
        self._nmi_watchdog = nmi_watchdog
        self._watch = watch
        self._recent = recent
        self._lock = threading.Lock()
        self._read_at = -NOW_S
        self._state: HostState | None = None
        self._host_ns: Mapping[str, int] = {}

    def state(self) -> HostState:
        """Return the state of at most MAX_AGE_S ago."""
        with self._lock:
            now = time.monotonic()
            passed_s = now - self._read_at
            if self._state is None or passed_s >= MAX_AGE_S:
                snapshot = self._watch.snapshot()
                self._state = self._make(snapshot, passed_s)
                self._read_at = now
            return self._state

    def counters_json(self, vm: str) -> str:
        """Return the counters of a VM as JSON, as the census found them last."""
        return counters_json(vm, self._watch.guests(), self._vendor)

    def _make(self, snapshot: Snapshot, passed_s: float) -> HostState:
        before, is_recent = self._host_ns, self._state is not None and passed_s <= NOW_S
        host_ns = {}
        if snapshot.durations:
            host_ns = {vm: sum(counts.numbers[ALL_DURATIONS]) for vm, counts in snapshot.vms.items()}
        share = {
            vm: max(0, spent - before.get(vm, 0)) / (passed_s * 1e9)
            for vm, spent in host_ns.items()
            if is_recent
        }
        self._host_ns = host_ns
        rank = host_ns or {vm: sum(counts.numbers[ALL_CALLS]) for vm, counts in snapshot.vms.items()}
        first = nlargest(ROWS, snapshot.vms, key=lambda vm: (rank[vm], vm))
        diverging = [each for vm, counts in snapshot.vms.items() for each in _diverging(vm, counts, snapshot)]
        pmus = [(vm, pmu) for vm, has in snapshot.guests.pmus.items() for pmu in has]
        without = [Untraced(vm, pmu.mode, pmu.why) for pmu, vms in untraced(pmus).items() for vm in vms]
        all_counts = snapshot.vms.values()
        guests, nmi_watchdog = snapshot.guests, self._nmi_watchdog()
        no_holders = _no_census(guests) or guests.no_holders
        starving = {
            vm: fails for vm, counters in guests.counters.items() if (fails := _failing_counts(counters))
        }
        leaks = [leak for leaks in guests.leaks.values() for leak in leaks]
        return HostState(
            time_ns=time.time_ns(),
            host=os.uname().nodename,
            kernel=os.uname().release,
            version=version("vpmu-agent"),
            cpu_vendor=self._vendor,
            missing=self.missing(),
            mode=snapshot.mode,
            functions=snapshot.functions,
            since_ns=snapshot.since_ns,
            loads=snapshot.loads,
            lost={reason: count for reason, count in snapshot.lost.items() if count},
            all_vms=len(snapshot.vms),
            all_events=sum(counts.numbers[_EVENTS] for counts in all_counts),
            all_failed=sum(counts.errors.total() for counts in all_counts),
            all_divergences=sum(map(_divergences, all_counts)),
            all_host_ns=sum(host_ns.values()) if snapshot.durations else None,
            all_host_share=sum(share.values()) if is_recent and snapshot.durations else None,
            vms=[
                _vm(
                    snapshot.about[vm],
                    snapshot.vms[vm],
                    host_ns.get(vm),
                    share.get(vm),
                    guests.counters.get(vm),
                    sentence(vm, guests, nmi_watchdog=nmi_watchdog) if vm in guests.counters else "",
                    reset_sentence(vm, guests.counters[vm]) if vm in guests.counters else "",
                    self._vendor,
                )
                for vm in first
            ],
            all_untraced=len(without),
            untraced=without[:ROWS],
            no_census=_no_census(guests),
            all_starved=(
                sum(counters.statuses[CounterStatus.STARVED] for counters in guests.counters.values())
                if guests.is_known
                else None
            ),
            all_starving=len(starving),
            starving=[
                Starving(vm, starving[vm], failing_sentence(vm, guests, nmi_watchdog=nmi_watchdog))
                for vm in nlargest(SENTENCES, starving, key=lambda vm: sum(starving[vm].values()))
            ],
            resets=list(islice(filter(None, starmap(reset_sentence, guests.counters.items())), SENTENCES)),
            all_leaked=len(leaks) if guests.is_known else None,
            leaked=[_leaked(leak) for leak in nlargest(ROWS, leaks, key=lambda leak: leak.age_s)],
            all_holders=None if no_holders else len(guests.holders),
            holders=[_holder(holder) for holder in guests.holders[:ROWS]] if not no_holders else None,
            no_holders=no_holders,
            nmi_watchdog=nmi_watchdog,
            all_diverging=len(diverging),
            diverging=nlargest(ROWS, diverging, key=lambda each: each.count),
            failures=[_failing(story, self._vendor) for story in self._recent.failures()],
            last=self._recent.last(),
        )


_VERDICTS = FIELDS["verdicts"]
_GROUPS = FIELDS["groups"]
_EVENTS = FIELDS["events"].start
_ORPHANS = FIELDS["orphans"].start


def _vm(
    about: VmInfo,
    counts: Counts,
    host_ns: int | None,
    share: float | None,
    counters: VmCounters | None,
    starved: str,
    reset: str,
    vendor: str,
) -> VmState:
    numbers = counts.numbers
    groups = zip(State, numbers[_GROUPS], strict=True)
    return VmState(
        vm=about.name,
        uuid=about.uuid,
        vmm=about.vmm,
        pid=about.tgid,
        groups={state: count for state, count in groups if count and state is not State.EMPTY},
        events=numbers[_EVENTS],
        orphans=numbers[_ORPHANS],
        calls=sum(numbers[ALL_CALLS]),
        failed=counts.errors.total(),
        divergences=_divergences(counts),
        host_ns=host_ns,
        host_share=share,
        counters=_present(counters, CounterStatus) if counters else None,
        running=counters.running if counters else None,
        starved=starved,
        reset=reset,
        failing=_failing_counters(counters.counters, vendor) if counters else (),
    )


def _failing(story: Story, vendor: str) -> Failing:
    call = story.last
    return Failing(
        vm=call.vm,
        vcpu=call.vcpu,
        pmc=call.pmc_name,
        event=attr_text(call.attr),
        event_name=event_name(call, vendor),
        errno=errno_name(-call.result),
        cause=cause(-call.result),
        count=story.count,
        since_ns=story.since_ns,
        last_ns=call.time_ns,
    )


def _failing_counts(counters: VmCounters) -> dict[str, int]:
    return _present(counters, [status for status in CounterStatus if status.is_failing])


def _present(counters: VmCounters, statuses: Iterable[CounterStatus]) -> dict[str, int]:
    """Return how many counters have each of these statuses that any has."""
    return {status: counters.statuses[status] for status in statuses if counters.statuses[status]}


def _failing_counters(counters: Iterable[Counter], vendor: str) -> list[CounterState]:
    failing = (counter for counter in counters if counter.status.is_failing)
    return [counter_state(counter, vendor) for counter in islice(failing, COUNTERS)]


def _leaked(leak: Leak) -> Leaked:
    return Leaked(
        vm=leak.vm,
        vcpu=leak.vcpu,
        pmc=leak.pmc,
        event=leak.event,
        takes_room=leak.takes_room,
        age_s=leak.age_s,
        is_older=leak.is_older,
        sentence=leak_sentence(leak),
    )


def _holder(holder: Holder) -> HolderState:
    return HolderState(holder.tgid, holder.comm, holder.events, holder.pinned, holder.cpus, holder.failed)


def _no_census(guests: Found) -> str:
    """Return why the census is not known; empty if it is."""
    return "" if guests.is_known else guests.missing or "it has not been read yet"


def _by_kind(counts: Counts) -> dict[Kind, int]:
    found = zip(Kind, counts.numbers[_VERDICTS], strict=True)
    return {kind: count for kind, count in found if count and kind.is_divergence}


def _divergences(counts: Counts) -> int:
    return sum(_by_kind(counts).values())


def _diverging(vm: str, counts: Counts, snapshot: Snapshot) -> list[Diverging]:
    by_kind = _by_kind(counts)
    if not (by_kind and snapshot.per_counter):
        return [Diverging(vm, None, None, kind, count) for kind, count in by_kind.items()]
    return [
        Diverging(vm, vcpu, pmc, kind, count)
        for (vcpu, pmc, kind), count in sorted(counts.pmc_divergences().items())
    ]
