"""Command lines of VMMs, as they were seen, with what they say of their VMs: tests/data/vmm/."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from tests.support.places import DATA
from vpmu_agent.vms.command_line import Identity, Vmm

COMMANDS = DATA / "vmm"
PROCESSES = [
    pytest.param(process, id=f"{file.stem}-{i}")
    for file in sorted(COMMANDS.glob("*.toml"))
    for i, process in enumerate(tomllib.loads(file.read_text())["process"])
]
"""Processes with their command lines, and what they say of their VMs."""


def expected(process: dict[str, Any]) -> Identity:
    return Identity(Vmm(process["vmm"]), process["name"], process.get("uuid", ""), process.get("pod_uid", ""))
