"""The wheel in minimal Debians: it runs with Debian's Python packages, and says how to get bcc."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.package.conftest import BCC, ROOT
from tests.support.debian import Root

AGENT = "/opt/agent/bin/vpmu-agent"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves things beside what it reads."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("agent", "bpf"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    command = ["/usr/bin/python3", "-m", "build", "--wheel", "--no-isolation"]
    subprocess.run(command, cwd=folder, capture_output=True, timeout=120, check=True)
    (built,) = (folder / "dist").glob("*.whl")
    return built


def install(root: Root, wheel: Path, *options: str) -> None:
    root.run("python3", "-m", "venv", *options, "/opt/agent")
    # Without an index: all that it depends on must be there, and of a version that it takes.
    root.run("/opt/agent/bin/pip", "install", "-q", "--no-index", root.put(wheel))


def test_with_bcc(ready: Root, wheel: Path) -> None:
    with ready.copy() as root:
        install(root, wheel, "--system-site-packages")
        assert "ok    0." in root.run("sh", "-c", f"{AGENT} doctor | grep ^bcc").stdout


def test_without_bcc(without_bcc: Root, wheel: Path) -> None:
    with without_bcc.copy() as root:
        install(root, wheel, "--system-site-packages")
        root.run(AGENT, "predict")
        for command in (["trace"], ["run", "--listen", "127.0.0.1:0"]):
            said = root.run(AGENT, *command, status=3).stderr
            assert f"apt install {BCC}" in said
            assert "--system-site-packages" in said
        assert f"apt install {BCC}" in " ".join(root.run(AGENT, "doctor", status=3).stdout.split())
        root.apt("install", BCC)
        assert "ok    0." in root.run("sh", "-c", f"{AGENT} doctor | grep ^bcc").stdout
