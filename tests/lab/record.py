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

DATA = places.REPO / "tests" / "data"


def _grouped() -> Guest:
    control.define_groups(4, 1, 2, 3)
    return guest_a("grouped01", rounds=2, vcpus=2)


def _partial_groups() -> Guest:
    """The third of four events cannot be created."""
    control.define_groups(4)
    control.fail_create(2, errno.ENOSPC)
    return guest_a("partial01", counters=1)


def _recordings() -> dict[str, Callable[[], Guest]]:
    """What is recorded on the host that runs, by name: each kind of host has its own."""
    if control.is_grouped_kernel():
        return {"grouped": _grouped, "partial_groups": _partial_groups}
    if live.has_global_control():
        return {"perfmon_v2": lambda: guest_a("global01", rounds=3, globally=True)}
    return {
        "guest_a": lambda: guest_a("tiny01", rounds=2, vcpus=2),
        "guest_b": lambda: guest_b("web01", rounds=2),
    }


def main() -> int:
    """Exits with 0 if every recording was made and is complete."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab.record", description="Records tests/data/ again."
    )
    vm.add_options(parser, timeout_s=600.0)
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
        counts = pmu.kvm_counts(guest.tgid)
        seen = tracing.stop()
    creates, releases = (
        sum(line["result"] == 0 for line in seen.calls(call=call)) for call in ("create", "release")
    )
    if (creates, releases) != (counts.initialised, counts.destroyed):
        raise LabError(f"{file.name}: {creates} creates and {releases} releases, the PMU saw {counts}")


if __name__ == "__main__":
    sys.exit(main())
