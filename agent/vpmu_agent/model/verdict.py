"""What the model says of one call."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import TypeAlias

from vpmu_agent.model.call import Call, CallName
from vpmu_agent.model.rules import Expected, Kind

NO_CALLS = (0, 0, 0, 0)


class Verdict:
    """What the model says of one call.

    `event` and `leader` are indices within the pmc's group, None if there is none or it is not known.
    `counts` says how many calls of each name the model predicts on seeing this one (itself included if it
    opened something new): their running total equals that of the observed calls as long as KVM does as
    predicted. `verdict()` makes it, and returns the same object for the same verdict.
    """

    __slots__ = ("__dict__", "_at", "_event_count", "_expected", "_size", "counts", "event", "kind", "leader")

    def __init__(
        self,
        kind: Kind,
        event: int | None,
        leader: int | None,
        counts: tuple[int, ...] = NO_CALLS,
        expected: Expected = Expected.NOTHING,
        at: int = 0,
        size: int = 1,
        event_count: int = -1,
    ) -> None:
        self.kind = kind
        self.event = event
        self.leader = leader
        self.counts = counts
        self._expected = expected
        self._at = at
        self._size = size
        self._event_count = event_count

    @cached_property
    def expected(self) -> str:
        """Return in words what was expected instead; empty unless this is a divergence."""
        if not self.kind.is_divergence:
            return ""
        at, size = self._at, self._size
        releases = " and ".join(f"release(event={i})" for i in range(at.bit_length()) if (at >> i) & 1)
        return self._expected.format(
            at=at,
            leader=0 if at else None,
            disabled=int(size > 1),
            event_count=self._event_count,
            releases=releases,
        )

    @cached_property
    def predicted(self) -> tuple[CallName, ...]:
        """Return the calls of `counts`."""
        return tuple(name for name, n in zip(CallName, self.counts, strict=True) for _ in range(n))

    def __repr__(self) -> str:
        return f"Verdict({self.kind}, event={self.event}, leader={self.leader}, {self.expected!r})"


@lru_cache(maxsize=4096)
def verdict(
    kind: Kind,
    event: int,
    leader: int,
    counts: tuple[int, ...] = NO_CALLS,
    expected: Expected = Expected.NOTHING,
    at: int = 0,
    size: int = 1,
    event_count: int = -1,
) -> Verdict:
    """Return the verdict; `event` and `leader` are indices, or -1."""
    return Verdict(
        kind,
        None if event < 0 else event,
        None if leader < 0 else leader,
        counts,
        expected,
        at,
        size,
        event_count,
    )


Observation: TypeAlias = tuple[Call, Verdict]
"""One call that KVM made, and what the model says of it."""
