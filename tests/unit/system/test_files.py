"""What is read as a file, and what is not."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from vpmu_agent.system.files import read_file

KIB = 1024


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


MAKERS: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a socket": make_socket,
    "a character device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    MAKERS[kind](tmp_path / "file")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with pytest.raises(OSError, match=f"it is {kind}, not a regular file") as refused:
            read_file(tmp_path / name, KIB)
        assert refused.value.strerror == f"it is {kind}, not a regular file"


def test_what_became_a_fifo_after_it_was_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look before the open saw a file; the open finds a FIFO, which has no writer."""
    file, fifo = tmp_path / "file", tmp_path / "fifo"
    file.touch()
    os.mkfifo(fifo)
    seen = file.stat()
    monkeypatch.setattr(Path, "stat", lambda _path: seen)
    with pytest.raises(OSError, match="it is a FIFO"):
        read_file(fifo, KIB)


def test_a_directory_has_the_usual_error(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path, KIB)


def test_the_size_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * KIB)
    assert read_file(file, KIB) == b"x" * KIB
    file.write_bytes(b"x" * (KIB + 1))
    with pytest.raises(OSError, match="longer than 1 KiB") as refused:
        read_file(file, KIB)
    assert refused.value.errno == errno.EFBIG


def test_a_file_of_proc_is_read_though_its_size_is_0() -> None:
    assert read_file(Path("/proc/self/cmdline"), 64 * KIB)


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_a_name_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError, match="a character that no file name can have"):
        read_file(tmp_path / name, KIB)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 2 * KIB)
    before = open_descriptors()
    for size in (KIB, 4 * KIB):
        try:
            read_file(file, size)
        except OSError:
            assert size == KIB
    assert open_descriptors() == before


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
