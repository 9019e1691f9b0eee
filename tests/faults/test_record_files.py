"""What stands where `trace --record` is to write, on a host where others can write there too."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.faults.conftest import Attack
from tests.support.commands import invoke
from tests.support.fake_host import stand_ins
from vpmu_agent.system.files import create_private_file
from vpmu_agent.system.ready import is_readable
from vpmu_agent.system.stdout import OutputError
from vpmu_agent.trace import recording
from vpmu_agent.trace.recording import Header, Recorder
from vpmu_agent.trace.tally import Tally

LONGEST_S = 5.0
"""For a trace of 0.1 s, on a busy machine."""

NOBODY = 65534
ROUNDS = 300
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user may write to, with a file of this user in it."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o777)
        (folder / "victim").write_bytes(b"ours")
        yield folder


def theirs(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def make_theirs(path: Path) -> None:
        make(path)
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)

    return make_theirs


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def readable(path: Path) -> None:
    path.write_bytes(b"theirs")
    path.chmod(0o666)


REFUSED: Mapping[str, Callable[[Path], object]] = {
    "FIFO that nobody reads": os.mkfifo,
    "socket": unix_socket,
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to a directory": lambda path: path.symlink_to("."),
    "link to a full device": lambda path: path.symlink_to("/dev/full"),
}
OTHERS: Mapping[str, Callable[[Path], object]] = {
    "file": theirs(readable),
    "FIFO": theirs(os.mkfifo),
    "link to a file of this user": theirs(lambda path: path.symlink_to("victim")),
    "link to nothing": theirs(lambda path: path.symlink_to("nothing")),
    "link to a device": theirs(lambda path: path.symlink_to("/dev/null")),
}


def refused(place: Path, make: Callable[[Path], object]) -> None:
    """Have a trace recorded to what is made there; it must say in a sentence why it is not."""
    path = place / "recording"
    make(path)
    try:
        before = path.lstat()
        start = time.monotonic()
        result = invoke("trace", "--duration", "0.1", "--record", str(path), stand_ins=stand_ins())
        assert time.monotonic() - start < LONGEST_S
        assert result.exit_code in (2, 3), result.output
        assert isinstance(result.exception, SystemExit)
        assert str(path) in result.stderr
        after = path.lstat()
        assert (after.st_mode, after.st_uid, after.st_size) == (before.st_mode, before.st_uid, before.st_size)
        assert (place / "victim").read_bytes() == b"ours"
        assert not (place / "nothing").exists()
    finally:
        path.unlink()


def test_nothing_to_record_to(attack: Attack, place: Path) -> None:
    """`trace --record` to a FIFO that nobody reads, to a socket, or to nothing"""
    for what, make in REFUSED.items():
        with attack.once(what):
            refused(place, make)


@as_root
def test_what_another_user_put_there(attack: Attack, place: Path) -> None:
    """Another user has put a file, a FIFO or a link where root records"""
    for what, make in OTHERS.items():
        with attack.once(what):
            refused(place, make)


SIZES = {"a page": 4096, "the usual size": 65536}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "UNREAD_S", 0.5)


@contextmanager
def reader(fifo: Path, size: int) -> Iterator[int]:
    """Who has this FIFO open, which holds so many bytes."""
    os.mkfifo(fifo)
    descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, size)
        yield descriptor
    finally:
        os.close(descriptor)
        fifo.unlink()


@pytest.mark.usefixtures("impatient")
def test_a_reader_that_does_not_read(attack: Attack, place: Path) -> None:
    """`trace --record` to a FIFO whose reader stays and does not read"""
    fifo = place / "fifo"
    with attack.once("from the command line"), reader(fifo, 4096):
        start = time.monotonic()
        result = invoke("trace", "--duration", "0.1", "--record", str(fifo), stand_ins=stand_ins())
        assert time.monotonic() - start < LONGEST_S
        assert result.exit_code == 3, result.output
        assert "its reader has taken nothing for" in result.stderr
        assert str(fifo) in result.stderr
    for what, size in SIZES.items():
        with attack.once(what), reader(fifo, size):
            recorder = Recorder(fifo, Header("0", "6", "fexit", {}))
            with pytest.raises(OutputError, match=r"the recording stopped after 0 calls: its reader"):
                recorder.write(["x" * 600] * 1000)


@pytest.mark.usefixtures("impatient")
def test_a_slow_reader(attack: Attack, place: Path) -> None:
    """A reader of a recording that is slow, but goes on"""
    fifo = place / "fifo"
    for what, size in SIZES.items():
        with attack.once(what), reader(fifo, size) as descriptor:
            got = bytearray()

            def read_slowly(descriptor: int = descriptor, got: bytearray = got) -> None:
                while is_readable(descriptor, LONGEST_S) and (chunk := os.read(descriptor, 40_000)):
                    got += chunk
                    time.sleep(0.1)

            thread = threading.Thread(target=read_slowly)
            recorder = Recorder(fifo, Header("0", "6", "fexit", {}))
            thread.start()
            for number in range(10):
                recorder.write([f"{number}{each}" + "x" * 600 for each in range(30)])
            recorder.end(Tally(), 0)
            thread.join(LONGEST_S * 2)
            lines = got.decode().splitlines()
            assert len(lines) == 1 + 10 * 30 + 1
            assert json.loads(lines[-1])["calls"] == 300


def test_sigterm_ends_who_writes_to_nobody(attack: Attack) -> None:
    """SIGTERM comes while a trace waits for the reader of its output"""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(write, False)
    with suppress(BlockingIOError):
        while True:
            os.write(write, bytes(4096))
    os.set_blocking(write, True)
    code = (
        "from vpmu_agent.system import signals; signals.END_S = 1; "
        "import runpy; runpy.run_module('tests.support.fake_host', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, "trace"]
    with attack.once(), subprocess.Popen(command, stdout=write, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr
            assert b"attached" in process.stderr.readline()
            time.sleep(0.5)
            process.terminate()
            assert process.wait(LONGEST_S) == -signal.SIGALRM
        finally:
            process.kill()
    os.close(read)
    os.close(write)


SWAP = f"""
import os, sys
path, victim = sys.argv[1:]
def swap(make, *words):
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    try:
        make(*words)
    except FileExistsError:
        pass
os.setuid({NOBODY})
print(flush=True)
while True:
    swap(os.symlink, victim, path)
    swap(lambda: os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)))
    swap(os.mkfifo, path)
    swap(lambda: None)
"""
"""Swaps what is there as fast as it can, as another user."""


@as_root
def test_swapped_while_it_is_opened(attack: Attack, place: Path) -> None:
    """Another user swaps what is there while root opens it"""
    path, victim = place / "recording", place / "victim"
    command = [sys.executable, "-c", SWAP, str(path), str(victim)]
    opened = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        try:
            # On a busy machine the other one may not run for as long as many rounds take.
            deadline = time.monotonic() + 60
            while attack.tried < ROUNDS or (not opened and time.monotonic() < deadline):
                if attack.tried >= ROUNDS:
                    time.sleep(0.001)
                with attack.once(), suppress(OSError):
                    descriptor = create_private_file(path)
                    opened += 1
                    found = os.fstat(descriptor)
                    os.close(descriptor)
                    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (0, 0o600)
                    assert found.st_ino != victim.stat().st_ino
            assert other.poll() is None
        finally:
            other.kill()
    assert victim.read_bytes() == b"ours"
    assert opened > 0
