"""What every compiler makes of the BPF program, and whether verifiers take it.

    python -m tests.bpf.verifier          with the bcc of each host in the lab, by this machine's own
    verifier python -m tests.bpf.verifier --vm     and, in a VM of each host, by its kernel's, which takes
    fexit programs too

LLVM decides what the verifier sees: the same C is other code with each of its versions, and what one of
them leaves bounded another does not. So this loads each form of the program as each distribution's bcc
compiles it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from tests.bpf.twins import GROUPED, STOCK, task_offsets
from vpmu_agent.kernel.census import read_census_layout
from vpmu_agent.kernel.errors import KernelError, ProbeError
from vpmu_agent.loader.attach import Kind, make_maps
from vpmu_agent.loader.image import PLACEHOLDERS, with_placeholders
from vpmu_agent.loader.main import attach_all, attach_census, by_fexit, compiled
from vpmu_agent.loader.program import (
    census_source,
    program_source,
    seen_at_entry,
    seen_at_return,
    toolchain,
)
from vpmu_agent.probes import handover

IN_VM_S = 600.0


@dataclass(frozen=True, slots=True)
class Form:
    """One way to build the program: for which kernel, and as what kind of BPF program."""

    kernel: str
    constants: dict[str, int]
    kind: str
    options: dict[str, Any]


def forms(*, fexit: bool) -> Iterator[Form]:
    """All that an agent may load as kprobes, and what bench and fuzzer load; or with `fexit`, which not every
    kernel takes, what it may load as fexit programs.
    """
    kinds: dict[str, dict[str, Any]] = {"kprobe": {}, "raw tracepoint": {"twins": True, "user_memory": True}}
    if fexit:
        kinds = {"fexit": {"fexit": True}}
    kinds |= {f"{kind}, no durations": {**options, "durations": False} for kind, options in kinds.items()}
    kinds["no reads"] = {**next(iter(kinds.values())), "reads": False}
    for kernel, known in {"stock": STOCK, "grouped": GROUPED}.items():
        # What is read at each call where the kernel has it: its count of a vCPU's events.
        unread = {name: value for name, value in known.items() if name != "VPMU_VCPU_EVENT_COUNT"}
        for reads, constants in {"with reads": known, "without reads": unread}.items():
            for kind, options in kinds.items():
                yield Form(f"{kernel}, {reads}", constants, kind, options)


def load_census() -> dict[str, Any]:
    """Compiles the census for the kernel that runs, loads and attaches it; what came of it, for the table."""
    started = time.monotonic()
    refused = ""
    try:
        os.close(attached_census(read_census_layout().constants))
    except KernelError as error:
        refused = str(error)
    took = round(time.monotonic() - started, 2)
    return {"kernel": "this one", "kind": "census", "refused": refused, "took_s": took}


def attached_census(constants: dict[str, int]) -> int:
    """Compiles the census alone and attaches it; its link."""
    known, addresses = with_placeholders(constants)
    link, _ = attach_census(make_maps(compiled(census_source(known)), addresses))
    return link


def put_addresses() -> dict[str, Any]:
    """Compiles with placeholders for addresses, and with addresses; whether both come to the same."""
    started = time.monotonic()
    addresses = {name: 0x8123456789ABCDEF ^ number for name, number in PLACEHOLDERS.items()}
    constants = GROUPED | task_offsets() | read_census_layout().constants | addresses
    known, _ = with_placeholders(constants)
    refused = ""
    if resolved(known, addresses) != resolved(constants, {}):
        refused = (
            "with addresses in the place of placeholders, it is not what is compiled with these addresses"
        )
    took = round(time.monotonic() - started, 2)
    return {"kernel": "grouped", "kind": "addresses", "refused": refused, "took_s": took}


def resolved(constants: dict[str, int], addresses: dict[str, int]) -> dict[str, bytes]:
    """Compiles the probes and the census, and returns their instructions with these addresses."""
    image = compiled(program_source(constants))
    descriptors = {spec.name: number for number, spec in enumerate(image.maps)}
    return {name: image.program(name, descriptors, addresses) for name in image.programs}


def load(form: Form) -> dict[str, Any]:
    """Compiles one form, and loads its programs; what came of it, for the table."""
    started = time.monotonic()
    refused = ""
    try:
        _load(form)
    except ProbeError as error:
        refused = str(error)
    took = round(time.monotonic() - started, 2)
    return {"kernel": form.kernel, "kind": form.kind, "refused": refused, "took_s": took}


def programs(*, durations: bool = True, reads: bool = True) -> tuple[str, ...]:
    """Return the names of all programs: one for each call's entry, and those for returns."""
    entries = tuple(f"vpmu_{name}_entry" for name in seen_at_entry(reads=reads))
    returning = seen_at_return(durations=durations, reads=reads)
    return entries + tuple(f"vpmu_{name}_return" for name in returning)


def _load(form: Form) -> None:
    known, addresses = with_placeholders(form.constants | task_offsets())
    loading = make_maps(compiled(program_source(known, ring_pages=64, **form.options)), addresses)
    parts = {part: form.options.get(part, True) for part in ("durations", "reads")}
    opened = [*loading.maps.values()]
    try:
        if form.options.get("fexit"):
            handed = attach_all(loading, "fexit", by_fexit(), **parts)
            opened += [*handed.programs, *handed.links]
        else:
            kind = Kind.RAW_TRACEPOINT if form.options.get("twins") else Kind.PROBE
            opened += [loading.load(name, kind) for name in programs(**parts)]
    finally:
        handover.close(opened)


def _here(*, fexit: bool) -> int:
    """Prints a JSON object for each form, by the bcc and the kernel that are here."""
    print(json.dumps({"toolchain": toolchain(), "linux": platform.release()}), flush=True)
    failed = False
    for came in chain(map(load, forms(fexit=fexit)), [load_census(), put_addresses()]):
        failed |= bool(came["refused"])
        print(json.dumps(came), flush=True)
    return int(failed)


def _table(host: str, where: str, lines: Iterable[str]) -> int:
    """Prints what `_here` said; returns how many forms were refused."""
    refused = tried = 0
    for line in lines:
        found = json.loads(line)
        if "toolchain" in found:
            print(f"{host}: {found['toolchain']}; verifier: {where}, Linux {found['linux']}")
            continue
        tried += 1
        refused += bool(found["refused"])
        came = found["refused"] or "taken"
        print(f"  {found['kind']:28} {found['kernel']:24} {found['took_s']:6.2f} s  {came}")
    if not tried:
        print(f"{host}: nothing was tried")
    return refused or not tried


def _everywhere(names: list[str], *, vm: bool) -> int:
    from tests.lab import hosts, places
    from tests.lab import vm as lab
    from tests.support import debian

    tree, failed = str(places.REPO), 0
    for name in names:
        command = ["python3", "-m", "tests.bpf.verifier", "--here"]
        with debian.writable(hosts.HOSTS[name].userland()) as root:
            enter = ["sh", "-euc", 'cd "$1"; shift; exec "$@"', "sh", tree, *command]
            done = root.run(
                *enter, binds={places.REPO: tree}, env={"PYTHONPATH": f"{tree}/agent"}, status=None
            )
        failed += _table(name, "this machine's", done.stdout.splitlines())
        print(done.stderr, end="", file=sys.stderr)
        if vm:
            said: list[bytes] = []
            target = hosts.target(name, list(hosts.HOSTS[name].kernels)[-1])
            # The census is for KVM's own types, so KVM must be there.
            live = ["sh", "-euc", 'python3 -m tests.lab.live; exec "$@"', "sh"]
            status = lab.run(
                [*live, *command, "--fexit"], target=target, timeout_s=IN_VM_S, output=said.append
            )
            failed += _table(name, "its own", (line.decode() for line in said)) or status
    print("every form is taken" if not failed else "see what was refused")
    return int(bool(failed))


def main() -> int:
    """Exits with 0 if every form of the program was taken."""
    parser = argparse.ArgumentParser(prog="python -m tests.bpf.verifier", description=__doc__)
    parser.add_argument("--here", action="store_true", help="with this Python's bcc only, as JSON")
    parser.add_argument("--fexit", action="store_true", help="with --here: fexit programs instead")
    parser.add_argument("--vm", action="store_true", help="also in a VM of each host")
    parser.add_argument("--host", action="append", help="only this host (repeatable)")
    arguments = parser.parse_args()
    if arguments.here:
        return _here(fexit=arguments.fexit)
    try:
        return _everywhere(arguments.host or ["debian12", "debian13", "sid"], vm=arguments.vm)
    except subprocess.SubprocessError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
