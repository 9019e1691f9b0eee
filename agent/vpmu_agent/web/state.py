"""What a person asks one host: the state behind the page and its JSON, read at most once a second."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from heapq import nlargest
from importlib.metadata import version

from vpmu_agent.counts.counts import Counts, Snapshot
from vpmu_agent.counts.recent import Recent
from vpmu_agent.counts.watch import Watch
from vpmu_agent.model.rules import Kind
from vpmu_agent.model.rules import State as GroupState
from vpmu_agent.model.verdict import Observation
from vpmu_agent.probes.layout import VCPU
from vpmu_agent.trace.call_json import SCHEMA, call_json, dumps
from vpmu_agent.vms.modes import untraced
from vpmu_agent.vms.names import VmInfo

SHOWN = 50
"""How many VMs, those of the most tax, and how many diverging counters, those that diverged most often."""

READ_S = 1.0
"""How old a state may be that somebody gets: however many ask, the maps are read no more often than that."""

NOW_S = 10.0
"""How long ago the read before may be for the difference to tell of now."""


@dataclass(frozen=True, slots=True)
class VmState:
    """One VM. Its *tax* is `host_ns`: the host time that went into its vPMU calls, in nanoseconds."""

    vm: str
    uuid: str
    vmm: str
    pid: int
    groups: Mapping[str, int]
    """Counters that hold events, by the state of their group; only states that there are."""
    events: int
    orphans: int
    calls: int
    failed: int
    divergences: int
    host_ns: int
    host_share: float | None
    """Of a processor's time, since the last read; None if that is not known."""


@dataclass(frozen=True, slots=True)
class Diverging:
    """How often a counter diverged in one way; without its place if calls are not counted by counter."""

    vm: str
    vcpu: int | None
    pmc: str | None
    kind: str
    count: int


@dataclass(frozen=True, slots=True)
class Untraced:
    """A VM of which there is nothing to trace: its PMU is mediated, or off for a reason."""

    vm: str
    mode: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class State:
    """All that is shown."""

    time_ns: int
    host: str
    kernel: str
    version: str
    missing: str
    """Why there are no probes; empty if there are."""
    mode: str
    functions: Sequence[str]
    since_ns: int
    loads: int
    lost: Mapping[str, int]
    """Lost records by reason; only reasons that there are."""
    all_vms: int
    all_events: int
    all_failed: int
    all_divergences: int
    all_host_ns: int
    all_host_share: float | None
    vms: Sequence[VmState]
    all_untraced: int
    untraced: Sequence[Untraced]
    all_diverging: int
    diverging: Sequence[Diverging]
    last: Sequence[Observation]
    """See Recent."""


def state_json(state: State) -> str:
    """The state as a JSON object, without a newline; `last` has calls as in a trace."""
    plain = {"schema": SCHEMA, "kind": "state"}
    plain |= {each.name: getattr(state, each.name) for each in fields(state) if each.name != "last"}
    plain |= {
        "vms": [asdict(vm) for vm in state.vms],
        "untraced": [asdict(each) for each in state.untraced],
        "diverging": [asdict(each) for each in state.diverging],
    }
    last = ",".join(call_json(*said) for said in state.last)
    return f'{dumps(plain)[:-1]},"last":[{last}]}}'


class Overview:
    """Puts the state together for threads that answer requests. `missing` says why there are no probes."""

    def __init__(self, watch: Watch, recent: Recent, missing: Callable[[], str]) -> None:
        self.missing = missing
        self._watch = watch
        self._recent = recent
        self._lock = threading.Lock()
        self._read_at = -NOW_S
        self._state: State | None = None
        self._host_ns: Mapping[str, int] = {}

    def state(self) -> State:
        """As it is now, or was a moment ago."""
        with self._lock:
            now = time.monotonic()
            passed_s = now - self._read_at
            if self._state is None or passed_s >= READ_S:
                snapshot = self._watch.snapshot(is_scrape=False)
                self._state = self._made(snapshot, passed_s)
                self._read_at = now
            return self._state

    def _made(self, snapshot: Snapshot, passed_s: float) -> State:
        before, is_recent = self._host_ns, self._state is not None and passed_s <= NOW_S
        host_ns = {vm: sum(counts.numbers[_DURATIONS]) for vm, counts in snapshot.vms.items()}
        share = {
            vm: max(0, spent - before.get(vm, 0)) / (passed_s * 1e9)
            for vm, spent in host_ns.items()
            if is_recent
        }
        self._host_ns = host_ns
        dearest = nlargest(SHOWN, snapshot.vms, key=lambda vm: (host_ns[vm], vm))
        diverging = [each for vm, counts in snapshot.vms.items() for each in _diverging(vm, counts, snapshot)]
        pmus = [(vm, pmu) for vm, has in snapshot.pmus.items() for pmu in has]
        without = [Untraced(vm, pmu.mode, pmu.why) for pmu, vms in untraced(pmus).items() for vm in vms]
        all_counts = snapshot.vms.values()
        return State(
            time_ns=time.time_ns(),
            host=os.uname().nodename,
            kernel=os.uname().release,
            version=version("vpmu-agent"),
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
            all_host_ns=sum(host_ns.values()),
            all_host_share=sum(share.values()) if is_recent else None,
            vms=[_vm(vm, snapshot.about[vm], snapshot.vms[vm], host_ns[vm], share.get(vm)) for vm in dearest],
            all_untraced=len(without),
            untraced=without[:SHOWN],
            all_diverging=len(diverging),
            diverging=nlargest(SHOWN, diverging, key=lambda each: each.count),
            last=self._recent.last(),
        )


_CALLS, _DURATIONS, _VERDICTS = (VCPU.fields[name] for name in ("calls", "duration_ns", "verdicts"))
_GROUPS, _EVENTS, _ORPHANS = VCPU.fields["groups"], VCPU.fields["events"].start, VCPU.fields["orphans"].start


def _vm(vm: str, about: VmInfo, counts: Counts, host_ns: int, share: float | None) -> VmState:
    numbers = counts.numbers
    groups = zip(GroupState, numbers[_GROUPS], strict=True)
    return VmState(
        vm=vm,
        uuid=about.uuid,
        vmm=about.vmm,
        pid=about.tgid,
        groups={state: count for state, count in groups if count and state is not GroupState.EMPTY},
        events=numbers[_EVENTS],
        orphans=numbers[_ORPHANS],
        calls=sum(numbers[_CALLS]),
        failed=counts.errors.total(),
        divergences=_divergences(counts),
        host_ns=host_ns,
        host_share=share,
    )


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
