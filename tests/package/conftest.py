from __future__ import annotations

import os
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import debian
from tests.support.debian import Root

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
BCC = "python3-bpfcc"
SUITES = ("bookworm", "trixie")
"""The releases that the package is for: the same file, wherever it was built."""
# What the tests look at the installed package with; what the package itself needs comes with it.
PACKAGES = ("bash-completion", "fish", "man-db", "python3-venv", "systemd", "zsh")


def build(folder: Path, *version: str) -> Path:
    """The package as `make deb` builds it, in `folder`; of another version if one is given."""
    done = subprocess.run(
        [ROOT / "debian" / "build", folder, *version],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (package,) = folder.glob("*.deb")
    return package


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="session")
def depends(package: Path) -> list[str]:
    """What the package depends on."""
    command = ["dpkg-deb", "--field", str(package), "Depends"]
    field = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return field.strip().split(", ")


@pytest.fixture(scope="session", params=SUITES)
def minimal(request: pytest.FixtureRequest) -> Iterator[Root]:
    """A minimal Debian with PACKAGES, with its package lists as of now."""
    if os.geteuid():
        pytest.skip("to make a root file system and to enter it needs root")
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        base = debian.base(request.param, PACKAGES)  # which tells what it is doing
    with debian.writable(base) as root:
        root.run("apt-get", "-q", "update")
        yield root


@pytest.fixture(scope="session")
def without_bcc(minimal: Root, depends: list[str]) -> Iterator[Root]:
    """With all that the package depends on but bcc."""
    with minimal.copy() as root:
        root.apt("satisfy", ", ".join(each for each in depends if not each.startswith(BCC)))
        yield root


@pytest.fixture(scope="session")
def ready(without_bcc: Root, depends: list[str]) -> Iterator[Root]:
    """With all that the package depends on."""
    with without_bcc.copy() as root:
        root.apt("satisfy", ", ".join(depends))
        yield root


@pytest.fixture(scope="session")
def installed(ready: Root, package: Path) -> Iterator[Root]:
    """With the package."""
    with ready.copy() as root:
        root.apt("install", root.put(package))
        yield root
