"""What every unit test has."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _as_users_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have set this; it hides what goes wrong when buffered output is flushed."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
