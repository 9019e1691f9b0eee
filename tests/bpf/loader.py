"""`python -m tests.bpf.loader PLAN DESCRIPTOR`: the loader, with the probes on the look-alike program.

The plan, in JSON, has the program's `path`, its VPMU_* `constants`, what to give compile_program() as
`options`, in `tgids` VMs that shall be in the maps already, and in `census` whether there is one.
"""

from __future__ import annotations

import json
import os
import socket
import sys

from vpmu_agent.kernel.census import read_census_layout
from vpmu_agent.loader.main import handover_of, with_census
from vpmu_agent.loader.program import compile_program
from vpmu_agent.probes import FUNCTIONS, handover
from vpmu_agent.probes.layout import ERROR_KEY, PMC_KEY, VCPU_KEY
from vpmu_agent.probes.maps import Map

VCPUS, PMCS = 4, 4
"""Of each VM, and of each vCPU, that is there already."""


def main(text: str, number: str) -> None:
    plan = json.loads(text)
    census = read_census_layout().constants if plan.get("census") else {}
    bpf = compile_program(plan["constants"] | census, user_memory=True, **plan.get("options", {}))
    for name, function in FUNCTIONS.items():
        for attach, end in (bpf.attach_uretprobe, "return"), (bpf.attach_uprobe, "entry"):
            attach(name=plan["path"].encode(), sym=function.encode(), fn_name=f"vpmu_{name}_{end}".encode())
    handed = handover_of(bpf, "uprobe")
    if plan.get("census"):
        handed = with_census(handed, bpf)
    fill(handed.maps, plan.get("tgids", []))
    with socket.socket(fileno=int(number)) as channel:
        handover.send(channel, handed)


def fill(maps: dict[str, int], tgids: list[int]) -> None:
    vcpus, pmcs, errors = (Map(name, maps[name]) for name in ("vcpus", "pmcs", "errors"))
    for tgid in tgids:
        errors.put(ERROR_KEY.struct.pack(tgid, 28), (2).to_bytes(errors.value_size, sys.byteorder))
        for vcpu in range(VCPUS):
            vcpus.put(VCPU_KEY.struct.pack(tgid, vcpu), bytes(vcpus.value_size))
            for pmc in range(PMCS):
                address = tgid << 16 | vcpu << 8 | pmc
                pmcs.put(PMC_KEY.struct.pack(address, tgid, 0), bytes(pmcs.value_size))


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)
