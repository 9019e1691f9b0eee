"""`top` without a screen: a text table once, or JSON."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import Any

from vpmu_agent.system.stdout import Style, print_line
from vpmu_agent.top import table
from vpmu_agent.top.reading import Reading, Readings, StateError
from vpmu_agent.top.sources import Source, SourceError
from vpmu_agent.top.table import SORTS, Line
from vpmu_agent.trace.call_json import dumps

_COLOURS = {"": (None, False), "bold": (None, True), "sorted": (None, True), "bad": ("red", True)}


def once(source: Source, interval_s: float, *, as_json: bool, stopped: Callable[[], bool]) -> bool:
    """Print what two readings, `interval_s` apart, say. Print nothing if it is stopped before.

    Return whether it says that a counter tells its guest wrong numbers.
    """
    readings = Readings()
    _reading(source, readings)
    due = time.monotonic() + interval_s
    while not stopped() and time.monotonic() < due:
        source.keep_up()
    if stopped():
        return False
    reading = _reading(source, readings)
    _print([top_json(reading, source.name)] if as_json else list(text(reading, source.name)))
    return reading.is_failing


def stream(source: Source, interval_s: float, stopped: Callable[[], bool]) -> None:
    """Print a JSON object in each interval. What cannot be read later on is told once on stderr."""
    readings, said = Readings(), ""
    _reading(source, readings)
    due = time.monotonic() + interval_s
    while not stopped():
        if time.monotonic() < due:
            source.keep_up()
            continue
        due = max(due + interval_s, time.monotonic())
        try:
            reading = _reading(source, readings)
        except SourceError as error:
            if str(error) != said:
                said = str(error)
                print(said, file=sys.stderr, flush=True)
            continue
        said = ""
        if not _print([top_json(reading, source.name)]):
            return


def top_json(reading: Reading, source: str) -> str:
    """Return the state with what `top` adds to it, as a JSON object on one line.

    `host_share` and `calls_per_s` are those of `interval_s`, the time since the reading before.
    """
    rates = {vm.vm: vm for vm in reading.vms}
    vms: list[dict[str, Any]] = []
    for vm in reading.state["vms"]:
        now = rates[vm["vm"]]
        vms.append({**vm, "host_share": now.host_share, "calls_per_s": now.calls_per_s})
    added = {"kind": "top", "source": source, "interval_s": reading.interval_s, "vms": vms}
    return dumps({**reading.state, **added})


def text(reading: Reading, source: str) -> Iterator[str]:
    """Yield the lines of a table: as wide as stdout, or where that is no terminal, as wide as it takes."""
    style = Style(sys.stdout)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None

    def styled(line: Line) -> str:
        parts = []
        for look, part in line:
            colour, bold = _COLOURS[look]
            parts.append(style(part, fg=colour, bold=bold) if look else part)
        return "".join(parts).rstrip()

    yield styled(table.title(reading, source))
    yield styled(table.totals(reading))
    for line in table.warnings(reading):
        yield styled(line)
    yield ""
    vms = table.ordered(reading.vms, SORTS[0])
    heading, lines = table.vm_table(vms, width)
    if lines:
        yield styled(heading)
        for _, line in lines:
            yield styled(line)
    else:
        yield "No VM is known yet."
    sentences = [said for vm in vms for said in (vm.starved, vm.reset) if said]
    if sentences:
        yield ""
        for sentence in sentences:
            yield from textwrap.wrap(sentence, width or 100, subsequent_indent="  ", break_on_hyphens=False)
    yield ""
    heading, holders = table.holder_table(reading)
    if holders:
        yield styled(heading)
        for line in holders:
            yield styled(line)
    else:
        yield table.no_holders(reading)


def _reading(source: Source, readings: Readings) -> Reading:
    try:
        return readings.take(source.state())
    except StateError as error:
        raise SourceError(f"{source.name}: {error}") from error


def _print(lines: list[str]) -> bool:
    """Print lines; return False if nobody reads them."""
    return all(print_line(line) for line in lines)
