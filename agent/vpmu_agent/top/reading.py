"""What is shown of a host, from the JSON of its state: that of an older or newer daemon too.

What a daemon does not tell is None or empty here, and is shown as unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vpmu_agent.model.counter_status import CounterStatus, failing
from vpmu_agent.text import named_text
from vpmu_agent.trace.call_json import SCHEMA

MAX_TEXT = 512
"""Characters of a text of a state that are kept."""


class StateError(ValueError):
    """The JSON is not a state that this version can show; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class CounterLine:
    """A counter of a VM."""

    vcpu: int
    pmc: str
    status: str
    event: str
    """What the guest asked for: named_text(), "" if that is not known."""
    events: int | None
    """How many events it has."""
    size: int | None
    """How many it should have."""
    cpu: int | None
    """The CPU that its vCPU ran on last."""
    running: float | None
    """Which part of the time that its events were enabled they ran."""
    errno: int
    outlived_reset: bool = False
    """Whether it is known to have gone on after a reset of its VM."""


@dataclass(frozen=True, slots=True)
class DivergingLine:
    """How often a counter diverged in one way; vCPU and counter are None if they are not known."""

    vcpu: int | None
    pmc: str | None
    kind: str
    count: int


@dataclass(frozen=True, slots=True)
class FailureLine:
    """A creation that failed, once or again and again."""

    vcpu: int
    pmc: str
    event: str
    """Its name if it has one, else in perf's notation."""
    errno: str
    cause: str
    count: int


@dataclass(frozen=True, slots=True)
class VmLine:
    """A VM."""

    vm: str
    uuid: str = ""
    vmm: str = ""
    pid: int | None = None
    mode: str = "emulated"
    reason: str = ""
    """Why it has no vPMU, in one word."""
    events: int = 0
    failed: int = 0
    divergences: int = 0
    calls: int = 0
    calls_per_s: float | None = None
    host_ns: int | None = None
    host_share: float | None = None
    """Its tax: the part of one CPU's time that its calls took since the reading before."""
    counters: Mapping[str, int] | None = None
    """How many there are of each status."""
    running: float | None = None
    starved: str = ""
    """A sentence about its starved counters."""
    reset: str = ""
    """A sentence about its counters that went on after a reset."""
    diverging: Sequence[DivergingLine] = ()
    failures: Sequence[FailureLine] = ()

    @property
    def is_traced(self) -> bool:
        """Whether KVM makes calls for it."""
        return self.mode == "emulated"

    @property
    def all_failing(self) -> int:
        """How many of its counters tell their guest wrong numbers."""
        return failing(self.counters or {})


@dataclass(frozen=True, slots=True)
class HolderLine:
    """A process with events on the host's PMU."""

    comm: str
    pid: int
    events: int
    pinned: int
    failed: int
    cpus: Sequence[int]


@dataclass(frozen=True, slots=True)
class Reading:
    """The state of a host at one moment, and what went on since the reading before."""

    time_ns: int
    host: str
    kernel: str
    version: str
    mode: str
    missing: str
    since_ns: int
    lost: int
    all_vms: int
    all_events: int
    all_failed: int
    all_divergences: int
    all_starved: int | None
    is_failing: bool
    """Whether it is known of any counter that it tells its guest wrong numbers, listed here or not."""
    vms: Sequence[VmLine]
    all_untraced: int
    no_census: str
    """Why nothing is known of counters and holders; "" if it is, or if the daemon is too old to say."""
    holders: Sequence[HolderLine] | None
    no_holders: str
    """Why it is not known who has events on the host's PMU; "" as for `no_census`."""
    all_holders: int
    nmi_watchdog: bool
    """Whether it is known to run: it has an event on each CPU."""
    calls_per_s: float | None
    """Of the VMs listed."""
    host_share: float | None
    interval_s: float | None
    """Seconds since the reading before; None if this is the first."""
    state: Mapping[str, Any] = field(repr=False)
    """The JSON that all this is from."""


class Readings:
    """Makes readings of states, one after another."""

    def __init__(self) -> None:
        self._before: Reading | None = None

    def take(self, state: Any) -> Reading:
        """Return the reading of a state's JSON. Raise StateError if it is not one."""
        if not isinstance(state, dict) or state.get("kind") != "state":
            raise StateError("the answer is not the state of a vpmu-agent")
        if state.get("schema") != SCHEMA:
            raise StateError(f"the state has schema {state.get('schema')!r}, and this version reads {SCHEMA}")
        try:
            found = _reading(_clean(state), self._before)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StateError(f"the state is not as it should be: {type(error).__name__} {error}") from error
        if self._before is None or found.time_ns != self._before.time_ns:
            self._before = found
        return found


def is_failing(status: str) -> bool:
    """Return whether a counter with this status tells its guest wrong numbers."""
    return status in _FAILING


_FAILING = {str(status) for status in CounterStatus if status.is_failing}


def counter_lines(counters: Sequence[Mapping[str, Any]]) -> list[CounterLine]:
    """Return counters from the JSON of web/counters.py. Raise StateError."""
    try:
        return [_counter(_clean(each)) for each in counters]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StateError(f"the counters are not as they should be: {type(error).__name__} {error}") from error


def _clean(value: Any) -> Any:
    """Return the value with nothing in its texts that a terminal would obey."""
    if isinstance(value, str):
        return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in value[:MAX_TEXT])
    if isinstance(value, list):
        return [_clean(each) for each in value]
    if isinstance(value, dict):
        return {_clean(key): _clean(each) for key, each in value.items()}
    return value


def _reading(state: Mapping[str, Any], before: Reading | None) -> Reading:
    time_ns = int(state["time_ns"])
    passed_s = (time_ns - before.time_ns) / 1e9 if before else None
    if before and passed_s == 0:  # the daemon was asked twice within a second
        passed_s = before.interval_s
    diverging: dict[str, list[DivergingLine]] = {}
    for each in state.get("diverging", ()):
        line = DivergingLine(each["vcpu"], each["pmc"], str(each["kind"]), int(each["count"]))
        diverging.setdefault(each["vm"], []).append(line)
    failures: dict[str, list[FailureLine]] = {}
    for each in state.get("failures", ()):
        failures.setdefault(each["vm"], []).append(_failure(each))
    past = {vm.vm: vm for vm in before.vms} if before else {}
    is_same = before is not None and before.time_ns == time_ns
    vms = []
    for each in state["vms"]:
        vm = _vm(each, diverging.get(each["vm"], ()), failures.get(each["vm"], ()))
        vms.append(_with_rates(vm, past.get(vm.vm), passed_s, is_same=is_same))
    listed = {vm.vm for vm in vms}
    for each in state.get("untraced", ()):
        if each["vm"] not in listed:
            vms.append(VmLine(str(each["vm"]), mode=str(each["mode"]), reason=str(each.get("reason") or "")))
    holders, no_census = state.get("holders"), str(state.get("no_census") or "")
    calls = [vm.calls_per_s for vm in vms if vm.calls_per_s is not None]
    shares = [vm.host_share for vm in vms if vm.host_share is not None]
    return Reading(
        time_ns=time_ns,
        host=str(state["host"]),
        kernel=str(state["kernel"]),
        version=str(state["version"]),
        mode=str(state["mode"]),
        missing=str(state["missing"]),
        since_ns=int(state["since_ns"]),
        lost=sum(map(int, state["lost"].values())),
        all_vms=int(state["all_vms"]),
        all_events=int(state["all_events"]),
        all_failed=int(state["all_failed"]),
        all_divergences=int(state["all_divergences"]),
        all_starved=_maybe(int, state.get("all_starved")),
        is_failing=bool(state.get("all_starving")) or any(vm.all_failing for vm in vms),
        vms=vms,
        all_untraced=int(state.get("all_untraced", 0)),
        no_census=no_census,
        holders=None if holders is None else [_holder(each) for each in holders],
        no_holders=str(state.get("no_holders") or ""),
        all_holders=int(state.get("all_holders") or len(holders or ())),
        nmi_watchdog=state.get("nmi_watchdog") is True,
        calls_per_s=sum(calls) if calls else None,
        host_share=sum(shares) if shares else None,
        interval_s=passed_s,
        state=state,
    )


def _vm(vm: Mapping[str, Any], diverging: Sequence[DivergingLine], failures: Sequence[FailureLine]) -> VmLine:
    counters = vm.get("counters")
    return VmLine(
        vm=str(vm["vm"]),
        uuid=str(vm["uuid"]),
        vmm=str(vm["vmm"]),
        pid=int(vm["pid"]),
        events=int(vm["events"]),
        failed=int(vm["failed"]),
        divergences=int(vm["divergences"]),
        calls=int(vm["calls"]),
        host_ns=_maybe(int, vm["host_ns"]),
        host_share=_maybe(float, vm["host_share"]),
        counters=None if counters is None else {str(key): int(count) for key, count in counters.items()},
        running=_maybe(float, vm.get("running")),
        starved=str(vm.get("starved") or ""),
        reset=str(vm.get("reset") or ""),
        diverging=diverging,
        failures=failures,
    )


def _with_rates(vm: VmLine, past: VmLine | None, passed_s: float | None, *, is_same: bool) -> VmLine:
    """Return the VM with what it did since the reading before; counts that went down began again."""
    if past is None or not passed_s or passed_s < 0:
        return vm
    if is_same:
        return replace(vm, calls_per_s=past.calls_per_s, host_share=past.host_share)
    calls = vm.calls - past.calls
    if calls < 0:
        return replace(vm, host_share=None)
    share = None
    if vm.host_ns is not None and past.host_ns is not None and vm.host_ns >= past.host_ns:
        share = (vm.host_ns - past.host_ns) / (passed_s * 1e9)
    return replace(vm, calls_per_s=calls / passed_s, host_share=share)


def _failure(failure: Mapping[str, Any]) -> FailureLine:
    return FailureLine(
        vcpu=int(failure["vcpu"]),
        pmc=str(failure["pmc"]),
        event=str(failure["event_name"] or failure["event"]),
        errno=str(failure["errno"]),
        cause=str(failure["cause"]),
        count=int(failure["count"]),
    )


def _holder(holder: Mapping[str, Any]) -> HolderLine:
    return HolderLine(
        comm=str(holder["comm"]),
        pid=int(holder["pid"]),
        events=int(holder["events"]),
        pinned=int(holder["pinned"]),
        failed=int(holder["failed"]),
        cpus=[int(cpu) for cpu in holder["cpus"]],
    )


def _counter(counter: Mapping[str, Any]) -> CounterLine:
    return CounterLine(
        vcpu=int(counter["vcpu"]),
        pmc=str(counter["pmc"]),
        status=str(counter["status"]),
        event=named_text(_maybe(str, counter.get("event_name")), str(counter.get("event") or "")),
        events=_maybe(int, counter.get("events")),
        size=_maybe(int, counter.get("size")),
        cpu=_maybe(int, counter.get("cpu")),
        running=_maybe(float, counter.get("running")),
        errno=int(counter.get("errno") or 0),
        outlived_reset=bool(counter.get("outlived_reset")),
    )


def _maybe(kind: type[Any], value: Any) -> Any:
    return None if value is None else kind(value)
