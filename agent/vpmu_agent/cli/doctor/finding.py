"""What a check found, and what all findings say of live tracing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from vpmu_agent.cli.errors import CANNOT_RUN, PROBLEM, SUCCESS

PROGRAM = "program"
"""The check that attaches the real program and detaches it."""


class Status(StrEnum):
    """The result of a check. `WARN`: tracing works, but see what was found; or it could not be checked."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found, and what to do about it ("" if nothing).

    A failure that `blocks` means that live tracing cannot work here; only the probes themselves, attached,
    `prove` that it can.
    """

    check: str
    status: Status
    found: str
    todo: str = ""
    blocks: bool = False
    proves: bool = False


def exit_status(findings: Collection[Finding]) -> int:
    """Return what `vpmu-agent doctor` exits with after these findings."""
    works = can_trace(findings)
    if works is False:
        return CANNOT_RUN
    return SUCCESS if works and not any_failed(findings) else PROBLEM


def any_failed(findings: Iterable[Finding]) -> bool:
    """Return whether a check failed."""
    return any(finding.status is Status.FAIL for finding in findings)


def _blocking(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.blocks and finding.status is Status.FAIL]


def can_trace(findings: Collection[Finding]) -> bool | None:
    """Return whether live tracing can work here; None if that was not seen, and nothing rules it out."""
    if _blocking(findings):
        return False
    return any(finding.proves for finding in findings) or None


def why_not(findings: Sequence[Finding]) -> list[Finding]:
    """Return what keeps live tracing from working, or from being known to work."""
    if can_trace(findings):
        return []
    return _blocking(findings) or [finding for finding in findings if finding.check == PROGRAM]
