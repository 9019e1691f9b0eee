"""The prediction: the calls that KVM must make for one counter, given its guest and the kernel's answers."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vpmu_agent.model.call import CallName
from vpmu_agent.model.mechanism import (
    ALL_COUNTERS,
    MAX_EVENTS,
    Pmc,
    Pmu,
    Step,
    Steps,
    pmc_stop_counter,
    reprogram_counter,
    write_global_ctrl,
)


@dataclass(frozen=True, slots=True)
class Prediction:
    """One call, in which step of the guest's it comes, and the answer that was assumed (0 or -errno)."""

    step: str
    call: Step
    result: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step leaves the counter: what it returned, and the indices of the events that it holds now."""

    step: str
    result: int
    held: tuple[int, ...]
    is_paused: bool
    event_count: int


def _program(pmc: Pmc, events: int) -> Steps:
    pmc.config = pmc.current_config + 1
    return reprogram_counter(pmc, hardware_nr_events=events)


def _pause(pmc: Pmc, _events: int) -> Steps:
    pmc.config = 0
    return reprogram_counter(pmc)


def _resume(pmc: Pmc, events: int) -> Steps:
    pmc.config = pmc.current_config or 1
    return reprogram_counter(pmc, hardware_nr_events=events)


def _release(pmc: Pmc, _events: int) -> Steps:
    return pmc_stop_counter(pmc)


def _global_off(pmc: Pmc, _events: int) -> Steps:
    return _with_global_ctrl(pmc, 0)


def _global_on(pmc: Pmc, _events: int) -> Steps:
    return _with_global_ctrl(pmc, ALL_COUNTERS)


def _with_global_ctrl(pmc: Pmc, value: int) -> Steps:
    if not write_global_ctrl(pmc.pmu, [pmc], value):
        return 0
    return (yield from reprogram_counter(pmc, hardware_nr_events=None))


STEPS: dict[str, Callable[[Pmc, int], Steps]] = {
    "program": _program,
    "pause": _pause,
    "resume": _resume,
    "release": _release,
    "global-off": _global_off,
    "global-on": _global_on,
}
"""What a guest can do to a counter: select an event, stop it, let it go on, or leave it unused; or stop all
counters of a vCPU by one write of global control, and let them go on by another."""


def predict(
    steps: Sequence[str], *, events: int, fail_at: int | None = None
) -> Iterator[Prediction | Outcome]:
    """Yield the calls of each step, in order, and after those of a step its outcome.

    `events` is N, `fail_at` the index of the event whose creation fails with ENOSPC whenever it is tried.
    Raise ValueError for an N that the kernel cannot have, an index past it, or an unknown step.
    """
    if not 1 <= events <= MAX_EVENTS:
        raise ValueError(f"a group has 1 to {MAX_EVENTS} events (max_nr_events is a u8), not {events}")
    if fail_at is not None and not 0 <= fail_at < events:
        raise ValueError(f"a group of {events} has no event {fail_at}: they count from 0")
    if unknown := [step for step in steps if step not in STEPS]:
        raise ValueError(f"no step {unknown[0]!r}: there are {', '.join(STEPS)}")
    pmc = Pmc(Pmu())
    for name in steps:
        calls = STEPS[name](pmc, events)
        answer: int | None = None
        try:
            while True:
                call = next(calls) if answer is None else calls.send(answer)
                failed = call.name is CallName.CREATE and call.event == fail_at
                yield Prediction(name, call, -errno.ENOSPC if failed else 0)
                answer = -errno.ENOSPC if failed else call.event + 1
        except StopIteration as end:
            held = tuple(i for i, event in enumerate(pmc.perf_events) if event is not None)
            yield Outcome(name, end.value, held, pmc.is_paused, pmc.pmu.event_count)
