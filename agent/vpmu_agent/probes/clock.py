"""From the time at which the kernel dates a call to the time of day."""

from __future__ import annotations

import time
from collections.abc import Callable

_STEP_NS = 1_000_000
"""What the clock must have moved by to be asked for anew. Less is how well two clocks can be compared: with
each small change the times of calls a microsecond apart would get out of order."""

_LONGEST_READ_NS = 100_000
"""A reading that takes longer was interrupted, and compares two different moments."""


class Clock:
    """What to add to CLOCK_MONOTONIC, which bpf_ktime_get_ns() returns, for nanoseconds since the epoch.

    Somebody can set the clock, NTP corrects it, and CLOCK_MONOTONIC stands still while the host is suspended.
    """

    def __init__(
        self,
        time_of_day: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Both return nanoseconds; they are those of this host, or a test's."""
        self._time_of_day = time_of_day
        self._monotonic = monotonic
        self._offset_ns = time_of_day() - monotonic()

    def offset_ns(self) -> int:
        """Return the offset as it is now; to be called for each batch of calls."""
        before = self._monotonic()
        found = self._time_of_day() - before
        if self._monotonic() - before <= _LONGEST_READ_NS and abs(found - self._offset_ns) >= _STEP_NS:
            self._offset_ns = found
        return self._offset_ns
