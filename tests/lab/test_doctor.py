"""What `vpmu-agent doctor` says on a host where everything works, and where one thing does not."""

from __future__ import annotations

import json
import subprocess

import pytest

from .agent import COMMAND, Line


def doctor(*, status: int = 0) -> tuple[dict[str, Line], Line]:
    """Its findings by check, and its summary."""
    done = subprocess.run(
        [*COMMAND, "doctor", "--output", "json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    *findings, summary = map(json.loads, done.stdout.splitlines())
    return {line["check"]: line for line in findings}, summary


@pytest.mark.slim
def test_tracing_can_work_here() -> None:
    findings, summary = doctor()
    assert summary["can_trace"] is True
    assert summary["fail"] == 0
    tried = ("bcc", "libbpf", "bpf", "kprobes", "fentry", "types")
    assert {findings[name]["status"] for name in tried} == {"ok"}
