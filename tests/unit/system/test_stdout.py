"""Colours, where a stream takes them. What becomes of a full disk is in tests/unit/trace."""

from __future__ import annotations

import io

import pytest

from vpmu_agent.system.stdout import Style


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "environment", "styled"),
    [
        (Terminal(), {}, "\x1b[31m\x1b[1mno\x1b[0m"),
        (Terminal(), {"NO_COLOR": "", "TERM": "xterm"}, "\x1b[31m\x1b[1mno\x1b[0m"),  # https://no-color.org
        (Terminal(), {"NO_COLOR": "1"}, "no"),
        (Terminal(), {"TERM": "dumb"}, "no"),
        (io.StringIO(), {}, "no"),
    ],
)
def test_a_stream_that_takes_colours(
    stream: io.StringIO, environment: dict[str, str], styled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Style(stream)("no", fg="red", bold=True) == styled
