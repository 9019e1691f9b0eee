"""What keeps this process small: glibc's malloc, told to give memory back."""

from __future__ import annotations

import ctypes
import gc

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h


def give_back() -> None:
    """Have malloc give back what is free now: what only a start needs."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def keep_small() -> None:
    """Have malloc use one arena and give back what is free; to be called before there are threads.

    Left alone, it makes an arena for each thread, and raises its thresholds as big buffers come and go, such
    as the answers to scrapes: of ten megabytes for a moment five stay. Does nothing without mallopt().
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, 64 * 1024)
        mallopt(_M_TRIM_THRESHOLD, 128 * 1024)
