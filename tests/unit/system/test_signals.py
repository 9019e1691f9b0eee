"""Signals that ask to stop or to reload."""

from __future__ import annotations

import signal
import subprocess
import sys
import time


def test_who_hangs_ends_in_the_time_that_it_has_after_a_signal() -> None:
    code = (
        "import time; from vpmu_agent.system.signals import stop_requests\n"
        "with stop_requests(within_s=1):\n"
        "    print(flush=True)\n"
        "    while True: time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGALRM
        assert 0.9 < time.monotonic() - start < 5


def test_sighup_changes_nothing_once_the_end_has_begun() -> None:
    code = (
        "import signal; from vpmu_agent.system.signals import reload_requests\n"
        "with reload_requests(): pass\n"
        "signal.raise_signal(signal.SIGHUP)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)
