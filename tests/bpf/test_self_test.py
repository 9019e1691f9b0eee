"""The programs count what the tester releases, and nobody else's events."""

from __future__ import annotations

import subprocess

import pytest

from tests.bpf.conftest import Lookalike

ROUNDS, OTHERS = 20, 3


@pytest.mark.parametrize("durations", [True, False])
@pytest.mark.parametrize("is_tester", [True, False])
def test_releases_of_the_tester_are_counted_at_both_ends(
    stock: Lookalike, is_tester: bool, durations: bool
) -> None:
    with (
        stock.probes(stream=False, durations=durations) as probes,
        subprocess.Popen(
            [stock.path, "run", f"rounds={ROUNDS}", f"others={OTHERS}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as lookalike,
    ):
        probes.expect_tests_of(lookalike.pid if is_tester else lookalike.pid + 1)
        lookalike.communicate(b"\n", timeout=30)
        seen = probes.tests_seen()
        assert lookalike.returncode == 0
        assert not any(probes.lost().values())
    assert seen == ((ROUNDS * OTHERS,) * 2 if is_tester else (0, 0))
