"""What the daemon tells of calls and VMs, without ever filling a disk with it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from vpmu_agent.counts.failures import Key, Story, key
from vpmu_agent.model.call import Call
from vpmu_agent.model.create_errors import cause
from vpmu_agent.model.verdict import Verdict
from vpmu_agent.system.journal import Level, tell
from vpmu_agent.system.notify import notify
from vpmu_agent.text import errno_name, event_text
from vpmu_agent.vms.modes import Pmu, sentence, untraced
from vpmu_agent.vms.names import VmInfo

BURST, WINDOW_S = 5, 60.0
"""So many divergences of one kind in one VM are told in a window (seconds); of the rest, only how many.

Of failed creations that is so many different ones.
"""

LONGEST_WINDOW_S = 3600.0
"""A creation that goes on failing is told again after a window, then after one twice as long, up to this."""

# What `journalctl MESSAGE_ID=` finds; made once with `systemd-id128 new`.
DIVERGENCE = "adb5b32554804cc19284e0aac88223f4"
FAILURE = "37a3b0c689f24af09b688d2d9d501eff"
UNTRACED = "c240b89ca29a43f8b7559dfb352fa3f3"
REFUSED = "0c2c2e430cf1418280c13856cc2b0b7b"


@dataclass(slots=True)
class _Window:
    ends: float
    told: int = 0
    held_back: int = 0


@dataclass(slots=True)
class _Failing:
    """A failed creation that was told, and what has come of it since."""

    story: Story
    ends: float
    lasts: float = WINDOW_S
    told: int = 1


class Report:
    """Tells of divergences and failed creations, each VM, kind and errno only so often.

    A creation that fails again and again, with the same counter, event and errno, is told once, and then how
    often it failed since.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        tell: Callable[..., None] = tell,
        vendor: str = "",
    ) -> None:
        """`tell` is journal.tell(), or a test's; `vendor` the CPU's, as in event_names.py."""
        self._clock = clock
        self._tell = tell
        self._vendor = vendor
        self._failing: dict[tuple[Key, str | None], _Failing] = {}  # by kind as well
        self._windows: dict[tuple[str, str | None, str | None], _Window] = {}  # the open ones

    def add(self, call: Call, verdict: Verdict) -> None:
        """Tell of this call if it diverged or failed and its window has room."""
        kind = str(verdict.kind) if verdict.kind.is_divergence else None
        error = errno_name(-call.result) if call.result else None
        if not kind and not error:
            return
        its = key(call), kind
        if call.result and (failing := self._failing.get(its)):
            failing.story.count += 1
            return
        window = self._windows.setdefault((call.vm, kind, error), _Window(self._clock() + WINDOW_S))
        if window.told == BURST:
            window.held_back += 1
            return
        window.told += 1
        if call.result:
            self._failing[its] = _Failing(Story(call, call.time_ns, 1), self._clock() + WINDOW_S)
        self._tell(
            self._divergence(call, verdict)
            if kind
            else f"{self._failure(call)}; KVM does not tell the guest",
            Level.WARNING,
            MESSAGE_ID=DIVERGENCE if kind else FAILURE,
            VPMU_VM=call.vm,
            VPMU_VCPU=None if call.vcpu < 0 else call.vcpu,
            VPMU_PMC=call.pmc_name,
            VPMU_CALL=call.name,
            VPMU_EVENT=verdict.event,
            VPMU_KIND=kind,
            VPMU_ERRNO=error,
            VPMU_EXPECTED=verdict.expected or None,
        )

    def sweep(self) -> None:
        """Close the windows that are over, and tell what was held back in them; call it every second."""
        self._close(self._clock())

    def close(self) -> None:
        """Tell what was held back in the windows that are open."""
        self._close(math.inf)

    def _divergence(self, call: Call, verdict: Verdict) -> str:
        expected = f"; expected {verdict.expected}" if verdict.expected else ""
        why = f"; {self._reason(call)}" if call.result else ""
        seen = _seen(call, verdict.event)
        return f"{_where(call)}: {verdict.kind} ({verdict.kind.meaning}): {seen}{why}{expected}"

    def _failure(self, call: Call) -> str:
        return f"{_where(call)}: {_seen(call, None)}; {self._reason(call)}"

    def _reason(self, call: Call) -> str:
        return f"no event for {event_text(call, self._vendor)}: {cause(-call.result)}"

    def _close(self, now: float) -> None:
        self._close_failing(now)
        for (vm, kind, error), window in list(self._windows.items()):
            if now < window.ends:
                continue
            del self._windows[vm, kind, error]
            if window.held_back:
                self._tell(
                    f"{vm}: {kind or error}: {window.held_back} more within {WINDOW_S:.0f} s",
                    Level.WARNING,
                    VPMU_VM=vm,
                    VPMU_KIND=kind,
                    VPMU_ERRNO=error,
                    VPMU_HELD_BACK=window.held_back,
                )

    def _close_failing(self, now: float) -> None:
        for (its, kind), failing in list(self._failing.items()):
            if now < failing.ends:
                continue
            call, more = failing.story.last, failing.story.count - failing.told
            if not more:
                del self._failing[its, kind]
                continue
            since = datetime.fromtimestamp(failing.story.since_ns / 1e9).astimezone()
            what = f"{self._failure(call)} ({kind})" if kind else self._failure(call)
            self._tell(
                f"{what}: {more} more times, {failing.story.count} since {since:%Y-%m-%d %H:%M:%S}",
                Level.WARNING,
                VPMU_VM=call.vm,
                VPMU_VCPU=None if call.vcpu < 0 else call.vcpu,
                VPMU_PMC=call.pmc_name,
                VPMU_CALL=call.name,
                VPMU_KIND=kind,
                VPMU_ERRNO=errno_name(-call.result),
                VPMU_HELD_BACK=more,
            )
            failing.told = failing.story.count
            failing.lasts = min(2 * failing.lasts, LONGEST_WINDOW_S)
            failing.ends = now + failing.lasts


def tell_untraced(new: Iterable[tuple[str, Pmu]], tell: Callable[..., None] = tell) -> None:
    """Tell of VMs of which nothing can be traced and why: one line for all that have the same PMU."""
    for pmu, vms in untraced(new).items():
        tell(
            sentence(vms, pmu),
            Level.NOTICE,
            MESSAGE_ID=UNTRACED,
            VPMU_VM=vms[0] if len(vms) == 1 else None,
            VPMU_MODE=pmu.mode,
            VPMU_REASON=pmu.why,
        )


def tell_refused(new: Iterable[tuple[VmInfo, int]], tell: Callable[..., None] = tell) -> None:
    """Tell of VMs whose calls are refused, and how many were so far."""
    for vm, count in new:
        tell(
            f"{vm.name}: calls are refused ({count} so far), because process {vm.tgid} has more counters "
            "than it may have; its counts are incomplete, those of other VMs are not concerned",
            Level.WARNING,
            MESSAGE_ID=REFUSED,
            VPMU_VM=vm.name,
        )


def tell_state(line: str, level: Level = Level.INFO) -> None:
    """Write a line to the log that is also what `systemctl status` shows from now on."""
    tell(line, level)
    notify(f"STATUS={line}")


def _where(call: Call) -> str:
    return f"{call.vm}: " + ("" if call.vcpu < 0 else f"vCPU {call.vcpu} ") + call.pmc_name


def _seen(call: Call, event: int | None) -> str:
    which = "" if event is None else f"(event={event})"
    return f"{call.name}{which}" + (f" failed with {errno_name(-call.result)}" if call.result else "")
