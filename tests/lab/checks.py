"""What several tests of the lab hold the agent's account to."""

from __future__ import annotations

from collections import Counter

from .agent import Seen
from .pmu import Counts

AUTO = "attached"
TRIED = "tried"


def assert_agrees(seen: Seen, vm: str, counts: Counts) -> None:
    """The agent's calls for `vm`, and its summary of them, are what the test PMU saw; nothing was lost."""
    calls = seen.count(vm)
    assert (calls["create"], calls["release"]) == (counts.initialised, counts.destroyed)
    summary = seen.summary(vm)
    assert summary["calls"] == dict.fromkeys(summary["calls"], 0) | Counter(
        line["call"] for line in seen.calls(vm)
    )
    assert summary["lost"] == 0


def assert_as_predicted(seen: Seen, vm: str) -> None:
    """The model had nothing to say against any call of `vm`."""
    assert {line["verdict"] for line in seen.calls(vm)} == {"predicted"}
    assert seen.summary(vm)["divergences"] == 0
    assert seen.status == 0
