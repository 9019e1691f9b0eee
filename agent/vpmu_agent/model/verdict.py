"""What the model says of one call."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import TypeAlias

from vpmu_agent.model.call import Call, CallName
from vpmu_agent.model.rules import Expected, Kind


class Verdict:
    """What the model says of one call.

    `event` and `leader` are indices within the pmc's group, None where there is none or it is not known.
    `counts` says how many calls of each name the model predicts on seeing this one (itself included where it
    opened something new): their running total equals that of the observed calls as long as KVM does as
    predicted. Made by `verdict()`, which gives the same object for the same verdict.
    """

    __slots__ = ("__dict__", "_at", "_event_count", "_expected", "_size", "counts", "event", "kind", "leader")

    def __init__(
        self,
        kind: Kind,
        event: int | None,
        leader: int | None,
        expected: Expected = Expected.NOTHING,
        at: int = 0,
        size: int = 1,
        counts: tuple[int, ...] = (0, 0, 0, 0),
        event_count: int = -1,
    ) -> None:
        self.kind = kind
        self.event = event
        self.leader = leader
        self.counts = counts
        self._expected, self._at, self._size, self._event_count = expected, at, size, event_count

    @cached_property
    def expected(self) -> str:
        """In words what was expected instead; empty unless this is a divergence."""
        if not self.kind.is_divergence:
            return ""
        at, size = self._at, self._size
        releases = " and ".join(f"release(event={i})" for i in range(at.bit_length()) if at >> i & 1)
        return self._expected.format(
            at=at,
            leader=0 if at else None,
            disabled=int(size > 1),
            event_count=self._event_count,
            releases=releases,
        )

    @cached_property
    def predicted(self) -> tuple[CallName, ...]:
        """The calls of `counts`."""
        return tuple(name for name, n in zip(CallName, self.counts, strict=True) for _ in range(n))

    def __repr__(self) -> str:
        return f"Verdict({self.kind}, event={self.event}, leader={self.leader}, {self.expected!r})"


_KINDS, _EXPECTED = tuple(Kind), tuple(Expected)


@lru_cache(maxsize=4096)
def verdict(
    kind: int,
    event: int,
    leader: int,
    expected: int,
    at: int,
    size: int,
    counts: tuple[int, ...] = (0, 0, 0, 0),
    event_count: int = -1,
) -> Verdict:
    """The verdict for numbers as the BPF monitor sends them: places in the enums, indices or -1."""
    return Verdict(
        _KINDS[kind],
        None if event < 0 else event,
        None if leader < 0 else leader,
        _EXPECTED[expected],
        at,
        size,
        counts,
        event_count,
    )


Observation: TypeAlias = tuple[Call, Verdict]
"""One call that KVM made, and what the model says of it."""
