"""`vpmu-agent list` in the lab VM, and guests that stay as they are while it looks."""

from __future__ import annotations

import json
import subprocess
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass

from .agent import COMMAND, Line
from .guests import Guest


@dataclass(frozen=True)
class Listed:
    """What `vpmu-agent list` said."""

    status: int
    lines: list[Line]

    def of(self, kind: str) -> list[Line]:
        return [line for line in self.lines if line["kind"] == kind]

    def vm(self, name: str) -> Line:
        (line,) = (line for line in self.of("vm") if line["vm"] == name)
        return line

    def counters(self) -> dict[str, dict[str, str]]:
        """The statuses of the counters that are in use, by VM and counter."""
        found: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for line in self.of("counter"):
            found[line["vm"]][line["pmc"]] = line["status"]
        return dict(found)

    def events(self, vm: str) -> int:
        return sum(len(line["events"]) for line in self.of("counter") if line["vm"] == vm)


def listed(*options: str) -> Listed:
    """A census, now."""
    command = [*COMMAND, "list", "--output", "json", *options]
    return parsed(subprocess.run(command, capture_output=True, text=True, check=False))


def parsed(done: subprocess.CompletedProcess[str]) -> Listed:
    """What it said in JSON; it must have found out."""
    assert done.returncode in (0, 1), done.stderr
    return Listed(done.returncode, [json.loads(line) for line in done.stdout.splitlines()])


def at_stage(stack: ExitStack, guest: Guest, stage: str) -> Guest:
    """The guest, standing still at one of its stages, with its vCPUs asleep."""
    stack.enter_context(guest)
    while (reached := guest.wait_for("stage")["stage"]) != stage:
        guest.go_on()
        assert reached != "done"
    return guest


def programmed(stack: ExitStack, guest: Guest) -> Guest:
    """The guest, with its counters enabled and its vCPU asleep."""
    return at_stage(stack, guest, "programmed")
