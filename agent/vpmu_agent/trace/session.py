"""Filters, counts, prints and records calls, for a trace and a replay alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TextIO

from vpmu_agent.model.call import Call, CallName
from vpmu_agent.model.verdict import Observation
from vpmu_agent.system.stdout import UnreadError
from vpmu_agent.trace.call_json import call_json
from vpmu_agent.trace.printers import Printer
from vpmu_agent.trace.recording import Recorder
from vpmu_agent.trace.tally import MAX_VMS, Tally, Unchecked
from vpmu_agent.vms.modes import Pmu, untraced

if TYPE_CHECKING:
    from vpmu_agent.counts.starvation import Starvation


@dataclass(frozen=True, slots=True)
class Filters:
    """Which calls to follow; an empty filter lets all through.

    The first three select whole counters, so the model sees all calls of those. `calls` does not, and so it
    decides only what is displayed.
    """

    vms: frozenset[str] = frozenset()
    vcpus: frozenset[int] = frozenset()
    pmcs: frozenset[str] = frozenset()
    calls: frozenset[CallName] = frozenset()

    def keep(self, call: Call) -> bool:
        """Return whether the call is for a counter that is followed."""
        return self.keep_vm(call.vm) and self.keep_counter(call.vcpu, call.pmc_name)

    def keep_counter(self, vcpu: int, pmc: str) -> bool:
        """Return whether a counter is followed, if its VM is."""
        return (not self.vcpus or vcpu in self.vcpus) and (not self.pmcs or pmc in self.pmcs)

    def keep_vm(self, vm: str) -> bool:
        """Return whether a VM is followed."""
        return not self.vms or vm in self.vms

    @property
    def keeps_all(self) -> bool:
        """Whether `keep()` lets every call through."""
        return not (self.vms or self.vcpus or self.pmcs)


class Session:
    """Turns calls and their verdicts into counts, lines on `out` and a recording, live or in a replay.

    Its methods raise OutputError if writing to `out` (see stdout.output()) or the recording fails.
    """

    def __init__(
        self,
        filters: Filters,
        printer: Printer,
        out: TextIO,
        *,
        quiet: bool = False,
        recorder: Recorder | None = None,
    ) -> None:
        self.tally = Tally()
        self.unread = False
        """Whether `out` is a pipe that nobody reads any more (`| head`): a reason to stop, but no error."""
        self._filters = filters
        self._printer = printer
        self._out = out
        self._quiet = quiet
        self._recorder = recorder
        self._left_out: set[str] = set()
        self._lost = 0
        # Since the last call shown or recorded: a loss must not vanish because a filter drops the next call.
        self._lost_unshown = 0
        self._lost_unrecorded = 0

    @property
    def seen(self) -> set[str]:
        """The VMs that calls came from, including those that the filters left out; MAX_VMS of them or so."""
        return self._left_out | self.tally.vms.keys()

    def feed(self, observed: Iterable[Observation]) -> None:
        """Take the next calls; print and record them before returning.

        The verdicts are from before any filter: the model also looks at a vCPU's other counters.
        """
        lines: list[str] = []
        recorded: list[str] = []
        printer, shown = self._printer, self._filters.calls or frozenset(CallName)
        keep = None if self._filters.keeps_all else self._filters.keep
        add, recorder, quiet = self.tally.add, self._recorder, self._quiet
        for call, verdict in observed:
            if call.lost:
                self._lost += call.lost
                self._lost_unshown += call.lost
                self._lost_unrecorded += call.lost
            if keep and not keep(call):
                if len(self._left_out) < MAX_VMS or call.vm in self._filters.vms:
                    self._left_out.add(call.vm)
                continue
            add(call, verdict)
            if recorder:
                if self._lost_unrecorded != call.lost:
                    recorded.append(call_json(replace(call, lost=self._lost_unrecorded), verdict))
                else:
                    recorded.append(call_json(call, verdict))
                self._lost_unrecorded = 0
            if not quiet and call.name in shown:
                if self._lost_unshown:
                    lines += printer.lost(self._lost_unshown)
                    self._lost_unshown = 0
                lines += printer.call(call, verdict)
        if recorder and recorded:
            recorder.write(recorded)
        self._print(lines)

    def feed_pmus(self, new: Iterable[tuple[str, Pmu]]) -> None:
        """Take which PMUs VMs have, and print which VMs cannot be traced.

        They are printed even if only the summary is wanted: it says nothing of them.
        """
        kept = [(vm, pmu) for vm, pmu in new if self._filters.keep_vm(vm)]
        self._print(
            [line for pmu, vms in untraced(kept).items() for line in self._printer.untraced(vms, pmu)]
        )

    def feed_starved(self, new: Iterable[Starvation]) -> None:
        """Take which VMs began to be starved, and print those with a starved counter that is followed.

        As with feed_pmus(), even if only the summary is wanted.
        """
        lines: list[str] = []
        for each in new:
            counters = [
                counter for counter in each.counters if self._filters.keep_counter(counter.vcpu, counter.pmc)
            ]
            if counters and self._filters.keep_vm(each.vm):
                lines += self._printer.starved(replace(each, counters=counters))
        self._print(lines)

    def feed_unchecked(self, counts: Mapping[str, Unchecked]) -> None:
        """Take how many calls VMs made that are not checked; they are those of all counters of a VM."""
        if self._filters.vcpus or self._filters.pmcs:
            return
        for name, unchecked in counts.items():
            if self._filters.keep_vm(name):
                self.tally.add_unchecked(name, unchecked)

    def end(self, lost: int | None) -> None:
        """End the recording and print the summary.

        `lost` is the source's total of lost records, None if it has none. It includes those lost after the
        last call.
        """
        after_last = max(0, (lost or 0) - self._lost)
        self._lost += after_last
        self._lost_unshown += after_last
        if self._recorder:
            self._recorder.end(self.tally, self._lost)
        lines = self._printer.lost(self._lost_unshown) if self._lost_unshown and not self._quiet else []
        self._print([*lines, *self._printer.summary(self.tally, self._lost)])

    def _print(self, lines: list[str]) -> None:
        if not lines or self.unread:
            return
        try:
            self._out.write("\n".join(lines) + "\n")
            self._out.flush()
        except UnreadError:
            self.unread = True
