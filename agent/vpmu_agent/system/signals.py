"""Signals as questions that a main loop asks: shall it stop, shall it reload?"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType


END_S = 10
"""Seconds that a process has to end after SIGTERM, whatever it waits for: then the kernel ends it.

The daemon gets that signal when its parent is gone, too.
"""


@contextmanager
def stop_requests(*, within_s: int = 0) -> Iterator[Callable[[], bool]]:
    """Yield what tells whether Ctrl-C or SIGTERM came. A second Ctrl-C ends the process at once.

    After SIGTERM it has END_S left; after Ctrl-C `within_s`, 0 being any time: who pressed it may be reading
    what the process still has to write, page by page.
    """
    stop = False

    def request_stop(number: int, _frame: FrameType | None) -> None:
        nonlocal stop
        stop = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if left_s := END_S if number == signal.SIGTERM else within_s:
            signal.alarm(left_s)  # SIGALRM ends it

    former = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def reload_requests() -> Iterator[Callable[[], bool]]:
    """Yield what tells whether SIGHUP came since it was last asked.

    SIGHUP ends no process from here on. That is so after the block, too: who leaves it is about to end, and
    shall end as it means to.
    """
    requested = False

    def request_reload(_number: int, _frame: FrameType | None) -> None:
        nonlocal requested
        requested = True

    def take_request() -> bool:
        nonlocal requested
        # Cleared before the caller acts on it: a SIGHUP that comes meanwhile is another request.
        taken, requested = requested, False
        return taken

    signal.signal(signal.SIGHUP, request_reload)
    try:
        yield take_request
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
