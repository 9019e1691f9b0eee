"""What the benchmark of replays measures is a replay of calls as predicted."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

from tests.bench.replay import measure, write
from tests.support.scenes import checked
from vpmu_agent.model.rules import Kind
from vpmu_agent.trace.recording import Recording


def test_every_call_of_its_recording_is_predicted(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    write(2000, path)
    with path.open("rb") as file:
        recording = Recording(file, "")
        calls = [call for batch in recording.batches() for call in batch]
    assert (len(calls), recording.cut_short) == (2000, "")
    assert all(a.time_ns < b.time_ns for a, b in pairwise(calls))
    assert {call.vm for call in calls} == {"tiny01", "web01", "grouped01"}
    assert Counter(verdict.kind for _, verdict in checked(calls)) == {Kind.PREDICTED: 2000}


def test_a_measurement_leaves_nothing_behind(tmp_path: Path) -> None:
    found = measure(20_000, tmp_path)
    assert found["calls"] == 20_000
    assert found["calls_per_s"] > 1_000
    assert 10_000 < found["peak_kib"] < 100_000
    assert list(tmp_path.iterdir()) == []
