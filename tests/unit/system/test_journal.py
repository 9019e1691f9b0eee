"""The log, with a socket of the test's as the journal."""

from __future__ import annotations

import fcntl
import io
import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TextIO

import pytest

from vpmu_agent.system.journal import KEPT, Level, Log, is_journal, send


class Journal:
    """A socket as journald has one."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.address)
        self.socket.settimeout(10)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "socket")
    with journal.socket:
        yield journal


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TextIO]:
    """A stream that JOURNAL_STREAM names, as systemd does for a service; but it ends in a file."""
    with (tmp_path / "stderr").open("w+") as stream:
        found = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        yield stream


def test_a_line_on_standard_error(capsys: pytest.CaptureFixture[str], journal: Journal) -> None:
    Log(journal.address).tell("KVM was unloaded", Level.NOTICE, VPMU_VM="web01")
    assert capsys.readouterr().err == "KVM was unloaded\n"


def test_an_entry_where_standard_error_goes_to_the_journal(journal: Journal, stderr: TextIO) -> None:
    with redirect_stderr(stderr):
        Log(journal.address).tell("diverged", Level.WARNING, VPMU_VM="web01", VPMU_VCPU=0, VPMU_KIND=None)
    assert journal.socket.recv(999) == (
        b"MESSAGE=diverged\nPRIORITY=4\nSYSLOG_IDENTIFIER=vpmu-agent\nVPMU_VM=web01\nVPMU_VCPU=0\n"
    )
    assert stderr.tell() == 0


def test_while_the_journal_is_down_lines_go_to_standard_error(journal: Journal, stderr: TextIO) -> None:
    journal.socket.close()
    with redirect_stderr(stderr):
        Log(journal.address).tell("refused")
        Log(journal.address + "2").tell("not there")
    stderr.seek(0)
    assert stderr.read() == "refused\nnot there\n"


@pytest.mark.parametrize("named", ["1:2", "", None])
def test_a_stream_is_the_journal_only_if_it_is_the_one_that_is_named(
    named: str | None, monkeypatch: pytest.MonkeyPatch, stderr: TextIO
) -> None:
    assert is_journal(stderr)
    if named is None:
        monkeypatch.delenv("JOURNAL_STREAM")
    else:
        monkeypatch.setenv("JOURNAL_STREAM", named)
    assert not is_journal(stderr)


def test_a_value_of_several_lines_has_its_length_before_it(journal: Journal) -> None:
    send({"MESSAGE": "µs\nPRIORITY=0", "VPMU_VM": "a=b", "VPMU_KIND": ""}, journal.address)
    text = "µs\nPRIORITY=0".encode()
    length = len(text).to_bytes(8, "little")
    assert journal.socket.recv(999) == b"MESSAGE\n" + length + text + b"\nVPMU_VM=a=b\nVPMU_KIND=\n"


def test_text_that_cannot_be_encoded_is_escaped(journal: Journal) -> None:
    send({"MESSAGE": "web\udcff01"}, journal.address)
    assert journal.socket.recv(999) == b"MESSAGE=web\\udcff01\n"


def test_what_is_too_long_for_a_datagram_comes_as_a_sealed_file(journal: Journal) -> None:
    text = "x" * 1_000_000
    send({"MESSAGE": text}, journal.address)
    data, (descriptor,), _, _ = socket.recv_fds(journal.socket, 999, 1)
    with os.fdopen(descriptor, "rb") as file:
        assert data == b""
        file.seek(0)
        assert file.read() == f"MESSAGE={text}\n".encode()
        seals = fcntl.fcntl(file, fcntl.F_GET_SEALS)
    assert seals == fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@contextmanager
def pipe() -> Iterator[tuple[int, TextIO]]:
    """A pipe of one page: its reading end, and a stream on the other."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    with os.fdopen(write, "w") as stream, redirect_stderr(stream):
        yield read, stream


def test_what_cannot_be_written_is_kept_and_told_later() -> None:
    log = Log()
    with Path("/dev/full").open("w") as full, redirect_stderr(full):
        for number in range(KEPT + 5):
            log.tell(f"entry {number}")
        log.retry()
    assert log.delayed == KEPT + 5
    with redirect_stderr(io.StringIO()) as told:
        log.retry()
        log.tell("last")
    assert told.getvalue().splitlines() == [
        *[f"entry {number}" for number in range(KEPT)],
        "5 more entries could not be written to the log, and are lost",
        "last",
    ]


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_stream_that_nobody_reads_or_that_is_closed_raises_nothing(*, is_closed: bool) -> None:
    log = Log()
    with pipe() as (read, stream):
        os.close(read)
        if is_closed:
            stream.close()
        log.tell("to nobody")
        log.retry()
    assert log.delayed == 1


def test_a_reader_that_has_stopped_is_not_waited_for_and_misses_nothing() -> None:
    log = Log()
    lines = [f"{number} {'x' * 1500}" for number in range(10)]
    read_again = b""
    with pipe() as (read, _), os.fdopen(read, "rb") as reader:
        for line in lines:
            log.tell(line)
        assert log.delayed
        while not read_again.endswith(f"{lines[-1]}\n".encode()):
            read_again += os.read(reader.fileno(), 1 << 16)
            log.retry()
    assert read_again.decode().splitlines() == lines


def test_a_line_that_is_longer_than_a_pipe_comes_in_parts() -> None:
    log, line, read_again = Log(), "y" * 20_000, b""
    with pipe() as (read, _), os.fdopen(read, "rb") as reader:
        log.tell(line)
        while not read_again.endswith(b"\n"):
            read_again += os.read(reader.fileno(), 1 << 16)
            log.retry()
    assert read_again.decode() == f"{line}\n"


def test_a_journal_that_takes_no_more_is_not_waited_for(journal: Journal, stderr: TextIO) -> None:
    log = Log(journal.address)
    with redirect_stderr(stderr):
        while not stderr.tell():
            log.tell("entry")
            stderr.seek(0, os.SEEK_END)
    assert stderr.tell() == len("entry\n")
