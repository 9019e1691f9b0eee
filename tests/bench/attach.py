"""What watching costs by fentry and fexit beside kprobes: instructions, of a real KVM's calls in the lab VM.

This machine's kernel takes neither, and times mean nothing where every instruction is emulated.
"""

from __future__ import annotations

from pathlib import Path

from tests.bench.errors import BenchError
from tests.bench.progress import say
from tests.bench.report import Figure
from tests.lab import attach_cost, hosts
from tests.lab.errors import LabError
from tests.lab.hosts import HOSTS
from tests.support.debian import RootError

_TIMEOUT_S = 900.0


def measure(_folder: Path) -> list[Figure]:
    """Instructions that a call takes more than an unwatched one, and the ratio of the two ways."""
    say("fentry and fexit beside kprobes, in the lab: a VM that counts instructions")
    try:
        target = hosts.target(next(iter(HOSTS)), None)
        costs = attach_cost.measure(target, timeout_s=_TIMEOUT_S)
    except (LabError, RootError) as error:
        raise BenchError(str(error)) from error
    figures = [
        Figure(f"attach.{mode}", f"a call that is watched by {mode}, on average", cost, "instructions")
        for mode, cost in costs.items()
    ]
    ratio = costs["fexit"] / costs["kprobe"]
    return [*figures, Figure("attach.by_kprobe", "instructions by fexit, by those by kprobe", ratio)]
