"""All counters of one VM as JSON, for who opens it in `vpmu-agent top`."""

from __future__ import annotations

from typing import Any

from vpmu_agent.counts.counters import Counter
from vpmu_agent.counts.guests import Found
from vpmu_agent.text import selected_text
from vpmu_agent.trace.call_json import SCHEMA, dumps


def counters_json(vm: str, found: Found) -> str:
    """Return the counters that a VM has enabled or that have events, as a JSON object on one line.

    None are listed of a VM that the census did not find.
    """
    of_vm = found.counters.get(vm)
    counters = [_counter(each) for each in of_vm.counters] if of_vm else []
    return dumps({"schema": SCHEMA, "kind": "counters", "vm": vm, "counters": counters})


def _counter(counter: Counter) -> dict[str, Any]:
    return {
        "vcpu": counter.vcpu,
        "pmc": counter.pmc,
        "status": counter.status,
        "event": selected_text(counter.pmc, counter.control),
        "events": len(counter.events),
        "size": counter.size,
        "cpu": counter.cpu,
        "running": counter.running,
        "errno": counter.errno,
    }
