"""`promtool`, on the rules and on their tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.dashboards.prometheus import RULES

TESTS = Path(__file__).parent / "rules_test.yml"


def test_the_rules_are_in_order() -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", "--lint-fatal", *RULES], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("SUCCESS") == len(RULES)


def test_the_rules_do_as_their_tests_say() -> None:
    done = subprocess.run(["promtool", "test", "rules", TESTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
