"""All that guests can do with two counters in a few steps, as the calls that KVM makes for it.

A step is what a guest, or the definition of a counter, does to one of two counters of a vCPU, a
general-purpose and a fixed one: it is programmed with a group of 1 to 3 events, of which any creation can
fail; paused, resumed or stopped; or its N changes. Or the guest writes global control, which lets none, one
or both of them count.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from tests.support.world import World
from vpmu_agent.model.call import Call
from vpmu_agent.model.mechanism import FIXED_BASE

SIZES = (1, 2, 3)


@dataclass(frozen=True)
class Step:
    """One of the things that can happen to a counter, or to both: then `counter` is None."""

    counter: int | None
    name: str
    size: int = 1
    fail_at: int | None = None
    global_ctrl: int = 0

    def __str__(self) -> str:
        if self.counter is None:
            return f"{self.name} {self.global_ctrl:#x}"
        failing = "" if self.fail_at is None else f" failing at {self.fail_at}"
        return f"{self.name} {self.counter} N={self.size}{failing}"


GP, FIXED = 1, 1 << FIXED_BASE
STEPS = (
    *(
        Step(counter, name, size, fail_at)
        for counter in (0, 1)
        for name, size, fail_at in (
            *(("program", size, fail_at) for size in SIZES for fail_at in (None, *range(size))),
            *((name, 1, None) for name in ("pause", "resume", "stop")),
            *(("resize", size, None) for size in SIZES),
        )
    ),
    *(Step(None, "global", global_ctrl=value) for value in (0, GP, FIXED, GP | FIXED)),
)
_FIRSTS = tuple(step for step in STEPS if step.counter != 1)


def count(depth: int) -> int:
    """How many sequences of so many steps there are; of the first step, none of counter 1 alone."""
    return int(len(_FIRSTS) * len(STEPS) ** (depth - 1))


def every_sequence(depth: int, begins: range) -> Iterator[tuple[str, list[Call]]]:
    """All sequences of so many steps whose first two are those of the numbers `begins`, of count(2).

    The second counter does not begin: which of the two is the first makes no difference to the model.
    """
    pairs = list(product(_FIRSTS, STEPS))
    for number in begins:
        for rest in product(STEPS, repeat=depth - 2):
            steps = (*pairs[number], *rest)
            yield ", ".join(map(str, steps)), calls_of(steps)


def calls_of(steps: tuple[Step, ...]) -> list[Call]:
    """The calls that KVM makes in these steps."""
    world = World(random.Random(0), sizes=SIZES, vcpus=1, pmcs=2)
    for step in steps:
        if step.counter is None:
            world.write_global_ctrl(0, step.global_ctrl)
        else:
            world.take(world.counters[step.counter], step.name, size=step.size, fail_at=step.fail_at)
    return world.calls
