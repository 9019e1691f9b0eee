"""From the bytes that a probe sent (`struct vpmu_call` of bpf/vpmu.h) to a `Call`."""

from __future__ import annotations

import re
import struct
from collections import namedtuple
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, Protocol

from vpmu_agent.model.call import Attr, Call, CallName, PmcType
from vpmu_agent.model.rules import SLOTS, Expected, Kind, State
from vpmu_agent.model.verdict import Observation, verdict
from vpmu_agent.probes.sources import bpf_folder

_FORMATS = {"__u8": "B", "__s8": "b", "__u32": "I", "__s32": "i", "__u64": "Q", "__s64": "q"}

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


def struct_fields(text: str, name: str, sizes: Mapping[str, int]) -> list[tuple[str, str, int]]:
    """The fields of `struct name` in C text: name, format in the terms of `struct`, how many of them.

    `sizes` has the array sizes that are names.
    """
    return [
        (field, _FORMATS[c_type], int(sizes.get(size, size)) if size else 1)
        for c_type, field, size in re.findall(r"(\w+) (\w+)(?:\[(\w+)\])?;", _body(text, f"struct {name}"))
    ]


class Layout:
    """One struct of bpf/vpmu.h, or of `text`: its size in bytes and its fields, arrays laid out flat."""

    def __init__(self, name: str, sizes: Mapping[str, int] | None = None, *, text: str = "") -> None:
        fields = struct_fields(text or _TEXT, name, SIZES | dict(sizes or {}))
        # "=": no padding, for the header's fields are ordered so that C adds none either.
        self.struct = struct.Struct("=" + "".join(f"{count}{fmt}" for _, fmt, count in fields))
        self.size: int = self.struct.size
        starts = [0, *accumulate(count for _, _, count in fields)]
        self.fields: dict[str, slice] = {
            field: slice(start, start + count)
            for (field, _, count), start in zip(fields, starts, strict=False)
        }
        """Where each field is among the numbers that `struct` unpacks."""


def enum_names(text: str, name: str) -> list[str]:
    """The enumerators of `enum name` in C text; the n-th has the value n."""
    return re.findall(r"(\w+),", _body(text, f"enum {name}"))


def _short(enumerator: str, prefix: str) -> str:
    return enumerator.removeprefix(prefix).lower()


_TEXT = (bpf_folder() / "vpmu.h").read_text()
SIZES = {
    **{name: int(value) for name, value in re.findall(r"^#define (VPMU_\w+) (\d+)\b", _TEXT, re.MULTILINE)},
    "VPMU_KINDS": len(Kind),
    "VPMU_STATES": len(State),
    "VPMU_SLOTS": SLOTS,
}
"""The sizes of arrays: those of the header, and those that the model gives."""
CALL, PROCESS = Layout("vpmu_call"), Layout("vpmu_process")
CONTROL = Layout("vpmu_control")
INFLIGHT = Layout("vpmu_inflight")
VCPU_KEY, VCPU = Layout("vpmu_vcpu_key"), Layout("vpmu_vcpu")
ERROR_KEY = Layout("vpmu_error_key")
PMC_KEY = Layout("vpmu_pmc_key")
_named: Any = namedtuple  # mypy wants to know the names, which the header has
_Record = _named("_Record", list(CALL.fields))
_PROCESS_SIZE = PROCESS.size + SIZES["VPMU_COMMAND_SIZE"]
_CALLS = [CallName(_short(name, "VPMU_")) for name in enum_names(_TEXT, "vpmu_call_name")]
_PMC_TYPES = [PmcType(_short(name, "VPMU_")) for name in enum_names(_TEXT, "vpmu_pmc_type")]
PMC_TYPE_LBR = _PMC_TYPES.index(PmcType.LBR)


def pmc_layout(slots: int) -> Layout:
    """`struct vpmu_pmc` of a program that follows so many members of a group."""
    return Layout("vpmu_pmc", {"VPMU_SLOTS": slots})


@lru_cache
def pmc_name(pmc_type: int, pmc_idx: int) -> str:
    """`gp0`, `fixed1` or `lbr`: `Call.pmc_name`, of the numbers in a record or map."""
    kind = _PMC_TYPES[pmc_type]
    if kind is PmcType.LBR:
        return "lbr"
    return f"{kind}{pmc_idx - _FIXED_BASE_IDX if kind is PmcType.FIXED else pmc_idx}"


LOST_REASONS = [_short(name, "VPMU_LOST_") for name in enum_names(_TEXT, "vpmu_lost")][:-1]
"""What the entries of the map `lost` count."""


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


class VmNames(Protocol):
    """Whoever knows which VM a process is; `vms.Vms` does."""

    def met(self, tgid: int, command: Sequence[str]) -> None:
        """A process made its first call; `command` is what there is of its command line."""

    def name(self, tgid: int) -> str:
        """The VM's name."""


class Decoder:
    """Turns records into calls, in the order in which they came.

    `epoch_ns` is what to add to CLOCK_MONOTONIC to get nanoseconds since the epoch.
    """

    def __init__(self, *, epoch_ns: int, vms: VmNames) -> None:
        self._epoch_ns = epoch_ns
        self._vms = vms
        self._lost = 0

    def call(self, data: bytes) -> Observation | None:
        """The call that one record tells of and the monitor's verdict, None for a record of a process.

        Raises struct.error if it is neither by its length.
        """
        if len(data) == _PROCESS_SIZE:
            tgid, size = PROCESS.struct.unpack_from(data)
            command = data[PROCESS.size : PROCESS.size + size].decode(errors="replace")
            self._vms.met(tgid, command.rstrip("\0").split("\0"))
            return None
        r = _Record(*CALL.struct.unpack(data))
        # Two CPUs can read the total and then get their places in the ring the other way round.
        lost = max(0, r.lost - self._lost)
        self._lost += lost
        pmc_type = _PMC_TYPES[r.pmc_type]
        call = Call(
            time_ns=r.time_ns + self._epoch_ns,
            duration_ns=r.duration_ns,
            name=_CALLS[r.call],
            pmc=r.pmc,
            event=r.event,
            leader=r.leader,
            result=r.result,
            attr=_attr(r.attr_type, r.attr_config, r.attr_sample_period, r.attr_flags),
            vm=self._vms.name(r.tgid),
            tgid=r.tgid,
            tid=r.tid,
            vcpu=r.vcpu_id,
            pmc_type=pmc_type,
            pmc_idx=r.pmc_idx - _FIXED_BASE_IDX if pmc_type is PmcType.FIXED else r.pmc_idx,
            max_nr_events=r.max_nr_events,
            event_count=r.event_count,
            lost=lost,
        )
        said = verdict(
            *(r.verdict, r.event_index, r.leader_index, r.expected, r.expected_at, r.expected_size),
            event_count=r.event_count if r.expected == _EVENT_COUNT else -1,
        )
        return call, said


_EVENT_COUNT = list(Expected).index(Expected.EVENT_COUNT)
