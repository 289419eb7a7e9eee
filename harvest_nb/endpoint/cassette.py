"""The cassette's file: a line that says what it is, then one line for each exchange with the Messages API."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from harvest_nb.endpoint.matching import Line, View
from harvest_nb.errors import CassetteError
from harvest_nb.redact import Redactor, without_secrets

__all__ = ["VERSION", "Cassette", "Exchange", "Writer", "load_cassette"]

VERSION = 2
_FORMAT = "harvest-nb cassette"


@dataclass(frozen=True)
class Exchange:
    """One request and its answer. Times are seconds since the answer began."""

    number: int
    model: str
    view: View
    status: int
    headers: Mapping[str, str]
    events: Sequence[tuple[float, Any]] | None
    """Server-sent events' data with their times; None for an answer that was no stream."""
    body: Any
    ending: str
    """`whole`, `cut` (the connection closed in mid-body), or `left` (the client went first)."""


@dataclass(frozen=True)
class Cassette:
    """A cassette as it was read."""

    path: Path
    created: str
    models: Sequence[str]
    exchanges: Sequence[Exchange]
    files: Mapping[str, str] = field(default_factory=dict)
    """What was put into the sandbox for the recorded conversation: path (with placeholders) to content."""


class Writer:
    """Writes a cassette: exchanges to `<path>.part` as they end, the finished file in its place at the end.

    Args:
        redactor: applied to every text.

    Raises:
        CassetteError: the file cannot be written.
    """

    def __init__(self, path: Path, redactor: Redactor) -> None:
        self.path, self._redactor = path, redactor
        self._part = path.with_name(path.name + ".part")
        self._models: list[str] = []
        self._views: dict[str, int] = {}
        self.files: dict[str, str] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _locked(self._part)
        except BlockingIOError as error:
            raise CassetteError(
                f"Cannot write cassette {path}: another run is recording to it",
                hint="give each run a path of its own",
            ) from error
        except OSError as error:
            raise CassetteError(
                f"Cannot write cassette {path}: {error.strerror}", hint="give another path to record to"
            ) from error

    def clean(self, text: str) -> str:
        """`text` without secrets: the given ones by value, others by their published shape."""
        return without_secrets(text, self._redactor)

    def add(self, exchange: Exchange) -> None:
        """Append one exchange."""
        if exchange.model not in self._models:
            self._models.append(exchange.model)
        # A conversation's requests each repeat the one before: only what is new is written.
        digests = exchange.view.digests
        after, known = None, 0
        for count in range(len(digests) - 1, 0, -1):
            if digests[count - 1] in self._views:
                after, known = digests[count - 1], count
                break
        line = {
            "number": exchange.number,
            "request": {
                "digest": digests[-1],
                "after": after,
                "lines": [[x.key, x.digest] if x.digest else [x.key] for x in exchange.view.lines[known:]],
                "notified": exchange.view.notified,
                "model": exchange.model,
            },
            "status": exchange.status,
            "headers": dict(exchange.headers),
            "ending": exchange.ending,
            **({"events": exchange.events} if exchange.events is not None else {"body": exchange.body}),
        }
        self._file.write(self.clean(json.dumps(line, ensure_ascii=False)) + "\n")
        self._file.flush()
        self._views[digests[-1]] = len(digests)  # not before: a line that was lost is not built upon

    def finish(self) -> None:
        """Put the finished file in its place; a recording without any exchange takes no other's.

        Raises:
            CassetteError: it cannot be written; what was recorded is in the `.part` file.
        """
        try:
            self._file.flush()
            body = self._part.read_bytes()
            if not body and self.path.exists():
                self._part.unlink()
                return
            header = {
                "format": _FORMAT,
                "version": VERSION,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "models": self._models,
                "exchanges": body.count(b"\n"),
                "files": self.files,
            }
            header = json.loads(self.clean(json.dumps(header, ensure_ascii=False)))
            header["sha256"] = _digest(header, body)
            whole = self._part.with_name(self._part.name + "s")
            first = json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass")
            whole.write_bytes(first + b"\n" + body)
            whole.replace(self.path)
            self._part.unlink()
        except OSError as error:
            raise CassetteError(
                f"Cannot write cassette {self.path}: {error.strerror}",
                hint=f"what was recorded is in {self._part}",
            ) from error
        finally:
            with contextlib.suppress(OSError):  # what could not be written is told above
                self._file.close()


def _digest(header: Mapping[str, Any], body: bytes) -> str:
    """Return the SHA-256, in hexadecimal, of a cassette's first line (without the digest itself) and its body."""
    plain = {name: value for name, value in header.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode() + b"\n" + body).hexdigest()


def _locked(path: Path) -> TextIO:
    """`path`, empty, for as long as it is open this writer's alone."""
    while True:
        # Half a surrogate pair, as an endpoint may send, is written as it is.
        file = path.open("a", encoding="utf-8", errors="surrogatepass")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with this process, however it ends
            if os.fstat(file.fileno()).st_nlink:  # else the writer before has just finished and removed it
                file.truncate(0)
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def load_cassette(path: Path) -> Cassette:
    """Read a cassette.

    Raises:
        CassetteError: it is missing, cut, changed, of another version, or no cassette.
    """
    try:
        head, _, body = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise CassetteError(
            f"Cannot read cassette {path}: {error.strerror}", hint="`record=` makes one"
        ) from error
    try:
        header = json.loads(head)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise CassetteError(f"{path} is not a cassette", hint="`record=` makes one")
    if header.get("version") != VERSION:
        raise CassetteError(
            f"Cassette {path} is of version {header.get('version')}, and version {VERSION} is read here",
            hint="record it again",
        )
    try:
        return _read(path, header, body)
    except (KeyError, TypeError, ValueError) as error:
        raise CassetteError(
            f"Cassette {path} is malformed: {type(error).__name__}: {error}", hint="record it again"
        ) from error


def _read(path: Path, header: dict[str, Any], body: bytes) -> Cassette:
    lines = body.splitlines()
    if len(lines) < header["exchanges"] or (body and not body.endswith(b"\n")):
        raise CassetteError(
            f"Cassette {path} is cut: {len(lines)} of {header['exchanges']} exchanges, "
            f"{'the last one broken' if body and not body.endswith(b'%c' % 10) else 'the rest missing'}",
            hint="copy it again, or record it again",
        )
    if _digest(header, body) != header["sha256"]:
        raise CassetteError(f"Cassette {path} has been changed since it was recorded", hint="record it again")
    known: dict[str, tuple[Line, ...]] = {}
    exchanges = [_exchange(json.loads(line), known) for line in lines]
    for name, kind in (("models", list), ("files", dict)):
        given = header[name]
        if not isinstance(given, kind) or not all(isinstance(item, str) for item in _texts(given)):
            raise TypeError(f"`{name}` in its first line")
    return Cassette(
        path,
        header["created"],
        header["models"],
        sorted(exchanges, key=lambda exchange: exchange.number),
        header["files"],
    )


def _texts(given: list[Any] | dict[str, Any]) -> Iterable[Any]:
    return given.values() if isinstance(given, dict) else given


def _exchange(line: dict[str, Any], known: dict[str, tuple[Line, ...]]) -> Exchange:
    request = line["request"]
    before = known[request["after"]] if request["after"] else ()
    lines = (*before, *(Line(*item) for item in request["lines"]))
    known[request["digest"]] = lines
    events = line.get("events")
    return Exchange(
        line["number"],
        request["model"],
        View(lines, request["notified"]),
        line["status"],
        line["headers"],
        [(at, data) for at, data in events] if events is not None else None,
        line.get("body"),
        line["ending"],
    )
