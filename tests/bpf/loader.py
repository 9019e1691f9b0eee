"""`python -m tests.bpf.loader PLAN DESCRIPTOR`: the loader, with the probes on the look-alike program.

The plan, in JSON, has the program's `path`, its VPMU_* `constants`, what to give compile_program() as
`options`, in `tgids` VMs that shall be in the maps already, and in `census` whether there is one, or the
constants that it has in place of this kernel's.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import replace

from vpmu_agent.kernel.census import read_census_layout
from vpmu_agent.loader.main import handover_of, with_census
from vpmu_agent.loader.program import compile_program, seen_at_return
from vpmu_agent.probes import functions, handover


def main(text: str, number: str) -> None:
    plan = json.loads(text)
    census: dict[str, int] = {}
    if wanted := plan.get("census"):
        census = read_census_layout().constants | (wanted if isinstance(wanted, dict) else {})
    options = plan.get("options", {})
    bpf = compile_program(plan["constants"] | census, user_memory=True, **options)
    reads = options.get("reads", True)
    returning = seen_at_return(durations=options.get("durations", True), reads=reads)
    for name, function in functions(reads=reads).items():
        ends = [(bpf.attach_uretprobe, "return")] if name in returning else []
        for attach, end in (*ends, (bpf.attach_uprobe, "entry")):
            attach(name=plan["path"].encode(), sym=function.encode(), fn_name=f"vpmu_{name}_{end}".encode())
    handed = replace(handover_of(bpf, "uprobe"), reads=reads)
    if plan.get("census"):
        handed = with_census(handed, bpf)
    with socket.socket(fileno=int(number)) as channel:
        handover.send(channel, handed)


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)
