"""Why a trial failed, from files of a small /proc and /sys."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tree import plant
from vpmu_agent.kernel.causes import ALLOW_CALLS, LOCKED_DOWN, MOUNT_SYS, cause_of
from vpmu_agent.kernel.trials import Trial

ALL, NONE = "CapEff:\t000001ffffffffff\n", "CapEff:\t0000000000000000\n"
STATUS, LOCKDOWN = "proc/self/status", "sys/kernel/security/lockdown"


@pytest.mark.parametrize(
    ("trial", "files", "found", "todo"),
    [
        (Trial(False, "EINVAL"), {STATUS: ALL}, "EINVAL", ""),
        (Trial(False, "EPERM", filtered=True), {STATUS: ALL}, "EPERM", ALLOW_CALLS),
        (Trial(False, "no devices", hidden=True), {STATUS: ALL}, "no devices", MOUNT_SYS),
        (Trial(False, "EPERM", locked_down=True), {STATUS: ALL}, "confidentiality", LOCKED_DOWN.todo),
        (
            Trial(False, "EINVAL"),
            {STATUS: ALL, LOCKDOWN: "none integrity [confidentiality]"},
            "EINVAL: lockdown is in mode confidentiality",
            LOCKED_DOWN.todo,
        ),
        (
            Trial(False, "EPERM", denied=True),
            {STATUS: NONE},
            "EPERM: this process lacks CAP_BPF, CAP_PERFMON, CAP_SYSLOG",
            "run vpmu-agent as root",
        ),
        (
            Trial(False, "EPERM", denied=True),
            {STATUS: ALL},
            "although this process has the capabilities for it",
            "a security module refuses it",
        ),
    ],
)
def test_causes(tmp_path: Path, trial: Trial, files: dict[str, str], found: str, todo: str) -> None:
    plant(tmp_path, files)
    cause = cause_of(trial, root=tmp_path)
    assert found in cause.found
    assert todo in cause.todo if todo else not cause.todo
