"""The Debian package says what pyproject.toml says."""

from __future__ import annotations

import re
import tomllib

from tests.support.places import ROOT

DEBIAN = ROOT / "debian"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_it_is_of_the_same_version() -> None:
    assert (DEBIAN / "changelog").read_text().startswith(f"vpmu-agent ({PROJECT['version']}) ")


def test_it_is_built_with_every_dependency() -> None:
    """By then dh_python3 knows each one's package, and has this one depend on it."""
    names = {re.split("[<>=!~ ]", requirement)[0].lower() for requirement in PROJECT["dependencies"]}
    packages = {f"python3-{name.removeprefix('py')}" for name in names}
    (needed,) = re.findall(r"^Build-Depends:(.*?)^\S", (DEBIAN / "control").read_text(), re.M | re.S)
    assert packages <= set(re.findall(r"[\w.+-]+", needed))
