from __future__ import annotations

import errno

import pytest

from vpmu_agent.model.create_errors import CAUSES, UNKNOWN, cause
from vpmu_agent.text import errno_name


@pytest.mark.parametrize(
    ("number", "name"),
    [(95, "EOPNOTSUPP"), (35, "EDEADLK"), (28, "ENOSPC"), (11, "EAGAIN"), (524, "524"), (0, "0")],
)
def test_errnos_have_the_kernels_names(number: int, name: str) -> None:
    assert errno_name(number) == name


def test_a_full_pmu_is_no_cause() -> None:
    """perf creates the event all the same."""
    assert cause(errno.ENOSPC) == cause(errno.EAGAIN) == UNKNOWN


@pytest.mark.parametrize("number", CAUSES)
def test_each_cause_is_part_of_a_sentence_and_has_its_source(number: int) -> None:
    text = cause(number)
    assert text == CAUSES[number].text
    assert not text.endswith(".")
    assert not set(text) & set('"\\\n')  # goes into JSON as it is
    assert CAUSES[number].functions
