"""Writes the tables of docs/failures.md from model/create_errors.py and model/event_names.py."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tools.docs import metrics
from vpmu_agent.model.create_errors import CAUSES
from vpmu_agent.model.event_names import AMD, INTEL
from vpmu_agent.text import errno_name

FILE = metrics.FILE.with_name("failures.md")


def text(written: str) -> str:
    """Return the contents of the file, given what is written in it now: only the tables differ."""
    for name, table in (("causes", _causes()), ("AMD", _names(AMD)), ("Intel", _names(INTEL))):
        begin, end = f"<!-- table: {name} -->\n", "<!-- end -->"
        written = re.sub(f"({begin}).*?({end})", rf"\g<1>{table}\g<2>", written, count=1, flags=re.DOTALL)
    return written


def _causes() -> str:
    rows = []
    for number, cause in CAUSES.items():
        functions = ", ".join(f"`{name}()`" for name in cause.functions)
        rows.append(f"| `{errno_name(number)}` | {cause.text} | {functions} |\n")
    return "| errno | cause | kernel functions that return it |\n| --- | --- | --- |\n" + "".join(rows)


def _names(names: Mapping[int, str]) -> str:
    rows = [f"| `r{config:03x}` | {name} |\n" for config, name in names.items()]
    return "| event | name |\n| --- | --- |\n" + "".join(rows)


if __name__ == "__main__":
    FILE.write_text(text(FILE.read_text()))
    print(FILE)
