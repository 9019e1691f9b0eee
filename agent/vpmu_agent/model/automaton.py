"""The automaton of one pmc, as data."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """What the model says of one call; everything but the first two is a divergence."""

    PREDICTED = "predicted"
    UNKNOWN = "unknown"
    PARTIAL_GROUP = "partial_group"
    DEGRADED_GROUP = "degraded_group"
    ORPHANED_MEMBER = "orphaned_member"
    MISSING_MEMBER = "missing_member"
    EXTRA_MEMBER = "extra_member"
    WRONG_LEADER = "wrong_leader"
    ENABLED_EARLY = "enabled_early"
    ENABLED_OUT_OF_ORDER = "enabled_out_of_order"
    NOT_ENABLED = "not_enabled"
    RELEASED_OUT_OF_ORDER = "released_out_of_order"
    RELEASED_TWICE = "released_twice"
    EVENT_COUNT_MISMATCH = "event_count_mismatch"
    UNEXPECTED_CALL = "unexpected_call"

    @property
    def is_divergence(self) -> bool:
        """True for everything that the model did not predict and could have."""
        return self not in (Kind.PREDICTED, Kind.UNKNOWN)

    @property
    def meaning(self) -> str:
        """The kind in a sentence, for people."""
        return _MEANINGS[self]


_MEANINGS = {
    Kind.PREDICTED: "the call that the model said would come, or one that only the guest decides on",
    Kind.UNKNOWN: "from before the agent came, or records were lost, or it can be a consequence of a fault",
    Kind.PARTIAL_GROUP: "a member could not be created: those before it stay, disabled, until a release",
    Kind.DEGRADED_GROUP: "a counter that had a group was programmed with a single event",
    Kind.ORPHANED_MEMBER: "events were left behind that nobody will release any more",
    Kind.MISSING_MEMBER: "the group was enabled, paused or released before all its members were created",
    Kind.EXTRA_MEMBER: "more events were created than the group's size",
    Kind.WRONG_LEADER: "group_leader is not event 0, or event 0 was given one",
    Kind.ENABLED_EARLY: "a member was enabled before the last one was created",
    Kind.ENABLED_OUT_OF_ORDER: "a member was enabled before one with a lower index",
    Kind.NOT_ENABLED: "the program ended before all its members were enabled",
    Kind.RELEASED_OUT_OF_ORDER: "a member was released before one with a lower index",
    Kind.RELEASED_TWICE: "an event was released that had been released already",
    Kind.EVENT_COUNT_MISMATCH: "KVM's own count of the vCPU's events is not what its calls add up to",
    Kind.UNEXPECTED_CALL: "nothing that KVM may do with this counter in the state it is in",
}


class State(StrEnum):
    """Where the group of one pmc stands."""

    EMPTY = "empty"  # holds no events
    CREATING = "creating"  # from the first create to the last
    ENABLING = "enabling"  # of a group: from the last create to the last enable
    RUNNING = "running"
    PAUSED = "paused"
    PARTIAL = "partial"  # a create failed; the members before it are held, disabled
    RELEASING = "releasing"  # from the first release to the last
    UNKNOWN = "unknown"


SLOTS = 32
"""Members of a group that are followed; of a larger group the model says nothing (unknown)."""
