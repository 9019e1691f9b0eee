"""Calls as JSON objects, the same whether printed, recorded or read back.

A reader takes only the fields of a `Call`: the model works out indices and verdicts again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, Any, TypeVar

from vpmu_agent.model.call import Attr, Call, CallName, PmcType
from vpmu_agent.model.create_errors import cause
from vpmu_agent.model.verdict import Verdict
from vpmu_agent.text import errno_name
from vpmu_agent.trace.tally import Tally
from vpmu_agent.vms.clean import clean_name
from vpmu_agent.vms.modes import Pmu

if TYPE_CHECKING:
    from vpmu_agent.counts.starvation import Starvation

SCHEMA = 1


def call_json(call: Call, verdict: Verdict) -> str:
    """Return a call as a JSON object, without a newline. A duration that was not measured is null.

    `starved` is there only if it is true; `errno` and `cause`, in words, only if it failed.

    Written by hand because this is the hot path of `--record`: json.dumps() takes six times as long.
    """
    attr = call.attr
    failed = f',"errno":"{errno_name(-call.result)}","cause":"{cause(-call.result)}"' if call.result else ""
    expected = f',"expected":{encode_basestring_ascii(verdict.expected)}' if verdict.expected else ""
    starved = ',"starved":true' if call.starved else ""
    return (
        f'{{"schema":{SCHEMA},"kind":"call","time_ns":{call.time_ns},"vm":{encode_basestring_ascii(call.vm)},'
        f'"vcpu":{call.vcpu},"pmc":"{call.pmc_name}","call":"{call.name}",'
        f'"event":{_index(verdict.event)},"leader":{_index(verdict.leader)},'
        f'"result":{call.result}{failed},"duration_ns":{call.duration_ns or "null"},'
        f'"attr":{{"type":{attr.type},"config":{attr.config},"sample_period":{attr.sample_period},'
        f'"disabled":{_BOOL[attr.disabled]},"pinned":{_BOOL[attr.pinned]},'
        f'"exclude_user":{_BOOL[attr.exclude_user]},"exclude_kernel":{_BOOL[attr.exclude_kernel]},'
        f'"exclude_hv":{_BOOL[attr.exclude_hv]},"exclude_idle":{_BOOL[attr.exclude_idle]},'
        f'"exclude_host":{_BOOL[attr.exclude_host]},"exclude_guest":{_BOOL[attr.exclude_guest]},'
        f'"precise_ip":{attr.precise_ip}}},'
        f'"verdict":"{verdict.kind}"{expected},"tgid":{call.tgid},"tid":{call.tid},'
        f'"pmc_addr":"{call.pmc:#x}","event_addr":"{call.event:#x}","leader_addr":"{call.leader:#x}",'
        f'"max_nr_events":{call.max_nr_events},"event_count":{call.event_count},"lost":{call.lost}{starved}}}'
    )


_BOOL = ("false", "true")


def _index(index: int | None) -> int | str:
    return "null" if index is None else index


def lost_json(records: int) -> str:
    """Return the object that says in a stream of calls that records were lost since the last one."""
    return dumps({"schema": SCHEMA, "kind": "lost", "records": records})


def vpmu_json(vm: str, pmu: Pmu) -> str:
    """Return the object that says in a stream of calls why there are none of a VM.

    `mode` is "mediated" or "off"; `reason` is why it is off (modes.Why), null if it is mediated.
    """
    return dumps({"schema": SCHEMA, "kind": "vpmu", "vm": vm, "mode": pmu.mode, "reason": pmu.why})


def starved_json(starvation: Starvation) -> str:
    """Return the object that says in a stream of calls that counters of a VM began to be starved.

    It has those counters that are followed, each with the CPU that its vCPU ran on last; `sentence` is about
    the whole VM.
    """
    counters = [
        {"vcpu": counter.vcpu, "pmc": counter.pmc, "cpu": counter.cpu, "running": counter.running}
        for counter in starvation.counters
    ]
    return dumps(
        {
            "schema": SCHEMA,
            "kind": "starved",
            "vm": starvation.vm,
            "sentence": starvation.sentence,
            "counters": counters,
        }
    )


def summary_json(tally: Tally, lost: int) -> list[str]:
    """Return the objects that end a stream of calls, one for each VM.

    Each has the `lost` of the whole stream: a lost record cannot be assigned to a VM, so the counts of none
    are known to be complete.
    """
    return [
        dumps(
            {
                "schema": SCHEMA,
                "kind": "summary",
                "vm": name,
                "calls": vm.calls,
                **({"unchecked": asdict(vm.unchecked)} if vm.unchecked else {}),
                **({"precise": asdict(vm.precise)} if vm.precise.calls else {}),
                **({"guest_lbr": asdict(vm.guest_lbr)} if vm.guest_lbr.calls else {}),
                "divergences": sum(vm.divergences.values()),
                "lost": lost,
            }
        )
        for name, vm in sorted(tally.vms.items())
    ]


def dumps(value: Mapping[str, Any]) -> str:
    """Return JSON on one line, without spaces."""
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
    # Of `attr`:
    "type": (0, _U32),
    "config": (0, _U64),
    "sample_period": (0, _U64),
    "precise_ip": (0, 3),
}
# The last fields of `Attr`, in its order.
_FLAGS = (
    "disabled",
    "pinned",
    "exclude_user",
    "exclude_kernel",
    "exclude_hv",
    "exclude_idle",
    "exclude_host",
    "exclude_guest",
    "precise_ip",
)
_CALLS = {str(name): name for name in CallName}
# X86_PMC_IDX_MAX is 64, for gp and fixed counters together.
_PMCS = {f"{kind}{i}": (kind, i) for kind in (PmcType.GP, PmcType.FIXED) for i in range(64)} | {
    "lbr": (PmcType.LBR, 0)
}
PMC_NAMES = frozenset(_PMCS)
"""The names that a pmc can have."""

_Object = Mapping[str, Any]


class CallReader:
    """A reader of calls in JSON.

    This is most of the work of a replay, so the lines of `call_json()` are not parsed as a whole. Each is cut
    into the numbers that differ from line to line and the parts that recur; each part is parsed and checked
    once, and cached. A line of any other shape is left to `__call__()`.
    """

    def __init__(self) -> None:
        self._parts = (
            _Parts(_call, '{"vm":', "}", _CALL_FIELDS),
            _EventParts(),
            _Parts(_addresses, '{"event_addr":', "}", ("event_addr", "leader_addr")),
            _Parts(_state, '{"max_nr_events":', "", ("max_nr_events", "event_count", "lost", "starved")),
        )

    def __call__(self, value: _Object) -> Call:
        """Return the call in an object that has all of its fields.

        Raise ValueError, which names the field, if one is missing or wrong.
        """
        vm, vcpu, pmc_type, pmc_idx, name, result = _call(value)
        flags, tgid, tid, pmc = _counter(value)
        event, leader = _addresses(value)
        max_nr_events, event_count, lost, starved = _state(value)
        return Call(
            _int(value, "time_ns"),
            _duration(value),
            name,
            pmc,
            event,
            leader,
            result,
            Attr(*_selector(value), _int(_attr(value), "sample_period"), *flags),
            vm,
            tgid,
            tid,
            vcpu,
            pmc_type,
            pmc_idx,
            max_nr_events,
            event_count,
            lost,
            starved,
        )

    def written(self, lines: Iterable[bytes]) -> list[Call]:
        """Return the calls of the first lines, up to one that is not just as `call_json()` writes it."""
        calls: list[Call] = []
        add = calls.append
        of_call, of_event, of_addresses, of_state = self._parts
        try:
            for line in lines:
                start, _, rest = line.partition(b',"vm":')
                call, _, rest = rest.partition(b',"duration_ns":')
                duration, _, rest = rest.partition(b',"attr":')
                its_event, _, rest = rest.partition(b',"event_addr":')
                addresses, _, state = rest.partition(b',"max_nr_events":')
                head, _, time = start.rpartition(b":")
                if not (
                    head == _HEAD
                    # As in _number(), but inline: calling it here takes too long.
                    and time.isdigit()
                    and duration.isdigit()
                    and time >= b"1"
                    and duration >= b"1"
                    and (time_ns := int(time)) <= _S63
                    and (duration_ns := int(duration)) <= _S63
                ):
                    break
                vm, vcpu, pmc_type, pmc_idx, name, result = of_call[call]
                attr, tgid, tid, pmc = of_event[its_event]
                event, leader = of_addresses[addresses]
                max_nr_events, event_count, lost, starved = of_state[state]
                add(
                    Call(
                        time_ns,
                        duration_ns,
                        name,
                        pmc,
                        event,
                        leader,
                        result,
                        attr,
                        vm,
                        tgid,
                        tid,
                        vcpu,
                        pmc_type,
                        pmc_idx,
                        max_nr_events,
                        event_count,
                        lost,
                        starved,
                    )
                )
        except (ValueError, RecursionError):
            pass  # the caller parses this line as a whole, and finds out what is wrong
        return calls


_CALL_FIELDS = ("vm", "vcpu", "pmc", "call", "event", "leader", "result", "errno", "cause")
_HEAD = f'{{"schema":{SCHEMA},"kind":"call","time_ns"'.encode()
_CACHE = 1 << 14
_MAX_PART = 1024  # bytes: longer ones are not worth the memory

_T = TypeVar("_T")


class _Parts(dict[bytes, _T]):
    """A cache of one part of the lines: from its text to its value; ValueError for a text that is not valid.

    `start` and `end` complete a text to a JSON object. Only `fields` may be in it, and only `attr_fields` in
    its `attr`, each once: so a part means the same in every line, whatever the other parts are.
    """

    def __init__(
        self,
        read: Callable[[_Object], _T],
        start: str,
        end: str,
        fields: tuple[str, ...],
        attr_fields: tuple[str, ...] = (),
    ) -> None:
        self._read = read
        self._start, self._end = start, end
        self._fields, self._attr_fields = frozenset(fields), frozenset(attr_fields)

    def __missing__(self, text: bytes) -> _T:
        if len(text) > _MAX_PART:
            raise ValueError
        value = _parse_part(f"{self._start}{text.decode()}{self._end}")
        if not (value.keys() <= self._fields and value.get("attr", {}).keys() <= self._attr_fields):
            raise ValueError
        return _remember(self, text, self._read(value))


class _EventParts(dict[bytes, tuple[Attr, int, int, int]]):
    """The cache of the part from `attr` to `pmc_addr`, which is cut once more on a miss.

    A profiler in the guest sets another period each time it programs a counter.
    """

    def __init__(self) -> None:
        self._selectors = _Parts(_selector, '{"attr":', "}}", ("attr",), ("type", "config"))
        self._counters = _Parts(
            _counter,
            '{"attr":{"disabled":',
            "}",
            ("attr", "verdict", "expected", "tgid", "tid", "pmc_addr"),
            _FLAGS,
        )

    def __missing__(self, text: bytes) -> tuple[Attr, int, int, int]:
        selector, _, rest = text.partition(b',"sample_period":')
        period, _, counter = rest.partition(b',"disabled":')
        flags, tgid, tid, pmc = self._counters[counter]
        sample_period = 0 if period == b"0" else _number(period, _U64)  # guest LBR has none
        attr = Attr(*self._selectors[selector], sample_period, *flags)
        return _remember(self, text, (attr, tgid, tid, pmc))


def _remember(parts: dict[bytes, _T], text: bytes, part: _T) -> _T:
    if len(parts) >= _CACHE:
        parts.clear()
    parts[text] = part
    return part


def _number(text: bytes, high: int) -> int:
    """Return a positive number up to `high`. int() alone accepts more than JSON does."""
    if not (text.isdigit() and text >= b"1" and (number := int(text)) <= high):
        raise ValueError
    return number


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError
    return fields


_parse_part = json.JSONDecoder(object_pairs_hook=_each_once).decode


# The parts of a call: each function takes its fields out of an object, or raises ValueError.


def _call(value: _Object) -> tuple[str, int, PmcType, int, CallName, int]:
    vm, pmc, name = value.get("vm"), value.get("pmc"), value.get("call")
    # This also keeps a recording from sending control sequences to a terminal.
    if type(vm) is not str or vm == "" or clean_name(vm) != vm:
        raise ValueError("'vm' of a call must be a VM's name")
    if type(pmc) is not str or pmc not in _PMCS:
        raise ValueError('\'pmc\' of a call must be a counter such as "gp0" or "fixed1"')
    if type(name) is not str or name not in _CALLS:
        raise ValueError(f"'call' of a call must be one of {', '.join(_CALLS)}")
    return vm, _int(value, "vcpu"), *_PMCS[pmc], _CALLS[name], _int(value, "result")


def _selector(value: _Object) -> tuple[int, int]:
    attr = _attr(value)
    return _int(attr, "type"), _int(attr, "config")


def _counter(value: _Object) -> tuple[tuple[Any, ...], int, int, int]:
    """Return the values of `_FLAGS`, the tgid, the tid and the address of the pmc."""
    attr = _attr(value)
    *bools, precise_ip = _FLAGS
    flags = (*(_bool(attr, field) for field in bools), _int(attr, precise_ip))
    return flags, _int(value, "tgid"), _int(value, "tid"), _address(value, "pmc_addr")


def _attr(value: _Object) -> _Object:
    attr = value.get("attr")
    if type(attr) is not dict:
        raise ValueError("'attr' of a call must be an object")
    return attr


def _addresses(value: _Object) -> tuple[int, int]:
    return _address(value, "event_addr"), _address(value, "leader_addr")


def _state(value: _Object) -> tuple[int, int, int, bool]:
    """Return `max_nr_events`, `event_count`, `lost` and `starved`, which is there only if it is true."""
    starved = "starved" in value and _bool(value, "starved")
    return _int(value, "max_nr_events"), _int(value, "event_count"), _int(value, "lost"), starved


def _int(value: _Object, field: str) -> int:
    number = value.get(field)
    low, high = _INTS[field]
    if type(number) is not int or not low <= number <= high:  # bool is an int, but not here
        raise ValueError(f"{field!r} of a call must be an integer from {low} to {high}")
    return number


def _duration(value: _Object) -> int:
    """Return 0 for null, which is how a duration is written that was not measured."""
    return 0 if value.get("duration_ns", "") is None else _int(value, "duration_ns")


def _bool(value: _Object, field: str) -> bool:
    truth = value.get(field)
    if type(truth) is not bool:
        raise ValueError(f"{field!r} of a call must be true or false")
    return truth


_is_address = re.compile("0x[0-9a-f]{1,16}").fullmatch


def _address(value: _Object, field: str) -> int:
    text = value.get(field)
    if type(text) is not str or not _is_address(text):
        raise ValueError(f'{field!r} of a call must be an address such as "0xffff888100000000"')
    return int(text, 16)
