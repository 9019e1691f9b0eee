"""What the daemon keeps of its privileges. That it gives up the rest is seen in tests/bpf, as root."""

from __future__ import annotations

import pytest

from vpmu_agent.daemon.separation import needed_capabilities
from vpmu_agent.kernel.trials import Trial


@pytest.mark.parametrize(
    ("works", "denied", "kept"),
    [(True, False, set()), (False, False, {"CAP_BPF"}), (False, True, set())],
)
def test_cap_bpf_is_kept_where_maps_cannot_be_read_without(works: bool, denied: bool, kept: set[str]) -> None:
    assert needed_capabilities(Trial(works, denied=denied)) == kept
