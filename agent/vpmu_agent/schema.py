"""The JSON objects of calls: printed, recorded and read back, always the same.

Reading one takes only what a `Call` holds: indices and verdicts are the model's, and are worked out again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from json.encoder import encode_basestring_ascii
from operator import itemgetter, le
from typing import Any

from vpmu_agent.model.call import Attr, Call, CallName, PmcType
from vpmu_agent.model.check import Verdict
from vpmu_agent.tally import Tally
from vpmu_agent.vms import clean_name

SCHEMA = 1


def call_json(call: Call, verdict: Verdict) -> str:
    """One call as a JSON object, without a newline.

    Put together by hand because this is the hot path of `--record`: json.dumps() takes six times as long.
    """
    attr = call.attr
    expected = f',"expected":{encode_basestring_ascii(verdict.expected)}' if verdict.expected else ""
    return (
        f'{{"schema":{SCHEMA},"kind":"call","time_ns":{call.time_ns},"vm":{encode_basestring_ascii(call.vm)},'
        f'"vcpu":{call.vcpu},"pmc":"{call.pmc_name}","call":"{call.name}",'
        f'"event":{_index(verdict.event)},"leader":{_index(verdict.leader)},'
        f'"result":{call.result},"duration_ns":{call.duration_ns},'
        f'"attr":{{"type":{attr.type},"config":{attr.config},"sample_period":{attr.sample_period},'
        f'"disabled":{_BOOL[attr.disabled]},"pinned":{_BOOL[attr.pinned]},'
        f'"exclude_user":{_BOOL[attr.exclude_user]},"exclude_kernel":{_BOOL[attr.exclude_kernel]},'
        f'"exclude_hv":{_BOOL[attr.exclude_hv]},"exclude_idle":{_BOOL[attr.exclude_idle]},'
        f'"exclude_host":{_BOOL[attr.exclude_host]},"exclude_guest":{_BOOL[attr.exclude_guest]},'
        f'"precise_ip":{attr.precise_ip}}},'
        f'"verdict":"{verdict.kind}"{expected},"tgid":{call.tgid},"tid":{call.tid},'
        f'"pmc_addr":"{call.pmc:#x}","event_addr":"{call.event:#x}","leader_addr":"{call.leader:#x}",'
        f'"max_nr_events":{call.max_nr_events},"event_count":{call.event_count},"lost":{call.lost}}}'
    )


_BOOL = ("false", "true")


def _index(index: int | None) -> int | str:
    return "null" if index is None else index


def lost_json(records: int) -> str:
    """Stands in a stream of calls where records were lost since the call printed before it."""
    return dumps({"schema": SCHEMA, "kind": "lost", "records": records})


def summary_json(tally: Tally, lost: int) -> list[str]:
    """What ends a stream of calls: one object for each VM.

    `lost` is that of the whole stream, in each of them: a record that was lost cannot say whose it was, so
    no VM's calls can be said to be complete.
    """
    return [
        dumps(
            {
                "schema": SCHEMA,
                "kind": "summary",
                "vm": name,
                "calls": vm.calls,
                "divergences": sum(vm.divergences.values()),
                "lost": lost,
            }
        )
        for name, vm in sorted(tally.vms.items())
    ]


def dumps(value: Mapping[str, Any]) -> str:
    """JSON on one line, without blanks."""
    return json.dumps(value, separators=(",", ":"))


# Reading

_S31, _U32, _S63, _U64 = 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1
_INTS = {
    "time_ns": (0, _S63),
    "duration_ns": (0, _S63),
    "result": (-4095, 0),  # MAX_ERRNO of include/linux/err.h
    "tgid": (0, _S31),
    "tid": (0, _S31),
    "vcpu": (-1, _S31),
    "max_nr_events": (0, 255),
    "event_count": (-1, 255),
    "lost": (0, _S63),
}
_ATTR_INTS = {"type": (0, _U32), "config": (0, _U64), "sample_period": (0, _U64), "precise_ip": (0, 3)}
_ATTR_BOOLS = (
    *("disabled", "pinned", "exclude_user", "exclude_kernel", "exclude_hv", "exclude_idle"),
    *("exclude_host", "exclude_guest"),
)
_ATTR_KEYS = (*_ATTR_INTS, *_ATTR_BOOLS)
_CALLS = {str(name): name for name in CallName}
# X86_PMC_IDX_MAX is 64, for gp and fixed counters together.
_PMCS = {f"{kind}{i}": (kind, i) for kind in (PmcType.GP, PmcType.FIXED) for i in range(64)} | {
    "lbr": (PmcType.LBR, 0)
}
PMC_NAMES = frozenset(_PMCS)
"""What a pmc can be called."""


class _Ints:
    """Takes integers out of an object and checks them, all at once because a replay does little else."""

    def __init__(self, ranges: Mapping[str, tuple[int, int]]) -> None:
        self._get = itemgetter(*ranges)
        self._lows, self._highs = zip(*ranges.values(), strict=True)
        self._types = (int,) * len(ranges)

    def __call__(self, value: Any) -> tuple[int, ...]:
        ints: tuple[int, ...] = self._get(value)
        if (
            tuple(map(type, ints)) != self._types  # bool is an int, but not here
            or not all(map(le, self._lows, ints))
            or not all(map(le, ints, self._highs))
        ):
            raise ValueError
        return ints


_ints, _attr_ints = _Ints(_INTS), _Ints(_ATTR_INTS)
_attr_bools = itemgetter(*_ATTR_BOOLS)
_ALL_BOOL = (bool,) * len(_ATTR_BOOLS)


class CallReader:
    """Makes calls of parsed objects; whatever is wrong with one raises ValueError that names the field.

    Remembers, within bounds, what repeats from call to call and is dear to check or to make.
    """

    def __init__(self) -> None:
        self._vms: set[str] = set()
        self._addresses: dict[str, int] = {}
        self._attrs: dict[tuple[Any, ...], Attr] = {}

    def __call__(self, value: dict[str, Any]) -> Call:
        """One call."""
        try:
            return self._call(value)
        except (KeyError, TypeError, ValueError):
            raise ValueError(_complaint(value)) from None

    def _call(self, value: dict[str, Any]) -> Call:
        time_ns, duration_ns, result, tgid, tid, vcpu, size, event_count, lost = _ints(value)
        pmc_type, pmc_idx = _PMCS[value["pmc"]]
        return Call(
            time_ns,
            duration_ns,
            _CALLS[value["call"]],
            self._address(value["pmc_addr"]),
            self._address(value["event_addr"]),
            self._address(value["leader_addr"]),
            result,
            self._attr(value["attr"]),
            self._vm(value["vm"]),
            tgid,
            tid,
            vcpu,
            pmc_type,
            pmc_idx,
            size,
            event_count,
            lost,
        )

    def _attr(self, value: Any) -> Attr:
        ints = _attr_ints(value)
        bools = _attr_bools(value)
        if tuple(map(type, bools)) != _ALL_BOOL:
            raise ValueError
        attr = self._attrs.get((ints, bools))
        if attr is None:
            attr = Attr(**{key: value[key] for key in _ATTR_KEYS})
            _remember(self._attrs, (ints, bools), attr)
        return attr

    def _address(self, text: str) -> int:
        address = self._addresses.get(text)
        if address is None:
            if not _is_address(text):
                raise ValueError
            address = int(text, 16)
            _remember(self._addresses, text, address)
        return address

    def _vm(self, name: str) -> str:
        if name not in self._vms:
            if not _is_vm_name(name):
                raise ValueError
            if len(self._vms) >= _CACHE:
                self._vms.clear()
            self._vms.add(name)
        return name


_CACHE = 4096


def _remember(cache: dict[Any, Any], key: Any, value: Any) -> None:
    if len(cache) >= _CACHE:
        cache.clear()
    cache[key] = value


def _is_address(value: Any) -> bool:
    return type(value) is str and re.fullmatch("0x[0-9a-f]{1,16}", value) is not None


def _is_vm_name(value: Any) -> bool:
    """Also keeps a recording from sending control sequences to a terminal."""
    return type(value) is str and value != "" and clean_name(value) == value


def _complaint(value: dict[str, Any]) -> str:
    """Names the first field for which a call was refused."""
    attr = value.get("attr")
    if type(attr) is not dict:
        return "'attr' of a call must be an object"
    for where, ranges in ((value, _INTS), (attr, _ATTR_INTS)):
        for key, (low, high) in ranges.items():
            if type(where.get(key)) is not int or not low <= where[key] <= high:
                return f"{key!r} of a call must be an integer from {low} to {high}"
    for key in _ATTR_BOOLS:
        if type(attr.get(key)) is not bool:
            return f"{key!r} of a call must be true or false"
    for key in ("pmc_addr", "event_addr", "leader_addr"):
        if not _is_address(value.get(key)):
            return f'{key!r} of a call must be an address such as "0xffff888100000000"'
    if not _is_vm_name(value.get("vm")):
        return "'vm' of a call must be a VM's name"
    if str(value.get("call")) not in _CALLS:
        return f"'call' of a call must be one of {', '.join(_CALLS)}"
    return '\'pmc\' of a call must be a counter such as "gp0" or "fixed1"'
