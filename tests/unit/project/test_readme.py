"""The README and the documents say what the code does, and lead to what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.places import ROOT
from vpmu_agent.cli.main import cli
from vpmu_agent.model.rules import Kind

PACKAGE = ROOT / "agent" / "vpmu_agent"
DIVERGENCES = (ROOT / "docs/divergences.md").read_text()
FOR_USERS = sorted(ROOT.glob("*.md")) + [
    path for folder in ("dashboards", "docs", "packaging") for path in sorted((ROOT / folder).glob("*.md"))
]
DOCUMENTS = FOR_USERS + sorted((ROOT / "tests").rglob("*.md"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind.is_divergence])
def test_every_divergence_is_explained_as_the_code_does(kind: Kind) -> None:
    assert f"| `{kind}` | {kind.meaning} |\n" in DIVERGENCES
    assert f"\n### `{kind}`\n" in DIVERGENCES


def test_the_readme_is_a_front_door() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100


def test_every_command_of_the_readme_exists() -> None:
    named = commands((ROOT / "README.md").read_text())
    assert named >= {"doctor", "trace", "run", "predict"}


@pytest.mark.parametrize("path", FOR_USERS, ids=name)
def test_every_command_of_a_document_exists(path: Path) -> None:
    for command in commands(path.read_text()):
        assert CliRunner().invoke(cli, [command, "--help"]).exit_code == 0, command


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", path.read_text()):
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found.read_text()), target


@pytest.mark.parametrize("path", FOR_USERS, ids=name)
def test_every_make_target_of_a_document_exists(path: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for line in code(path.read_text()) for target in re.findall(r"^make ([\w-]+)", line)}
    assert named <= targets


@pytest.mark.parametrize("path", FOR_USERS, ids=name)
def test_every_file_that_a_document_names_exists(path: Path) -> None:
    """From the top of the tree, or of the package."""
    for line in code(path.read_text()):
        if re.fullmatch(r"(\w[\w.-]*/)+[\w.-]*", line) and not re.search("NAME|VERSION|^dist/", line):
            assert any((top / line).exists() for top in (ROOT, PACKAGE, path.parent)), line


def commands(text: str) -> set[str]:
    """The commands of vpmu-agent that stand as code in Markdown."""
    return {command for line in code(text) for command in re.findall(r"^(?:\$ )?vpmu-agent (\w+)", line)}


def code(text: str) -> list[str]:
    """What stands as code in Markdown: the lines of blocks, and what is between backquotes."""
    parts = re.split(r"^```\w*$", text, flags=re.MULTILINE)
    blocks = [line for block in parts[1::2] for line in block.splitlines()]
    prose = "".join(parts[::2])
    return blocks + [" ".join(inline.split()) for inline in re.findall(r"`([^`]+)`", prose)]


def anchors(text: str) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
