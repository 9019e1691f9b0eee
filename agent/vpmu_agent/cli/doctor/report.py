"""The findings as text and as JSON."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence

from vpmu_agent.cli.doctor.finding import Finding, Status, any_failed, can_trace, why_not
from vpmu_agent.system.stdout import Style
from vpmu_agent.trace.call_json import SCHEMA

WIDTH = 100
"""Columns of the text, at most."""

_COLORS = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "red"}
_CHECK_WIDTH, _STATUS_WIDTH = 15, 6
_INDENT = " " * (_CHECK_WIDTH + _STATUS_WIDTH)


def finding_json(finding: Finding) -> dict[str, object]:
    """Return one line of `--output json`."""
    return {
        "schema": SCHEMA,
        "kind": "check",
        "check": finding.check,
        "status": finding.status,
        "found": finding.found,
        "todo": finding.todo,
    }


def summary_json(findings: Sequence[Finding]) -> dict[str, object]:
    """Return the last line of `--output json`; `can_trace` is null where that is unknown."""
    return {
        "schema": SCHEMA,
        "kind": "doctor",
        **_counts(findings),
        "can_trace": can_trace(findings),
        "reasons": [f"{finding.check}: {finding.found}" for finding in why_not(findings)],
    }


def finding_text(finding: Finding, style: Style) -> str:
    """Return one check for a person: at most WIDTH columns wide, what to do on lines of its own."""
    status = style(f"{finding.status:<{_STATUS_WIDTH}}", fg=_COLORS[finding.status])
    lines = _wrapped(finding.found, _INDENT)
    # The status is as wide with its colours as without, but textwrap would count them.
    lines[0] = f"{finding.check:<{_CHECK_WIDTH}}{status}{lines[0].lstrip()}"
    if finding.todo:
        lines += _wrapped(f"-> {finding.todo}", _INDENT, hanging="   ")
    return "\n".join(lines)


def summary_text(findings: Sequence[Finding], style: Style) -> str:
    """Return the counts and the conclusion, with its reasons."""
    counts = ", ".join(f"{count} {status}" for status, count in _counts(findings).items())
    match can_trace(findings):
        case True:
            failed = ", but see what failed" if any_failed(findings) else ""
            return f"\n{counts}. Live tracing can work here{failed}."
        case False:
            verdict = "Live tracing cannot work here:"
        case None:
            verdict = "Whether live tracing can work here is unknown:"
    lines = [f"\n{counts}. " + style(verdict, bold=True)]
    for finding in why_not(findings):
        lines += _wrapped(f"- {finding.check}: {finding.found}", "  ", hanging="  ")
    return "\n".join(lines)


def _wrapped(text: str, indent: str, *, hanging: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + hanging,
        break_on_hyphens=False,
    ) or [""]


def _counts(findings: Sequence[Finding]) -> dict[str, int]:
    counter = Counter(finding.status for finding in findings)
    return {status.value: counter[status] for status in Status}
