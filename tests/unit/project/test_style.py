"""What is hard to read and no linter finds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.places import ROOT

FOLDERS = ("agent", "tests", "tools")


def modules() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from (ROOT / folder).rglob("*.py")


def is_truth_value(node: ast.expr) -> bool:
    return isinstance(node, ast.Compare) or (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "bool"
    )


def hard_to_read(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, what it is)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Starred) and isinstance(node.value, ast.Tuple | ast.List):
            yield node.lineno, "a star before a tuple that is written out: write its elements"
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            if is_truth_value(node.left) or is_truth_value(node.right):
                yield node.lineno, "a product with a truth value: use if"
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("exec", "eval")
        ):
            yield node.lineno, "code made at run time: generate a file"


def test_nothing_is_written_to_be_hard_to_read() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in modules()
        for line, what in hard_to_read(ast.parse(path.read_text()))
    ]
    assert not found


@pytest.mark.parametrize(
    "text", ["f(*(a, b))", "[*[a, b], c]", "x * (a == b)", "bool(i) * 'else '", "exec(x)"]
)
def test_it_would_be_found(text: str) -> None:
    assert list(hard_to_read(ast.parse(text)))
