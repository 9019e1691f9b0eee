"""What `predict` prints: the model's calls for people, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vpmu_agent.model.call import CallName
from vpmu_agent.model.predict import Outcome, Prediction
from vpmu_agent.text import errno_name
from vpmu_agent.trace.call_json import SCHEMA, dumps


def predicted_json(predicted: Iterable[Prediction | Outcome]) -> Iterator[str]:
    """One object for each call; what a call other than create does not have is null."""
    for one in predicted:
        if isinstance(one, Prediction):
            yield dumps(
                {
                    "schema": SCHEMA,
                    "kind": "prediction",
                    "step": one.step,
                    "call": one.call.name,
                    "event": one.call.event,
                    "leader": one.call.leader,
                    "disabled": one.call.disabled,
                    "result": one.result,
                }
            )


def predicted_text(predicted: Iterable[Prediction | Outcome]) -> Iterator[str]:
    """One line for each call, and after those of a step one that says how it leaves the counter."""
    yield f"{'STEP':<9}{'CALL':<9}{'EVENT':>5}{'LEADER':>8}  {'CREATED':<9} RESULT"
    begun = ""
    for one in predicted:
        if isinstance(one, Outcome):
            yield f"{begun or one.step:<9}-- {_outcome(one)}"
            begun = ""
            continue
        call = one.call
        step = "" if begun else one.step
        begun = begun or " "
        leader = "-" if call.leader is None else str(call.leader)
        how = {None: "", True: "disabled", False: "enabled"}[call.disabled]
        result = errno_name(-one.result) if one.result else "0"
        is_create = call.name is CallName.CREATE
        yield (
            f"{step:<9}{call.name:<9}{call.event:>5}{leader if is_create else '':>8}  {how:<9} {result}"
        ).rstrip()


def _outcome(outcome: Outcome) -> str:
    events = f"holds {_listed(outcome.held)}" if outcome.held else "holds no events"
    if outcome.held and outcome.result < 0:
        events += ", never enabled, until a release"
    elif outcome.held and outcome.is_paused:
        events += ", paused"
    failed = f"fails with {errno_name(-outcome.result)}; " if outcome.result < 0 else ""
    return f"{failed}{events}; event_count {outcome.event_count}"


def _listed(indices: tuple[int, ...]) -> str:
    if len(indices) == 1:
        return f"event {indices[0]}"
    return f"events {indices[0]} to {indices[-1]}"
