"""What the daemon tells of calls and VMs, without ever filling a disk with it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vpmu_agent.model.call import Call
from vpmu_agent.model.verdict import Verdict
from vpmu_agent.system.journal import Level, tell
from vpmu_agent.system.notify import notify
from vpmu_agent.text import errno_name
from vpmu_agent.vms.modes import Pmu, sentence, untraced
from vpmu_agent.vms.names import VmInfo

BURST, WINDOW_S = 5, 60.0
"""So many divergences of one kind in one VM are told in a window (seconds); of the rest, only how many."""

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


class Report:
    """Tells of divergences and failed creations, each VM, kind and errno only so often."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, tell: Callable[..., None] = tell) -> None:
        """`tell` is journal.tell(), or a test's."""
        self._clock = clock
        self._tell = tell
        self._windows: dict[tuple[str, str | None, str | None], _Window] = {}  # the open ones

    def add(self, call: Call, verdict: Verdict) -> None:
        """Tell of this call if it diverged or failed and its window has room."""
        kind = str(verdict.kind) if verdict.kind.is_divergence else None
        error = errno_name(-call.result) if call.result else None
        if not kind and not error:
            return
        window = self._windows.setdefault((call.vm, kind, error), _Window(self._clock() + WINDOW_S))
        if window.told == BURST:
            window.held_back += 1
            return
        window.told += 1
        self._tell(
            _divergence(call, verdict) if kind else _failure(call),
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

    def _close(self, now: float) -> None:
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


def _divergence(call: Call, verdict: Verdict) -> str:
    expected = f"; expected {verdict.expected}" if verdict.expected else ""
    return f"{_where(call)}: {verdict.kind} ({verdict.kind.meaning}): {_seen(call, verdict.event)}{expected}"


def _failure(call: Call) -> str:
    reason = os.strerror(-call.result)
    return f"{_where(call)}: {_seen(call, None)} ({reason}), and KVM does not tell the guest"


def _where(call: Call) -> str:
    return f"{call.vm}: " + ("" if call.vcpu < 0 else f"vCPU {call.vcpu} ") + call.pmc_name


def _seen(call: Call, event: int | None) -> str:
    which = "" if event is None else f"(event={event})"
    return f"{call.name}{which}" + (f" failed with {errno_name(-call.result)}" if call.result else "")
