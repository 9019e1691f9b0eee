"""What `list` prints: every VM and counter of a census, and who else uses the host's PMU."""

from __future__ import annotations

import textwrap
from collections import Counter as Tally
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vpmu_agent.counts.counters import Counter
from vpmu_agent.counts.guests import Found
from vpmu_agent.counts.starvation import WATCHDOG, sentence
from vpmu_agent.model.call import PmcType
from vpmu_agent.model.counter_status import CounterStatus, EventState, failing
from vpmu_agent.system.stdout import Style
from vpmu_agent.text import errno_name, named_text, precise_text, ranges, selected_name, selected_text
from vpmu_agent.trace.call_json import SCHEMA, dumps
from vpmu_agent.vms.modes import Mode, Pmu, reason

WIDTH = 80
"""Columns that the text is made for. Names are not cut, so that they can be searched for."""

_COLUMNS = "{:>4} {:6} {:11} {:{}} {:>7} {:>4} {}"
_HOLDER = "{:>7} {:15} {:>6} {:>6} {:>8}  {}"


@dataclass(frozen=True, slots=True)
class Listing:
    """A census, as far as it shall be printed."""

    found: Found
    vms: Sequence[str]
    """Which VMs."""
    nmi_watchdog: bool | None
    """Whether the NMI watchdog runs; None if that is not known."""
    vendor: str
    """The CPU's, as in event_names.py."""
    with_idle: bool = False
    """Whether to print idle counters too."""

    @property
    def is_failing(self) -> bool:
        """Whether a guest is told wrong numbers."""
        lbr = (event for vm in self.vms for event in self.found.counters[vm].guest_lbr)
        return failing(self.statuses()) > 0 or any(event.status.is_failing for event in lbr)

    def statuses(self) -> Tally[CounterStatus]:
        """Return how many counters there are of each status."""
        total: Tally[CounterStatus] = Tally()
        for vm in self.vms:
            total.update(self.found.counters[vm].statuses)
        return +total

    def starved(self, vm: str) -> str:
        """Return the sentence on a VM's starved counters, "" if it has none."""
        return sentence(vm, self.found, nmi_watchdog=self.nmi_watchdog)


def listing_json(listing: Listing) -> Iterator[str]:
    """Yield an object for each VM and each of its counters, for each holder, and one for the host."""
    for vm in listing.vms:
        yield _vm_json(listing, vm)
        for vcpu, pmc, counter in _counters(listing, vm):
            yield _counter_json(listing, vm, vcpu, pmc, counter)
    for holder in listing.found.holders:
        yield dumps(
            {
                "schema": SCHEMA,
                "kind": "holder",
                "pid": holder.tgid,
                "comm": holder.comm,
                "events": holder.events,
                "pinned": holder.pinned,
                "failed": holder.failed,
                "cpus": list(holder.cpus),
            }
        )
    yield dumps(
        {
            "schema": SCHEMA,
            "kind": "host",
            "vms": len(listing.vms),
            "statuses": _by_name(listing.statuses()),
            "nmi_watchdog": listing.nmi_watchdog,
            "holders_unknown": listing.found.no_holders or None,
        }
    )


def listing_text(listing: Listing, style: Style) -> Iterator[str]:
    """Yield a table of the counters, a line for each VM without one, and who else uses the host's PMU."""
    width = max([10, *map(len, listing.vms)])
    counters = {vm: list(_counters(listing, vm)) for vm in listing.vms}
    shown = [counter for of_vm in counters.values() for _, _, counter in of_vm if counter]
    event_width = max([12, *(len(_event(counter, listing.vendor)) for counter in shown)])
    if any(counters.values()):
        heading = _COLUMNS.format("VCPU", "PMC", "STATUS", "EVENT", event_width, "RUNNING", "CPU", "NOTE")
        yield style(f"{'VM':{width}} {heading}", bold=True)
    for vm, of_vm in counters.items():
        for vcpu, pmc, counter in of_vm:
            line = _counter_text(vcpu, pmc, counter, listing.vendor, event_width, style)
            yield f"{vm:{width}} {line}"
    others = [vm for vm, of_vm in counters.items() if not of_vm]
    if others and any(counters.values()):
        yield ""
    for vm in others:
        yield from _wrapped(f"{vm:{width}} {_vm_text(listing, vm)}", " " * (width + 1))
    if listing.vms:
        counts = ", ".join(f"{count} {status}" for status, count in _by_name(listing.statuses()).items())
        yield ""
        yield from _wrapped(f"{_count(len(listing.vms), 'VM')}; counters: {counts or 'none'}.", "  ")
        if any(counter.status is CounterStatus.DENIED and not counter.errno for counter in shown):
            yield "Why a counter was denied an event: `vpmu-agent trace` shows that as it happens."
    else:
        yield "No VMs were found."
    yield ""
    yield from _holders_text(listing, style)
    sentences = [said for vm in listing.vms if (said := listing.starved(vm))]
    if sentences:
        yield ""
    for said in sentences:
        for line in _wrapped(f"{said}.", "  "):
            yield style(line, fg="red")


def _counters(listing: Listing, vm: str) -> Iterator[tuple[int, str, Counter | None]]:
    """Yield the counters of a VM that shall be printed, and its guest's LBR.

    None stands for a counter that its guest never set up.
    """
    yield from _pmcs(listing, vm)
    for event in listing.found.counters[vm].guest_lbr:
        yield event.vcpu, event.pmc, event


def _pmcs(listing: Listing, vm: str) -> Iterator[tuple[int, str, Counter | None]]:
    counters = listing.found.counters[vm]
    if not listing.with_idle:
        for counter in counters.counters:
            if counter.status is not CounterStatus.IDLE:
                yield counter.vcpu, counter.pmc, counter
        return
    left = list(counters.counters)
    for vcpu, gp, fixed in counters.by_vcpu:
        names = [f"{PmcType.GP}{i}" for i in range(gp)] + [f"{PmcType.FIXED}{i}" for i in range(fixed)]
        for name in names:
            known = next((each for each in left if (each.vcpu, each.pmc) == (vcpu, name)), None)
            if known is not None:
                left.remove(known)
            yield vcpu, name, known


def _by_name(statuses: Tally[CounterStatus]) -> dict[str, int]:
    """Return them in the order of CounterStatus, without those that there are none of."""
    return {status.value: statuses[status] for status in CounterStatus if statuses[status]}


# JSON


def _vm_json(listing: Listing, vm: str) -> str:
    counters = listing.found.counters[vm]
    return dumps(
        {
            "schema": SCHEMA,
            "kind": "vm",
            "vm": vm,
            "tgid": listing.found.tgids[vm],
            "pmus": [{"mode": pmu.mode, "reason": pmu.why} for pmu in listing.found.pmus[vm]],
            "vcpus": counters.vcpus,
            "pmu_version": counters.pmu_version,
            "gp": counters.gp,
            "fixed": counters.fixed,
            "event_filter": counters.has_filter,
            "statuses": _by_name(counters.statuses),
            "running": counters.running,
            "starved": listing.starved(vm) or None,
        }
    )


def _counter_json(listing: Listing, vm: str, vcpu: int, pmc: str, counter: Counter | None) -> str:
    return dumps(
        {
            "schema": SCHEMA,
            "kind": "counter",
            "vm": vm,
            "tgid": listing.found.tgids[vm],
            "vcpu": vcpu,
            "pmc": pmc,
            "status": counter.status if counter else CounterStatus.IDLE,
            "failing": bool(counter and counter.status.is_failing),
            "control": counter.control if counter else None,
            "event": _code(counter) if counter and (counter.control or pmc == PmcType.LBR) else None,
            "event_name": selected_name(pmc, counter.control, listing.vendor) if counter else None,
            "config": counter.config if counter else None,
            "group_size": counter.size if counter else None,
            "events": [
                {"state": event.state, "enabled_ns": event.enabled_ns, "running_ns": event.running_ns}
                for event in (counter.events if counter else ())
            ],
            "running": counter.running if counter else None,
            "cpu": counter.cpu if counter else None,
            "errno": errno_name(counter.errno) if counter and counter.errno else None,
            "outlived_reset": (counter.outlived_reset or None) if counter else None,
        }
    )


# Text


def _event(counter: Counter, vendor: str) -> str:
    """Return what the guest asked for, by name where it has one."""
    name = selected_name(counter.pmc, counter.control, vendor)
    return named_text(name, _code(counter))


def _code(counter: Counter) -> str:
    return selected_text(counter.pmc, counter.control, counter.precise_ip)


def _counter_text(
    vcpu: int, pmc: str, counter: Counter | None, vendor: str, event_width: int, style: Style
) -> str:
    status = counter.status if counter else CounterStatus.IDLE
    shown = f"{status:11}"
    if status.is_failing:
        shown = style(shown, fg="red", bold=True)
    elif status is CounterStatus.COUNTING:
        shown = style(shown, fg="green")
    if counter is None:
        return _COLUMNS.format(vcpu, pmc, shown, "-", event_width, "-", "-", "").rstrip()
    running = "-" if counter.running is None else f"{counter.running * 100:.0f} %"
    cpu = "-" if counter.cpu is None else counter.cpu
    event = _event(counter, vendor)
    return _COLUMNS.format(vcpu, pmc, shown, event, event_width, running, cpu, _note(counter)).rstrip()


def _note(counter: Counter) -> str:
    """Return what stands behind the status, where the other columns do not say it."""
    if counter.status is CounterStatus.DENIED:
        return errno_name(counter.errno) if counter.errno else "no event"
    notes = ["guest LBR"] if counter.pmc == PmcType.LBR else []
    if counter.size > 1 and counter.events:
        notes.append(f"{len(counter.events)} of {counter.size} events")
    if any(event.state == EventState.ERROR for event in counter.events):
        notes.append("in error")
    if counter.status is CounterStatus.ORPHANED:
        notes.append("KVM has forgotten an event")
    if counter.outlived_reset:
        notes.append("outlived a reset")
    if counter.precise_ip:
        notes.append(precise_text(counter.precise_ip))
    return ", ".join(notes)


def _vm_text(listing: Listing, vm: str) -> str:
    """Return the line of a VM that none of the printed counters is of."""
    counters = listing.found.counters[vm]
    said = [_count(counters.vcpus, "vCPU")]
    if idle := counters.statuses[CounterStatus.IDLE]:
        said.append(_count(idle, "idle counter"))
    return ", ".join([*said, _pmus_text(listing.found.pmus[vm])])


def _pmus_text(pmus: Sequence[Pmu]) -> str:
    """Return the mode of a VM, of each if a process has several that differ."""
    return " and ".join(f"off: {reason(pmu)}" if pmu.mode is Mode.OFF else str(pmu.mode) for pmu in pmus)


def _holders_text(listing: Listing, style: Style) -> Iterator[str]:
    """Yield who else has events on the host's PMU."""
    found = listing.found
    if found.holders:
        yield style("Processes with events on the host's PMU:", bold=True)
        yield style(_HOLDER.format("PID", "COMMAND", "EVENTS", "PINNED", "IN ERROR", "CPUS"), bold=True)
        for holder in found.holders:
            yield _HOLDER.format(
                holder.tgid, holder.comm, holder.events, holder.pinned, holder.failed, ranges(holder.cpus)
            ).rstrip()
    elif found.no_holders:
        yield from _wrapped(f"Who else uses the host's PMU is not known: {found.no_holders}.", "  ")
    else:
        yield "No process has events on the host's PMU."
    match listing.nmi_watchdog:
        case True:
            yield f"{WATCHDOG[0].upper()}{WATCHDOG[1:]} has a pinned event on each CPU."
        case None:
            yield f"Whether {WATCHDOG} runs, which has an event on each CPU, is not known."


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
