"""What `predict` prints: the calls that the model predicts, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vpmu_agent.model.call import CallName
from vpmu_agent.model.predict import Outcome, Prediction
from vpmu_agent.text import errno_name
from vpmu_agent.trace.call_json import SCHEMA, dumps


def predicted_json(predicted: Iterable[Prediction | Outcome]) -> Iterator[str]:
    """Yield an object for each call; what only a create has is null in the others."""
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
    """Yield a line for each call, and after the calls of a step one that says how it leaves the counter."""
    yield f"{'STEP':<12}{'CALL':<9}{'EVENT':>5}{'LEADER':>8}  {'CREATED':<9} RESULT"
    is_first = True  # of its step, whose name stands there only
    for one in predicted:
        step = one.step if is_first else ""
        is_first = isinstance(one, Outcome)
        if isinstance(one, Outcome):
            yield f"{step:<12}-- {_outcome(one)}"
            continue
        call = one.call
        leader = ""
        if call.name is CallName.CREATE:
            leader = "-" if call.leader is None else str(call.leader)
        how = {None: "", True: "disabled", False: "enabled"}[call.disabled]
        result = errno_name(-one.result) if one.result else "0"
        line = f"{step:<12}{call.name:<9}{call.event:>5}{leader:>8}  {how:<9} {result}"
        yield line.rstrip()


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
