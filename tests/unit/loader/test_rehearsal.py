"""What a rehearsal says of a bcc that will not do: in a process of its own, as it is always run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fake_bcc import LIBBCC, plant_bcc
from vpmu_agent.loader import rehearsal
from vpmu_agent.loader.program import BROKEN_BCC_TODO
from vpmu_agent.loader.rehearsal import Outcome, rehearse

IMPORT = "import bcc.libbcc\n"


@pytest.fixture(autouse=True)
def _no_other_bcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.parametrize(
    ("library", "says"),
    [
        (
            "raise OSError('libLLVM-14.so.1: cannot open shared object file: No such file or directory')",
            "cannot load bcc: libLLVM-14.so.1: cannot open shared object file: No such file or directory",
        ),
        (
            "import os, sys\nprint('LLVM ERROR: inconsistency in options', file=sys.stderr)\nos.abort()",
            "the process that used bcc was killed by SIGABRT (LLVM ERROR: inconsistency in options)",
        ),
        (
            "raise SystemExit('no\\nmore')",
            "the process that used bcc ended with status 1 (more)",
        ),
    ],
    ids=["without LLVM", "aborts", "exits"],
)
def test_a_bcc_that_does_not_load(tmp_path: Path, library: str, says: str) -> None:
    plant_bcc(tmp_path, {"__init__.py": IMPORT, "libbcc.py": library})
    (step,) = rehearse()
    assert (step.name, step.outcome, step.found) == (rehearsal.BCC, Outcome.REFUSED, says)
    assert step.todo == BROKEN_BCC_TODO


def test_a_bcc_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown is called unknown."""
    monkeypatch.setattr(rehearsal, "_TIMEOUT_S", 2)
    plant_bcc(tmp_path, {"__init__.py": IMPORT, "libbcc.py": f"{LIBBCC}import time\ntime.sleep(60)"})
    (step,) = rehearse()
    assert (step.outcome, step.found) == (Outcome.UNKNOWN, "it did not end within 2 s")
