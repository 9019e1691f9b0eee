"""Readings as lines of a table, for the screen and for `--once` alike.

A line is a list of parts: a text, and how it looks, by a name of LOOKS. No line says by its look alone what
matters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vpmu_agent.text import duration_text, errno_name, ranges
from vpmu_agent.top.reading import CounterLine, Reading, VmLine, is_failing

Look = Literal["", "bold", "bad", "sorted"]
Part = tuple[Look, str]
Line = list[Part]

MIN_WIDTH = 80
"""Columns that a table takes at least; a narrower terminal shows the left of it."""

UNKNOWN = "unknown"
_NONE = "-"


@dataclass(frozen=True, slots=True)
class Sort:
    """An order of VMs, and the key that asks for it."""

    key: str
    name: str
    heading: str
    value: Callable[[VmLine], tuple[float | str, ...]]
    ascending: bool = False


SORTS = (
    Sort("t", "tax", "TAX %", lambda vm: (_rank(vm.host_share), _rank(vm.host_ns), float(vm.calls))),
    Sort("c", "calls", "CALLS/S", lambda vm: (_rank(vm.calls_per_s), float(vm.calls))),
    Sort("e", "events", "EVENTS", lambda vm: (float(vm.events),)),
    Sort("s", "failing counters", "COUNTERS", lambda vm: (float(vm.all_failing), -_rank(vm.running))),
    Sort("f", "failed creations", "FAILED", lambda vm: (float(vm.failed),)),
    Sort("d", "divergences", "DIVERG", lambda vm: (float(vm.divergences),)),
    Sort("n", "name", "VM", lambda vm: (vm.vm,), ascending=True),
)


def _rank(value: float | None) -> float:
    return -1.0 if value is None else float(value)


def ordered(vms: Sequence[VmLine], sort: Sort, *, backwards: bool = False) -> list[VmLine]:
    """Return the VMs in an order; those that are equal in it by name, those without a vPMU last."""
    by_name = sorted(vms, key=lambda vm: vm.vm)
    found = sorted(by_name, key=sort.value, reverse=sort.ascending == backwards)
    return sorted(found, key=lambda vm: not vm.is_traced)


# Of the whole host


def title(reading: Reading, source: str) -> Line:
    """Return who is shown, and who says so."""
    at = time.strftime("%H:%M:%S", time.localtime(reading.time_ns / 1e9))
    return [("bold", f"{reading.host}"), ("", f"  Linux {reading.kernel}  {at}  {source}")]


def totals(reading: Reading) -> Line:
    """Return the sums over all VMs."""
    line: Line = [("", f"{_count(reading.all_vms + reading.all_untraced, 'VM')}, ")]
    line.append(("", f"{_count(reading.all_events, 'event')}, "))
    if reading.all_starved is None:
        line.append(("", f"starved {UNKNOWN}"))
    else:
        line.append(("bad" if reading.all_starved else "", f"starved {reading.all_starved}"))
    line += [("", ", "), ("bad" if reading.all_failed else "", f"failed {reading.all_failed}")]
    line += [("", ", "), ("bad" if reading.all_divergences else "", f"diverged {reading.all_divergences}")]
    tax = _NONE if reading.host_share is None else share_text(reading.host_share)
    line.append(("", f", tax {tax} %, {rate_text(reading.calls_per_s)} calls/s"))
    return line


def warnings(reading: Reading) -> list[Line]:
    """Return why not all is known, a line for each reason."""
    lines: list[Line] = []
    if reading.missing:
        lines.append([("bad", f"no probes are attached: {reading.missing}")])
    if reading.no_census:
        lines.append([("bad", f"there is no census: {reading.no_census}")])
    if reading.lost:
        lines.append([("bad", f"{_count(reading.lost, 'record')} lost: the counts are incomplete")])
    listed = len(reading.vms)
    if (all_vms := reading.all_vms + reading.all_untraced) > listed:
        lines.append([("", f"{listed} of {all_vms} VMs are shown, those with the most tax")])
    return lines


# VMs


@dataclass(frozen=True, slots=True)
class _Column:
    heading: str
    width: int
    cell: Callable[[VmLine], Part]
    is_text: bool = False


def vm_table(
    vms: Sequence[VmLine], width: int | None, sort: Sort | None = None
) -> tuple[Line, list[tuple[VmLine, Line]]]:
    """Return the heading and a line for each VM.

    For `width` columns names that are too long are cut at their front, since numbered ones differ at their
    end; with None they stay whole.
    """
    columns = _vm_columns(vms, width)
    heading: Line = []
    for column in columns:
        look: Look = "sorted" if sort and column.heading == sort.heading else "bold"
        padding = " " * (column.width - len(column.heading))
        text = (look, column.heading)
        heading += [text, ("", padding)] if column.is_text else [("", padding), text]
        heading.append(("", " "))
    return heading, [(vm, _joined(columns, vm)) for vm in vms]


def _joined(columns: Sequence[_Column], vm: VmLine) -> Line:
    line: Line = []
    for column in columns:
        look, text = column.cell(vm)
        if len(text) > column.width:
            text = _cut(text, column.width, at_front=column.heading == "VM")
        line += [(look, f"{text:{'<' if column.is_text else '>'}{column.width}}"), ("", " ")]
    return line


def _vm_columns(vms: Sequence[VmLine], width: int | None) -> list[_Column]:
    columns = [
        _Column("TAX %", 6, lambda vm: ("", _NONE if vm.host_share is None else share_text(vm.host_share))),
        _Column("CALLS/S", 7, lambda vm: ("", rate_text(vm.calls_per_s))),
        _Column("EVENTS", 6, lambda vm: ("", str(vm.events) if vm.is_traced else _NONE)),
        _Column("COUNTERS", 22, _counters_part, is_text=True),
        _Column("RUN %", 5, lambda vm: ("", running_text(vm.running))),
        _Column("FAILED", 6, lambda vm: _bad_if(vm.failed, vm)),
        _Column("DIVERG", 6, lambda vm: _bad_if(vm.divergences, vm)),
    ]
    if width is None or width >= 100:
        columns.append(_Column("HOST TIME", 9, lambda vm: ("", _host_time(vm))))
        columns.append(_Column("PID", 8, lambda vm: ("", _NONE if vm.pid is None else str(vm.pid))))
    fixed = sum(column.width + 1 for column in columns)
    longest = max([len(vm.vm) for vm in vms], default=2)
    if width is None:
        vm_width, more = max(2, longest), max([len(_counters_part(vm)[1]) for vm in vms], default=0)
        more = max(0, more - 22)
    else:
        left = max(MIN_WIDTH, width) - fixed - 1
        vm_width = min(left, max(14, min(longest, left - 8)))
        more = left - vm_width
    columns[3] = _Column("COUNTERS", 22 + more, _counters_part, is_text=True)
    return [_Column("VM", vm_width, lambda vm: ("", vm.vm), is_text=True), *columns]


def _bad_if(count: int, vm: VmLine) -> Part:
    if not vm.is_traced:
        return "", _NONE
    return "bad" if count else "", str(count)


def _counters_part(vm: VmLine) -> Part:
    if not vm.is_traced:
        return "", f"vPMU {vm.mode}" + (f": {vm.reason}" if vm.reason else "")
    if vm.counters is None:
        return "", UNKNOWN
    return "bad" if vm.all_failing else "", statuses_text(vm.counters)


def _host_time(vm: VmLine) -> str:
    return _NONE if vm.host_ns is None else duration_text(vm.host_ns)


# One VM


def vm_title(vm: VmLine) -> Line:
    """Return who the VM is."""
    about = [f"{vm.vmm or 'VM'} pid {vm.pid}"] if vm.pid else []
    about += [vm.uuid] if vm.uuid else []
    return [("bold", vm.vm), ("", f"  {'  '.join(about)}")]


def counter_table(counters: Sequence[CounterLine]) -> tuple[Line, list[Line]]:
    """Return the heading and the lines of a VM's counters, under a line for each vCPU."""
    heading: Line = [("bold", _COUNTER.format("PMC", "STATUS", "EVENT", "EVENTS", "RUN %", "ERRNO").rstrip())]
    lines: list[Line] = []
    by_vcpu: dict[int, list[CounterLine]] = {}
    for counter in counters:
        by_vcpu.setdefault(counter.vcpu, []).append(counter)
    for vcpu, of_vcpu in sorted(by_vcpu.items()):
        statuses: dict[str, int] = {}
        for counter in of_vcpu:
            statuses[counter.status] = statuses.get(counter.status, 0) + 1
        cpus = sorted({counter.cpu for counter in of_vcpu if counter.cpu is not None})
        where = f" on CPU {ranges(cpus)}" if cpus else ""
        lines.append([("bold", f"vCPU {vcpu}"), ("", f"{where}: {statuses_text(statuses)}")])
        lines += [_counter_line(counter) for counter in of_vcpu]
    return heading, lines


_COUNTER = "  {:8} {:11} {:25} {:>6} {:>6} {}"


def _counter_line(counter: CounterLine) -> Line:
    events = _NONE if counter.events is None else f"{counter.events}"
    if counter.events is not None and counter.size is not None:
        events += f"/{counter.size}"
    text = _COUNTER.format(
        counter.pmc,
        counter.status,
        counter.event or _NONE,
        events,
        running_text(counter.running),
        errno_name(counter.errno) if counter.errno else "outlived a reset" if counter.outlived_reset else "",
    )
    return [("bad" if is_failing(counter.status) else "", text.rstrip())]


def trouble(vm: VmLine) -> list[Line]:
    """Return how counters of a VM diverged, and which creations failed, a line for each."""
    lines: list[Line] = []
    for each in vm.diverging:
        which = "" if each.pmc is None else f"vCPU {each.vcpu} {each.pmc} "
        lines.append([("bad", f"{which}diverged: {each.kind}, {_times(each.count)}")])
    for failure in vm.failures:
        which = f"vCPU {failure.vcpu} " if failure.vcpu >= 0 else ""
        what = f"{which}{failure.pmc} {failure.event}: {failure.errno}, {_times(failure.count)}: "
        lines.append([("bad", f"{what}{failure.cause}")])
    return lines


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


# Who else uses the host's PMU


def holder_table(reading: Reading) -> tuple[Line, list[Line]]:
    """Return the heading and a line for each process with events on the host's PMU; none if it has none.

    The NMI watchdog, which is no process, comes last.
    """
    heading: Line = [("bold", _HOLDER.format("HOST PMU HELD BY", "PID", "EVENTS", "PINNED", "ERROR", "CPUS"))]
    lines: list[Line] = []
    for holder in reading.holders or ():
        text = _HOLDER.format(
            _cut(holder.comm, 24),
            holder.pid,
            holder.events,
            holder.pinned,
            holder.failed,
            ranges(holder.cpus),
        )
        lines.append([("", text)])
    if reading.nmi_watchdog:
        lines.append([("", _HOLDER.format("the NMI watchdog", _NONE, 1, 1, 0, "each"))])
    return heading, lines


def no_holders(reading: Reading) -> str:
    """Return what to write in place of an empty table of holders."""
    if reading.holders is None:
        why = f": {reading.no_holders}" if reading.no_holders else ""
        return f"Who else has events on the host's PMU is unknown{why}."
    return "No process has events on the host's PMU."


_HOLDER = "{:24} {:>8} {:>7} {:>7} {:>6}  {}"


# Words


def statuses_text(statuses: Mapping[str, int]) -> str:
    """Return `2 starved, 2 counting`: those that fail first; idle ones only if there are no others."""
    found = {status: count for status, count in statuses.items() if count}
    shown = {status: count for status, count in found.items() if status != "idle"} or found
    names = sorted(shown, key=lambda status: (not is_failing(status), -shown[status], status))
    return ", ".join(f"{shown[name]} {name}" for name in names) or "none"


def share_text(share: float) -> str:
    """Return a share as a percentage, without the sign: `12.3`; `<0.1` for what is more than nothing."""
    percent = share * 100
    return "<0.1" if 0 < percent < 0.05 else f"{percent:.1f}"


def rate_text(rate: float | None) -> str:
    """Return a number of things in a second; `-` if it is not known."""
    if rate is None:
        return _NONE
    if rate >= 999_950:
        return f"{rate / 1e6:.1f}M"
    if rate >= 99_950:
        return f"{rate / 1e3:.0f}k"
    return f"{rate:.0f}" if rate >= 9.95 or rate == 0 else f"{rate:.1f}"


def running_text(running: float | None) -> str:
    """Return a running ratio as a percentage, without the sign; only what ran all the time has 100."""
    return _NONE if running is None else str(int(running * 100))


def _cut(text: str, width: int, *, at_front: bool = False) -> str:
    if len(text) <= width:
        return text
    return f"…{text[1 - width :]}" if at_front else f"{text[: width - 1]}…"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
