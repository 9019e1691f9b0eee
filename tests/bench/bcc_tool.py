"""What one would write with bcc to count and time the same four functions: `bcc_tool.py PROGRAM`."""

from __future__ import annotations

import signal
import sys

TEXT = """
#include <uapi/linux/ptrace.h>

struct key {
    u32 tgid;
    u32 call;
    u64 slot;
};

BPF_HASH(start, u32, u64);
BPF_HASH(calls, struct key, u64);
BPF_HISTOGRAM(latency, struct key);

int call_entry(struct pt_regs *ctx)
{
    u32 tid = bpf_get_current_pid_tgid();
    u64 now = bpf_ktime_get_ns();

    start.update(&tid, &now);
    return 0;
}

static int call_return(u32 call)
{
    u64 id = bpf_get_current_pid_tgid(), *began;
    u32 tid = id;
    struct key key = { .tgid = id >> 32, .call = call };

    began = start.lookup(&tid);
    if (!began)
        return 0;
    calls.increment(key);
    key.slot = bpf_log2l(bpf_ktime_get_ns() - *began);
    latency.increment(key);
    start.delete(&tid);
    return 0;
}

int enable_return(struct pt_regs *ctx) { return call_return(0); }
int pause_return(struct pt_regs *ctx) { return call_return(1); }
int release_return(struct pt_regs *ctx) { return call_return(2); }
int create_return(struct pt_regs *ctx) { return call_return(3); }
"""

FUNCTIONS = {
    b"perf_event_enable": b"enable_return",
    b"perf_event_pause": b"pause_return",
    b"perf_event_release_kernel": b"release_return",
    b"perf_event_create_kernel_counter": b"create_return",
}


def main() -> None:
    from bcc import BPF

    program = sys.argv[1].encode()
    bpf = BPF(text=TEXT)
    for function, at_return in FUNCTIONS.items():
        bpf.attach_uprobe(name=program, sym=function, fn_name=b"call_entry")
        bpf.attach_uretprobe(name=program, sym=function, fn_name=at_return)
    print("attached", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
