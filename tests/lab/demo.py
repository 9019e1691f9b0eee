"""The demo: a real Linux guest uses perf, and vpmu-agent shows what KVM does for it (`make demo`).

Outside of the VM this boots it and shows that time passes; in the VM it starts the agent three times (a
daemon with metrics, a trace to look at, a trace to compare), runs the guest, and holds everything against the
test PMU. Its last line on stdout is the summary that the agent itself printed.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from . import agent, boot, live, places, pmu, vm
from .guests import guest_b
from .scrape import parse, read, total

VM = "web01"
LISTEN = "127.0.0.1:9775"
SHOWN = (
    "vpmu_calls_total",
    "vpmu_predicted_calls_total",
    "vpmu_call_errors_total",
    "vpmu_events",
    "vpmu_agent_lost_records_total",
)
QUIET_S = 10.0


def main() -> int:
    """Exits with 0 if all counts agree and the model was right."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.demo", description="Runs the demo.")
    vm.add_options(parser, timeout_s=290.0)
    arguments = parser.parse_args()

    def action() -> int:
        if places.in_vm():
            return _inside()
        which = vm.chosen_kernel(arguments)
        with _progress() as say:
            say("building what the VM needs")
            how = "hardware virtualization" if boot.accelerated(which) else "software emulation, some 20 s"
            say(f"booting Debian's kernel {which.release} ({how})")
            return vm.run(
                ["python", "-m", "tests.lab.demo"], which=which, timeout_s=arguments.timeout, output=say.line
            )

    return vm.exit_status(action)


def _inside() -> int:
    started = time.monotonic()

    def say(words: str) -> None:
        print(f"[{time.monotonic() - started:3.0f} s in the VM] {words}", flush=True)

    say("loading the test PMU, then KVM: its vPMU finds a PMU and is live")
    live.make_live()
    say("starting the agent: `vpmu-agent run`, `vpmu-agent trace` (they import, compile and attach)")
    with agent.run(LISTEN), agent.trace() as to_compare, agent.Agent("trace", terminal=True) as to_look_at:
        say(f"attached; starting the guest {VM}: Linux under KVM, with a group of four hardware events")
        with guest_b(VM, rounds=2) as guest:
            tgid = guest.tgid
            for _ in range(2):
                say(f"{VM} read its counters: {json.dumps(guest.wait_for('round'))}")
            guest.wait_for("done")
            guest.finish()
        say(f"{VM} is over; stopping the trace")
        to_look_at.interrupt()
        seen = to_compare.stop()
        say(f"http://{LISTEN}/metrics has, among others:")
        text = read(LISTEN)
    metrics = parse(text)
    for line in text.splitlines():
        if line.startswith(SHOWN):
            print(f"    {line}")
    diverged = int(total(metrics, "vpmu_divergences_total", vm=VM))
    print(f'    sum(vpmu_divergences_total{{vm="{VM}"}}) {diverged}')

    summary = seen.summary(VM)
    counts = pmu.kvm_counts(tgid)
    scraped = {call: int(total(metrics, "vpmu_calls_total", vm=VM, call=call)) for call in summary["calls"]}
    say(f"the test PMU's own count: {counts.initialised} events initialised, {counts.destroyed} destroyed")
    wrong = list(_disagreements(summary, counts, scraped, diverged))
    for words in wrong:
        print(f"demo: {words}", file=sys.stderr)
    if not wrong:
        say("trace, metrics and the test PMU agree")
    print(seen.last_line, flush=True)
    return 1 if wrong else 0


def _disagreements(
    summary: agent.Line, counts: pmu.Counts, scraped: dict[str, int], diverged: int
) -> Iterator[str]:
    calls = summary["calls"]
    if counts.initialised < 4:
        yield f"{VM} made KVM create {counts.initialised} events, not at least 4"
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
