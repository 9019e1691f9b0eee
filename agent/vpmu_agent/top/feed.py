"""The thread that reads a source while the screen waits for keys."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from vpmu_agent.top.reading import CounterLine, Reading, Readings, StateError, counter_lines
from vpmu_agent.top.sources import Source, SourceError


@dataclass(frozen=True, slots=True)
class Opened:
    """The counters of the VM that is open; None where the source cannot know them."""

    vm: str
    counters: Sequence[CounterLine] | None


@dataclass(frozen=True, slots=True)
class Update:
    """What is known now."""

    reading: Reading | None = None
    error: str = ""
    """Why the last reading failed, so that `reading` is an older one; "" if it did not."""
    opened: Opened | None = None


class Feed:
    """Reads a source every `interval_s` in a thread of its own, and calls `tell` after each time there.

    Any thread may use `update`, `open()` and `failure`.
    """

    def __init__(self, source: Source, interval_s: float, tell: Callable[[], None]) -> None:
        self.update = Update()
        self.failure: Exception | None = None
        """What ended the thread; None if nothing did."""
        self._source = source
        self._interval_s = interval_s
        self._tell = tell
        self._readings = Readings()
        self._wanted = ""
        self._asked = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)

    @property
    def source_name(self) -> str:
        """What to call the source."""
        return self._source.name

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread; a daemon that does not answer is waited for no longer than `timeout_s`."""
        self._stopped.set()
        self._thread.join(timeout_s)

    def open(self, vm: str) -> None:
        """Read the counters of this VM from now on, the first time at once; "" for none."""
        self._wanted = vm
        self._asked.set()

    def _run(self) -> None:
        try:
            due = time.monotonic()
            while not self._stopped.is_set():
                is_due = time.monotonic() >= due
                if is_due or self._asked.is_set():
                    self._asked.clear()
                    self._read(everything=is_due)
                    self._tell()
                if is_due:
                    due = max(due + self._interval_s, time.monotonic())
                self._source.keep_up()
        except Exception as error:  # the screen's thread raises it, with the terminal as it was before
            self.failure = error
            self._tell()

    def _read(self, *, everything: bool) -> None:
        update = self.update
        try:
            if everything:
                update = replace(update, reading=self._readings.take(self._source.state()), error="")
            update = replace(update, opened=self._read_opened())
        except (SourceError, StateError) as error:
            update = replace(update, error=str(error))
        self.update = update

    def _read_opened(self) -> Opened | None:
        if not (vm := self._wanted):
            return None
        found = self._source.counters(vm)
        return Opened(vm, None if found is None else counter_lines(found))
