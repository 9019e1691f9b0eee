"""What an installed agent needs is declared: the tests' own environment has more, and would not tell."""

from __future__ import annotations

import ast
import re
import sys
import tomllib

from tests.support.places import ROOT

NOT_FROM_PYPI = {"bcc"}  # Debian's python3-bpfcc; the agent says so where it is missing
IMPORTED_AS = {"PyYAML": "yaml"}


def imported() -> set[str]:
    """The packages that the agent imports, anywhere in it."""
    names = set()
    for path in (ROOT / "agent" / "vpmu_agent").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"vpmu_agent", "_typeshed"}


def test_all_that_is_imported_is_a_dependency_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = project["dependencies"]
    names = {re.split("[<>=!~ ]", requirement)[0].replace("-", "_") for requirement in declared}
    assert imported() - NOT_FROM_PYPI == {IMPORTED_AS.get(name, name) for name in names}


def test_every_room_is_in_the_package() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folder = ROOT / "agent"
    rooms = {".".join(path.parent.relative_to(folder).parts) for path in folder.rglob("__init__.py")}
    assert rooms | {"vpmu_agent.bpf"} == set(setuptools["packages"])
