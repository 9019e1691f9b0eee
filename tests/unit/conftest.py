"""What every unit test has."""

from __future__ import annotations

import hypothesis
import pytest

# A busy machine makes any example slow at times; what matters to be fast is measured elsewhere.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _as_users_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have set this; it hides what goes wrong when buffered output is flushed."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
