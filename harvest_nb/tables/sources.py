"""Finding what can be read: run folders, logs and transcripts at and below paths, known by their content."""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

from harvest_nb.bounds import bounds
from harvest_nb.errors import RunFolderError
from harvest_nb.files import leads_out, open_regular, read_named, read_regular, regular_files
from harvest_nb.tables.items import is_recording
from harvest_nb.tables.known import STREAM_TYPES, TRANSCRIPT_TYPES
from harvest_nb.tables.problems import Problem, Problems
from harvest_nb.tables.rescue import whole_records

__all__ = [
    "SAVED",
    "Content",
    "Found",
    "find",
    "head",
    "is_no_file",
    "is_run_folder",
    "leads_outside",
    "plain_name",
    "read_content",
    "saved_records",
]

_HEAD = 256 * 1024
# How much is unpacked at a time. What comes out of it is held before it can be counted: at most 16 MiB of a gzip
# chunk (1,032 times its size), 32 MiB of a zstd one (blocks of 128 KiB from 4 bytes).
_CHUNKS = {"gzip": 1 << 14, "zstd": 1 << 10}
_FREE = 16 * 1024**2  # bytes that a file may unpack to, however small it is
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_SKIPPED = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
"""The beginning of a zstd frame that holds no content: then comes its size, in 4 bytes."""
_PACKED = (".gz", ".zst", ".zstd")
_LINES = (".jsonl", ".ndjson")
# What every log and transcript of Claude Code, and a run folder's stream, has near its beginning.
_RECORD = re.compile(
    rb'"(?:sessionId|session_id|parentUuid|leafUuid|isSidechain|modelUsage)"\s*:'
    rb'|"type"\s*:\s*"(?:assistant|user|system|result|summary|stream_event|file-history-snapshot)"'
)
_RECORDING = (re.compile(rb'"seq"\s*:'), re.compile(rb'"dir"\s*:'))
_META = re.compile(rb'"(?:schema|run_id)"\s*:')
# Beside `projects/` a CLAUDE_CONFIG_DIR has these, for caches, lists and copies of the user's files. Somebody's own
# folder may have such a name: there only what it holds decides, not that a file is called `.jsonl`.
_OF_THE_CLI = frozenset(
    {"file-history", "plugins", "shell-snapshots", "todos", "statsig", "debug", "cache", "paste-cache",
     "telemetry", "ide", "session-env", "tasks", "plans", "backups", "uploads", "history.jsonl"}
)  # fmt: skip
# The CLI's copies of the files it edited: `file-history/<session>/<hash>@v<number>`. One may be of a transcript.
_BACKUP = re.compile(r"[0-9a-f]{8,}@v\d+")
_NEVER = frozenset({"node_modules", "__pycache__", ".git", ".venv"})
SAVED = "tool-results"
"""Name of the folder beside a transcript in which the CLI keeps what tools gave back."""


@dataclass
class Found:
    """What lies at and below the paths: run folders, other files to read, and files that are neither."""

    folders: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)
    """Files that look like records and lie where the CLI keeps what tools gave back."""
    outside: list[Path] = field(default_factory=list)
    """Links that lead out of the path that was named."""
    no_files: list[Path] = field(default_factory=list)
    """Pipes, sockets and devices below a path, with the name of a log."""
    pipes: list[Path] = field(default_factory=list)
    """Pipes that were named themselves."""


@dataclass(slots=True)
class Content:
    """A file's bytes, unpacked, and what they were on disk."""

    data: bytes
    size: int
    sha256: str
    compression: str


def find(paths: Iterable[str | os.PathLike[str]], *, follow_links: bool = False) -> Found:
    """Return everything at and below `paths`, each once and sorted: the order of the paths makes no difference.

    A file, link or pipe that is named is always read; below a folder, the regular files that look like records.

    Args:
        follow_links: whether links below a path that lead out of it are followed too.

    Raises:
        RunFolderError: a path does not exist, or a folder holds nothing that can be read.
    """
    folders: dict[Path, None] = {}
    files: dict[Path, None] = {}
    others: dict[Path, None] = {}
    left_out: dict[Path, None] = {}
    outside: dict[Path, None] = {}
    no_files: dict[Path, None] = {}
    pipes: dict[Path, None] = {}
    for item in paths:
        path = Path(item)
        if not path.exists():
            raise RunFolderError(
                f"{path} does not exist",
                hint="give run folders, stream logs, transcripts, or folders that hold some",
            )
        if path.is_fifo():
            pipes[path] = None  # as it was named: a shell's pipe has no other name
            continue
        path = path.resolve()
        if path.is_file():
            inside = is_run_folder(path.parent) and plain_name(path) in ("run.json", "stream.jsonl")
            (folders if inside else files)[path.parent if inside else path] = None
            continue
        something = False
        kinds = {
            "folder": folders,
            "file": files,
            "left out": left_out,
            "outside": outside,
            "no file": no_files,
        }
        for kind, found in _walk(path, follow_links):
            kinds.get(kind, others)[found] = None
            something = something or kind in ("folder", "file")
        if not something:
            raise RunFolderError(
                f"{item} is no run folder and holds nothing that can be read",
                hint=f"{next(iter(outside))} leads out of it: `follow_links=True` (`--follow-links`) follows links"
                if outside
                else "a run folder has a run.json and a stream.jsonl (`harvest-nb run` makes one); "
                "logs and transcripts are JSON lines",
            )
    return Found(
        sorted(folders),
        sorted(files),
        sorted(others.keys() - files.keys()),
        sorted(left_out.keys() - files.keys()),
        sorted(outside.keys() - files.keys()),
        sorted(no_files.keys() - pipes.keys()),
        sorted(pipes),
    )


def _walk(top: Path, follow_links: bool) -> Iterator[tuple[str, Path]]:
    unreadable: list[Path] = []
    seen: set[Path] = set()
    of_the_cli: set[Path] = set()
    for place, folders, names in os.walk(
        top, followlinks=True, onerror=lambda error: unreadable.append(Path(error.filename))
    ):
        here = Path(place)
        if here.resolve() in seen:  # a link leads back: everything below has been read
            folders.clear()
            continue
        seen.add(here.resolve())
        found = [here / name for name in (*folders, *names)]
        out = [] if follow_links else [path for path in found if leads_outside(path, top)]
        no_files = [path for path in found if path not in out and is_no_file(path)]
        left = {path.name for path in (*out, *no_files)}
        folders[:] = [name for name in folders if name not in left]
        names = [name for name in names if name not in left]
        if ("run.json" in names or any(plain_name(Path(name)) == "stream.jsonl" for name in names)) and (
            is_run_folder(here)
        ):
            folders.clear()
            yield "folder", here  # reading it says what of it is left out
            continue
        yield from (("outside", path) for path in sorted(out))
        yield from (("no file", path) for path in sorted(no_files))
        doubtful = _OF_THE_CLI if "projects" in folders else frozenset()
        if SAVED in folders:
            yield from (("left out", path) for path in saved_records(here / SAVED))
        folders[:] = sorted(name for name in folders if name not in _NEVER and name != SAVED)
        inside = here in of_the_cli
        of_the_cli.update(here / name for name in folders if inside or name in doubtful)
        for name in sorted(names):
            path = here / name
            if not path.is_file():
                continue
            if inside or name in doubtful:
                if not _BACKUP.fullmatch(name) and _holds_records(path):
                    yield "file", path
                continue
            yield "file" if _is_readable(path) else "other", path
    for path in unreadable:
        yield "file", path  # reading it says why it cannot be read


def leads_outside(path: Path, top: Path) -> bool:
    """Return whether `path`, a name in a folder below `top`, is a link that leads out of it."""
    return path.is_symlink() and path.exists() and leads_out(path, top)


def is_no_file(path: Path) -> bool:
    """Return whether `path` has the name of a log and is, links followed, a pipe, a socket or a device."""
    return plain_name(path).endswith(_LINES) and path.exists() and not (path.is_file() or path.is_dir())


def saved_records(folder: Path) -> list[Path]:
    """Files below a folder of saved results that hold records: a transcript that was put there, or a copy of one.

    What a tool printed is saved as `.txt`, and may show records.
    """
    files = regular_files(folder)
    return [path for path in files if plain_name(path).rpartition(".")[2] != "txt" and _holds_records(path)]


def _is_readable(path: Path) -> bool:
    name = plain_name(path)
    if name.endswith(_LINES):
        return True
    if name.endswith(".meta.json"):
        return False
    beginning = head(path)
    return beginning.lstrip(b"\xef\xbb\xbf \t\r\n\0")[:1] in (b"{", b"[") and bool(_RECORD.search(beginning))


def _holds_records(path: Path) -> bool:
    """Whether a file's beginning has a whole record of Claude Code, or cannot be read, which is to be told."""
    try:
        open_regular(path).close()
    except OSError:
        return True
    text = head(path).decode(errors="replace")
    return any(
        is_recording(one.value) or one.value.get("type") in STREAM_TYPES | TRANSCRIPT_TYPES
        for one in whole_records(text, 0)
    )


def is_run_folder(path: Path) -> bool:
    """Whether `path` is a run folder: by what its `run.json` and `stream.jsonl` hold, not by their names."""
    streams = list(_named(path, "stream.jsonl"))
    meta = path / "run.json"
    if meta.is_file() and (streams or _META.search(head(meta))):
        return True
    return any(all(name.search(head(stream)) for name in _RECORDING) for stream in streams)


def _named(folder: Path, name: str) -> list[Path]:
    return [path for ending in ("", *_PACKED) if (path := folder / (name + ending)).is_file()]


def plain_name(path: Path) -> str:
    """The file's name without `.gz` or `.zst`."""
    return path.stem if path.suffix in _PACKED else path.name


def head(path: Path) -> bytes:
    """Return the first 256 KiB of a file, unpacked; nothing where it cannot be read."""
    try:
        with open_regular(path) as file:
            start = file.read(_HEAD)
    except OSError:
        return b""
    if _compression(start) == "none":
        return start
    beginning = bytearray()
    for piece in _unpack(start, []):
        beginning += piece
        if len(beginning) >= _HEAD:
            break
    return bytes(beginning[:_HEAD])


def read_content(path: Path, problems: Problems, *, named_pipe: bool = False) -> Content | None:
    """Return the whole of a file, unpacked; `None` and a problem where it cannot be read or is too large.

    Args:
        named_pipe: whether a person named `path`, and it is a pipe: it is read until its writer is done.
    """
    try:
        raw = read_named(path) if named_pipe else read_regular(path)
    except OSError as error:
        problems.add(Problem(path, "unreadable_file", f"{path.name}: {error.strerror}"))
        return None
    compression = _compression(raw)
    data = raw
    if compression != "none":
        wrong: list[str] = []
        unpacked, size = [], 0
        most = bounds()
        limit = min(most.unpacked_bytes, max(_FREE, most.unpacked_ratio * len(raw)))
        for piece in _unpack(raw, wrong):
            size += len(piece)
            if size > limit:
                detail = (
                    f"unpacks to more than {limit:,} bytes: left out. If it is to be trusted, unpack it, or raise "
                    "HARVEST_MAX_UNPACKED_RATIO and HARVEST_MAX_UNPACKED_BYTES"
                )
                problems.add(Problem(path, "too_large", detail))
                return None
            unpacked.append(piece)
        data = b"".join(unpacked)
        for detail in wrong:
            problems.add(Problem(path, "damaged_compression", detail, 1, 0))
    return Content(data, len(raw), hashlib.sha256(raw).hexdigest(), compression)


def _compression(raw: bytes) -> str:
    if raw[:2] == _GZIP:
        return "gzip"
    return "zstd" if raw[:4] == _ZSTD or _SKIPPED.match(raw) else "none"


def _unpack(raw: bytes, wrong: list[str]) -> Iterator[bytes]:
    """Every frame or member of `raw`, one after the other, as far as it can be unpacked."""
    while raw:
        if _SKIPPED.match(raw):
            raw = raw[8 + int.from_bytes(raw[4:8], "little") :]
            continue
        gzip = raw[:2] == _GZIP
        if not gzip and raw[:4] != _ZSTD:
            if raw.strip(b"\0"):
                wrong.append(f"{len(raw)} bytes after the end cannot be unpacked")
            return
        step = _CHUNKS["gzip" if gzip else "zstd"]
        unpacker = zlib.decompressobj(31) if gzip else zstandard.ZstdDecompressor().decompressobj()
        try:
            for start in range(0, len(raw), step):
                yield unpacker.decompress(raw[start : start + step])
                if unpacker.eof:
                    rest = unpacker.unused_data + raw[start + step :]
                    break
            else:
                wrong.append("the compressed data break off")
                return
        except (zlib.error, zstandard.ZstdError) as error:
            wrong.append(f"the compressed data are damaged: {error}")
            return
        raw = rest
