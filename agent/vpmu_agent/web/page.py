"""The page that a person opens, made from a state. Its script fetches it again and replaces what differs.

All of it is in one answer, and it may load and run nothing else: VMs choose their names.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from string import Template

from vpmu_agent.model.call import Call, CallName
from vpmu_agent.model.counter_status import MIN_RUNNING, CounterStatus
from vpmu_agent.model.create_errors import cause
from vpmu_agent.model.verdict import Observation
from vpmu_agent.text import attr_text, duration_text, errno_name, event_text
from vpmu_agent.vms.modes import Mode, Pmu, Why, sentence, untraced
from vpmu_agent.web.state import Diverging, Failing, HolderState, HostState, Leaked, Starving, VmState

SHOWN = 20
"""How many of the last divergences and failures the page has; the JSON has all that are kept."""


def html(state: HostState) -> str:
    """Return the whole page, as HTML."""
    return _PAGE.substitute(
        css=_CSS,
        script=_SCRIPT,
        host=escape(state.host),
        kernel=escape(state.kernel),
        version=escape(state.version),
        time=f"As of {_time(state.time_ns)}",
        state=_attached(state) + _lost(state),
        totals=_totals(state),
        vms=_vms(state) + _untraced(state),
        starving=_starving(state),
        holders=_holders(state),
        leaked=_leaked(state),
        diverging=_diverging(state),
        last=_last(state),
    )


def observed(observation: Observation) -> str:
    """Return what was seen, in the notation of `Verdict.expected`; `?` stands for an unknown event."""
    call, verdict = observation
    event = "?" if verdict.event is None else verdict.event
    if call.name is CallName.CREATE:
        leader: int | str | None = verdict.leader
        if leader is None and call.leader:
            leader = "?"
        seen = f"create(event={event}, leader={leader}, disabled={int(call.attr.disabled)})"
    else:
        seen = f"{call.name}(event={event})"
    return f"{seen} failed with {errno_name(-call.result)}" if call.result else seen


def _source(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


_FILES = files("vpmu_agent.web") / "static"
_PAGE = Template((_FILES / "page.html").read_text())
_CSS, _SCRIPT = (_FILES / "page.css").read_text(), (_FILES / "page.js").read_text()

HEADERS = [
    ("Content-Type", "text/html; charset=utf-8"),
    ("Cache-Control", "no-store"),
    ("Referrer-Policy", "no-referrer"),
    (
        "Content-Security-Policy",
        f"default-src 'none'; style-src {_source(_CSS)}; script-src {_source(_SCRIPT)}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
]
"""What the page is sent with."""


def _attached(state: HostState) -> str:
    since = f"since {_time(state.since_ns)} ({_ago(state.time_ns - state.since_ns)})"
    if state.missing:
        return (
            f'<p><strong class="bad">● Not watching</strong> {since}: {escape(state.missing)}</p>'
            '<p class="quiet">Counts from before are still shown below.</p>'
        )
    functions = ", ".join(f"<code>{escape(name)}</code>" for name in state.functions)
    return (
        f'<p><strong class="good">● Watching</strong> {since}: '
        f"{escape(state.mode)} probes on {len(state.functions)} functions</p>"
        f'<p class="quiet">{functions}</p>'
    )


def _lost(state: HostState) -> str:
    if not state.lost:
        return '<p class="quiet">No records were lost.</p>'
    reasons = ", ".join(f"{escape(reason)} {_number(count)}" for reason, count in state.lost.items())
    return f'<p class="warn">Records were lost: {reasons}. Counts may be incomplete.</p>'


def _totals(state: HostState) -> str:
    tiles = (
        ("VMs", _number(state.all_vms), ""),
        ("Host events held", _number(state.all_events), ""),
        ("Tax", _tax(state.all_host_ns), _now(state.all_host_share)),
        ("Starved counters", "?" if state.all_starved is None else _alarming(state.all_starved), ""),
        ("Divergences", _alarming(state.all_divergences), ""),
        ("Failed creations", _alarming(state.all_failed), ""),
    )
    return f'<dl class="totals">{"".join(_tile(name, value, more) for name, value, more in tiles)}</dl>'


def _tile(name: str, value: str, more: str) -> str:
    below = f'<dd class="quiet">{more}</dd>' if more else ""
    return f"<div><dt>{name}</dt><dd>{value}</dd>{below}</div>"


def _vms(state: HostState) -> str:
    if not state.vms:
        return _NO_VMS
    heads = {
        "VM": "",
        # There is no room for both on a telephone.
        "Groups": "" if state.no_census else "wide",
        "Counters": "wide" if state.no_census else "",
        "Calls": "number wide",
        "Failed": "number wide",
        "Diverged": "number",
        "Tax": "number",
    }
    left_out = state.all_vms - len(state.vms)
    tax, less = "Tax is the host time spent in a VM's vPMU calls: in total, and per second now.", "less tax"
    if state.all_host_ns is None:
        tax, less = "Tax is not measured: the agent runs with --no-durations.", "fewer calls"
    more = f"{_number(left_out)} more VMs with {less}; the metrics include them all. " if left_out else ""
    return f'{_table(heads, rows=[_vm(vm, state) for vm in state.vms])}<p class="quiet">{more}{tax}</p>'


def _untraced(state: HostState) -> str:
    pmus = [
        (each.vm, Pmu(Mode(each.mode), Why(each.reason) if each.reason else None)) for each in state.untraced
    ]
    left_out = state.all_untraced - len(state.untraced)
    more = f'<p class="quiet">{_number(left_out)} more VMs have nothing to trace.</p>' if left_out else ""
    reasons = [escape(sentence(vms, pmu)) for pmu, vms in untraced(pmus).items()]
    return "".join(f'<p class="quiet">{reason}.</p>' for reason in reasons) + more


_NO_VMS = """
<p>No VM has used its PMU yet.</p>
<p class="quiet">Count something in a guest, for example with <code>perf stat true</code>. If perf says that
the events are not supported, the VM has no PMU; QEMU provides one with <code>-cpu host,pmu=on</code>.</p>
"""


_WIDE = ' class="wide"'


def _vm(vm: VmState, state: HostState) -> str:
    groups = ", ".join(f"{count} {escape(state)}" for state, count in vm.groups.items()) or "none"
    orphans = f', <span class="warn">{_number(vm.orphans)} orphaned</span>' if vm.orphans else ""
    groups_class, counters_class = ("", _WIDE) if state.no_census else (_WIDE, "")
    return (
        f'<th scope="row">{escape(vm.vm)}<span class="quiet">{escape(vm.vmm)}, pid {vm.pid}</span></th>'
        f'<td{groups_class}>{groups}<span class="quiet">{_count(vm.events, "event")}{orphans}</span></td>'
        f"<td{counters_class}>{_counters(vm)}</td>"
        f'<td class="number wide">{_number(vm.calls)}</td>'
        f'<td class="number wide">{_alarming(vm.failed)}</td>'
        f'<td class="number">{_alarming(vm.divergences)}</td>'
        f'<td class="number">{_tax(vm.host_ns)}<span class="quiet">{_now(vm.host_share)}</span></td>'
    )


def _counters(vm: VmState) -> str:
    """Return how many counters have each status; idle ones only if there are no others."""
    if vm.counters is None:
        return "?"
    used = {status: count for status, count in vm.counters.items() if status != CounterStatus.IDLE}
    said = ", ".join(_status(status, count) for status, count in (used or vm.counters).items()) or "none"
    if vm.running is None or vm.running > MIN_RUNNING:
        return said
    return f'{said}<span class="quiet">running {_percent(vm.running)} of the time</span>'


def _status(status: str, count: int) -> str:
    css = "status bad" if CounterStatus(status).is_failing else "status"
    return f'<span class="{css}">{_number(count)} {escape(status)}</span>'


def _starving(state: HostState) -> str:
    if state.no_census:
        return f'<p class="warn">Not known: {escape(state.no_census)}.</p>'
    resets = "".join(f'<p class="warn">{escape(said)}.</p>' for said in state.resets)
    if not state.starving:
        return f"<p>None: the host's PMU has room for every counter that a guest has enabled.</p>{resets}"
    left_out = state.all_starving - len(state.starving)
    more = f'<p class="quiet">{_number(left_out)} more VMs with fewer.</p>' if left_out else ""
    table = _table({"VM": "", "What its counters lack": ""}, rows=map(_starving_row, state.starving))
    return table + more + resets


def _starving_row(each: Starving) -> str:
    said = each.sentence.removeprefix(f"{each.vm}: ")
    return f'<th scope="row">{escape(each.vm)}</th><td>{escape(said)}</td>'


def _holders(state: HostState) -> str:
    if state.holders is None or state.all_holders is None:
        return f'<p class="warn">Not known: {escape(state.no_holders)}.</p>'
    rows = list(map(_holder_row, state.holders))
    if state.nmi_watchdog:
        rows.append(_holder_cells("NMI watchdog", "the kernel's", "1 a CPU", "1 a CPU", "all", "?"))
    left_out = state.all_holders - len(state.holders)
    more = f'<p class="quiet">{_number(left_out)} more with fewer events.</p>' if left_out else ""
    heads = {
        "Owner": "",
        "Events": "number",
        "Pinned": "number",
        "CPUs": "wide",
        "Without room": "number wide",
    }
    return (_table(heads, rows) if rows else "<p>Nobody but KVM.</p>") + more


def _holder_row(each: HolderState) -> str:
    return _holder_cells(
        each.comm,
        f"pid {each.pid}",
        _number(each.events),
        _number(each.pinned),
        _ranges(each.cpus) or "-",
        _number(each.failed),
    )


def _holder_cells(owner: str, who: str, events: str, pinned: str, cpus: str, failed: str) -> str:
    return (
        f'<th scope="row">{escape(owner)}<span class="quiet">{who}</span></th>'
        f'<td class="number">{events}</td><td class="number">{pinned}</td>'
        f'<td class="wide">{cpus}</td><td class="number wide">{failed}</td>'
    )


def _ranges(numbers: Sequence[int]) -> str:
    """Return numbers, which are in order, as the kernel writes lists of CPUs: 0-3,8."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1] = ranges[-1][0], number
        else:
            ranges.append((number, number))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def _percent(ratio: float) -> str:
    """Return a ratio in percent, rounded down: 100 % is all of it."""
    return f"{int(100 * ratio)} %"


def _leaked(state: HostState) -> str:
    if state.all_leaked is None:
        return f'<p class="warn">Not known: {escape(state.no_census)}.</p>'
    if not state.leaked:
        return "<p>None: KVM holds every event that it made for a counter, or has released it.</p>"
    left_out = state.all_leaked - len(state.leaked)
    more = f'<p class="quiet">{_number(left_out)} more that are younger.</p>' if left_out else ""
    return _table({"VM": "", "What KVM has leaked": ""}, rows=map(_leaked_row, state.leaked)) + more


def _leaked_row(each: Leaked) -> str:
    said = each.sentence.removeprefix(f"{each.vm}, ")
    return f'<th scope="row">{escape(each.vm)}</th><td>{escape(said)}</td>'


def _diverging(state: HostState) -> str:
    if not state.diverging:
        return "<p>None: KVM behaved as the model predicted, or could not be judged.</p>"
    left_out = state.all_diverging - len(state.diverging)
    more = f'<p class="quiet">{_number(left_out)} more with smaller counts.</p>' if left_out else ""
    heads = {"VM": "", "vCPU": "number", "Counter": "", "Kind": "", "Count": "number"}
    return _table(heads, rows=map(_diverging_row, state.diverging)) + more


def _diverging_row(each: Diverging) -> str:
    vcpu, pmc = ("?" if value is None else value for value in (each.vcpu, each.pmc))
    kind = each.kind.replace("_", "_<wbr>")
    return (
        f'<th scope="row">{escape(each.vm)}</th><td class="number">{vcpu}</td><td>{pmc}</td>'
        f'<td><code>{kind}</code></td><td class="number">{_number(each.count)}</td>'
    )


def _last(state: HostState) -> str:
    kept = state.last
    if not kept:
        return "<p>None since the agent was started.</p>"
    more = (
        f'<p class="quiet">The latest {SHOWN} of {len(kept)} that are kept.</p>' if len(kept) > SHOWN else ""
    )
    failures = {_failed(each): each for each in state.failures}
    shown = (_observation(each, failures, state.cpu_vendor) for each in kept[:SHOWN])
    return f'<ol class="last">{"".join(shown)}</ol>{more}'


_Failed = tuple[str, int, str, str, str]


def _failed(each: Failing) -> _Failed:
    return each.vm, each.vcpu, each.pmc, each.event, each.errno


def _times(call: Call, failures: Mapping[_Failed, Failing]) -> str:
    """Return how often a creation failed; nothing if that was once, or is not kept any more."""
    failed = call.vm, call.vcpu, call.pmc_name, attr_text(call.attr), errno_name(-call.result)
    failing = failures.get(failed)
    if failing is None or failing.count == 1:
        return ""
    return f"; {_number(failing.count)} times since {_time(failing.since_ns)}"


def _observation(observation: Observation, failures: Mapping[_Failed, Failing], vendor: str) -> str:
    call, verdict = observation
    meanings = [verdict.kind.meaning] if verdict.kind.is_divergence else []
    if call.result:
        meanings.append(f"{cause(-call.result)}{_times(call, failures)}")
    kind = verdict.kind if verdict.kind.is_divergence else errno_name(-call.result)
    took = f"; took {duration_text(call.duration_ns)}" if call.duration_ns else ""
    parts = {
        "Expected": f"<code>{escape(verdict.expected)}</code>" if verdict.expected else "",
        "Observed": f"<code>{escape(observed(observation))}</code>",
        "Event": f"{escape(event_text(call, vendor))}{took}",
    }
    details = "".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in parts.items() if text)
    vcpu = f"vCPU {call.vcpu} " if call.vcpu >= 0 else ""
    below = "".join(f'<p class="quiet">{escape(meaning)}</p>' for meaning in meanings)
    return (
        f"<li><time>{_time(call.time_ns, 'milliseconds')}</time> <strong>{escape(call.vm)}</strong> "
        f'{vcpu}{call.pmc_name} <strong class="bad">{escape(kind)}</strong>'
        f"{below}<dl>{details}</dl></li>"
    )


def _table(heads: Mapping[str, str], rows: Iterable[str]) -> str:
    """Return a table of columns with their CSS classes, and of rows, each the HTML of its cells."""
    head = "".join(f'<th scope="col" class="{css}">{name}</th>' for name, css in heads.items())
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _tax(host_ns: int | None) -> str:
    return "-" if host_ns is None else duration_text(host_ns)


def _now(share: float | None) -> str:
    return "" if share is None else f"{duration_text(round(share * 1e9))}/s"


def _alarming(count: int) -> str:
    return f'<span class="bad">{_number(count)}</span>' if count else "0"


def _number(number: int) -> str:
    return f"{number:,}"


def _count(number: int, what: str) -> str:
    return f"{_number(number)} {what}" if number == 1 else f"{_number(number)} {what}s"


def _time(time_ns: int, precision: str = "seconds") -> str:
    """Return local time, as journalctl writes it, and its zone: the reader may be elsewhere."""
    when = datetime.fromtimestamp(time_ns / 1e9).astimezone()
    return f"{when.replace(tzinfo=None).isoformat(' ', precision)} {when.tzname()}"


def _ago(ns: int) -> str:
    seconds = max(0, ns) // 1_000_000_000
    days, hours, minutes = seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"
