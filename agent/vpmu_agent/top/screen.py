"""The full screen of `top`: readings come from a Feed, keys from the terminal, drawing is urwid's."""

from __future__ import annotations

import os
import signal
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import urwid

from vpmu_agent.top import table
from vpmu_agent.top.feed import Feed, Update
from vpmu_agent.top.reading import VmLine
from vpmu_agent.top.sources import Source
from vpmu_agent.top.table import SORTS, Line, Sort

if TYPE_CHECKING:
    from types import FrameType

MIN_ROWS = 14
"""A lower screen has no room for who holds the host's PMU."""

MAX_HOLDERS = 8
"""How many holders are shown where there is room."""

_STOP, _SUSPEND, _UPDATE = b"s", b"z", b"u"
_PATIENCE_S = 1.0  # how long to wait for the feed's thread at the end

# Only the terminal's own two colours, its red, bold and reverse: to be read on dark and on light.
_PALETTE = [
    ("bold", "default,bold", "default", "bold"),
    ("bad", "dark red,bold", "default", "bold"),
    ("sorted", "default,bold,underline", "default", "bold,underline"),
    ("bar", "default,standout", "default", "standout"),
    ("chosen", "default,standout", "default", "standout"),
    ("chosen bad", "dark red,bold,standout", "default", "bold,standout"),
]
_CHOSEN = {None: "chosen", "": "chosen", "bold": "chosen", "sorted": "chosen", "bad": "chosen bad"}

_HELP = [
    ("Up Down PgUp PgDn Home End", "choose a VM"),
    ("Enter, Right", "open it: its vCPUs, and their counters"),
    ("Esc, Left, Backspace", "back to all VMs"),
    (" ".join(sort.key for sort in SORTS), f"sort by {', '.join(sort.name for sort in SORTS)}"),
    ("r", "the other way round"),
    ("p, Space", "pause; again to go on"),
    ("?, h", "this help"),
    ("q, Ctrl-C", "quit"),
]

_EXPLAINED = """
TAX % is the share of one CPU's time that the host spent in a VM's vPMU calls, and CALLS/S how many calls KVM
made for it. COUNTERS has how many counters have each status. Those whose guest reads wrong numbers are first:
starved (the host's PMU has no room), denied (no event could be created), partial and orphaned. RUN % is how
much of the time the events of its counters were on the PMU. A dash, or "unknown", is what is not known.
"""


@dataclass(slots=True)
class _Choice:
    """What the user chose."""

    sort: Sort = SORTS[0]
    is_backwards: bool = False
    is_paused: bool = False
    has_help: bool = False
    vm: str = ""
    """The VM that the cursor is on."""
    opened: str = ""


def show(source: Source, interval_s: float) -> None:
    """Show the source on this terminal until the user quits, or SIGTERM comes.

    Raise what the source raises, with the terminal as it was before.
    """
    screen = urwid.raw_display.Screen()
    if os.environ.get("NO_COLOR"):
        screen.set_terminal_properties(colors=1)
    shown = _Screen(screen)
    loop = urwid.MainLoop(
        shown.frame,
        _PALETTE,
        screen,
        handle_mouse=False,
        input_filter=shown.before_keys,
        unhandled_input=shown.key,
    )
    pipe = loop.watch_pipe(shown.woken)

    def wake(what: bytes) -> None:
        os.write(pipe, what)

    feed = Feed(source, interval_s, lambda: wake(_UPDATE))
    shown.use(feed)
    feed.start()
    try:
        with _signals(wake) as claim:
            shown.claim_signals = claim
            loop.set_alarm_in(0, lambda *_: claim())  # once the screen has started
            loop.run()
    finally:
        feed.stop(_PATIENCE_S)


@contextmanager
def _signals(wake: Callable[[bytes], None]) -> Iterator[Callable[[], None]]:
    """Have the loop end or pause for a signal, because it restores the terminal.

    Yield what does so again: whenever the screen starts, newer versions of urwid put in a handler of
    their own for Ctrl-Z, which stops the screen wherever the loop is, in the middle of drawing too.
    """
    asks = {signal.SIGINT: _STOP, signal.SIGTERM: _STOP, signal.SIGTSTP: _SUSPEND}

    def ask(number: int, _frame: FrameType | None) -> None:
        wake(asks[signal.Signals(number)])

    def claim() -> None:
        for number in asks:
            signal.signal(number, ask)

    former = {number: signal.getsignal(number) for number in asks}
    claim()
    try:
        yield claim
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class _Screen:
    """Makes widgets of the last update, whenever that, the size or the choice has changed."""

    def __init__(self, screen: Any) -> None:
        self._screen = screen
        self._choice = _Choice()
        self._update = Update()
        self._feed: Feed | None = None
        self._vms: list[VmLine] = []
        self._walker = urwid.SimpleFocusListWalker([])
        self._list = urwid.ListBox(self._walker)
        self.frame = urwid.Frame(self._list)
        self._is_drawing = False
        self.claim_signals: Callable[[], None] = lambda: None
        """To be called when the screen has started."""
        urwid.connect_signal(self._walker, "modified", self._moved)

    def use(self, feed: Feed) -> None:
        """Draw what this feed reads from now on."""
        self._feed = feed
        self._draw()

    def woken(self, data: bytes) -> None:
        """Do what signals asked for, and draw what the feed has read."""
        if _STOP in data:
            raise urwid.ExitMainLoop
        if _SUSPEND in data:
            self._screen.stop()
            os.kill(os.getpid(), signal.SIGSTOP)  # until the shell lets it go on
            self._screen.start()
            self.claim_signals()
        assert self._feed
        if self._feed.failure:
            raise self._feed.failure
        fresh, shown = self._feed.update, self._update
        if not self._choice.is_paused:
            self._update = fresh
        elif fresh.opened and (shown.opened is None or shown.opened.vm != fresh.opened.vm):
            self._update = replace(shown, opened=fresh.opened)  # it was opened during the pause
        self._draw()

    def before_keys(self, keys: list[Any], _raw: list[int]) -> list[Any]:
        """Draw again if the terminal has another size."""
        if "window resize" in keys:
            self._draw()
        return keys

    def key(self, key: Any) -> bool:
        """Do what a key asks for that the list did not take."""
        choice = self._choice
        if choice.has_help and key != "q":
            choice.has_help = False
        elif key in ("q", "Q"):
            raise urwid.ExitMainLoop
        elif key in ("?", "h"):
            choice.has_help = True
        elif key in ("p", " "):
            choice.is_paused = not choice.is_paused
            if not choice.is_paused and self._feed:
                self._update = self._feed.update
        elif key in ("enter", "right") and choice.vm and not choice.opened:
            self._open(choice.vm)
        elif key in ("esc", "left", "backspace") and choice.opened:
            self._open("")
        elif key == "r":
            choice.is_backwards = not choice.is_backwards
        elif key in _SORT_KEYS:
            choice.sort, choice.is_backwards = _SORT_KEYS[key], False
        else:
            return False
        self._draw()
        return True

    def _open(self, vm: str) -> None:
        self._choice.opened = vm
        assert self._feed
        self._feed.open(vm)

    def _moved(self) -> None:
        """Note where the cursor is, and show what belongs to that VM."""
        if self._is_drawing or self._choice.opened or self._choice.has_help:
            return
        focus = self._walker.focus
        if focus < len(self._vms):
            self._choice.vm = self._vms[focus].vm
            self.frame.footer = self._footer(*self._screen.get_cols_rows())

    # Drawing

    def _draw(self) -> None:
        self._is_drawing = True
        try:
            width, rows = self._screen.get_cols_rows()
            if self._choice.has_help:
                heading, body = None, _help(width)
            elif self._choice.opened:
                heading, body = self._counters()
            else:
                heading, body = self._all_vms(width)
            self.frame.header = self._header(heading)
            self.frame.footer = self._footer(width, rows)
        finally:
            self._is_drawing = False
        self._fill(body)

    def _fill(self, body: list[Any]) -> None:
        """Put the lines into the list, with the cursor on the VM that it was on."""
        self._is_drawing = True
        try:
            focus = self._walker.focus if self._walker else 0
            if not (self._choice.opened or self._choice.has_help):
                names = [vm.vm for vm in self._vms]
                focus = names.index(self._choice.vm) if self._choice.vm in names else min(focus, len(names))
            self._walker[:] = body
            if body:
                self._walker.set_focus(min(focus, len(body) - 1))
            if self._vms and not (self._choice.opened or self._choice.has_help):
                self._choice.vm = self._vms[self._walker.focus].vm
        finally:
            self._is_drawing = False

    def _header(self, heading: Line | None) -> Any:
        lines: list[Any] = []
        reading = self._update.reading
        if reading is None:
            lines.append(_text([("bold", "vpmu-agent top")]))
        else:
            assert self._feed
            lines.append(_text(table.title(reading, self._feed.source_name)))
            lines.append(_text(table.totals(reading)))
            lines += [_text(line) for line in table.warnings(reading)]
        if self._update.error:
            since = f"; shown is what was {_age(reading.time_ns)} ago" if reading else ""
            lines.append(_text([("bad", f"{self._update.error}{since}")]))
        lines.append(urwid.Text(""))
        if heading is not None:
            lines.append(_text(heading))
        return urwid.Pile(lines)

    def _all_vms(self, width: int) -> tuple[Line | None, list[Any]]:
        reading = self._update.reading
        self._vms = []
        if reading is None:
            return None, [urwid.Text("" if self._update.error else "reading…")]
        self._vms = table.ordered(reading.vms, self._choice.sort, backwards=self._choice.is_backwards)
        if not self._vms:
            return None, [urwid.Text("No VM is known yet.")]
        heading, lines = table.vm_table(self._vms, width, self._choice.sort)
        return heading, [_row(line) for _, line in lines]

    def _counters(self) -> tuple[Line | None, list[Any]]:
        name = self._choice.opened
        found = [vm for vm in (self._update.reading.vms if self._update.reading else ()) if vm.vm == name]
        if not found:
            return None, [urwid.Text(f"{name} is gone, or no longer among the VMs that are shown.")]
        (vm,) = found[:1]
        body = [_row(table.vm_title(vm)), *map(_row, table.trouble(vm))]
        opened = self._update.opened
        if not vm.is_traced:
            body.append(urwid.Text("It has no perf events: there is nothing to trace."))
        elif opened is None or opened.vm != name:
            body.append(urwid.Text("reading…"))
        elif opened.counters is None:
            body.append(urwid.Text("The counters of a VM are not told by this version of the daemon."))
        elif opened.counters:
            heading, lines = table.counter_table(opened.counters)
            body += [_row(heading), *map(_row, lines)]
        elif vm.counters is None:
            body.append(urwid.Text("What its counters do is unknown: the census has not found it."))
        else:
            body.append(urwid.Text("No counter is enabled or has events."))
        return None, body

    def _footer(self, width: int, rows: int) -> Any:
        reading, lines = self._update.reading, []
        if reading is not None and not self._choice.has_help:
            lines += [_text([("bad", line)]) for line in self._sentence(width, rows)]
            if rows >= MIN_ROWS and not self._choice.opened:
                lines.append(urwid.Text(""))
                lines += self._holders(rows)
        keys = "q quit  ? help  Esc back" if self._choice.opened else "q quit  ? help  Enter open  r reverse"
        if not self._choice.opened:
            keys += "  sort: " + " ".join(sort.key for sort in SORTS)
        keys += "  p go on" if self._choice.is_paused else "  p pause"
        state = "PAUSED  " if self._choice.is_paused else ""
        lines.append(urwid.AttrMap(_text([("", f" {state}{keys}")]), "bar"))
        return urwid.Pile(lines)

    def _sentence(self, width: int, rows: int) -> list[str]:
        """Return who has what the chosen VM's counters lack, and which went on after a reset."""
        assert self._update.reading
        room = 3 if rows >= MIN_ROWS else 1
        name = self._choice.opened or self._choice.vm
        for vm in self._update.reading.vms:
            if vm.vm == name:
                said = ". ".join(filter(None, (vm.starved, vm.reset)))
                return textwrap.wrap(said, width, break_on_hyphens=False)[:room]
        return []

    def _holders(self, rows: int) -> list[Any]:
        reading = self._update.reading
        assert reading
        heading, lines = table.holder_table(reading)
        if not lines:
            return [urwid.Text(table.no_holders(reading))]
        room = min(MAX_HOLDERS, max(1, rows // 5))
        shown = [_text(line) for line in (heading, *lines[:room])]
        # Of a long list the state has only the first.
        if (more := max(len(lines), reading.all_holders) - room) > 0:
            shown.append(urwid.Text(f"and {more} more"))
        return shown


_SORT_KEYS = {sort.key: sort for sort in SORTS}


def _text(line: Line) -> Any:
    """Return a line that is cut where the screen ends."""
    return urwid.Text(_markup(line), wrap="clip")


def _row(line: Line) -> Any:
    """Return a line that the cursor can stand on."""
    markup = _markup(line)
    icon = urwid.SelectableIcon(markup, cursor_position=sum(len(text) for _, text in line) + 1)
    icon.set_layout("left", "clip")
    return urwid.AttrMap(icon, None, _CHOSEN)


def _markup(line: Line) -> list[Any]:
    return [(look, text) if look else text for look, text in line] or [""]


def _help(width: int) -> list[Any]:
    lines: list[Line] = []
    for keys, what in _HELP:
        first, *rest = textwrap.wrap(what, max(20, width - 28))
        lines.append([("bold", f"{keys:28}"), ("", first)])
        lines += [[("", " " * 28 + more)] for more in rest]
    explained = textwrap.wrap(" ".join(_EXPLAINED.split()), min(width, 100))
    return [*(_row(line) for line in lines), urwid.Text(""), *(_row([("", line)]) for line in explained)]


def _age(time_ns: int) -> str:
    return f"{max(0, time.time_ns() - time_ns) // 10**9} s"
