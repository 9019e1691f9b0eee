"""`python -m tools.generate`: writes what is made from the model's rules, which is checked in.

The text is made by vpmu_agent/model/generate/; the formatters that `make lint` runs break its lines.
"""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

from vpmu_agent.model.generate import c, document, python

ROOT = Path(__file__).parents[1]
MONITOR = Path("bpf/monitor.h")
RULES = Path("agent/vpmu_agent/model/compiled_rules.py")
DOCUMENT = Path("docs/model.md")
DIAGRAM = Path("docs/model.dot")
PICTURE = Path("docs/model.svg")


def generated() -> dict[Path, str]:
    """Return the text of each file, by its path in the source tree."""
    return {
        MONITOR: _formatted(c.source(), "clang-format", f"--assume-filename={ROOT / MONITOR}"),
        RULES: _formatted(python.source(), "ruff", "format", f"--stdin-filename={ROOT / RULES}", "-"),
        DOCUMENT: document.markdown(),
        DIAGRAM: document.dot(),
    }


def main() -> None:
    """Write them all; and the picture, if the diagram is another or there is none."""
    files = generated()
    redraw = not (ROOT / PICTURE).exists() or files[DIAGRAM] != (ROOT / DIAGRAM).read_text()
    for path, text in files.items():
        (ROOT / path).write_text(text)
    if redraw:
        _draw()


def _draw() -> None:
    """Draw the diagram. Not at each time: other versions of Graphviz draw it a little differently."""
    subprocess.run(["dot", "-Tsvg", ROOT / DIAGRAM, "-o", ROOT / PICTURE], check=True)


def _formatted(text: str, program: str, *arguments: str) -> str:
    path = Path(sysconfig.get_path("scripts")) / program
    done = subprocess.run([path, *arguments], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{program} does not take what was generated:\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
