"""Calls and their verdicts in print: text for people, or JSON Lines."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol, TextIO

from vpmu_agent.counts.failures import Key, Story, key
from vpmu_agent.model.call import Call, CallName
from vpmu_agent.model.create_errors import cause
from vpmu_agent.model.rules import Kind
from vpmu_agent.model.verdict import Verdict
from vpmu_agent.system.stdout import Style
from vpmu_agent.text import attr_text, errno_name, event_text, measured_text
from vpmu_agent.trace.call_json import call_json, lost_json, starved_json, summary_json, vpmu_json
from vpmu_agent.trace.tally import Tally
from vpmu_agent.vms.modes import Pmu, sentence

if TYPE_CHECKING:
    from vpmu_agent.counts.starvation import Starvation


class Printer(Protocol):
    """A way to print a stream of calls. Each method returns whole lines, without their newlines."""

    def call(self, call: Call, verdict: Verdict) -> list[str]:
        """Return the lines for a call."""

    def lost(self, records: int) -> list[str]:
        """Return the lines that say that records were lost here."""

    def untraced(self, vms: Sequence[str], pmu: Pmu) -> list[str]:
        """Return the lines that say that these VMs cannot be traced, and why."""

    def starved(self, starvation: Starvation) -> list[str]:
        """Return the lines that say that counters of a VM are starved."""

    def summary(self, tally: Tally, lost: int) -> list[str]:
        """Return the lines that end the stream; `lost` is the total of lost records."""


class JsonPrinter:
    """A Printer of one JSON object per line; see call_json.py."""

    def call(self, call: Call, verdict: Verdict) -> list[str]:
        """Return the object of `call_json()`."""
        return [call_json(call, verdict)]

    def lost(self, records: int) -> list[str]:
        """Return the object of `lost_json()`."""
        return [lost_json(records)]

    def untraced(self, vms: Sequence[str], pmu: Pmu) -> list[str]:
        """Return the object of `vpmu_json()` for each VM."""
        return [vpmu_json(vm, pmu) for vm in vms]

    def starved(self, starvation: Starvation) -> list[str]:
        """Return the object of `starved_json()`."""
        return [starved_json(starvation)]

    def summary(self, tally: Tally, lost: int) -> list[str]:
        """Return the objects of `summary_json()`."""
        return summary_json(tally, lost)


class TextPrinter:
    """A Printer of aligned columns for a width of 100; a wider terminal shows more of a VM's name.

    On a terminal a VM's name is cut to its column, at its front: numbered names differ at their end. In a
    file or a pipe it stays whole, so that it can be searched for. `vendor` is that of the CPU that the calls
    were made on, "" if it is not known (event_names.py).
    """

    def __init__(self, out: TextIO, vendor: str = "") -> None:
        self._vendor = vendor
        self._explained: dict[tuple[str, int, str], Key] = {}  # by VM, vCPU and counter
        self._terminal = out.isatty()
        self._style = Style(out)
        self._width = max(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns)
        self._vm_width = min(_VM_WIDTH + self._width - _WIDTH, 36)
        self._heading_due = True
        self._second = (-1, "")

    def call(self, call: Call, verdict: Verdict) -> list[str]:
        """Return a line; before the first one the heading, below it what was expected or why it failed."""
        lines = []
        if self._heading_due:
            self._heading_due = False
            heading = _COLUMNS.format(
                "TIME",
                f"{'VM':{self._vm_width}}",
                "VCPU",
                "PMC",
                "CALL",
                "EV",
                "LEADER",
                "ATTR",
                "TOOK",
                "VERDICT",
            )
            lines.append(self._style(heading, bold=True))
        outcome = verdict.kind if call.result == 0 else f"{errno_name(-call.result)}, {verdict.kind}"
        if call.starved:
            outcome += ", starved"
        line = _COLUMNS.format(
            self._time(call.time_ns),
            self._vm(call.vm),
            "-" if call.vcpu < 0 else call.vcpu,
            call.pmc_name,
            call.name,
            _event_text(call, verdict),
            _leader_text(call, verdict),
            attr_text(call.attr) + (" off" if call.attr.disabled and call.name is CallName.CREATE else ""),
            measured_text(call.duration_ns),
            self._verdict(outcome, verdict.kind, starved=call.starved),
        )
        lines.append(line)
        if verdict.kind.is_divergence and verdict.expected:
            lines += [self._style(part, fg="red") for part in self._below(f"expected {verdict.expected}")]
        if call.result:
            lines += [self._style(part, fg="yellow") for part in self._explanation(call)]
        return lines

    def _explanation(self, call: Call) -> list[str]:
        """Return what the guest asked for and why it failed, unless that was said last of this counter."""
        its = key(call)
        counter = its[:3]
        if self._explained.get(counter) == its:
            return []
        if len(self._explained) == _EXPLAINED:
            self._explained.clear()
        self._explained[counter] = its
        return self._below(f"no event for {event_text(call, self._vendor)}: {cause(-call.result)}")

    def _below(self, text: str) -> list[str]:
        """Return lines that stand below a call's, indented to its second column."""
        indent = " " * len("HH:MM:SS.mmmmmm ")
        return textwrap.wrap(text, self._width, initial_indent=indent, subsequent_indent=indent)

    def lost(self, records: int) -> list[str]:
        """Return a line that is set off by dashes."""
        return [self._style(f"-- {_count(records, 'record')} lost here --", fg="yellow", bold=True)]

    def untraced(self, vms: Sequence[str], pmu: Pmu) -> list[str]:
        """Return `modes.sentence()`, wrapped to the width."""
        return self._remark(sentence(vms, pmu))

    def starved(self, starvation: Starvation) -> list[str]:
        """Return `starvation.sentence()`, wrapped to the width."""
        return self._remark(starvation.sentence)

    def _remark(self, text: str) -> list[str]:
        lines = textwrap.wrap(
            f"-- {text} --",
            self._width,
            subsequent_indent="   ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        return [self._style(line, fg="yellow") for line in lines]

    def summary(self, tally: Tally, lost: int) -> list[str]:
        """Return a table of the VMs, their failures and divergences, and how many records were lost."""
        lines = [] if self._heading_due else [""]
        if tally.vms:
            width = max(self._vm_width, *(len(name) for name in tally.vms))
            names = [name.upper() for name in CallName]
            heading = f"{'VM':{width}}" + "".join(f" {name:>9}" for name in (*names, "FAILED", "DIVERGED"))
            lines.append(self._style(f"{heading} {'HOST TIME':>10}", bold=True))
            for name, vm in sorted(tally.vms.items()):
                numbers = (*vm.calls.values(), sum(vm.errors.values()), sum(vm.divergences.values()))
                lines.append(
                    f"{name:{width}}"
                    + "".join(f" {number:>9}" for number in numbers)
                    + f" {measured_text(vm.host_ns):>10}"
                )
            lines += self._details(tally)
        else:
            lines.append("No calls were seen.")
        if lost:
            lines.append(
                self._style(f"{_count(lost, 'record')} lost: the counts are incomplete.", fg="yellow")
            )
        return lines

    def _details(self, tally: Tally) -> list[str]:
        """Return which calls failed, and which counters diverged and how."""
        lines = []
        for name, vm in sorted(tally.vms.items()):
            for (call, number), count in sorted(vm.errors.items()):
                lines.append(f"{name}: {call} failed with {errno_name(number)}: {count}")
                lines.append(f"  {cause(number)}")
                stories = [each for each in tally.failures if _is_of(each, name, number)]
                lines += map(self._story, stories[:_STORIES])
                if left_out := count - sum(each.count for each in stories[:_STORIES]):
                    lines.append(f"  {left_out} more of other counters or events")
            if vm.unchecked and (vm.unchecked.read or vm.unchecked.period):
                reads = _count(vm.unchecked.read, "read"), _count(vm.unchecked.period, "new period")
                lines.append(f"{name}: {' and '.join(reads)} took {measured_text(vm.unchecked.host_ns)}")
            for part, what in ((vm.precise, "precise events (PEBS)"), (vm.guest_lbr, "guest LBR")):
                if part.calls:
                    took = measured_text(part.host_ns)
                    lines.append(f"{name}: {_count(part.calls, 'call')} for {what} took {took}")
            if vm.starvations:
                starved = f"{name}: {_count(vm.starvations, 'call')} left a counter starved"
                lines.append(self._style(f"{starved}, for which the host's PMU had no room", fg="yellow"))
            if vm.pinned_siblings:
                siblings = f"{name}: {_count(vm.pinned_siblings, 'sibling')} created pinned"
                lines.append(self._style(f"{siblings}, which perf_event_open() refuses", fg="yellow"))
            for (vcpu, pmc, kind), count in sorted(vm.divergences.items()):
                where = pmc if vcpu < 0 else f"vCPU {vcpu} {pmc}"
                lines.append(self._style(f"{name}: {where}: {kind}: {count}", fg="red"))
        return ["", *lines] if lines else []

    def _story(self, story: Story) -> str:
        call = story.last
        where = call.pmc_name if call.vcpu < 0 else f"vCPU {call.vcpu} {call.pmc_name}"
        times = f"{_count(story.count, 'time')} since {self._time(story.since_ns)}"
        return f"  {where}: {event_text(call, self._vendor)}: {times}"

    def _time(self, time_ns: int) -> str:
        """Return the local time of day, to the microsecond. The second is kept: most calls come in bursts."""
        second, rest = divmod(time_ns, 1_000_000_000)
        if second != self._second[0]:
            self._second = (second, datetime.fromtimestamp(second).astimezone().strftime("%H:%M:%S"))
        return f"{self._second[1]}.{rest // 1000:06}"

    def _vm(self, name: str) -> str:
        if self._terminal and len(name) > self._vm_width:
            name = "…" + name[1 - self._vm_width :]
        return f"{name:{self._vm_width}}"

    def _verdict(self, text: str, kind: Kind, *, starved: bool) -> str:
        if kind.is_divergence:
            return self._style(text, fg="red", bold=True)
        return self._style(text, fg="green" if kind is Kind.PREDICTED and not starved else "yellow")


_EXPLAINED = 10_000  # counters, after which what was said of them is forgotten
_STORIES = 10  # of a VM and an errno in a summary
_WIDTH = 100
_VM_WIDTH = 10
# With 10 for the VM this leaves 21 for the verdict, the length of the longest kind.
_COLUMNS = "{:15} {} {:>4} {:6} {:7} {:>2} {:>6} {:12} {:>8} {}"


def _is_of(story: Story, vm: str, number: int) -> bool:
    return story.last.vm == vm and -story.last.result == number


def _event_text(call: Call, verdict: Verdict) -> str:
    if verdict.event is not None:
        return str(verdict.event)
    return "?" if call.event else "-"


def _leader_text(call: Call, verdict: Verdict) -> str:
    """Return the leader of a create, "" for other calls, which are given none."""
    if call.name is not CallName.CREATE:
        return ""
    if verdict.leader is not None:
        return str(verdict.leader)
    return "?" if call.leader else "-"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
