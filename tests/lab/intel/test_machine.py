"""The machine is Intel's, and the agent works on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from .. import agent, live, pmu, programs
from ..checks import assert_agrees, assert_as_predicted
from ..guests import guest_a
from ..test_doctor import doctor


def test_vpmu_is_live_on_an_unmodified_kvm_intel() -> None:
    assert Path("/sys/module/kvm_intel").exists()
    assert not Path("/sys/module/kvm_amd").exists()
    assert live.ENABLE_PMU.read_text().strip() == "Y"


def test_the_agents_account_is_the_pmus() -> None:
    carried_over = set(programs.FOLDER.iterdir())
    with agent.trace() as tracing, guest_a("intel01") as guest:
        guest.finish()
        counts = pmu.kvm_counts(guest.tgid)
        seen = tracing.stop()
    assert counts.initialised > 0
    assert_agrees(seen, "intel01", counts)
    assert_as_predicted(seen, "intel01")
    assert set(programs.FOLDER.iterdir()) == carried_over  # it did not have to compile


# It compiles the programs for each way to attach, in any case: minutes.
@pytest.mark.matrix
@pytest.mark.timeout(1800)
def test_doctor_finds_nothing_wrong() -> None:
    _, summary = doctor()
    assert summary["can_trace"] is True
    assert summary["fail"] == 0
