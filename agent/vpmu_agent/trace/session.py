"""What a trace and a replay do with each call: filter, count, print and record it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TextIO

from vpmu_agent.model.call import Call, CallName
from vpmu_agent.model.verdict import Observation
from vpmu_agent.system.stdout import OutputError
from vpmu_agent.trace.call_json import call_json
from vpmu_agent.trace.printers import Printer
from vpmu_agent.trace.recording import Recorder
from vpmu_agent.trace.tally import Tally
from vpmu_agent.vms.modes import Pmu, untraced


@dataclass(frozen=True, slots=True)
class Filters:
    """Which calls to follow; an empty one lets all through.

    The first three pick whole counters, so that the model's view of what they leave is complete. `calls` does
    not, and therefore decides only what is displayed.
    """

    vms: frozenset[str] = frozenset()
    vcpus: frozenset[int] = frozenset()
    pmcs: frozenset[str] = frozenset()
    calls: frozenset[CallName] = frozenset()

    def keep(self, call: Call) -> bool:
        """Whether the call is of a counter that is followed."""
        return (
            self.keep_vm(call.vm)
            and (not self.vcpus or call.vcpu in self.vcpus)
            and (not self.pmcs or call.pmc_name in self.pmcs)
        )

    def keep_vm(self, vm: str) -> bool:
        """Whether a VM is followed."""
        return not self.vms or vm in self.vms

    @property
    def keeps_all(self) -> bool:
        """Whether there is no call that `keep()` refuses."""
        return not (self.vms or self.vcpus or self.pmcs)


class Session:
    """Calls and their verdicts in; counts, lines on `out` and a recording out, live and in a replay the same.

    Raises OutputError when `out` or the recording takes no more.
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
        """Whether `out` is a pipe that nobody reads any more (`| head`): no error, but no reason to go on."""
        self._filters = filters
        self._printer = printer
        self._out = out
        self._quiet = quiet
        self._recorder = recorder
        self._left_out: set[str] = set()
        self._lost = 0
        # Since the last call that went there: filters must not make a loss disappear with the call after it.
        self._lost_unshown = 0
        self._lost_unrecorded = 0

    @property
    def seen(self) -> set[str]:
        """The VMs that calls came from, those that the filters left out too."""
        return self._left_out | self.tally.vms.keys()

    def feed(self, observed: Iterable[Observation]) -> None:
        """Takes the next calls, and prints and records them before it returns.

        The verdicts are those of all calls, before any filter: what a vCPU's other counters do is part of the
        model's view.
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
        """Takes which PMU VMs have, and prints those of which nothing can be traced.

        Also where only the summary is wanted: without this it would be empty for no reason.
        """
        kept = [(vm, pmu) for vm, pmu in new if self._filters.keep_vm(vm)]
        self._print(
            [line for pmu, vms in untraced(kept).items() for line in self._printer.untraced(vms, pmu)]
        )

    def end(self, lost: int | None) -> None:
        """Ends the recording and prints the summary.

        `lost` is the total of lost records where the source keeps one: it also knows of those that were lost
        after the last call.
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
        except BrokenPipeError:
            self.unread = True
        except OSError as error:
            raise OutputError(f"cannot write the output: {error.strerror}") from error
