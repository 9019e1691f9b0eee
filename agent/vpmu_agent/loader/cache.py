"""Compiled programs on disk, so that only the first start on a kernel has to wait for the compiler.

What is read here is loaded into the kernel, so only root may have written it: a folder or file of anybody
else, or one that others may write to, is not used. Other users, such as the service's, read what root has
left.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from vpmu_agent.loader.image import Image, MapSpec
from vpmu_agent.system.journal import Level, tell

FOLDER = Path("/var/cache/vpmu-agent")
KEPT = 8
"""Files that are kept, the newest: of two ways to attach, with and without durations, on a few kernels."""

_FORMAT = b"vpmu-agent programs 1\n"
_ROOT = 0
_DIGEST_SIZE = hashlib.sha256().digest_size
_SIZE_LIMIT = 1 << 24  # bytes; a file has some 200 KB


class _DamagedError(Exception):
    """A file is not as it was written."""


class Cache:
    """The images in one folder, each for all that it was compiled from (Source.fingerprint())."""

    def __init__(self, folder: Path = FOLDER) -> None:
        """Use this folder, which need not be there."""
        self._folder = folder

    def find(self, fingerprint: str) -> Image | None:
        """Return the image with this fingerprint; None if there is none that today's compiler has made."""
        path = self._path(fingerprint)
        if not self._is_roots():
            return None
        try:
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
                if not _only_root_writes(os.fstat(file.fileno()), stat.S_ISREG):
                    _warn(f"{path} is not used: it is not root's, or others may write to it")
                    return None
                return _decoded(file.read(_SIZE_LIMIT), fingerprint)
        except _DamagedError as error:
            _warn(f"{path} is damaged ({error}): compiling the programs again")
        except OSError:  # mostly, that it is not there
            pass
        return None

    def keep(self, fingerprint: str, image: Image, tools: Sequence[Path]) -> None:
        """Keep an image for later starts, if this is root and the folder can be written to.

        `tools` are the files of its compiler: once one of them is another, find() finds it no more.
        """
        if os.geteuid() != _ROOT:
            return
        with suppress(OSError):  # such as a read-only file system: all else works
            if not self._folder.exists():
                self._folder.mkdir()
                self._folder.chmod(0o755)
            if not self._is_roots():
                return
            descriptor, name = tempfile.mkstemp(prefix=".", dir=self._folder)
            with os.fdopen(descriptor, "wb") as file:
                file.write(_encoded(image, fingerprint, tools))
                os.fchmod(descriptor, 0o644)
            Path(name).replace(self._path(fingerprint))
            self._prune()

    def _path(self, fingerprint: str) -> Path:
        return self._folder / f"{fingerprint}.bpf"

    def _is_roots(self) -> bool:
        try:
            found = self._folder.lstat()
        except OSError:
            return False
        if _only_root_writes(found, stat.S_ISDIR):
            return True
        _warn(f"{self._folder} is not used: it is not a folder of root's, or others may write to it")
        return False

    def _prune(self) -> None:
        def age(path: Path) -> float:
            return -path.stat().st_mtime

        for path in sorted(self._folder.iterdir(), key=age)[KEPT:]:
            path.unlink()


def _only_root_writes(found: os.stat_result, is_kind: Callable[[int], bool]) -> bool:
    return (
        is_kind(found.st_mode) and found.st_uid == _ROOT and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )


def _warn(text: str) -> None:
    tell(text, Level.WARNING)


def _encoded(image: Image, fingerprint: str, tools: Sequence[Path]) -> bytes:
    content = json.dumps(
        {
            "fingerprint": fingerprint,
            "toolchain": image.toolchain,
            "tools": {str(path): _identity(path) for path in tools},
            "maps": [asdict(spec) for spec in image.maps],
            "programs": {name: base64.b64encode(code).decode() for name, code in image.programs.items()},
        }
    ).encode()
    return _FORMAT + hashlib.sha256(content).digest() + content


def _decoded(data: bytes, fingerprint: str) -> Image | None:
    """Return the image in a file, None if another compiler made it. Raise _DamagedError if it is damaged."""
    start = len(_FORMAT) + _DIGEST_SIZE
    if not data.startswith(_FORMAT):
        raise _DamagedError("it does not begin as it should")
    if hashlib.sha256(content := data[start:]).digest() != data[len(_FORMAT) : start]:
        raise _DamagedError("its checksum is wrong")
    said = json.loads(content)
    if said["fingerprint"] != fingerprint:
        raise _DamagedError("it is another one's")
    if any(_identity(Path(path)) != identity for path, identity in said["tools"].items()):
        return None
    return Image(
        tuple(MapSpec(**spec) for spec in said["maps"]),
        {name: base64.b64decode(code) for name, code in said["programs"].items()},
        said["toolchain"],
    )


def _identity(path: Path) -> list[int]:
    """Return what tells a file from the one that an upgrade puts in its place; [] if it is gone."""
    try:
        found = path.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]
