"""The unit, as far as it can be judged without a systemd that runs; tests/lab/service has one."""

from __future__ import annotations

import subprocess

from tests.support.places import ROOT

UNIT = ROOT / "systemd" / "vpmu-agent.service"
EXPOSURE = 25  # tenths, as systemd-analyze's --threshold has it


def test_its_exposure_is_small() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", f"--threshold={EXPOSURE}", str(UNIT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-200:] + done.stderr


def test_each_capability_is_explained() -> None:
    text = UNIT.read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("AmbientCapabilities="))
    for capability in line.partition("=")[2].split():
        assert f"#   {capability} " in text
    assert f"CapabilityBoundingSet={line.partition('=')[2]}" in text
