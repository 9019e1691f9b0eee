"""What tests of the grouped kernel have: its controls, at their defaults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .. import places
from . import control

# In another kernel's VM these tests are not skipped, they are not there.
collect_ignore_glob = ["test_*.py"] if places.in_vm() and not control.is_grouped_kernel() else []


@pytest.fixture(autouse=True)
def _default_controls() -> Iterator[None]:
    """Ends what a test told KVM to do."""
    yield
    control.reset()
