"""The demos: a real guest counts events, and vpmu-agent shows what KVM does for it.

`make demo` runs Linux, which uses perf, on Debian's kernel; `make demo-grouped` a guest that reads four
events with one `rdmsr`, on a kernel whose KVM groups events. Outside of the VM this boots it and shows that
time passes; in the VM it starts the agent twice (a daemon with metrics, and a trace to look at, which
records what it shows), runs the guest, and holds everything against the test PMU. `make demo` then shows
with `vpmu-agent list` a guest whose counters find no room. The last line on stdout is the summary with which
the agent itself ended its recording.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from . import agent, boot, live, places, pmu, programs, vm
from .grouped import control
from .guests import Guest, guest_a, guest_b
from .holder import NAME, holder
from .listed import programmed
from .scrape import parse, read, total

LISTEN = "127.0.0.1:9775"
SHOWN = (
    "vpmu_calls_total",
    "vpmu_predicted_calls_total",
    "vpmu_call_errors_total",
    "vpmu_events",
    "vpmu_agent_lost_records_total",
)
QUIET_S = 10.0
FIELD_BITS = 16


@dataclass(frozen=True, slots=True)
class Demo:
    """A guest to watch: its VM's name, what it is, how it starts, and what it tells meanwhile."""

    vm: str
    what: str
    start: Callable[[], Guest]
    told: Callable[[Guest], Iterator[str]]
    afterwards: Callable[[Callable[[str], None]], Iterator[str]] | None = None
    """Shows what comes after the trace, and yields what was not as it should be."""


def _linux_told(guest: Guest) -> Iterator[str]:
    for _ in range(2):
        yield f"read its counters: {json.dumps(guest.wait_for('round'))}"
    guest.wait_for("done")


def _start_all_in_one() -> Guest:
    control.define_groups(4)
    control.define_members(0xC0, 0xC2, 0xC3)
    control.splice(FIELD_BITS)
    return guest_a("allinone01", counters=1, rounds=2)


def _all_in_one_told(guest: Guest) -> Iterator[str]:
    for ((value,),) in zip(guest.wait_for("vcpus")["vcpus"][0], strict=True):
        fields = [value >> i * FIELD_BITS & (1 << FIELD_BITS) - 1 for i in range(4)]
        names = ("cycles", "instructions", "branches", "branch misses")
        counts = ", ".join(f"{name} {count:#06x}" for name, count in zip(names, fields, strict=True))
        yield f"one rdmsr read {value:#018x}: {counts}"


def _starved(say: Callable[[str], None]) -> Iterator[str]:
    name, room = "crowded01", 2
    say(f"the host's PMU has room for {room} events from now on, and a process of the host takes one of them")
    pmu.set_room(room)
    with holder() as pid, ExitStack() as stack:
        say(f"starting the guest {name}, which enables four counters; then `vpmu-agent list`")
        guest = programmed(stack, guest_a(name, stepwise=True))
        done = subprocess.run([*agent.COMMAND, "list"], capture_output=True, text=True, check=False)
        refused = pmu.kvm_counts(guest.tgid).refused
    pmu.set_room(0)
    print(f"$ vpmu-agent list\n{done.stdout}{done.stderr}", end="", flush=True)
    say(f"the test PMU's own count: it had no room {refused} times")
    lacking = f"{name}: 3 of 4 counters starved; on CPU 0 {NAME} (pid {pid}) has 1 event, pinned."
    if done.returncode != 1 or lacking not in " ".join(done.stdout.split()):
        yield f"`vpmu-agent list` ended with status {done.returncode} and did not say: {lacking}"
    if not refused:
        yield f"the test PMU had room for all counters of {name}"


STOCK = Demo(
    "web01",
    "Linux under KVM, with a group of four hardware events",
    lambda: guest_b("web01", rounds=2),
    _linux_told,
    _starved,
)
GROUPED = Demo(
    "allinone01",
    f"one counter that holds four events, {FIELD_BITS} bits each, which KVM counts with a group of four",
    _start_all_in_one,
    _all_in_one_told,
)


def main() -> int:
    """Exits with 0 if all counts agree and the model was right."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.demo", description="Runs the demo.")
    vm.add_options(parser, timeout_s=290.0)
    arguments = parser.parse_args()

    def action() -> int:
        if places.in_vm():
            return _inside(GROUPED if control.is_grouped_kernel() else STOCK)
        with _progress() as say:
            say("building what the VM needs")
            target = vm.chosen(arguments)
            fast = boot.accelerated(target.kernel)
            how = "hardware virtualization" if fast else "software emulation, some 20 s"
            say(f"booting {target} ({how})")
            command = ["python3", "-m", "tests.lab.demo"]
            return vm.run(command, target=target, timeout_s=arguments.timeout, output=say.line)

    return vm.exit_status(action)


def _inside(demo: Demo) -> int:
    started = time.monotonic()

    def say(words: str) -> None:
        print(f"[{time.monotonic() - started:3.0f} s in the VM] {words}", flush=True)

    say("loading the test PMU, then KVM: its vPMU finds a PMU and is live")
    live.make_live()
    say("starting the agent: `vpmu-agent run`, `vpmu-agent trace` (they import, compile and attach)")
    recording = places.results_dir() / "demo.jsonl"
    with agent.run(LISTEN), agent.Agent("trace", "--record", str(recording), terminal=True) as tracing:
        say(f"attached; starting the guest {demo.vm}: {demo.what}")
        with demo.start() as guest:
            tgid = guest.tgid
            for words in demo.told(guest):
                say(f"{demo.vm}: {words}")
            guest.finish()
        say(f"{demo.vm} is over; stopping the trace")
        tracing.interrupt()
        say(f"http://{LISTEN}/metrics has, among others:")
        text = read(LISTEN)
    metrics = parse(text)
    for line in text.splitlines():
        if line.startswith(SHOWN):
            print(f"    {line}")
    diverged = int(total(metrics, "vpmu_divergences_total", vm=demo.vm))
    print(f'    sum(vpmu_divergences_total{{vm="{demo.vm}"}}) {diverged}')

    last_line = recording.read_text().splitlines()[-1]
    summary = json.loads(last_line)
    counts = pmu.kvm_counts(tgid)
    scraped = {
        call: int(total(metrics, "vpmu_calls_total", vm=demo.vm, call=call)) for call in summary["calls"]
    }
    say(f"the test PMU's own count: {counts.initialised} events initialised, {counts.destroyed} destroyed")
    wrong = list(_disagreements(demo.vm, summary, counts, scraped, diverged))
    if not wrong:
        say("trace, metrics and the test PMU agree")
    if demo.afterwards:
        wrong += demo.afterwards(say)
    for words in wrong:
        print(f"demo: {words}", file=sys.stderr)
    print(last_line, flush=True)
    programs.leave()  # so that the next demo begins sooner
    return 1 if wrong else 0


def _disagreements(
    vm: str, summary: agent.Line, counts: pmu.Counts, scraped: dict[str, int], diverged: int
) -> Iterator[str]:
    calls = summary["calls"]
    if summary["vm"] != vm:
        yield f"the trace ends with a summary of {summary['vm']}, not of {vm}"
    if counts.initialised < 4:
        yield f"the guest made KVM create {counts.initialised} events, not at least 4"
    if (calls["create"], calls["release"]) != (counts.initialised, counts.destroyed):
        yield "the trace's creates and releases are not the test PMU's"
    if scraped != calls:
        yield f"the metrics say {scraped}, the trace says {calls}"
    if summary["divergences"] or diverged or summary["lost"]:
        yield "there are divergences or lost calls"


class _Say:
    """Prints progress lines with the seconds since the start, and passes on the VM's own."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()

    def __call__(self, words: str) -> None:
        self._last = time.monotonic()
        print(f"[{self._last - self._started:3.0f} s] {words}", flush=True)

    def line(self, line: bytes) -> None:
        self._last = time.monotonic()
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()

    def if_quiet(self) -> None:
        if time.monotonic() - self._last >= QUIET_S:
            self("still at it")


@contextmanager
def _progress() -> Iterator[_Say]:
    say = _Say()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            say.if_quiet()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield say
    finally:
        over.set()
        watcher.join()


if __name__ == "__main__":
    sys.exit(main())
