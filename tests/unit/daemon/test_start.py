"""What a start waits for before the loader is at work."""

from __future__ import annotations

import subprocess
import sys

LATER = ("asyncio", "prometheus_client", "psutil", "vpmu_agent.counts.watch", "vpmu_agent.web.server")
"""Some of what only the daemon needs: to import it all takes as long as half of a start."""


def test_the_daemon_is_imported_once_the_loader_is_at_work() -> None:
    code = "import sys, vpmu_agent.cli.main, vpmu_agent.daemon.start; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30
    )
    assert not set(LATER) & set(done.stdout.split())
