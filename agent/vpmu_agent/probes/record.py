"""From the bytes that a probe sent (`struct vpmu_call` of bpf/vpmu.h) to a `Call`."""

from __future__ import annotations

import re
import struct
from collections import namedtuple
from collections.abc import Callable
from functools import lru_cache
from importlib.resources import files
from typing import Any

from vpmu_agent.model.call import Attr, Call, CallName, PmcType

_FORMATS = {"__u8": "B", "__u32": "I", "__s32": "i", "__u64": "Q", "__s64": "q"}

# Bits of the bit field in struct perf_event_attr (include/uapi/linux/perf_event.h), counted from `disabled`.
_DISABLED, _PINNED = 1 << 0, 1 << 2
_EXCLUDE_USER, _EXCLUDE_KERNEL, _EXCLUDE_HV, _EXCLUDE_IDLE = 1 << 4, 1 << 5, 1 << 6, 1 << 7
_PRECISE_IP_SHIFT, _PRECISE_IP_MASK = 15, 3
_EXCLUDE_HOST, _EXCLUDE_GUEST = 1 << 19, 1 << 20

_FIXED_BASE_IDX = 32  # KVM_FIXED_PMC_BASE_IDX


def _body(text: str, declaration: str) -> str:
    match = re.search(rf"^{declaration} {{\n(.*?)^}};", text, re.MULTILINE | re.DOTALL)
    if match is None:
        raise ValueError(f"bpf/vpmu.h does not declare `{declaration}`")
    return re.sub(r"/\*.*?\*/", "", match[1], flags=re.DOTALL)


def struct_fields(text: str, name: str) -> list[tuple[str, str]]:
    """The fields of `struct name` in C text: their names and their formats in the terms of `struct`."""
    return [
        (field, _FORMATS[c_type])
        for c_type, field in re.findall(r"(\w+) (\w+);", _body(text, f"struct {name}"))
    ]


def enum_names(text: str, name: str) -> list[str]:
    """The enumerators of `enum name` in C text; the n-th has the value n."""
    return re.findall(r"(\w+),", _body(text, f"enum {name}"))


def _short(enumerator: str, prefix: str) -> str:
    return enumerator.removeprefix(prefix).lower()


_TEXT = (files("vpmu_agent") / "bpf" / "vpmu.h").read_text()
FIELDS = struct_fields(_TEXT, "vpmu_call")
# "=": no padding, for the header's fields are ordered so that C adds none either.
_STRUCT = struct.Struct("=" + "".join(fmt for _, fmt in FIELDS))
RECORD_SIZE = _STRUCT.size
_Record = namedtuple("_Record", [name for name, _ in FIELDS])  # type: ignore[misc] # names known at run time
_CALLS = [CallName(_short(name, "VPMU_")) for name in enum_names(_TEXT, "vpmu_call_name")]
_PMC_TYPES = [PmcType(_short(name, "VPMU_")) for name in enum_names(_TEXT, "vpmu_pmc_type")]

LOST_REASONS = [_short(name, "VPMU_LOST_") for name in enum_names(_TEXT, "vpmu_lost")][:-1]
"""What the entries of the map `lost` count, the first being their total."""


@lru_cache(maxsize=4096)
def _attr(type_: int, config: int, sample_period: int, flags: int) -> Attr:
    return Attr(
        type=type_,
        config=config,
        sample_period=sample_period,
        disabled=bool(flags & _DISABLED),
        pinned=bool(flags & _PINNED),
        exclude_user=bool(flags & _EXCLUDE_USER),
        exclude_kernel=bool(flags & _EXCLUDE_KERNEL),
        exclude_hv=bool(flags & _EXCLUDE_HV),
        exclude_idle=bool(flags & _EXCLUDE_IDLE),
        exclude_host=bool(flags & _EXCLUDE_HOST),
        exclude_guest=bool(flags & _EXCLUDE_GUEST),
        precise_ip=flags >> _PRECISE_IP_SHIFT & _PRECISE_IP_MASK,
    )


class Decoder:
    """Turns records into calls, in the order in which they came.

    `epoch_ns` is what to add to CLOCK_MONOTONIC to get nanoseconds since the epoch; `vm_name` names the VM of
    a process.
    """

    def __init__(self, *, epoch_ns: int, vm_name: Callable[[int], str]) -> None:
        self._epoch_ns = epoch_ns
        self._vm_name = vm_name
        self._lost = 0

    def call(self, data: bytes) -> Call:
        """The call that one record tells of. Raises struct.error if it is not one record's length."""
        r: Any = _Record._make(_STRUCT.unpack(data))
        # Two CPUs can read the total and then get their places in the ring the other way round.
        lost = max(0, r.lost - self._lost)
        self._lost += lost
        pmc_type = _PMC_TYPES[r.pmc_type]
        return Call(
            time_ns=r.time_ns + self._epoch_ns,
            duration_ns=r.duration_ns,
            name=_CALLS[r.call],
            pmc=r.pmc,
            event=r.event,
            leader=r.leader,
            result=r.result,
            attr=_attr(r.attr_type, r.attr_config, r.attr_sample_period, r.attr_flags),
            vm=self._vm_name(r.tgid),
            tgid=r.tgid,
            tid=r.tid,
            vcpu=r.vcpu_id,
            pmc_type=pmc_type,
            pmc_idx=r.pmc_idx - _FIXED_BASE_IDX if pmc_type is PmcType.FIXED else r.pmc_idx,
            max_nr_events=r.max_nr_events,
            event_count=r.event_count,
            lost=lost,
        )
