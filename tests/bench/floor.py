"""The least that a program can do to count a call and time it: `python -m tests.bench.floor PROGRAM`.

At each end one entry of an array for the thread and one for what is counted, and one look at the clock. Whose
the entries are is not even checked, and nothing is said of the call. What costs less does less.
"""

from __future__ import annotations

import signal
import sys

from tests.bench.lookalike import CALLS
from vpmu_agent.loader import program

# Entries of a cache line each; as in bpf/vpmu.bpf.c, a thread's is where the address of its task says.
_SHARED = r"""
#include <uapi/linux/ptrace.h>
struct thread { u64 time_ns; u64 unused[7]; };
struct counter { u64 calls, sum_ns; u64 unused[6]; };
BPF_F_TABLE("array", u32, struct thread, threads, 8192, 1 << 10 /* BPF_F_MMAPABLE */);
BPF_F_TABLE("array", u32, struct counter, counters, 1024, 1 << 10 /* BPF_F_MMAPABLE */);
static __always_inline struct thread *this_thread(void)
{
	u32 at = (u32)((bpf_get_current_task() * 0x9e3779b97f4a7c15ULL) >> 32) & 8191;

	return threads.lookup(&at);
}
static __always_inline int entered(u32 call)
{
	struct counter *counter = counters.lookup(&call);
	struct thread *thread = this_thread();

	if (!thread || !counter)
		return 0;
	counter->calls++;
	thread->time_ns = bpf_ktime_get_ns();
	return 0;
}
static __always_inline int returned(u32 call)
{
	u64 now_ns = bpf_ktime_get_ns();
	struct counter *counter = counters.lookup(&call);
	struct thread *thread = this_thread();

	if (!thread || !counter)
		return 0;
	counter->sum_ns += now_ns - thread->time_ns;
	return 0;
}
"""


def source() -> str:
    """A program for the entry and one for the return of each function."""
    programs = (
        f"int {call}_{end}(struct pt_regs *ctx) {{ return {done}({number}); }}\n"
        for number, call in enumerate(CALLS)
        for end, done in (("entry", "entered"), ("return", "returned"))
    )
    return _SHARED + "".join(programs)


def main() -> None:
    import bcc

    path = sys.argv[1].encode()
    with program.kernel_source():
        bpf = bcc.BPF(text=source())
    for call, function in CALLS.items():
        bpf.attach_uprobe(name=path, sym=function.encode(), fn_name=f"{call}_entry".encode())
        bpf.attach_uretprobe(name=path, sym=function.encode(), fn_name=f"{call}_return".encode())
    signal.pause()


if __name__ == "__main__":
    main()
