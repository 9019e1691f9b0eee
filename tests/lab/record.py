"""Records tests/data/ again: what `vpmu-agent trace --record` writes of real guests.

The recordings differ from run to run in addresses and times, so they are made by hand and not by a test.
"""

from __future__ import annotations

import argparse
import errno
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from . import agent, live, places, pmu, vm
from .errors import LabError
from .grouped import control
from .guests import Guest, guest_a, guest_b
from .vendor import IS_INTEL

DATA = places.REPO / "tests" / "data"


def _grouped() -> Guest:
    control.define_groups(4, 1, 2, 3)
    return guest_a("grouped01", rounds=2, vcpus=2)


def _partial_groups() -> Guest:
    """The third of four events cannot be created."""
    control.define_groups(4)
    control.fail_create(2, errno.ENOSPC)
    return guest_a("partial01", counters=1)


def _intel_grouped() -> Guest:
    control.define_groups(4, 1)
    control.define_fixed_groups(2, 1, 3)
    return guest_a("grouped01", counters=2, fixed=3)


def _intel_partial_groups() -> Guest:
    """The third event of each counter cannot be created."""
    control.define_groups(4)
    control.define_fixed_groups(3)
    control.fail_create(2, errno.ENOSPC)
    return guest_a("partial01", counters=1, fixed=1)


def _intel_pebs_lbr() -> Guest:
    pmu.set_capabilities(pmu.LBR_FORMAT | pmu.PEBS_FORMAT)
    return guest_a("pebs01", counters=2, fixed=1, pebs=True, lbr=True)


Starts = dict[str, Callable[[], Guest]]
AMD: Starts = {
    "guest_a": lambda: guest_a("tiny01", rounds=2, vcpus=2),
    "guest_b": lambda: guest_b("web01", rounds=2),
}
AMD_GLOBAL: Starts = {"perfmon_v2": lambda: guest_a("global01", rounds=3, globally=True)}
AMD_GROUPED: Starts = {"grouped": _grouped, "partial_groups": _partial_groups}
INTEL: Starts = {
    "intel": lambda: guest_a("tiny01", fixed=3, rounds=2),
    "intel_global": lambda: guest_a("global01", fixed=3, rounds=2, globally=True),
    "intel_pebs_lbr": _intel_pebs_lbr,
}
INTEL_GROUPED: Starts = {
    "intel_grouped": _intel_grouped,
    "intel_partial_groups": _intel_partial_groups,
}


def _recordings() -> Starts:
    """What is recorded on the host that runs: each kind of host has its own."""
    if control.is_grouped_kernel():
        return INTEL_GROUPED if IS_INTEL else AMD_GROUPED
    if IS_INTEL:
        return INTEL
    return AMD_GLOBAL if live.has_global_control() else AMD


def main() -> int:
    """Exits with 0 if every recording was made and is complete."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab.record", description="Records tests/data/ again."
    )
    vm.add_options(parser, timeout_s=1200.0)
    arguments = parser.parse_args()

    def action() -> int:
        if places.in_vm():
            return _inside()
        target = vm.chosen(arguments)
        with places.new_results_dir() as results:
            status = vm.run(
                ["python3", "-m", "tests.lab.record"],
                target=target,
                timeout_s=arguments.timeout,
                results=results,
                machine=arguments.machine,
            )
            if status == 0:
                for made in sorted(results.glob("*.jsonl")):
                    shutil.copyfile(made, DATA / made.name)
                    print(f"made {(DATA / made.name).relative_to(places.REPO)}")
        return status

    return vm.exit_status(action)


def _inside() -> int:
    live.make_live()
    for name, start in _recordings().items():
        _record(places.results_dir() / f"{name}.jsonl", start)
    return 0


def _record(file: Path, start: Callable[[], Guest]) -> None:
    with agent.trace("--record", str(file)) as tracing, start() as guest:
        guest.finish()
        # KVM's event of guest LBR is counted apart: it has no handler.
        counts = pmu.kvm_counts(guest.tgid) + pmu.perf_counts(guest.tgid)
        seen = tracing.stop()
    creates, releases = (
        sum(line["result"] == 0 for line in seen.calls(call=call)) for call in ("create", "release")
    )
    if (creates, releases) != (counts.initialised, counts.destroyed):
        raise LabError(f"{file.name}: {creates} creates and {releases} releases, the PMU saw {counts}")


if __name__ == "__main__":
    sys.exit(main())
