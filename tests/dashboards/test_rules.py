"""`promtool`, on the rules and on their tests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from click.testing import CliRunner

from tests.dashboards.prometheus import RULES
from tools import rules

TESTS = Path(__file__).parent / "rules_test.yml"
ADDRESSES = ["--runbooks", "https://runbooks.test/vpmu", "--grafana", "https://grafana.test/"]


def test_the_rules_are_in_order() -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", "--lint-fatal", *RULES], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("SUCCESS") == len(RULES)


def test_the_rules_do_as_their_tests_say(tmp_path: Path) -> None:
    """The tests expect addresses of one's own, as `make rules RUNBOOKS=… GRAFANA=…` writes them."""
    CliRunner().invoke(rules.main, [*ADDRESSES, "--to", str(tmp_path)], catch_exceptions=False)
    tests = shutil.copy(TESTS, tmp_path)
    done = subprocess.run(["promtool", "test", "rules", tests], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
