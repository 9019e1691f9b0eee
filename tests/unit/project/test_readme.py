"""The README says what the code does."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from tests.support.places import ROOT
from vpmu_agent.cli.main import cli
from vpmu_agent.model.rules import Kind

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind.is_divergence])
def test_every_divergence_is_explained_as_the_code_does(kind: Kind) -> None:
    assert f"| `{kind}` | {kind.meaning} |\n" in README


def test_every_command_of_the_readme_exists() -> None:
    named = set(re.findall(r"vpmu-agent (\w+)", README))
    assert named >= {"doctor", "trace", "run", "predict"}
    for command in named:
        assert CliRunner().invoke(cli, [command, "--help"]).exit_code == 0, command
