"""The bounds of the buckets that durations and sizes of groups are counted in."""

from __future__ import annotations

DURATION_BOUNDS_NS = (
    100,
    500,
    1_000,
    5_000,
    10_000,
    50_000,
    100_000,
    500_000,
    1_000_000,
    5_000_000,
    10_000_000,
)
"""Upper bounds, inclusive, of the buckets that a call's duration falls into; one more bucket takes the rest.

From an enable that has nothing to do (hundreds of nanoseconds) to a create that waits for a grace period
(milliseconds); two bounds a decade, because every bound is a series for each VM and call."""

SIZE_BOUNDS = (1, 2, 4, 8, 16)
"""The same for the size of a group in events. `max_nr_events` is a u8, hardware fields will not be many."""
