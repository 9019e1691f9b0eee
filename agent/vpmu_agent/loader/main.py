"""Compiles and attaches the probes, and hands them over.

usage: python -m vpmu_agent.loader.main MODE [--no-durations] [--no-reads] DESCRIPTOR

A process of its own because bcc keeps LLVM and its own data in memory, 75 to 150 MB, for as long as the
process lives (iovisor/bcc issue 1181). The probes stay attached as long as anyone holds their descriptors.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from vpmu_agent.kernel.census import CensusLayout, read_census_layout
from vpmu_agent.kernel.container import require_host_pids
from vpmu_agent.kernel.errors import KernelError, ProbeError
from vpmu_agent.kernel.facts import PREEMPTING, preemption
from vpmu_agent.kernel.layout import KernelLayout, read_layout
from vpmu_agent.kernel.libbpf import libbpf, quiet, strerror
from vpmu_agent.kernel.trials import Trial, try_fexit, try_kprobe
from vpmu_agent.loader.program import (
    captured_stderr,
    compile_census,
    compile_program,
    seen_at_return,
    toolchain,
)
from vpmu_agent.loader.reason import because
from vpmu_agent.probes import FUNCTIONS, NO_DURATIONS, NO_READS, Mode, Way, functions, handover
from vpmu_agent.probes.handover import Handover
from vpmu_agent.system.privileges import end_with
from vpmu_agent.system.ready import is_readable

if TYPE_CHECKING:
    import bcc

MAPS = (
    "calls",
    "control",
    "lost",
    "pmcs",
    "vcpus",
    "slots",
    "free_pmcs",
    "free_vcpus",
    "was_used",
    "processes",
    "given_back",
    "left_behind",
    "errors",
    "starvations",
)
"""The maps of bpf/vpmu.bpf.c that are handed over."""

CENSUS = "bpf_iter__task_file"
"""The program in bpf/census.bpf.c. bcc derives the attach type from this name."""

_BPF_PROG_TYPE_TRACING = 26
_BPF_TRACE_ITER = 28


class NoWayError(ProbeError):
    """The kernel cannot attach any program in this way, or does not let this process do so."""


def main(arguments: Sequence[str]) -> None:
    """Hand over probes, or the reason why there are none."""
    mode, *options, number = arguments
    # If nobody waits for the probes any more, they are detached when this process ends.
    with socket.socket(fileno=int(number)) as channel, suppress(BrokenPipeError, ConnectionResetError):
        try:
            if mode == "census":
                handed = load_census()
            else:
                handed = load(
                    cast(Mode, mode), durations=NO_DURATIONS not in options, reads=NO_READS not in options
                )
            handover.send(channel, handed)
        except KernelError as error:
            handover.send_error(channel, error)


def load(mode: Mode, *, durations: bool = True, reads: bool = True) -> Handover:
    """Compile the probes for the running kernel and attach them; they ignore calls until they go live.

    Without `durations` they do not measure how long calls take; without `reads` there are none for the calls
    that are only counted.

    Raise KernelError if the kernel lacks something that the probes need, and ProbeError if it refuses them.
    """
    tools = toolchain()  # first, or each way to attach would report the same error
    require_host_pids()
    known = constants(read_layout())
    census, no_census = census_constants(read_census_layout)
    order = ways(preemption()) if mode == "auto" else (mode,)
    handed = first_attached(
        order, lambda way: attached(way, known | census, durations=durations, reads=reads), tools
    )
    return replace(handed, no_census=no_census) if no_census else handed


def first_attached(order: Sequence[Way], attach: Callable[[Way], Handover], tools: str) -> Handover:
    """Return what the first way gives that works. Raise ProbeError with the reason of each if none does.

    `attach` raises KernelError where its way does not work; `tools` is the toolchain().
    """
    refused: dict[str, KernelError] = {}
    for way in order:
        try:
            return attach(way)
        except KernelError as error:
            refused[way] = error
    reasons = "; ".join(f"{way}: {error.found}" for way, error in refused.items())
    todo = dict.fromkeys(error.todo for error in refused.values() if error.todo)
    raise ProbeError(
        f"cannot attach the probes with {tools} ({reasons})",
        "; ".join([*_as_root(), *(todo or ["`vpmu-agent doctor` says what this host lacks"])]),
    )


def ways(model: str | None) -> tuple[Way, ...]:
    """Return the ways to attach in the order in which "auto" tries them, under a model of preemption().

    fexit costs the guest less. But where the kernel preempts itself, a task can lose its CPU in the middle of
    an fexit program, and until it goes on, the kernel runs that program for no other task on this CPU
    (kernel/bpf/trampoline.c, __bpf_prog_enter_recur()): their calls are lost. A kprobe's program is not
    preempted (arch/x86/kernel/kprobes/ftrace.c, kprobe_ftrace_handler()). Where the model is unknown, that
    no call is lost counts for more than the cost.
    """
    return ("kprobe", "fexit") if model is None or model in PREEMPTING else ("fexit", "kprobe")


def load_census() -> Handover:
    """Compile the census for the running kernel and attach it. Raise KernelError as load() does."""
    toolchain()
    require_host_pids()
    layout = read_census_layout()
    census = attach_census(compile_census(layout.constants))
    return Handover("census", census=census, no_host_events=layout.no_host_events)


def _as_root() -> list[str]:
    return [] if os.geteuid() == 0 else ["run it as root, or with CAP_BPF, CAP_PERFMON and CAP_SYSLOG"]


def attached(way: Way, known: Mapping[str, int], *, durations: bool = True, reads: bool = True) -> Handover:
    """Compile the probes for the kernel that `known` describes, and attach them in one way.

    The census is attached too if `known` has its constants; if it alone is refused, `no_census` says why.

    Raise NoWayError if the kernel accepts no program at all in this way, ProbeError if the compiler or the
    kernel refuses this one, and KernelError if BTF or libbpf is missing.
    """
    # Tried first because to compile in vain costs a second. On one function only: to detach a probe can mean
    # to wait until all tasks have left it (synchronize_rcu_tasks()).
    trial = _TRIALS[way](list(FUNCTIONS.values())[:1])
    if not trial.works:
        raise NoWayError(trial.reason)
    bpf = compile_program(known, fexit=way == "fexit", durations=durations, reads=reads)
    if way == "kprobe":
        _attach_kprobes(bpf, durations=durations, reads=reads)
    handed = replace(handover_of(bpf, way), reads=reads)
    return with_census(handed, bpf) if "VPMU_VCPU_IOCTL" in known else handed


_TRIALS: dict[Way, Callable[[Sequence[str]], Trial]] = {"fexit": try_fexit, "kprobe": try_kprobe}


def handover_of(bpf: bcc.BPF, mode: str, maps: Sequence[str] = MAPS) -> Handover:
    """Return the descriptors that bcc has open for an attached program."""
    kprobes = (descriptor for of_event in bpf.kprobe_fds.values() for descriptor in of_event.values())
    links = (
        *kprobes,
        *bpf.uprobe_fds.values(),
        *bpf.raw_tracepoint_fds.values(),
        *bpf.kfunc_entry_fds.values(),
        *bpf.kfunc_exit_fds.values(),
    )
    return Handover(
        mode,
        {name: bpf[name.encode()].map_fd for name in maps},
        [program.fd for program in bpf.funcs.values()],
        list(links),
    )


def with_census(handed: Handover, bpf: bcc.BPF) -> Handover:
    """Return `handed` with the census compiled into `bpf`, or with why there is none: probes work without."""
    try:
        return replace(handed, census=attach_census(bpf))
    except ProbeError as error:
        return replace(handed, no_census=str(error))


def attach_census(bpf: bcc.BPF) -> int:
    """Load and attach the census that was compiled into `bpf`; return the descriptor of its link.

    Raise ProbeError if bcc or the kernel refuses it.
    """
    with captured_stderr() as printed:
        try:
            program = bpf.load_func(CENSUS.encode(), _BPF_PROG_TYPE_TRACING)
        except Exception as error:  # bcc raises nothing more specific
            raise because(error, printed()) from error
    with quiet():
        ctypes.set_errno(0)
        link = int(libbpf().bpf_link_create(program.fd, 0, _BPF_TRACE_ITER, None))
    if link < 0:
        raise ProbeError(f"cannot attach the census: {strerror(ctypes.get_errno())}")
    return link


def census_constants(read: Callable[[], CensusLayout]) -> tuple[dict[str, int], str]:
    """Return the VPMU_* constants that bpf/census.bpf.c needs, or none and the reason."""
    try:
        return read().constants, ""
    except KernelError as error:
        return {}, str(error)


def constants(layout: KernelLayout) -> dict[str, int]:
    """Return the VPMU_* constants that bpf/vpmu.bpf.c needs for a kernel."""
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
        "VPMU_EVENT_STATE": layout.event_state,
    }
    optional = {
        "VPMU_PMC_MAX_NR_EVENTS": layout.pmc_max_nr_events,
        "VPMU_VCPU_EVENT_COUNT": layout.vcpu_event_count,
    }
    return known | {name: value for name, value in optional.items() if value is not None}


def _attach_kprobes(bpf: bcc.BPF, *, durations: bool, reads: bool) -> None:
    returning = seen_at_return(durations=durations, reads=reads)
    with captured_stderr() as printed:
        try:
            for name, function in functions(reads=reads).items():
                if name in returning:
                    bpf.attach_kretprobe(event=function.encode(), fn_name=f"vpmu_{name}_return".encode())
                bpf.attach_kprobe(event=function.encode(), fn_name=f"vpmu_{name}_entry".encode())
        except Exception as error:  # bcc raises nothing more specific
            raise because(error, printed()) from error


if __name__ == "__main__":
    # Whoever waits for the probes may be killed, and this process is root's. If that was so before this line,
    # the other end of the channel is closed.
    end_with(os.getppid(), signal.SIGKILL)
    if not is_readable(int(sys.argv[-1])):
        main(sys.argv[1:])
    # Not sys.exit(): bcc's exit handler detaches the probes.
    os._exit(0)
