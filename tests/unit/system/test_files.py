"""What is read or written as a file, and what is not."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from vpmu_agent.system.files import create_private_file, read_file

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


# Writing

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write(path: Path, data: bytes) -> None:
    descriptor = create_private_file(path)
    try:
        assert os.write(descriptor, data) == len(data)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_a_new_file_is_the_users_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write(tmp_path / "new", b"new")
    finally:
        os.umask(before)
    assert mode(tmp_path / "new") == 0o600


def test_an_own_file_is_emptied_and_is_the_users_alone(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"what was there before")
    file.chmod(0o666)
    write(file, b"new")
    assert file.read_bytes() == b"new"
    assert mode(file) == 0o600


def test_a_link_of_ones_own_is_followed_and_what_it_leads_to_keeps_its_mode(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"what was there before")
    file.chmod(0o644)
    link.symlink_to("file")
    write(link, b"new")
    assert link.is_symlink()
    assert file.read_bytes() == b"new"
    assert mode(file) == 0o644


def test_a_link_to_nothing_creates_nothing(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(FileNotFoundError):
        create_private_file(tmp_path / "link")
    assert not (tmp_path / "file").exists()


@as_root
@pytest.mark.parametrize("make", [Path.touch, os.mkfifo])
def test_what_another_user_made_is_left_as_it_is(tmp_path: Path, make: Callable[[Path], object]) -> None:
    theirs = tmp_path / "theirs"
    make(theirs)
    if theirs.is_file():
        theirs.write_bytes(b"theirs")
    os.chown(theirs, NOBODY, NOBODY)
    reader = os.open(theirs, os.O_RDONLY | os.O_NONBLOCK)  # or a FIFO would be refused for want of one
    try:
        with pytest.raises(PermissionError, match=r"it belongs to another user \(uid 65534\)"):
            create_private_file(theirs)
        assert os.read(reader, 10) == (b"theirs" if theirs.is_file() else b"")
    finally:
        os.close(reader)


@as_root
def test_a_link_of_another_user_is_not_followed(tmp_path: Path) -> None:
    ours, link = tmp_path / "ours", tmp_path / "link"
    ours.write_bytes(b"ours")
    link.symlink_to(ours)
    os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(OSError, match="it is another user's symbolic link"):
        create_private_file(link)
    assert ours.read_bytes() == b"ours"


def test_nobody_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    make_socket(tmp_path / "socket")
    for name in ("fifo", "socket"):
        with pytest.raises(OSError, match="it is a FIFO that nobody reads, or a socket"):
            create_private_file(tmp_path / name)


def test_a_fifo_with_a_reader_is_written_to_without_waiting(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    descriptor = create_private_file(fifo)
    try:
        os.write(descriptor, b"new")
        assert os.read(reader, 10) == b"new"
        assert os.write(descriptor, bytes(1 << 20)) < 1 << 20
        with pytest.raises(BlockingIOError):
            os.write(descriptor, b"more")
    finally:
        os.close(descriptor)
        os.close(reader)


def test_a_device_can_be_written_to() -> None:
    write(Path("/dev/null"), b"new")


def test_no_descriptor_is_left_open_after_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    before = open_descriptors()
    for name in ("directory", "fifo", "nowhere/file"):
        with pytest.raises(OSError, match=r"."):
            create_private_file(tmp_path / name)
    assert open_descriptors() == before


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
