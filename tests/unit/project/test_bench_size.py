"""How `make bench` counts the cache lines that a call writes."""

from __future__ import annotations

import pytest

from tests.bench.size import LINE, PAGE, lines_written

ENTRY = 2 * LINE


@pytest.mark.parametrize(
    ("written", "offset", "lines"),
    [
        ([], 0, 0),
        ([0, LINE - 1], 0, 1),
        ([LINE - 1, LINE], 0, 2),
        ([0, LINE - 1], 56, 2),  # an entry of one line that begins within a line is in two
        ([0, PAGE, PAGE + LINE], 0, 3),
        ([PAGE - 1], 0, 1),
    ],
)
def test_lines_that_differ(written: list[int], offset: int, lines: int) -> None:
    before = bytes(PAGE + ENTRY)
    after = bytearray(before)
    for at in written:
        after[at] = 1
    assert lines_written(before, bytes(after), offset) == lines
