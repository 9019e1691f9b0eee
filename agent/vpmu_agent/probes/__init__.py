"""Puts the BPF side into the kernel and reads what it sends: from here on there are only calls."""

from __future__ import annotations

import atexit
import ctypes
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from vpmu_agent.kernel.features import try_fexit, try_kprobe
from vpmu_agent.kernel.layout import KernelLayout, read_layout
from vpmu_agent.kernel.libbpf import recursion_misses
from vpmu_agent.model.call import Call
from vpmu_agent.probes.program import RING_PAGES, ProbeError, because, captured_stderr, compile_program
from vpmu_agent.probes.record import LOST_REASONS, Decoder, VmNames

if TYPE_CHECKING:
    import bcc

__all__ = ["FUNCTIONS", "Mode", "ProbeError", "Probes", "attach", "constants"]

Mode = Literal["auto", "fexit", "kprobe"]

FUNCTIONS = {
    "enable": "perf_event_enable",
    "pause": "perf_event_pause",
    "release": "perf_event_release_kernel",
    "create": "perf_event_create_kernel_counter",
}
"""The kernel functions that are followed, by the short names of their probes."""

_BATCH = 8192  # records per poll: what comes faster than it is read must not keep poll() from returning


class Probes:
    """Compiled and attached probes, and the calls that they send."""

    def __init__(self, bpf: bcc.BPF, *, mode: str, vms: VmNames) -> None:
        self.mode = mode
        self.functions = tuple(FUNCTIONS.values())
        self._bpf = bpf
        epoch_ns = time.time_ns() - time.monotonic_ns()  # bpf_ktime_get_ns() is CLOCK_MONOTONIC
        self._decoder = Decoder(epoch_ns=epoch_ns, vms=vms)
        self._raw: list[bytes] = []
        bpf[b"calls"].open_ring_buffer(self._receive)
        self._set_live(1)

    def poll(self, timeout_s: float) -> list[Call]:
        """The calls that are there, oldest first; waits up to `timeout_s` for the first one."""
        self._bpf.ring_buffer_poll(int(timeout_s * 1000))
        raw, self._raw = self._raw, []
        return [call for data in raw if (call := self._decoder.call(data))]

    def lost(self) -> dict[str, int]:
        """How many calls were lost since the start, by reason; "total" is their sum.

        `not_run` are those that the kernel did not run a probe for (struct bpf_prog_info, recursion_misses),
        among which may be calls of others than KVM.
        """
        table = self._bpf[b"lost"]
        lost = {reason: int(table[ctypes.c_int(i)].value) for i, reason in enumerate(LOST_REASONS)}
        lost["not_run"] = sum(recursion_misses(program.fd) for program in self._bpf.funcs.values())
        lost["total"] += lost["not_run"]
        return lost

    def stop(self) -> list[Call]:
        """Lets no new calls in, and returns those that were still on their way."""
        self._set_live(0)
        calls: list[Call] = []
        while batch := self.poll(0):
            calls += batch
        return calls

    def close(self) -> None:
        """Takes the probes off."""
        self._set_live(0)
        _detach(self._bpf)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _receive(self, _context: object, data: int, size: int) -> int:
        self._raw.append(ctypes.string_at(data, size))
        return -1 if len(self._raw) >= _BATCH else 0

    def _set_live(self, live: int) -> None:
        self._bpf[b"live"][ctypes.c_int(0)] = ctypes.c_uint32(live)


def attach(*, mode: Mode = "auto", vms: VmNames, ring_pages: int = RING_PAGES) -> Probes:
    """Attaches the probes to the running kernel: fentry/fexit where it takes them, else kprobe/kretprobe.

    Raises KernelError where the kernel lacks something the probes need, and ProbeError where it refuses them.
    """
    known = constants(read_layout())
    refused = []
    for tried in ("fexit", "kprobe") if mode == "auto" else (mode,):
        # Asking the kernel costs nothing; a compilation that it then refuses costs a second.
        trial = _TRIALS[tried](tuple(FUNCTIONS.values()))
        if not trial.works:
            refused.append(f"{tried}: {trial.reason}")
            continue
        try:
            bpf = compile_program(known, fexit=tried == "fexit", ring_pages=ring_pages)
            if tried == "kprobe":
                _attach_kprobes(bpf)
        except ProbeError as error:
            refused.append(f"{tried}: {error}")
        else:
            return Probes(bpf, mode=tried, vms=vms)
    todo = "`vpmu-agent doctor` says what this host lacks"
    if os.geteuid() != 0:
        todo = f"run it as root, or with CAP_BPF, CAP_PERFMON and CAP_SYSLOG; {todo}"
    raise ProbeError(f"cannot attach the probes ({'; '.join(refused)})", todo)


_TRIALS = {"fexit": try_fexit, "kprobe": try_kprobe}


def constants(layout: KernelLayout) -> Mapping[str, int]:
    """The VPMU_* constants that bpf/vpmu.bpf.c asks for, on one kernel."""
    handlers = (*layout.overflow_handlers, 0, 0)
    known = {
        "VPMU_HANDLER": handlers[0],
        "VPMU_HANDLER_INTR": handlers[1],
        "VPMU_CREATE_ARGS": layout.create_args,
        "VPMU_TASK_MM": layout.task_mm,
        "VPMU_MM_ARG_START": layout.mm_arg_start,
        "VPMU_MM_ARG_END": layout.mm_arg_end,
        "VPMU_PMC_TYPE": layout.pmc_type,
        "VPMU_PMC_IDX": layout.pmc_idx,
        "VPMU_PMC_VCPU": layout.pmc_vcpu,
        "VPMU_VCPU_ID": layout.vcpu_id,
        "VPMU_EVENT_HANDLER": layout.event_overflow_handler,
        "VPMU_EVENT_CONTEXT": layout.event_overflow_handler_context,
        "VPMU_EVENT_ATTR": layout.event_attr,
    }
    optional = {
        "VPMU_PMC_MAX_NR_EVENTS": layout.pmc_max_nr_events,
        "VPMU_VCPU_EVENT_COUNT": layout.vcpu_event_count,
    }
    return known | {name: value for name, value in optional.items() if value is not None}


def _attach_kprobes(bpf: bcc.BPF) -> None:
    with captured_stderr() as said:
        try:
            for name, function in FUNCTIONS.items():
                bpf.attach_kretprobe(event=function.encode(), fn_name=f"vpmu_{name}_return".encode())
                bpf.attach_kprobe(event=function.encode(), fn_name=f"vpmu_{name}_entry".encode())
        except Exception as error:  # bcc raises nothing more special
            reason = because(error, said())
            _detach(bpf)
            raise ProbeError(reason) from error


def _detach(bpf: bcc.BPF) -> None:
    # bcc would do it once more at exit, on file descriptors that may be somebody else's by then.
    atexit.unregister(bpf.cleanup)
    # It also looks for each probe in tracefs, which need not be mounted; closing the descriptors is enough.
    with captured_stderr(), suppress(Exception):
        bpf.cleanup()
