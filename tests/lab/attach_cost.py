"""What watching a call costs by fentry and fexit programs, and by kprobes and kretprobes, in instructions.

`python -m tests.lab.attach_cost` boots a VM whose clocks count the instructions that its CPU executes, and
prints one JSON line. Guest A runs unwatched there, and watched in either way; how much more CPU time it then
takes is all that watching costs it: the program, and what the kernel does to get into it and back.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from statistics import median

from vpmu_agent.model.call import CallName

from . import agent, live, places, vm
from .errors import LabError
from .guests import guest_a
from .hosts import Target
from .scrape import parse, read, total

LISTEN = "127.0.0.1:9775"
MODES = "fexit", "kprobe"
_ROUNDS, _COUNTERS = 64, 4
_GUESTS = 15
"""One after the other; the first takes more, as what it needs is not in the VM's memory yet."""
_CHECKED = 5 * _ROUNDS * _COUNTERS  # create, pause, enable, pause, release; how many reads, the kernel says
_RESULT = "attach_cost.json"


def measure(target: Target, *, timeout_s: float) -> dict[str, float]:
    """Return the instructions a call by mode. Raises LabError and RootError."""
    with places.new_results_dir() as results:
        command = ["python3", "-m", "tests.lab.attach_cost"]
        status = vm.run(command, target=target, timeout_s=timeout_s, results=results, counted=True)
        if status:
            raise LabError(f"{' '.join(command)} exited with {status} in the VM ({target})")
        costs: dict[str, float] = json.loads((results / _RESULT).read_text())
    return costs


def main() -> int:
    """Exit with 0 if both ways were measured."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab.attach_cost",
        description="Counts the instructions that watching a call takes, by each way to attach.",
    )
    vm.add_options(parser, timeout_s=900.0)
    arguments = parser.parse_args()

    def action() -> int:
        if places.in_vm():
            return _inside()
        print(json.dumps(measure(vm.chosen(arguments), timeout_s=arguments.timeout)))
        return 0

    return vm.exit_status(action)


def _inside() -> int:
    live.make_live()
    unwatched = _guests("unwatched")
    costs = {}
    for mode in MODES:
        with agent.run(LISTEN, "--attach", mode):
            watched = _guests(mode)
            metrics = parse(read(LISTEN))
        seen = sum(total(metrics, "vpmu_calls_total", vm=mode, call=call) for call in CallName)
        if seen != _GUESTS * _CHECKED:
            raise LabError(
                f"{_GUESTS} guests make {_CHECKED} calls each, and the agent saw {seen:.0f} in all"
            )
        calls = total(metrics, "vpmu_calls_total", vm=mode) / _GUESTS
        costs[mode] = round((median(watched) - median(unwatched)) / calls, 1)
    (places.results_dir() / _RESULT).write_text(json.dumps(costs))
    return 0


def _guests(name: str) -> list[float]:
    """CPU time of some guests, one after the other, in nanoseconds, which are instructions."""
    took = []
    for _ in range(_GUESTS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with guest_a(name, rounds=_ROUNDS, counters=_COUNTERS, realtime=True) as guest:
            guest.finish()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(1e9 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    return took


if __name__ == "__main__":
    sys.exit(main())
