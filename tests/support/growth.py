"""Whether the time that something takes grows as its input does."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

ROUNDS = 3
ROUNDS_ON_A_BUSY_MACHINE = 12


def assert_linear(prepare: Callable[[int], Callable[[], None]], size: int, *, limit_s: float) -> None:
    """Assert that `size` takes at most some twice as long as half of it, and at most `limit_s` of CPU.

    `prepare` makes the input of a size, and returns what is timed. The best of some rounds counts, of more
    where others keep the machine's caches cold; what is quadratic takes four times as long even then.
    """
    half, whole = prepare(size // 2), prepare(size)
    best_half = best_whole = math.inf
    for number in range(1, ROUNDS_ON_A_BUSY_MACHINE + 1):
        best_half, best_whole = min(best_half, _cpu_s(half)), min(best_whole, _cpu_s(whole))
        if number >= ROUNDS and best_whole < min(3 * best_half + 0.01, limit_s):
            return
    raise AssertionError(f"{size // 2} took {best_half:.3f} s, {size} {best_whole:.3f} s, of {limit_s} s")


def _cpu_s(action: Callable[[], None]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start
