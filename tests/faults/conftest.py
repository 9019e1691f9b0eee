"""Count every attack: how often it was tried, how often the agent survived it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest


@dataclass
class Attack:
    """One kind of attack, tried again and again."""

    name: str
    tried: int = 0
    reasons: list[str] = field(default_factory=list)

    @contextmanager
    def once(self, what: str = "") -> Iterator[None]:
        """Count a try, which is lost if its body raises. `what` names it in the report of what was lost."""
        self.tried += 1
        try:
            yield
        except Exception as error:  # a lost try must not hide the next ones
            self.reasons.append(f"{what or f'try {self.tried}'}: {type(error).__name__}: {error}")

    @property
    def lost(self) -> int:
        return len(self.reasons)

    @property
    def survived(self) -> int:
        return self.tried - self.lost


_ATTACKS = pytest.StashKey[list[Attack]]()


@pytest.fixture
def attack(request: pytest.FixtureRequest) -> Iterator[Attack]:
    """Give the attack that the test describes; the test fails if a try was lost or none was made."""
    name = (request.function.__doc__ or "").partition("\n")[0].rstrip(".")
    assert name, "a test of tests/faults says in its docstring what the attack is"
    attack = Attack(name)
    request.config.stash.setdefault(_ATTACKS, []).append(attack)
    yield attack
    assert attack.tried > 0, "the attack was never tried"
    assert not attack.reasons, "\n".join(attack.reasons[:10])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table of all attacks."""
    attacks = config.stash.get(_ATTACKS, [])
    if not attacks:
        return
    terminalreporter.section("attacks")
    width = max(len(attack.name) for attack in attacks)
    terminalreporter.write_line(f"{'attack':<{width}}  {'tried':>7}  {'survived':>8}  {'lost':>5}")
    for attack in attacks:
        terminalreporter.write_line(
            f"{attack.name:<{width}}  {attack.tried:>7}  {attack.survived:>8}  {attack.lost:>5}"
        )
