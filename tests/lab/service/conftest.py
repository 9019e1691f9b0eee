"""What tests of the service have: the package is installed, and the service has started."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .. import places
from ..grouped import control
from . import unit

# In a VM without systemd these tests are not skipped, they are not there.
collect_ignore_glob = ["test_*.py"] if places.in_vm() and not unit.runs_under_systemd() else []
if places.in_vm() and not control.is_grouped_kernel():
    collect_ignore_glob.append("test_divergences.py")


@pytest.fixture(scope="session")
def _installed() -> None:
    unit.install()


@pytest.fixture(autouse=True)
def _started(_installed: None) -> Iterator[None]:
    """It runs, as it was installed, whatever the test before did to it."""
    as_shipped = unit.CONFIG.read_bytes()
    if unit.show("ActiveState") != "active":
        unit.systemctl("reset-failed", unit.UNIT)  # its count of starts, too: these tests make many
        unit.systemctl("start", unit.UNIT)
    yield
    unit.CONFIG.write_bytes(as_shipped)
