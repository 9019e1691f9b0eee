"""Attaches the probes, compiled now or earlier, and hands them over.

usage: python -m vpmu_agent.loader.main MODE [--no-durations] [--no-reads] [--stream] DESCRIPTOR

A process of its own because bcc keeps LLVM and its own data in memory, 75 to 150 MB, for as long as the
process lives (iovisor/bcc issue 1181). The probes stay attached as long as anyone holds their descriptors.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar, cast

from vpmu_agent.kernel import btf
from vpmu_agent.kernel.causes import cause_of
from vpmu_agent.kernel.census import CensusLayout, read_census_layout
from vpmu_agent.kernel.container import require_host_pids
from vpmu_agent.kernel.errors import KernelError, ProbeError
from vpmu_agent.kernel.facts import PREEMPTING, preemption
from vpmu_agent.kernel.layout import KernelLayout, read_layout, require_kvm
from vpmu_agent.kernel.symbols import kallsyms
from vpmu_agent.kernel.trials import Trial, try_bpf, try_fexit, try_kprobe
from vpmu_agent.loader.attach import Kind, Loading, attach_iterator, attach_probe, attach_tracing, make_maps
from vpmu_agent.loader.cache import FOLDER, Cache
from vpmu_agent.loader.image import Image, read_image, with_placeholders
from vpmu_agent.loader.program import (
    FEW_RING_PAGES,
    Source,
    census_source,
    compile_source,
    find_bcc,
    program_source,
    seen_at_return,
    toolchain,
    toolchain_files,
)
from vpmu_agent.probes import FUNCTIONS, NO_DURATIONS, NO_READS, STREAM, Mode, Way, functions, handover
from vpmu_agent.probes.handover import Handover
from vpmu_agent.system.privileges import end_with
from vpmu_agent.system.ready import is_readable

MAPS = (
    "calls",
    "control",
    "lost",
    "self_tests",
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

FEW_CALLS = {"calls": FEW_RING_PAGES * mmap.PAGESIZE}
"""The room of the ring where not every call is sent."""

CENSUS = "bpf_iter__task_file"
"""The program in bpf/census.bpf.c."""

_FILES = "bpf_iter_task_file"
"""The kernel's function that stands for this iterator in its BTF."""


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
                    cast(Mode, mode),
                    durations=NO_DURATIONS not in options,
                    reads=NO_READS not in options,
                    stream=STREAM in options,
                )
            handover.send(channel, handed)
        except KernelError as error:
            handover.send_error(channel, error)


def load(mode: Mode, *, durations: bool = True, reads: bool = True, stream: bool = False) -> Handover:
    """Attach probes for the running kernel, compiled if need be; they ignore calls until they go live.

    Without `durations` they do not measure how long calls take; without `reads` there are none for the calls
    that are only counted. With `stream` they have room to send every call.

    Raise KernelError if the kernel lacks something that the probes need, and ProbeError if it refuses them.
    """
    known, no_census = read_kernel()
    require_bpf()

    def attach(way: Way) -> Handover:
        return attached(way, known, durations=durations, reads=reads, stream=stream, cache=Cache())

    handed = first_attached(in_order(mode), attach, toolchain)
    return replace(handed, no_census=no_census) if no_census else handed


def keep_compiled(mode: Mode, *, durations: bool, reads: bool) -> None:
    """Put what load() would compile into the cache, if it is not there.

    Raise KernelError if this is not root, or as load() does.
    """
    if os.geteuid() != 0:
        raise KernelError(f"only root may write to {FOLDER}", "run it as root")
    known, _ = read_kernel()
    way = next((way for way in in_order(mode) if _TRIALS[way](_ONE_FUNCTION).works), None)
    if way is None:
        raise ProbeError("this kernel attaches no probes", "`vpmu-agent doctor` says what this host lacks")
    constants, _ = with_placeholders(known)
    source = program_source(constants, fexit=way == "fexit", durations=durations, reads=reads)
    fingerprint, cache = source.fingerprint(), Cache()
    if not cache.find(fingerprint):
        cache.keep(fingerprint, compiled(source), toolchain_files())
        if not cache.find(fingerprint):
            raise ProbeError(
                f"cannot keep the programs in {FOLDER}", "see that root, and only root, can write to it"
            )


def read_kernel() -> tuple[dict[str, int], str]:
    """Return the VPMU_* constants for the running kernel, and why there are none for the census, or "".

    Raise KernelError if the kernel lacks something that the probes need, and ProbeError if there is no bcc.
    """
    find_bcc()  # first, or each way to attach would report the same error
    require_host_pids()
    require_kvm()
    symbols = kallsyms()
    known = constants(read_layout(symbols=symbols))
    census, no_census = census_constants(partial(read_census_layout, symbols=symbols))
    return known | census, no_census


def in_order(mode: Mode) -> tuple[Way, ...]:
    """Return the ways to attach that this mode allows, the first one first."""
    return ways(preemption()) if mode == "auto" else (mode,)


def first_attached(
    order: Sequence[Way], attach: Callable[[Way], Handover], tools: Callable[[], str]
) -> Handover:
    """Return what the first way gives that works. Raise ProbeError with the reason of each if none does.

    `attach` raises KernelError where its way does not work; `tools` is toolchain().
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
        f"cannot attach the probes with {tools()} ({reasons})",
        "; ".join(todo or ["`vpmu-agent doctor` says what this host lacks"]),
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
    find_bcc()
    require_host_pids()
    require_bpf()
    layout = read_census_layout()
    known, addresses = with_placeholders(layout.constants)
    link, program = from_cache_or_compiler(
        census_source(known), lambda image: attach_census(make_maps(image, addresses)), Cache()
    )
    return Handover("census", census=link, census_program=program, no_host_events=layout.no_host_events)


def require_bpf() -> None:
    """Raise ProbeError, with the cause, if the kernel loads no program of this process that reads its memory.

    To find that out by the real programs takes minutes.
    """
    if not (trial := try_bpf()).works:
        raise ProbeError(*cause_of(trial))


def attached(
    way: Way,
    known: Mapping[str, int],
    *,
    durations: bool = True,
    reads: bool = True,
    stream: bool = False,
    cache: Cache | None = None,
) -> Handover:
    """Attach the probes for the kernel that `known` describes in one way; without a `cache`, compile them.

    The census is attached too if `known` has its constants; if it alone is refused, `no_census` says why.

    Raise NoWayError if the kernel accepts no program at all in this way, ProbeError if the compiler or the
    kernel refuses this one, and KernelError if BTF or libbpf is missing.
    """
    # Tried first because to compile in vain costs a second. On one function only: to detach a probe can mean
    # to wait until all tasks have left it (synchronize_rcu_tasks()).
    trial = _TRIALS[way](_ONE_FUNCTION)
    if not trial.works:
        raise NoWayError(*cause_of(trial))
    known, addresses = with_placeholders(known)
    source = program_source(known, fexit=way == "fexit", durations=durations, reads=reads)
    attach_one = by_fexit() if way == "fexit" else by_kprobe

    def attach(image: Image) -> Handover:
        loading = make_maps(image, addresses, {} if stream else FEW_CALLS)
        handed = attach_all(loading, way, attach_one, durations=durations, reads=reads)
        return with_census(handed, loading)

    return from_cache_or_compiler(source, attach, cache)


_ONE_FUNCTION = list(FUNCTIONS.values())[:1]
_TRIALS: dict[Way, Callable[[Sequence[str]], Trial]] = {"fexit": try_fexit, "kprobe": try_kprobe}

Attach = Callable[[Loading, str, str, bool], tuple[int, int]]
"""Loads a program for the entry or the return (True) of a function, and attaches it: descriptors of both."""


def by_kprobe(loading: Loading, program: str, function: str, is_return: bool) -> tuple[int, int]:
    """Attach one program as a kprobe or kretprobe."""
    descriptor = loading.load(program, Kind.PROBE)
    return descriptor, attach_probe(descriptor, function, is_return=is_return)


def by_fexit() -> Attach:
    """Return what attaches a program as fentry or fexit. Raise BtfError if this kernel has no BTF."""
    types = btf.vmlinux()

    def attach(loading: Loading, program: str, function: str, is_return: bool) -> tuple[int, int]:
        kind = Kind.FEXIT if is_return else Kind.FENTRY
        descriptor = loading.load(program, kind, function=types.func_id(function))
        return descriptor, attach_tracing(descriptor, function)

    return attach


def attach_all(
    loading: Loading, mode: str, attach: Attach, *, durations: bool, reads: bool = True
) -> Handover:
    """Load and attach all probes of an image. Raise ProbeError if the kernel refuses one."""
    programs, links = [], []
    returning = seen_at_return(durations=durations, reads=reads)
    for name, function in functions(reads=reads).items():
        for end, is_return in (("return", True), ("entry", False)):
            if is_return and name not in returning:
                continue
            program, link = attach(loading, f"vpmu_{name}_{end}", function, is_return)
            programs.append(program)
            links.append(link)
    return Handover(mode, {name: loading.maps[name] for name in MAPS}, programs, links, reads=reads)


Attached = TypeVar("Attached")


def from_cache_or_compiler(
    source: Source, attach: Callable[[Image], Attached], cache: Cache | None
) -> Attached:
    """Return what `attach` returns for the programs of this source, which are compiled only if they must be.

    Raise ProbeError if the compiler refuses them, or if `attach` does.
    """
    fingerprint = source.fingerprint()
    if cache and (image := cache.find(fingerprint)):
        # If the kernel refuses what it once took, what the compiler makes of it now decides.
        with suppress(ProbeError):
            return attach(image)
    image = compiled(source)
    done = attach(image)
    if cache:
        cache.keep(fingerprint, image, toolchain_files())
    return done


def compiled(source: Source) -> Image:
    """Compile with bcc. Raise ProbeError if there is no bcc that works, or if it refuses."""
    tools = toolchain()
    bpf = compile_source(source)
    try:
        return read_image(bpf, toolchain=tools)
    finally:
        bpf.cleanup()  # its maps, of which ours are copies


def with_census(handed: Handover, loading: Loading) -> Handover:
    """Return `handed` with the image's census if it has one, or with why it is not: probes work without."""
    if CENSUS not in loading.image.programs:
        return handed
    try:
        link, program = attach_census(loading)
        return replace(handed, census=link, census_program=program)
    except ProbeError as error:
        return replace(handed, no_census=str(error))


def attach_census(loading: Loading) -> tuple[int, int | None]:
    """Load and attach the census; return its link, and its program where that can walk single processes.

    Raise ProbeError if the kernel refuses.
    """
    types = btf.vmlinux()
    program = loading.load(CENSUS, Kind.ITERATOR, function=types.func_id(_FILES))
    # Before Linux 6.1 it is no error to ask for a single process: it goes through all of them.
    return attach_iterator(program), program if types.has_member("bpf_iter_aux_info", "task") else None


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
        "VPMU_TASK_GROUP_LEADER": layout.task_group_leader,
        "VPMU_TASK_START_BOOTTIME": layout.task_start_boottime,
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


if __name__ == "__main__":
    # Whoever waits for the probes may be killed, and this process is root's. If that was so before this line,
    # the other end of the channel is closed.
    end_with(os.getppid(), signal.SIGKILL)
    if not is_readable(int(sys.argv[-1])):
        main(sys.argv[1:])
    # Not sys.exit(): bcc's exit handler detaches the probes.
    os._exit(0)
