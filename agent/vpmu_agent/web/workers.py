"""Threads that are started once, with the server: no client needs one to be started."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

_STOP_S = 1.0

_T = TypeVar("_T")


class Workers:
    """Threads that make calls for others, in the order in which they come.

    Not a ThreadPoolExecutor: that starts threads when there is work, which can fail at any time, and the
    interpreter waits for them when it ends.
    """

    def __init__(self, count: int, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name} {number}", daemon=True)
            for number in range(1, count + 1)
        ]

    def start(self) -> None:
        """Start the threads, or as many as can be started. Raise RuntimeError if none can."""
        for number, thread in enumerate(self._threads):
            try:
                thread.start()
            except RuntimeError:
                if number == 0:
                    raise
                return

    def submit(self, call: Callable[[], _T]) -> Future[_T]:
        """Have a thread make the call; the future gets what it returns or raises."""
        future: Future[_T] = Future()
        self._calls.put((future, call))
        return future

    def stop(self) -> None:
        """Have the threads end after the calls that were submitted, and wait a second for that."""
        for _ in self._threads:
            self._calls.put(None)
        end = time.monotonic() + _STOP_S
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(end - time.monotonic(), 0))

    def _work(self) -> None:
        while work := self._calls.get():
            future, call = work
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except BaseException as error:  # the thread must live on, whatever it was
                future.set_exception(error)
            else:
                future.set_result(result)
            del future, call, work  # and not keep an answer in memory until the next one
