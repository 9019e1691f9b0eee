"""Counters of one VM as JSON: all for who opens it in `vpmu-agent top`, those that fail in the state."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from vpmu_agent.counts.counters import Counter
from vpmu_agent.counts.guests import Found
from vpmu_agent.text import selected_name, selected_text
from vpmu_agent.trace.call_json import SCHEMA, dumps


@dataclass(frozen=True, slots=True)
class CounterState:
    """A counter of a VM that is enabled or has events; as in `counts.counters.Counter`."""

    vcpu: int
    pmc: str
    status: str
    event: str
    """What the guest asked for, in perf's raw notation: selected_text()."""
    event_name: str | None
    """Its name: selected_name()."""
    events: int
    """How many it has."""
    size: int
    """How many it should have."""
    cpu: int | None
    running: float | None
    errno: int
    outlived_reset: bool | None
    """True if it is known to have gone on after a reset of its VM; None if that is not known."""


def counter_state(counter: Counter, vendor: str) -> CounterState:
    """Return a counter as JSON has it; `vendor` is the CPU's, as in event_names.py."""
    return CounterState(
        vcpu=counter.vcpu,
        pmc=counter.pmc,
        status=counter.status,
        event=selected_text(counter.pmc, counter.control, counter.precise_ip),
        event_name=selected_name(counter.pmc, counter.control, vendor),
        events=len(counter.events),
        size=counter.size,
        cpu=counter.cpu,
        running=counter.running,
        errno=counter.errno,
        outlived_reset=counter.outlived_reset or None,
    )


def counters_json(vm: str, found: Found, vendor: str) -> str:
    """Return the counters that a VM has enabled or that have events, as a JSON object on one line.

    None are listed of a VM that the census did not find. `vendor` is as in counter_state().
    """
    of_vm = found.counters.get(vm)
    counters = [asdict(counter_state(each, vendor)) for each in of_vm.counters] if of_vm else []
    return dumps({"schema": SCHEMA, "kind": "counters", "vm": vm, "counters": counters})
