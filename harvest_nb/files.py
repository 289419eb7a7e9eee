"""Reading files that came from elsewhere: regular files only, no links that lead out of their folder, bounded."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from harvest_nb.bounds import bounds

__all__ = [
    "file_identity",
    "is_plain",
    "leads_out",
    "open_regular",
    "plain_part",
    "read_named",
    "read_regular",
    "regular_files",
]

_PIECE = 1 << 20  # bytes


def leads_out(path: Path, folder: Path) -> bool:
    """Return whether `path`, links followed, lies outside `folder`, links followed."""
    return not path.resolve().is_relative_to(folder.resolve())


def open_regular(path: Path, *, below: Path | None = None) -> BinaryIO:
    """Open a regular file for reading, without waiting for anybody to write into it.

    Args:
        below: the folder that it must lie in, links followed; None for a path that a person has named.

    Raises:
        OSError: it cannot be opened, leads out of `below`, or is no regular file.
    """
    if below is not None and leads_out(path, below):
        raise OSError(errno.ELOOP, f"a link that leads out of {below}", str(path))
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, *, below: Path | None = None) -> bytes:
    """Return the bytes of a regular file; see `open_regular`.

    Raises:
        OSError: as there, or it is larger than `HARVEST_MAX_FILE_BYTES`.
    """
    with open_regular(path, below=below) as file:
        return _bounded(file, path)


def read_named(path: Path) -> bytes:
    """Return the bytes of a file, link or pipe that a person has named; from a pipe, all that is written into it.

    Raises:
        OSError: it cannot be read, or is larger than `HARVEST_MAX_FILE_BYTES`.
    """
    with path.open("rb") as file:
        return _bounded(file, path)


def _bounded(file: BinaryIO, path: Path) -> bytes:
    most = bounds().file_bytes
    size = os.fstat(file.fileno()).st_size
    pieces: list[bytes] = []
    while size <= most and (piece := file.read(_PIECE if pieces or not size else size)):
        pieces.append(piece)
        size = sum(map(len, pieces))
    if size > most:
        raise OSError(errno.EFBIG, f"larger than {most:,} bytes (HARVEST_MAX_FILE_BYTES)", str(path))
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def file_identity(path: Path) -> dict[str, int] | None:
    """Return what tells a file from a copy of it, its device and inode; None where there is no such file."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return {"device": found.st_dev, "inode": found.st_ino}


def is_plain(path: Path) -> bool:
    """Return whether `path` is a regular file, and not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def plain_part(name: str) -> str:
    """Return a file's name with percent-encoding for what cannot be printed, such as line breaks and escapes."""
    return "".join(part if part.isprintable() else _percent(part) for part in name)


def _percent(character: str) -> str:
    try:
        data = character.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair that stands for no byte
        data = character.encode("utf-8", "surrogatepass")
    return "".join(f"%{byte:02X}" for byte in data)


def regular_files(folder: Path) -> Iterator[Path]:
    """Yield the regular files below `folder`, sorted; links, `folder` itself among them, are not followed."""
    if folder.is_symlink():
        return
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(place, name)
            if is_plain(path):
                yield path
