"""Where the monitor's run time goes: what one of each thing that it does costs, alone, and how many it does.

Programs that do one thing are run by BPF_PROG_TEST_RUN and timed by the kernel's statistics, as all others
here. A program's own cost, the empty one's, is taken off.
"""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path
from statistics import median

from tests.bench import stats
from tests.bench.progress import say
from tests.bench.report import Figure
from tests.bpf import twins
from vpmu_agent.loader import program

ROUNDS, RUNS = 9, 10_000

# The maps' keys, sizes and kinds are those of bpf/vpmu.bpf.c.
SOURCE = r"""
#include <uapi/linux/ptrace.h>
struct value { u64 numbers[16]; };
struct pmc_key { u64 pmc; u32 tgid; u32 unused; };
BPF_HASH(threads, u32, struct value, 16384);
BPF_HASH(pmcs, struct pmc_key, struct value, 65536);
BPF_ARRAY(entries, struct value, 65536);
int empty(struct bpf_raw_tracepoint_args *ctx) { return 0; }
int clock(struct bpf_raw_tracepoint_args *ctx) { return bpf_ktime_get_ns() == 1; }
int read_user(struct bpf_raw_tracepoint_args *ctx)
{
	u64 found[2];

	bpf_probe_read_user(&found, sizeof(found), (void *)ctx->args[0]);
	return found[0] == 1;
}
int read_kernel(struct bpf_raw_tracepoint_args *ctx)
{
	u64 found[2];

	bpf_probe_read_kernel(&found, sizeof(found), (void *)bpf_get_current_task());
	return found[0] == 1;
}
int look_up(struct bpf_raw_tracepoint_args *ctx)
{
	struct pmc_key key = { .pmc = ctx->args[0] };
	struct value *value = pmcs.lookup(&key), none = {};

	if (!value)
		return pmcs.update(&key, &none);
	value->numbers[0]++;
	return 0;
}
int entry(struct bpf_raw_tracepoint_args *ctx)
{
	u32 index = ctx->args[0];
	struct value *value;

	index &= 65535;
	value = entries.lookup(&index);
	if (value)
		value->numbers[0]++;
	return 0;
}
int add_and_delete(struct bpf_raw_tracepoint_args *ctx)
{
	u32 thread = bpf_get_current_pid_tgid();
	struct value none = {};

	threads.update(&thread, &none);
	threads.delete(&thread);
	return 0;
}
"""
THINGS = {
    "clock": "a look at the clock",
    "read_user": "a read of user memory, as here",
    "read_kernel": "a read of kernel memory, as of KVM's",
    "entry": "an entry of an array",
    "look_up": "a look-up in a hash map, as (b) does",
    "add_and_delete": "an entry added and deleted, as (c) does",
}
# What bpf/vpmu.bpf.c does for a usual call of a single event: programs, clocks, reads, entries of arrays.
DONE = {"enable": (2, 2, 0, 7), "create": (2, 2, 3, 13)}


def measure(_folder: Path) -> list[Figure]:
    """Nanoseconds of each thing, and what they add up to in a call."""
    say("what the monitor's parts cost")
    took = {name: median(times) for name, times in _times().items()}
    empty = took.pop("empty")
    figures = [Figure("profile.program", "a program, and the statistics of it", empty, "ns")]
    net = {name: time - empty for name, time in took.items()}
    figures += [Figure(f"profile.{name}", THINGS[name], time, "ns") for name, time in net.items()]
    for call, (programs, clocks, reads, entries) in DONE.items():
        parts = programs * empty + clocks * net["clock"] + entries * net["entry"]
        what = f"{call}: its programs, clocks, entries of arrays"
        if not reads:
            figures.append(Figure(f"profile.{call}", what, parts, "ns"))
            continue
        for memory in ("user", "kernel"):
            total = parts + reads * net[f"read_{memory}"]
            figures.append(Figure(f"profile.{call}.{memory}", f"{what}, {memory} reads", total, "ns"))
    return figures


def _times() -> dict[str, list[float]]:
    import bcc

    with program.kernel_source():
        bpf = bcc.BPF(text=SOURCE)
    read = ctypes.create_string_buffer(64)
    packed = struct.pack("=12Q", ctypes.addressof(read), *[0] * 11)
    arguments = ctypes.create_string_buffer(packed, len(packed))
    functions = {name: bpf.load_func(name.encode(), bcc.BPF.RAW_TRACEPOINT).fd for name in ("empty", *THINGS)}
    times: dict[str, list[float]] = {name: [] for name in functions}
    with stats.enabled():
        for _ in range(ROUNDS):
            for name, descriptor in functions.items():
                before = stats.of(descriptor)
                run = twins.TestRun(descriptor, arguments)
                for _ in range(RUNS):
                    run()
                after = stats.of(descriptor)
                times[name].append((after[0] - before[0]) / (after[1] - before[1]))
    return times
