"""Writes an OCI image archive: layers made from folders, the image's configuration, and the index of both.

The same folders give the same bytes, whoever packs them and when. Format: the OCI image specification 1.0
(image-layout, manifest, config, layer), which podman, buildah, skopeo, containerd and Docker from 25 on read.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_INDEX = "application/vnd.oci.image.index.v1+json"

_GZIP_LEVEL = 6
"""Level 9 takes three times as long for one per cent less."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A packed layer: its file, the digest of that file, and of the tar in it."""

    path: Path
    digest: str
    diff_id: str
    created_by: str


class _Hashed(io.RawIOBase):
    """Passes on what is written, and knows the digest of it."""

    def __init__(self, to: IO[bytes] | gzip.GzipFile) -> None:
        self._to = to
        self._hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes, /) -> int:  # type: ignore[override] # tarfile and gzip write bytes only
        self._hash.update(data)
        self._to.write(data)
        return len(data)

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def pack(folder: Path, to: Path, *, created_by: str, newest: int, leave_out: Callable[[str], bool]) -> Layer:
    """Packs what is in `folder` as a layer.

    Nothing in it is dated later than `newest` (seconds since 1970). `leave_out` is asked about each path in
    it, and a folder that is left out takes along what is in it. Extended attributes are not kept.
    """

    def normal(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if leave_out(member.name.removeprefix("./")):
            return None
        member.mtime = min(int(member.mtime), newest)
        member.uname = member.gname = ""  # numbers: the names are the building machine's
        return member

    with to.open("wb") as file:
        compressed = _Hashed(file)
        with gzip.GzipFile(
            filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=compressed, mtime=0
        ) as gz:
            plain = _Hashed(gz)
            with tarfile.open(fileobj=plain, mode="w|", format=tarfile.GNU_FORMAT) as tar:
                # Adds a folder's files in the order of their names, and a second name of a file as a link.
                tar.add(folder, arcname=".", filter=normal)
    return Layer(to, compressed.digest, plain.digest, created_by)


def write_archive(
    to: Path,
    layers: Sequence[Layer],
    *,
    config: Mapping[str, object],
    architecture: str,
    created: int,
    name: str,
) -> None:
    """Writes an archive with one image. `config` is the `config` of the image's configuration.

    `name` is what `podman load` and `ctr images import` call it.
    """
    date = datetime.fromtimestamp(created, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    image = _json(
        {
            "created": date,
            "architecture": architecture,
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": [{"created": date, "created_by": layer.created_by} for layer in layers],
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _descriptor(_CONFIG, image),
            "layers": [
                {"mediaType": _LAYER, "digest": layer.digest, "size": layer.path.stat().st_size}
                for layer in layers
            ],
        }
    )
    names = {"org.opencontainers.image.ref.name": name, "io.containerd.image.name": name}
    index = {
        "schemaVersion": 2,
        "mediaType": _INDEX,
        "manifests": [{**_descriptor(_MANIFEST, manifest), "annotations": names}],
    }
    with tarfile.open(to, "w", format=tarfile.GNU_FORMAT) as tar:
        _add(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}), created)
        _add(tar, "index.json", _json(index), created)
        for text in (manifest, image):
            _add(tar, _blob(_digest(text)), text, created)
        for layer in layers:
            with layer.path.open("rb") as file:
                tar.addfile(_member(_blob(layer.digest), layer.path.stat().st_size, created), file)


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _digest(text: bytes) -> str:
    return f"sha256:{hashlib.sha256(text).hexdigest()}"


def _descriptor(media_type: str, text: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(text), "size": len(text)}


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _add(tar: tarfile.TarFile, name: str, text: bytes, created: int) -> None:
    tar.addfile(_member(name, len(text), created), io.BytesIO(text))


def _member(name: str, size: int, created: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size, created, 0o644
    return member
