"""What happens at once: calls on all processors, epochs that change, scrapes in the middle of it all."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter

import pytest

from tests.bpf.conftest import Lookalike
from vpmu_agent import probes
from vpmu_agent.counts.counts import FIELDS
from vpmu_agent.counts.watch import Watch
from vpmu_agent.model.call import CallName
from vpmu_agent.model.rules import Kind
from vpmu_agent.system.ready import is_readable
from vpmu_agent.vms.names import Vms

THREADS = 16


@pytest.mark.parametrize(("kernel", "size"), [("stock", 1), ("grouped", 4)])
def test_no_count_is_lost_while_epochs_change(
    kernel: str, size: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch begins whenever calls were missed: here all the time, in the middle of the calls."""
    lookalike: Lookalike = request.getfixturevalue(kernel)
    misses = iter(range(10**9))
    monkeypatch.setattr(probes, "recursion_misses", lambda _program: next(misses))
    monkeypatch.setattr(probes, "_MISSES_EVERY_S", 0.0)
    vms = Vms()
    with lookalike.probes(stream=False, vms=vms) as live:
        watch = Watch(live, vms)
        words = [f"threads={THREADS}", "rounds=6000", f"size={size}", "hold=1", "-name", "guest=racer"]
        with subprocess.Popen(
            [lookalike.path, "run", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin
            assert process.stdout
            try:
                process.stdin.write(b"\n")
                process.stdin.flush()
                epochs, before = _change_epochs(live, watch, process)
                made = Counter(json.loads(process.stdout.readline()))
                counts = watch.scrape().vms["racer"]
            finally:
                process.kill()
        lost = {reason: count for reason, count in live.lost().items() if reason != "not_run" and count}
    assert epochs > 1000
    assert lost == {}
    seen = dict(zip(map(str, CallName), counts.numbers[FIELDS["calls"]], strict=True))
    assert seen == {name: made[name] for name in seen}
    durations = sum(counts.numbers[FIELDS["duration_buckets"]])
    assert durations == sum(seen.values())
    kinds = dict(zip(Kind, counts.numbers[FIELDS["verdicts"]], strict=True))
    told = {kind: count for kind, count in kinds.items() if kind.is_divergence and count}
    assert told == {}
    assert kinds[Kind.PREDICTED] > 0
    assert before <= list(counts.numbers[FIELDS["calls"]])


def _change_epochs(
    live: probes.Probes, watch: Watch, process: subprocess.Popen[bytes]
) -> tuple[int, list[int]]:
    """Until it has made its calls. No counter is ever seen to go down. Returns how many epochs there were."""
    assert process.stdout
    epochs, last, looked = 0, [0] * len(CallName), 0.0
    while not is_readable(process.stdout):
        live.poll(0)
        epochs += 1
        if time.monotonic() - looked > 0.05:
            looked = time.monotonic()
            if counts := watch.scrape().vms.get("racer"):
                now = list(counts.numbers[FIELDS["calls"]])
                assert all(a <= b for a, b in zip(last, now, strict=True)), (last, now)
                last = now
    return epochs, last
