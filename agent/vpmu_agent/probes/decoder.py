"""From the bytes that a probe sent (`struct vpmu_call` of bpf/vpmu.h) to a `Call`."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

from vpmu_agent.model.call import Attr, Call, PmcType
from vpmu_agent.model.rules import Expected, Kind
from vpmu_agent.model.verdict import Observation, verdict
from vpmu_agent.probes.layout import CALL, CALLS, FIXED_BASE_IDX, PMC_TYPES, PROCESS, SIZES
from vpmu_agent.probes.pseudonyms import make_pseudonyms

# Bits of the bit field in struct perf_event_attr (include/uapi/linux/perf_event.h), counted from `disabled`.
_DISABLED, _PINNED = 1 << 0, 1 << 2
_EXCLUDE_USER, _EXCLUDE_KERNEL, _EXCLUDE_HV, _EXCLUDE_IDLE = 1 << 4, 1 << 5, 1 << 6, 1 << 7
_PRECISE_IP_SHIFT, _PRECISE_IP_MASK = 15, 3
_EXCLUDE_HOST, _EXCLUDE_GUEST = 1 << 19, 1 << 20

_named: Any = namedtuple  # mypy wants literal names, and these come from the header
_Record = _named("_Record", list(CALL.fields))
_PROCESS_SIZE = PROCESS.size + SIZES["VPMU_COMMAND_SIZE"]
_KINDS, _EXPECTED = tuple(Kind), tuple(Expected)


@lru_cache(maxsize=4096)
def attr_of(type_: int, config: int, sample_period: int, flags: int) -> Attr:
    """Return an event's attributes; `flags` are the bits behind `read_format` in the kernel's struct."""
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
        precise_ip=precise_ip_of(flags),
    )


def precise_ip_of(flags: int) -> int:
    """Return the level, 0 to 3, at which an event is precise; `flags` are as in attr_of()."""
    return (flags >> _PRECISE_IP_SHIFT) & _PRECISE_IP_MASK


class VmNames(Protocol):
    """What the decoder needs of `vms.names.Vms`."""

    def met(self, tgid: int, command: Sequence[str]) -> None:
        """Note a process that made its first call; `command` is the beginning of its command line."""

    def name(self, tgid: int) -> str:
        """Return the name of the VM that a process runs."""


class Decoder:
    """Turns records into calls, in the order of their arrival.

    Kernel addresses end here: calls have pseudonyms in their place, so that nothing which is made of them can
    give an address away. Those of two decoders have nothing in common.

    `epoch_ns` plus CLOCK_MONOTONIC is the time in nanoseconds since the epoch.
    """

    def __init__(self, *, epoch_ns: int, vms: VmNames) -> None:
        self.epoch_ns = epoch_ns
        self._vms = vms
        self._lost = 0
        self._pseudonym = make_pseudonyms()

    def call(self, data: bytes) -> Observation | None:
        """Return the call in a record and the monitor's verdict on it, None for the record of a process.

        Raise struct.error if the length is that of neither.
        """
        if len(data) == _PROCESS_SIZE:
            tgid, size = PROCESS.struct.unpack_from(data)
            command = data[PROCESS.size : PROCESS.size + size].decode(errors="replace")
            self._vms.met(tgid, command.rstrip("\0").split("\0"))
            return None
        r = _Record(*CALL.struct.unpack(data))
        # Two CPUs can read the total in one order and get their places in the ring in the other.
        lost = max(0, r.lost - self._lost)
        self._lost += lost
        pmc_type = PMC_TYPES[r.pmc_type]
        call = Call(
            time_ns=r.time_ns + self.epoch_ns,
            duration_ns=r.duration_ns,
            name=CALLS[r.name],
            pmc=self._pseudonym(r.pmc),
            event=self._pseudonym(r.event),
            leader=self._pseudonym(r.leader),
            result=r.result,
            attr=attr_of(r.attr_type, r.attr_config, r.attr_sample_period, r.attr_flags),
            vm=self._vms.name(r.tgid),
            tgid=r.tgid,
            tid=r.tid,
            vcpu=r.vcpu_id,
            pmc_type=pmc_type,
            pmc_idx=r.pmc_idx - FIXED_BASE_IDX if pmc_type is PmcType.FIXED else r.pmc_idx,
            max_nr_events=r.max_nr_events,
            event_count=r.event_count,
            lost=lost,
            starved=bool(r.starved),
        )
        expected = _EXPECTED[r.expected]
        return call, verdict(
            _KINDS[r.verdict],
            r.event_index,
            r.leader_index,
            expected=expected,
            at=r.expected_at,
            size=r.expected_size,
            event_count=r.event_count if expected is Expected.EVENT_COUNT else -1,
        )
