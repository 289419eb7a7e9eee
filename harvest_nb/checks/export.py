"""Reads an image's layers from `docker save`'s stream: their entries, and credentials in files.

The image may be a stranger's. Nothing is unpacked, and what is read has bounds (`harvest_nb.bounds`).
"""

from __future__ import annotations

import hashlib
import io
import stat
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO

from harvest_nb.bounds import bounds
from harvest_nb.checks.credentials import credential_file, kinds_in, kinds_in_binary
from harvest_nb.errors import CheckError

__all__ = ["Entry", "Layer", "changed_files", "read_layers"]

_PACKAGES = "node_modules"
_LOCKED = "/usr/local/lib/harvest/node_modules/"
_BUILT = (
    315532800  # seconds; the time that snapshot/Dockerfile gives to the packages, whose checksums are locked
)
_BUFFER = 1024 * 1024
_OVERLAP = 8 * 1024  # bytes: more than any credential is long
_LONGEST_HEADER = 1024 * 1024  # bytes of a name, a link's target, or what else stands before a file
_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_WHITEOUT = ".wh."
_OPAQUE = f"{_WHITEOUT}{_WHITEOUT}.opq"
_PROGRAMS = ("/usr/local/bin/", "/usr/bin/", "/usr/local/lib/harvest/", "/usr/local/", "/app/", "/etc/")


@dataclass(frozen=True)
class Entry:
    """A file, folder or link of a layer, with the SHA-256 of a file's content.

    `changed` is the time of a file in seconds, and 0 for a folder, whose time moves with what lies in it.
    """

    type: bytes
    mode: int
    uid: int
    gid: int
    size: int
    changed: float
    link: str
    attributes: tuple[tuple[str, str], ...] = ()
    """Extended ones, such as capabilities."""
    digest: bytes = b""


@dataclass
class Layer:
    """A layer: its entries, the paths that it removes from those below, and problems, without credentials' values."""

    entries: dict[str, Entry] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_layers(chunks: Iterable[bytes], values: Mapping[str, bytes] | None = None) -> dict[str, Layer]:
    """Read a `docker save` stream: digest of each layer to what is in it.

    Args:
        chunks: the stream.
        values: known secrets by what they are called, to be looked for as they are.

    Raises:
        CheckError: the image is larger than `HARVEST_MAX_IMAGE_BYTES` or `HARVEST_MAX_IMAGE_FILES` allow.
    """
    found: dict[str, Layer] = {}
    files, most = 0, bounds().image_files
    with tarfile.open(fileobj=_Chunks(chunks), mode="r|", bufsize=_BUFFER, tarinfo=_Header) as image:
        for member in image:
            inner = image.extractfile(member) if member.isfile() else None
            if inner is None or member.name.endswith(".json") or member.size < tarfile.BLOCKSIZE:
                continue
            reader, layer, end = _Digesting(inner), Layer(), 0
            # Not every blob is a layer: the image's own description has no suffix in the newer layout.
            try:
                with tarfile.open(fileobj=reader, mode="r|", bufsize=_BUFFER, tarinfo=_Header) as packed:
                    for entry in packed:
                        packed.members.clear()  # type: ignore[attr-defined]  # it would keep every header
                        files += 1
                        if files > most:
                            raise CheckError(f"it has more than {most:,} files (HARVEST_MAX_IMAGE_FILES)")
                        _read(layer, packed, entry, values or {})
                    end = packed.offset
            except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
                layer.problems.append(f"it cannot be read to its end: {type(error).__name__}")
            while reader.read(1 << 20):
                pass
            if reader.end > max(end, 1) and not layer.problems:
                layer.problems.append("it goes on behind what can be read of it")
            found[f"sha256:{reader.digest.hexdigest()}"] = layer
    return found


def changed_files(below: Sequence[Layer], above: Sequence[Layer]) -> list[str]:
    """Return what the layers `above` change in the files of those `below`, programs and settings first."""
    base: dict[str, Entry] = {}
    for layer in below:
        _apply(base, layer)
    now = dict(base)
    for layer in above:
        _apply(now, layer)
    found = [path for path in {*base, *now} if base.get(path) != now.get(path)]
    found.sort(key=lambda path: (not path.startswith(_PROGRAMS), path))
    return [_change(path, base.get(path), now.get(path)) for path in found]


def _apply(tree: dict[str, Entry], layer: Layer) -> None:
    if removed := set(layer.removed):
        for path in [path for path in tree if not removed.isdisjoint(_with_folders(path))]:
            del tree[path]
    tree.update(layer.entries)


def _with_folders(path: str) -> list[str]:
    """Return the path and the folders above it."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(2, len(parts) + 1)]


def _change(path: str, before: Entry | None, after: Entry | None) -> str:
    if before is None or after is None:
        return f"{path} {'added' if before is None else 'removed'}"
    if (before.uid, before.gid) != (after.uid, after.gid):
        return f"{path} given to {after.uid}:{after.gid}"
    if before.mode != after.mode and before.digest == after.digest:
        return f"{path} mode {before.mode:o} is {after.mode:o}"
    return f"{path} changed"


def _read(
    layer: Layer, packed: tarfile.TarFile, member: tarfile.TarInfo, values: Mapping[str, bytes]
) -> None:
    place = PurePosixPath("/", member.name)
    path = str(place)
    if place.name == _OPAQUE:
        layer.removed.append(str(place.parent))
        return
    if place.name.startswith(_WHITEOUT):
        layer.removed.append(str(place.with_name(place.name.removeprefix(_WHITEOUT))))
        return
    packages = _PACKAGES in place.parts
    empty = member.isreg() and not member.size
    if not (packages or empty or member.isdir()) and credential_file(path):
        layer.problems.append(f"file of credentials: {path}")
    digest = b""
    if member.issparse():
        layer.problems.append(f"a sparse file, which is not read: {path}")
    elif content := packed.extractfile(member) if member.isreg() and member.size else None:
        reader = _Digesting(content)
        if not (path.startswith(_LOCKED) and member.mtime == _BUILT):
            layer.problems += [f"{what} in {path}" for what in sorted(_found(reader, values, sure=packages))]
        while reader.read(_BUFFER):
            pass
        digest = reader.digest.digest()
    if path != "/":
        layer.entries[path] = _entry(member, digest)


def _entry(member: tarfile.TarInfo, digest: bytes) -> Entry:
    attributes = [item for item in member.pax_headers.items() if item[0].startswith("SCHILY.xattr.")]
    return Entry(
        member.type,
        stat.S_IMODE(member.mode),
        member.uid,
        member.gid,
        member.size,
        0.0 if member.isdir() else member.mtime,
        member.linkname,
        tuple(sorted(attributes)),
        digest,
    )


def _found(file: _Digesting, values: Mapping[str, bytes], *, sure: bool) -> Iterator[str]:
    """Yield what stands in a file of any size; where it is no text, only what is sure."""
    window = file.read(_BUFFER)
    binary = b"\0" in window[:8192]
    found: set[str] = set()
    while window:
        kinds = kinds_in_binary(window) if binary else kinds_in(window, sure=sure)
        now = {f"shape of a {kind} credential" for kind in kinds}
        now |= {f"the value of {name}" for name, value in values.items() if value in window}
        yield from now - found
        found |= now
        following = file.read(_BUFFER)
        window = window[-_OVERLAP:] + following if following else b""


class _Header(tarfile.TarInfo):
    """A header of a tar, refused where the rest of it would take much memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _HEADERS and header.size > _LONGEST_HEADER:
            raise CheckError(f"an entry of it has a header of {header.size:,} bytes")
        return header


class _Chunks(io.RawIOBase):
    """A stream that is read from chunks, as far as the bound on images goes."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks, self._rest, self._most, self._read = iter(chunks), b"", bounds().image_bytes, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts, have = [self._rest], len(self._rest)
        while size < 0 or have < size:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._read += len(chunk)
            if self._read > self._most:
                raise CheckError(f"it is larger than {self._most:,} bytes (HARVEST_MAX_IMAGE_BYTES)")
            parts.append(chunk)
            have += len(chunk)
        whole = b"".join(parts)
        cut = len(whole) if size < 0 else size
        self._rest = whole[cut:]
        return whole[:cut]


class _Digesting(io.RawIOBase):
    """A stream whose digest is taken as it is read."""

    def __init__(self, inner: IO[bytes]) -> None:
        self._inner, self.digest = inner, hashlib.sha256()
        self._at = 0
        self.end = 0
        """Where the last byte that is not 0 ends, of those that were read."""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._inner.read(size)
        self.digest.update(data)
        if used := len(data.rstrip(b"\0")):
            self.end = self._at + used
        self._at += len(data)
        return data
