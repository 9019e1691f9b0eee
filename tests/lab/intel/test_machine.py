"""The machine is Intel's, and the agent works on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vpmu_agent.loader.cache import FOLDER

from .. import agent, live
from ..checks import AUTO
from ..test_doctor import doctor

pytestmark = pytest.mark.intel


def test_vpmu_is_live_on_an_unmodified_kvm_intel() -> None:
    assert Path("/sys/module/kvm_intel").exists()
    assert not Path("/sys/module/kvm_amd").exists()
    assert live.ENABLE_PMU.read_text().strip() == "Y"


def test_the_agent_attaches_the_programs_that_were_compiled_in_qemu(
    record_property: Callable[[str, str], None],
) -> None:
    carried_over = set(FOLDER.iterdir())
    with agent.trace() as tracing:
        record_property(AUTO, tracing.mode)
        assert tracing.mode == "fexit"
        seen = tracing.stop()
    assert (seen.status, seen.lines) == (0, [])
    assert set(FOLDER.iterdir()) == carried_over


# It compiles the programs for each way to attach, in any case: minutes.
@pytest.mark.matrix
@pytest.mark.timeout(1800)
def test_doctor_finds_nothing_wrong() -> None:
    _, summary = doctor()
    assert summary["can_trace"] is True
    assert summary["fail"] == 0
