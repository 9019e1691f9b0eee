"""The screen as a person sees it, on a real pseudo-terminal."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.support.commands import started
from tests.support.states import Daemon, answering, counter, holder, older, starved_vm, state, vm
from tests.support.terminal import CTRL_C, CTRL_Z, Terminal, on_terminal

HOLDERS = [holder("otel-profiler"), *(holder(f"prof{i}", pid=100 + i, events=1) for i in range(12))]


@pytest.fixture
def daemon() -> Daemon:
    busy = vm("busy", calls=5000, host_ns=900_000_000)
    daemon = Daemon(
        state(
            busy,
            starved_vm("web01", failed=3),
            vm("db01", divergences=1, host_ns=50_000_000),
            holders=HOLDERS,
            all_untraced=1,
            untraced=[{"vm": "new", "mode": "mediated", "reason": None}],
            diverging=[{"vm": "db01", "vcpu": 0, "pmc": "gp1", "kind": "unexpected_call", "count": 1}],
        )
    )
    daemon.counters = {
        "web01": [
            counter(pmc=f"gp{i}", vcpu=vcpu, status="starved" if i > 1 else "counting", running=float(i < 2))
            for vcpu in range(2)
            for i in range(4)
        ]
    }
    return daemon


@pytest.fixture
def url(daemon: Daemon) -> Iterator[str]:
    with answering(daemon) as url:
        yield url


@pytest.fixture
def terminal(url: str) -> Iterator[Terminal]:
    """One of 80 by 24, with a second reading on it, which has rates."""
    with on_terminal("top", "--interval", "1", "--url", url) as terminal:
        terminal.wait_for("otel-profiler", "300 calls/s")
        yield terminal


def words(line: str) -> str:
    """A line with its columns one space apart."""
    return " ".join(line.split())


def names(terminal: Terminal) -> list[str]:
    """The VMs in the order of the screen."""
    shown = [line.split()[0] for line in terminal.lines if line.strip()]
    return [name for name in shown if name in ("busy", "web01", "db01", "new")]


def test_all_of_it_is_on_a_screen_of_80_by_24(terminal: Terminal, url: str) -> None:
    first, totals, blank, heading, *_ = terminal.lines
    assert first.startswith("node7  Linux 6.1.0-27-amd64")
    assert first.endswith(url)  # which source it is
    assert totals == "4 VMs, 12 events, starved 2, failed 3, diverged 1, tax 3.0 %, 300 calls/s"
    assert blank == ""
    assert words(heading) == "VM TAX % CALLS/S EVENTS COUNTERS RUN % FAILED DIVERG"
    assert words(terminal.line("busy")) == "busy 1.0 100 4 4 counting 100 0 0"
    assert words(terminal.line("web01")) == "web01 1.0 100 4 2 starved, 2 counting 50 3 0"
    assert "vPMU mediated" in terminal.line("new")
    assert words(terminal.line("otel-profiler")) == "otel-profiler 99 4 4 0 3"
    assert "and 9 more" in terminal.lines
    assert "q quit" in terminal.lines[-1]
    assert names(terminal) == ["busy", "web01", "db01", "new"]


def test_keys_sort(terminal: Terminal) -> None:
    for key, order in {
        "s": ["web01", "busy", "db01", "new"],
        "d": ["db01", "busy", "web01", "new"],
        "f": ["web01", "busy", "db01", "new"],
        "n": ["busy", "db01", "web01", "new"],
        "r": ["web01", "db01", "busy", "new"],
        "t": ["busy", "web01", "db01", "new"],
    }.items():
        terminal.press(key)
        terminal.settle()
        assert names(terminal) == order, key


def test_the_chosen_vm_stays_chosen_and_says_who_takes_its_counters(terminal: Terminal) -> None:
    assert "pinned" not in terminal.text
    terminal.press("down")
    terminal.wait_for("web01: 2 of 4 counters starved; on CPU 3 otel-profiler (pid 99) has 4 events,")
    terminal.press("n")  # now it is the third
    terminal.settle(1.5)  # and read again
    row = terminal.lines.index(terminal.line("web01  "))
    assert all(char.reverse for char in terminal.looks(row)[:20])
    assert "web01: 2 of 4" in terminal.text


def test_a_vm_opens_down_to_its_counters(terminal: Terminal) -> None:
    terminal.press("down", "enter")
    terminal.wait_for("web01  qemu pid 4242  1b4e28ba", "vCPU 1 on CPU 3: 2 starved, 2 counting", "r0c0")
    lines = [words(line) for line in terminal.lines]
    assert lines.count("gp0 counting r0c0 1/1 100") == 2
    assert lines.count("gp3 starved r0c0 1/1 0") == 2
    assert "web01: 2 of 4 counters starved" in terminal.text
    row = next(i for i, line in enumerate(terminal.lines) if line.startswith("  gp2"))
    assert {char.fg for char in terminal.looks(row)[2:20]} == {"red"}
    terminal.press("esc")
    terminal.wait_for("otel-profiler", without="vCPU 1")
    terminal.press("s", "down", "down", "enter")
    terminal.wait_for("vCPU 0 gp1 diverged: unexpected_call, once", "No counter is enabled or has events.")


def test_a_pause_holds_what_is_there(terminal: Terminal, daemon: Daemon) -> None:
    terminal.press("p")
    terminal.wait_for("PAUSED")
    daemon.state = state(vm("later", calls=1))
    terminal.settle(2)
    assert "later" not in terminal.text
    terminal.press("down", "enter")  # what it opens is read nevertheless
    terminal.wait_for("vCPU 1 on CPU 3")
    terminal.press("esc")
    terminal.wait_for("Enter open")
    terminal.press("p")
    terminal.wait_for("later", without="PAUSED")


def test_help(terminal: Terminal) -> None:
    terminal.press("?")
    terminal.wait_for("Up Down", "sort by tax", "quit", 'A dash, or "unknown", is what is not known.')
    terminal.press("x")
    terminal.wait_for("otel-profiler", without="Up Down")


def test_it_follows_the_size_of_its_terminal(terminal: Terminal) -> None:
    terminal.resize(120, 40)
    terminal.wait_for("HOST TIME", "prof6")
    assert terminal.line("busy").endswith("4242")
    terminal.resize(60, 10)
    terminal.wait_for("busy", "web01", "q quit", without="otel-profiler")
    terminal.resize(1, 1)
    terminal.settle()
    terminal.resize(20, 3)
    terminal.settle()
    terminal.resize(80, 24)
    terminal.wait_for("otel-profiler", "and 9 more", without="HOST TIME")


@pytest.mark.parametrize("key", ["q", CTRL_C])
def test_it_quits_and_leaves_the_terminal_as_it_was(terminal: Terminal, key: str) -> None:
    assert not terminal.is_restored()
    terminal.press(key)
    assert terminal.end() == 0
    assert terminal.is_restored()


def test_sigterm_ends_it_in_the_same_way(terminal: Terminal) -> None:
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.end() == 0
    assert terminal.is_restored()


def test_ctrl_z_gives_the_terminal_back_for_as_long(terminal: Terminal) -> None:
    terminal.press(CTRL_Z)
    for _ in range(100):
        terminal.settle(0.1)
        if terminal.is_stopped():
            break
    assert terminal.is_restored()
    terminal.go_on()
    terminal.settle(1)
    terminal.wait_for("otel-profiler")
    terminal.press("?")
    terminal.wait_for("Up Down")
    assert not terminal.is_restored()


def test_no_key_waits_for_a_daemon_that_hangs(terminal: Terminal, daemon: Daemon) -> None:
    daemon.hang()
    terminal.settle(1.5)
    terminal.press("?")
    terminal.wait_for("Up Down")
    terminal.press("q")
    assert terminal.end() == 0
    assert terminal.is_restored()


def test_a_daemon_that_fails_is_told_of_and_asked_again(terminal: Terminal, daemon: Daemon, url: str) -> None:
    daemon.status = "503 Service Unavailable"
    terminal.wait_for(f"{url} answered 503 Service Unavailable; shown is what was", "busy")
    daemon.status = "200 OK"
    terminal.wait_for("busy", without="503")


def test_an_older_daemon(daemon: Daemon, url: str) -> None:
    daemon.state, daemon.counters = older(daemon.state), None
    with on_terminal("top", "--interval", "1", "--url", url) as terminal:
        terminal.wait_for("busy", "starved unknown", "Who else has events on the host's PMU is unknown.")
        assert words(terminal.line("busy")).endswith("4 unknown - 0 0")
        terminal.press("enter")
        terminal.wait_for("The counters of a VM are not told by this version of the daemon.")


def test_without_colours(url: str) -> None:
    with on_terminal("top", "--url", url, NO_COLOR="1") as terminal:
        terminal.wait_for("otel-profiler")
        row = terminal.lines.index(terminal.line("web01"))
        assert {char.fg for char in terminal.looks(row)} == {"default"}
        assert any(char.bold for char in terminal.looks(row))


def test_a_hostile_name_moves_no_cursor(daemon: Daemon, url: str) -> None:
    daemon.state = state(vm("evil\x1b[2J\x1b]0;title\x07name"), holders=[holder("\x1b[31mred")])
    with on_terminal("top", "--url", url) as terminal:
        terminal.wait_for("title\N{REPLACEMENT CHARACTER}name", "red")
        assert b"\x1b[2J\x1b]0" not in terminal.written


def test_own_probes_on_the_screen() -> None:
    with on_terminal("top", "--interval", "1") as terminal:
        terminal.wait_for("own fexit probes", "1 VM", "q quit")
        terminal.press("enter")
        terminal.wait_for("Esc back", "What its counters do is unknown: the census has not found it.")
        terminal.press("q")
        assert terminal.end() == 0
        assert terminal.is_restored()


def test_what_ends_the_probes_is_told_on_a_restored_terminal() -> None:
    with on_terminal("top", "--interval", "1", POLL_FAILS="the kernel refuses") as terminal:
        assert terminal.end() == 3
        assert terminal.is_restored()
        assert "Error: the kernel refuses" in terminal.text


def test_without_a_terminal_it_says_what_to_use() -> None:
    with started("top") as process:
        output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (2, b"")
    assert b"this is no terminal for a full screen: use --once, or --output json" in errors
