"""`python -m tests.bpf.loader PLAN DESCRIPTOR`: the loader, with the probes on the look-alike program.

The plan, in JSON, has the program's `path`, its VPMU_* `constants`, what to give program_source() as
`options`, in `census` whether there is one, or the constants that it has in place of this kernel's, and in
`cache` a folder for compiled programs, if any.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from vpmu_agent.kernel.census import read_census_layout
from vpmu_agent.loader.attach import Kind, Loading, attach_probe, make_maps
from vpmu_agent.loader.cache import Cache
from vpmu_agent.loader.image import Image, with_placeholders
from vpmu_agent.loader.main import attach_all, from_cache_or_compiler, with_census
from vpmu_agent.loader.program import program_source
from vpmu_agent.probes import handover
from vpmu_agent.probes.handover import Handover


def main(text: str, number: str) -> None:
    plan = json.loads(text)
    path, options = plan["path"], plan.get("options", {})
    census: dict[str, int] = {}
    if wanted := plan.get("census"):
        census = read_census_layout().constants | (wanted if isinstance(wanted, dict) else {})
    constants, addresses = with_placeholders(plan["constants"] | census)
    offsets = json.loads(subprocess.run([path, "offsets"], check=True, capture_output=True).stdout)

    def by_uprobe(loading: Loading, program: str, function: str, is_return: bool) -> tuple[int, int]:
        loaded = loading.load(program, Kind.PROBE)
        offset = offsets[function]
        return loaded, attach_probe(loaded, path, device="uprobe", offset=offset, is_return=is_return)

    def attach(image: Image) -> Handover:
        loading = make_maps(image, addresses)
        handed = attach_all(
            loading,
            "uprobe",
            by_uprobe,
            reads=options.get("reads", True),
            durations=options.get("durations", True),
        )
        return with_census(handed, loading)

    cache = Cache(Path(plan["cache"])) if "cache" in plan else None
    source = program_source(constants, user_memory=True, **options)
    handed = from_cache_or_compiler(source, attach, cache)
    with socket.socket(fileno=int(number)) as channel:
        handover.send(channel, handed)


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)
