"""Makes tests/data/ anew: what `vpmu-agent trace --record` writes of guest A and of guest B.

The recordings differ from run to run in addresses and times, so they are made by hand and not by a test.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from . import agent, live, places, pmu, vm
from .errors import LabError
from .guests import Guest, guest_a, guest_b

DATA = places.REPO / "tests" / "data"
RECORDINGS: dict[str, Callable[[], Guest]] = {
    "guest_a.jsonl": lambda: guest_a("tiny01", rounds=2, vcpus=2),
    "guest_b.jsonl": lambda: guest_b("web01", rounds=2),
}


def main() -> int:
    """Exits with 0 if every recording was made and is complete."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.record", description="Makes tests/data/ anew.")
    vm.add_options(parser, timeout_s=600.0)
    arguments = parser.parse_args()

    def action() -> int:
        if places.in_vm():
            return _inside()
        with places.new_results_dir() as results:
            status = vm.run(
                ["python", "-m", "tests.lab.record"],
                which=vm.chosen_kernel(arguments),
                timeout_s=arguments.timeout,
                results=results,
            )
            if status == 0:
                for name in RECORDINGS:
                    shutil.copyfile(results / name, DATA / name)
                    print(f"made {(DATA / name).relative_to(places.REPO)}")
        return status

    return vm.exit_status(action)


def _inside() -> int:
    live.make_live()
    for name, start in RECORDINGS.items():
        _record(places.results_dir() / name, start)
    return 0


def _record(file: Path, start: Callable[[], Guest]) -> None:
    with agent.trace("--record", str(file)) as tracing, start() as guest:
        guest.finish()
        counts = pmu.kvm_counts(guest.tgid)
        seen = tracing.stop()
    creates, releases = (len(seen.calls(call=call)) for call in ("create", "release"))
    if (creates, releases) != (counts.initialised, counts.destroyed):
        raise LabError(f"{file.name}: {creates} creates and {releases} releases, the PMU saw {counts}")


if __name__ == "__main__":
    sys.exit(main())
