"""The daemon, with its probes on the look-alike instead of the kernel.

usage: python -m tests.bench.daemon LOOKALIKE run [OPTION]...

This is `vpmu-agent run` and nothing else in its process: what it costs is what the daemon costs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from vpmu_agent import cli, probes
from vpmu_agent.kernel import btf
from vpmu_agent.probes.program import compile_program
from vpmu_agent.probes.record import VmNames


def attach(lookalike: Path, vms: VmNames) -> probes.Probes:
    """Probes on the look-alike's functions, in place of probes.attach()."""
    layout = json.loads(subprocess.run([lookalike, "layout"], check=True, capture_output=True).stdout)
    types = btf.vmlinux()
    layout["VPMU_TASK_MM"] = types.member("task_struct", "mm").offset
    layout["VPMU_MM_ARG_START"] = types.member("mm_struct", "arg_start").offset
    layout["VPMU_MM_ARG_END"] = types.member("mm_struct", "arg_end").offset
    bpf = compile_program(layout, user_memory=True)
    for name, function in probes.FUNCTIONS.items():
        for attach_one, end in (bpf.attach_uretprobe, "return"), (bpf.attach_uprobe, "entry"):
            attach_one(name=bytes(lookalike), sym=function.encode(), fn_name=f"vpmu_{name}_{end}".encode())
    return probes.Probes(bpf, mode="uprobe", vms=vms)


def main() -> None:
    lookalike = Path(sys.argv[1])
    probes.attach = lambda *, vms, **_: attach(lookalike, vms)
    cli.cli(sys.argv[2:], standalone_mode=False)
    # bcc cannot take uprobes off where tracefs is not mounted, and would complain.
    os._exit(0)


if __name__ == "__main__":
    main()
