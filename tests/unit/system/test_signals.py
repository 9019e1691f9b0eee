"""Signals that ask to stop or to reload."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

HANGS = """
import time
from vpmu_agent.system import signals
signals.END_S = 1
with signals.stop_requests({}):
    print(flush=True)
    while True: time.sleep(60)
"""


@pytest.mark.parametrize(
    ("number", "within"),
    [(signal.SIGTERM, ""), (signal.SIGTERM, "within_s=50"), (signal.SIGINT, "within_s=1")],
)
def test_who_hangs_ends_in_the_time_that_it_has_after_a_signal(number: int, within: str) -> None:
    with hanging(within) as process:
        start = time.monotonic()
        process.send_signal(number)
        assert process.wait(10) == -signal.SIGALRM
        assert 0.9 < time.monotonic() - start < 5


def test_after_ctrl_c_it_may_take_any_time_until_another_comes() -> None:
    with hanging() as process:
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT


@contextmanager
def hanging(within: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not end by itself."""
    command = [sys.executable, "-c", HANGS.format(within)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def test_sighup_changes_nothing_once_the_end_has_begun() -> None:
    code = (
        "import signal; from vpmu_agent.system.signals import reload_requests\n"
        "with reload_requests(): pass\n"
        "signal.raise_signal(signal.SIGHUP)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)
