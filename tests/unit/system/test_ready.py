from __future__ import annotations

import fcntl
import os
import resource
from collections.abc import Iterator

import pytest

from vpmu_agent.system.ready import is_readable


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    """A pipe whose reading end has a number that select.select() does not take."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    low, write = os.pipe()
    read = fcntl.fcntl(low, fcntl.F_DUPFD, 1024)
    os.close(low)
    yield read, write
    os.close(read)
    os.close(write)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_descriptor_of_any_number_is_asked(ends: tuple[int, int]) -> None:
    read, write = ends
    assert not is_readable(read)
    assert not is_readable(read, 0.01)
    os.write(write, b"x")
    assert is_readable(read)


def test_an_end_can_be_read() -> None:
    read, write = os.pipe()
    os.close(write)
    assert is_readable(read, 10)
    os.close(read)
