"""Records as the probes send them, made of calls."""

from __future__ import annotations

from vpmu_agent.model.call import Attr, Call, PmcType
from vpmu_agent.model.rules import Kind
from vpmu_agent.model.verdict import Verdict
from vpmu_agent.probes.layout import CALL, CALLS, FIXED_BASE_IDX, PMC_TYPES

_FLAGS = {
    "disabled": 1 << 0,
    "pinned": 1 << 2,
    "exclude_user": 1 << 4,
    "exclude_kernel": 1 << 5,
    "exclude_hv": 1 << 6,
    "exclude_idle": 1 << 7,
    "exclude_host": 1 << 19,
    "exclude_guest": 1 << 20,
}
"""The bits of struct perf_event_attr behind `read_format` (include/uapi/linux/perf_event.h)."""


def record(call: Call, verdict: Verdict) -> bytes:
    """What the ring has of a call; of the verdict without what would have been expected."""
    fixed = FIXED_BASE_IDX if call.pmc_type is PmcType.FIXED else 0
    return CALL.pack(
        {
            "time_ns": call.time_ns,
            "duration_ns": call.duration_ns,
            "name": CALLS.index(call.name),
            "pmc": call.pmc,
            "event": call.event,
            "leader": call.leader,
            "result": call.result,
            "lost": call.lost,
            "attr_type": call.attr.type,
            "attr_config": call.attr.config,
            "attr_sample_period": call.attr.sample_period,
            "attr_flags": _flags(call.attr),
            "tgid": call.tgid,
            "tid": call.tid,
            "vcpu_id": call.vcpu,
            "event_count": call.event_count,
            "pmc_type": PMC_TYPES.index(call.pmc_type),
            "pmc_idx": call.pmc_idx + fixed,
            "max_nr_events": call.max_nr_events,
            "verdict": list(Kind).index(verdict.kind),
            "event_index": -1 if verdict.event is None else verdict.event,
            "leader_index": -1 if verdict.leader is None else verdict.leader,
            "starved": call.starved,
        }
    )


def _flags(attr: Attr) -> int:
    return sum(bit for name, bit in _FLAGS.items() if getattr(attr, name)) | attr.precise_ip << 15
