"""The daemon's log: lines on standard error, or under systemd entries of the journal that carry fields.

Fields are for whoever searches: `journalctl -u vpmu-agent VPMU_VM=web01`, `VPMU_KIND=partial_group`.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import cast

from vpmu_agent.model.call import Call
from vpmu_agent.model.verdict import Verdict
from vpmu_agent.text import errno_name
from vpmu_agent.vms.modes import Pmu, sentence, untraced

BURST, WINDOW_S = 5, 60.0
"""Of the divergences of one kind in one VM, so many are told in a window; of the rest, only how many."""

# What `journalctl MESSAGE_ID=` finds; made once with `systemd-id128 new`.
DIVERGENCE = "adb5b32554804cc19284e0aac88223f4"
FAILURE = "37a3b0c689f24af09b688d2d9d501eff"
UNTRACED = "c240b89ca29a43f8b7559dfb352fa3f3"


class Level(IntEnum):
    """Syslog's priorities, those that are used here."""

    ERROR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6


def tell(text: str, level: Level = Level.INFO, **fields: object) -> None:
    """One line for whoever reads the log. Names of fields are in capitals; None is left out."""
    if send := _journal():
        known = {name: str(value) for name, value in fields.items() if value is not None}
        try:
            send(text, PRIORITY=str(int(level)), SYSLOG_IDENTIFIER="vpmu-agent", **known)
            return
        except OSError:  # the journal is restarting: what is written to standard error waits for it
            pass
    print(text, file=sys.stderr, flush=True)


@cache
def _journal() -> Callable[..., None] | None:
    """What sends to the journal, if standard error goes there and python3-systemd is installed."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        stderr = os.fstat(sys.stderr.fileno())
        if (device, inode) != (str(stderr.st_dev), str(stderr.st_ino)):
            return None
        from systemd.journal import send
    except (OSError, ImportError):
        return None
    return cast(Callable[..., None], send)


@dataclass(slots=True)
class _Window:
    ends: float
    told: int = 0
    held_back: int = 0


class Report:
    """Tells of divergences and of creations that failed: of each VM, kind and errno only so often."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._windows: dict[tuple[str, str | None, str | None], _Window] = {}  # the open ones

    def add(self, call: Call, verdict: Verdict) -> None:
        """Takes what the probes sent, and tells of it where it is of these."""
        kind = str(verdict.kind) if verdict.kind.is_divergence else None
        error = errno_name(-call.result) if call.result else None
        if not kind and not error:
            return
        window = self._windows.setdefault((call.vm, kind, error), _Window(self._clock() + WINDOW_S))
        if window.told == BURST:
            window.held_back += 1
            return
        window.told += 1
        tell(
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
        """Closes the windows that are over, and says what was held back in them; about once a second."""
        self._close(self._clock())

    def close(self) -> None:
        """Says what was held back in those that are open."""
        self._close(math.inf)

    def _close(self, now: float) -> None:
        for (vm, kind, error), window in list(self._windows.items()):
            if now < window.ends:
                continue
            del self._windows[vm, kind, error]
            if window.held_back:
                tell(
                    f"{vm}: {kind or error}: {window.held_back} more within {WINDOW_S:.0f} s",
                    Level.WARNING,
                    VPMU_VM=vm,
                    VPMU_KIND=kind,
                    VPMU_ERRNO=error,
                    VPMU_HELD_BACK=window.held_back,
                )


def tell_untraced(new: Iterable[tuple[str, Pmu]]) -> None:
    """Tells of VMs of which nothing can be traced and why: a line for all that have the same PMU."""
    for pmu, vms in untraced(new).items():
        tell(
            sentence(vms, pmu),
            Level.NOTICE,
            MESSAGE_ID=UNTRACED,
            VPMU_VM=vms[0] if len(vms) == 1 else None,
            VPMU_MODE=pmu.mode,
            VPMU_REASON=pmu.why,
        )


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
