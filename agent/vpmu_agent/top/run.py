"""`vpmu-agent top`: which source, and which way to show it."""

from __future__ import annotations

from vpmu_agent.probes import Mode
from vpmu_agent.system.signals import stop_requests
from vpmu_agent.top.output import once as print_once
from vpmu_agent.top.output import stream
from vpmu_agent.top.sources import chosen
from vpmu_agent.trace.live import Attach


def top(
    *,
    once: bool,
    as_json: bool,
    interval_s: float,
    url: str | None,
    default_url: str,
    mode: Mode,
    attach: Attach,
) -> bool:
    """Show the state of a host until the user or a signal ends it, or once.

    It is that of the daemon at `url`; if that is None, of the one at `default_url` or of probes of our own.
    Return whether, once, it said that a counter tells its guest wrong numbers. Raise SourceError,
    KernelError and OutputError.
    """
    with chosen(url, default_url, mode, attach) as source:
        if not (once or as_json):
            from vpmu_agent.top.screen import show  # urwid, which the others have no use for

            show(source, interval_s)
            return False
        with stop_requests() as stopped:
            if once:
                return print_once(source, interval_s, as_json=as_json, stopped=stopped)
            stream(source, interval_s, stopped)
            return False
