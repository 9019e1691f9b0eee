"""The check: observed calls in, one verdict for each out.

Every pmc is followed on its own. A call is either *due* (the model has already said that it must come next) or
it opens something new (a program, a pause, a resume, a release), which only the guest can decide.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from vpmu_agent.model.call import Call, CallName, PmcType


class Kind(StrEnum):
    """What the model says of one call; everything but the first two is a divergence."""

    PREDICTED = "predicted"
    UNKNOWN = "unknown"
    PARTIAL_GROUP = "partial_group"
    UNEXPECTED_CALL = "unexpected_call"

    @property
    def is_divergence(self) -> bool:
        """True for everything that the model did not predict and could have."""
        return self not in (Kind.PREDICTED, Kind.UNKNOWN)


class State(StrEnum):
    """Where the group of one pmc stands."""

    EMPTY = "empty"
    BUILDING = "building"
    RUNNING = "running"
    PAUSED = "paused"
    PARTIAL = "partial"
    RELEASING = "releasing"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the model says of one call.

    `event` and `leader` are indices within the pmc's group, None where there is none or it is not known.
    `expected` says in words which call was expected instead, and is empty unless this is a divergence.
    `predicted` holds the calls that the model predicted on seeing this one (itself included where it opened
    something new): their running total equals the total of observed calls as long as KVM does as predicted.
    """

    kind: Kind
    event: int | None
    leader: int | None
    expected: str = ""
    predicted: tuple[CallName, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """A pmc that holds events now."""

    vm: str
    tgid: int
    vcpu: int
    pmc: str  # "gp0"
    state: State
    size: int  # max_nr_events when it was programmed
    events: int  # how many it holds


class Monitor:
    """Follows every pmc it sees a call of."""

    def observe(self, call: Call) -> Verdict:
        """Says what the model makes of the next call, and moves on."""
        raise NotImplementedError

    def groups(self) -> Iterator[Group]:
        """The pmcs that hold events now."""
        raise NotImplementedError

    def forget(self, tgid: int) -> None:
        """Drops all pmcs of a VM that is gone."""
        raise NotImplementedError
