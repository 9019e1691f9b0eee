"""A host whose probes are a small program on a look-alike: all of the agent is real but its BPF program.

`python -m tests.bpf.small ARGUMENTS` is vpmu-agent there; `... load MODE DESCRIPTOR` is its loader. The
environment says what to probe (SMALL_PROGRAM), which VMs there are already (SMALL_TGIDS), what kvm_instance()
finds (the file SMALL_KVM), and what goes wrong (SMALL_ERROR).
"""

from __future__ import annotations

import os
import socket
import sys
from importlib.resources import as_file, files
from pathlib import Path

from vpmu_agent import cli, probes
from vpmu_agent.kernel.errors import KvmNotLoadedError
from vpmu_agent.model.automaton import SLOTS
from vpmu_agent.probes import Mode, handover
from vpmu_agent.probes.maps import Map
from vpmu_agent.probes.record import ERROR_KEY, PMC_KEY, SIZES, VCPU_KEY

VCPUS, PMCS = 4, 4  # of each VM, and of each vCPU

SOURCE = """
#include <uapi/linux/ptrace.h>
#include "vpmu.h"

BPF_HASH(vcpus, struct vpmu_vcpu_key, struct vpmu_vcpu, 16384);
BPF_HASH(pmcs, struct vpmu_pmc_key, struct vpmu_pmc, 65536);
BPF_HASH(errors, struct vpmu_error_key, u64, 4096);
BPF_HASH(inflight, u32, u64, 16);
BPF_TABLE("lru_hash", u32, u8, left, 16);
BPF_TABLE("lru_hash", u32, u64, processes, 16);
BPF_ARRAY(lost, u64, VPMU_LOST_REASONS);
BPF_ARRAY(control, struct vpmu_control, 1);
BPF_ARRAY(no_vcpu, struct vpmu_vcpu, 1);
BPF_RINGBUF_OUTPUT(calls, 64);

struct told {
	struct vpmu_process process;
	char command[VPMU_COMMAND_SIZE];
};

int on_enable(struct pt_regs *ctx)
{
	struct vpmu_vcpu_key key = { .tgid = bpf_get_current_pid_tgid() >> 32 };
	struct vpmu_control *c;
	struct vpmu_vcpu *vcpu;
	struct told *told;
	int zero = 0;

	c = control.lookup(&zero);
	if (!c || !c->epoch)
		return 0;
	vcpu = vcpus.lookup(&key);
	if (!vcpu) {
		vcpu = no_vcpu.lookup(&zero);
		if (!vcpu)
			return 0;
		vcpus.update(&key, vcpu);
		vcpu = vcpus.lookup(&key);
		told = calls.ringbuf_reserve(sizeof(*told));
		if (told) {
			told->process.tgid = key.tgid;
			told->process.size = 16;
			__builtin_memcpy(told->command, "x\\0-name\\0small01\\0", 16);
			calls.ringbuf_submit(told, 0);
		}
		if (!vcpu)
			return 0;
	}
	__sync_fetch_and_add(&vcpu->calls[VPMU_ENABLE], 1);
	__sync_fetch_and_add(&vcpu->predicted[VPMU_ENABLE], c->epoch);
	return 0;
}
"""


def load(mode: str, number: int) -> None:
    """What a loader does, with SOURCE."""
    import bcc

    with socket.socket(fileno=number) as channel:
        if os.environ.get("SMALL_ERROR") or not Path(os.environ["SMALL_KVM"]).exists():
            handover.send_error(channel, KvmNotLoadedError("KVM is not loaded here", "load it"))
            return
        with as_file(files("vpmu_agent") / "bpf") as folder:
            os.environ["BCC_KERNEL_SOURCE"] = str(folder / "headers")
            sizes = {**{name: SIZES[name] for name in ("VPMU_KINDS", "VPMU_STATES")}, "VPMU_SLOTS": SLOTS}
            flags = [f"-I{folder}", *(f"-D{name}={size}" for name, size in sizes.items())]
            bpf = bcc.BPF(text=SOURCE.encode(), cflags=flags)
        bpf.attach_uprobe(name=os.environ["SMALL_PROGRAM"].encode(), sym=b"perf_event_enable", fn_name=b"on_enable")
        from vpmu_agent.probes.loader import handover_of

        handed = handover_of(bpf, mode)
        _fill(handed.maps, [int(tgid) for tgid in os.environ.get("SMALL_TGIDS", "").split()])
        handover.send(channel, handed)


def _fill(maps: dict[str, int], tgids: list[int]) -> None:
    vcpus, pmcs, errors = (Map(name, maps[name]) for name in ("vcpus", "pmcs", "errors"))
    for tgid in tgids:
        errors.put(ERROR_KEY.struct.pack(tgid, 28), (2).to_bytes(8, sys.byteorder))
        for vcpu in range(VCPUS):
            vcpus.put(VCPU_KEY.struct.pack(tgid, vcpu), bytes(vcpus.value_size))
            for pmc in range(PMCS):
                key = PMC_KEY.struct.pack(tgid << 16 | vcpu << 8 | pmc, tgid, 0)
                pmcs.put(key, bytes(pmcs.value_size))


def loader_command(mode: Mode) -> list[str]:
    return [sys.executable, "-P", "-m", "tests.bpf.small", "load", mode]


def kvm_instance() -> int | None:
    """The number in the file, so that a test can load KVM anew."""
    try:
        return int(Path(os.environ["SMALL_KVM"]).read_text())
    except FileNotFoundError:
        return None


if __name__ == "__main__":
    if sys.argv[1] == "load":
        load(sys.argv[2], int(sys.argv[3]))
        os._exit(0)
    from vpmu_agent import daemon

    vars(probes)["loader_command"] = loader_command
    vars(daemon)["kvm_instance"] = kvm_instance
    cli.main()
