"""The run folder: everything one run said and did, append-only, on disk before anybody else sees it."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harvest_nb.bounds import bounds, json_within
from harvest_nb.errors import RunFolderError
from harvest_nb.files import file_identity, read_regular
from harvest_nb.machine.locks import is_locked
from harvest_nb.redact import Pieces, Redactor

__all__ = ["RunFolder", "append_whole", "entries_of", "is_written", "now"]

_SCHEMA = 1
_PROBLEMS = 100  # how many are named
_log = logging.getLogger(__name__)
_RESERVE = 64 * 1024  # bytes kept for the end of run.json on a disk that has filled up
_REMOVED = "its stream.jsonl was removed during the run, and the messages in it are lost"


class RunFolder:
    """Writes `runs/<run id>/`: `run.json`, `stream.jsonl`, `stderr.log`, `transcript/`, `memory.*.jsonl`.

    `endpoint.jsonl` is there too where a proxy stands before the endpoint.

    Args:
        base: the folder of all runs; made if missing.
        redactor: applied to every text before it is written.
        about: the first content of `run.json`.

    Raises:
        RunFolderError: the folder cannot be made or written.
    """

    def __init__(self, base: Path, redactor: Redactor, about: Mapping[str, Any]) -> None:
        self.redactor = redactor
        self.id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        self.path = base.resolve() / self.id
        try:
            self.path.mkdir(parents=True)
            self._stream = (self.path / "stream.jsonl").open("ab", buffering=0)
            fcntl.flock(self._stream, fcntl.LOCK_SH)  # goes with this process, however it ends
            self._stderr = (self.path / "stderr.log").open("ab", buffering=0)
            self._reserve = self.path / ".reserve"
            self._reserve.write_bytes(bytes(_RESERVE))
        except OSError as error:
            raise RunFolderError(
                f"Cannot write run folder {self.path}: {error.strerror}", hint="give another `runs_dir`"
            ) from error
        self._start = time.monotonic()
        self._sequence = 0
        self._bounds = bounds()
        self._stream_bytes = self._stderr_bytes = 0
        self._said: Pieces | None = None
        self.about: dict[str, Any] = {
            "schema": _SCHEMA,
            "run_id": self.id,
            "created": now(),
            "status": "running",
            "exit_reason": None,
            "stream": file_identity(self.path / "stream.jsonl"),
            "marks": {},
            **about,
        }
        self.save()

    def save(self, **changes: Any) -> None:
        """Update `run.json`, whole or not at all.

        Raises:
            RunFolderError: it cannot be written; the file before it stays.
        """
        self.about |= changes
        text = self.redactor.text(json.dumps(self.about, indent=2, ensure_ascii=False, default=str))
        self._replace(self.path / "run.json", f"{text}\n".encode("utf-8", "surrogatepass"))

    def mark(self, name: str) -> None:
        """Note how many seconds after its start the run came to `name`; the first time counts."""
        self.about["marks"].setdefault(name, round(time.monotonic() - self._start, 6))

    def record(self, direction: str, message: bytes) -> bytes | None:
        """Append one message: `"out"` from the desk to the CLI, `"in"` the other way.

        Args:
            message: the JSON object as it crossed the wire, on one line.

        Returns:
            The message as it was written, if a secret in it was replaced.
        """
        safe = self.redactor.data(message)
        head = f'{{"seq": {self._sequence}, "t": {time.time():.6f}, "dir": "{direction}", "message": '
        data = b"".join((head.encode(), safe, b"}\n"))
        self._stream_bytes += len(data)
        if self._stream_bytes > self._bounds.stream_bytes:
            raise RunFolderError(
                f"The run has recorded more than {self._bounds.stream_bytes:,} bytes (HARVEST_MAX_STREAM_BYTES)",
                hint="what was written before is whole",
            )
        self._write(self._stream.fileno(), data)
        self._sequence += 1
        return None if safe == message else safe

    def stderr(self, text: str, *, whole: bool = True) -> None:
        """Append a line of the CLI's standard error, as far as `HARVEST_MAX_STDERR_BYTES` goes.

        Args:
            whole: whether the line ends here; one that is too long to be held comes in parts.
        """
        most = self._bounds.stderr_bytes
        if self._stderr_bytes > most:
            return
        if self._said is None:  # not before the CLI speaks: by then `redactor` knows all
            self._said = Pieces(self.redactor)
        # A secret may go over several parts, and its base64 over several lines.
        safe = self._said.text(f"{text}\n" if whole else text)
        if whole and safe and not safe.endswith("\n"):
            safe += "\n"
        data = safe.encode("utf-8", "surrogateescape")
        self._stderr_bytes += len(data)
        if self._stderr_bytes <= most:
            self._write(self._stderr.fileno(), data)
        else:
            self.note(f"standard error is longer than {most:,} bytes: the rest is left out")

    def note(self, text: str) -> None:
        """Append a line of this package's own to what the CLI has said on its standard error."""
        line = self.redactor.text(f"[harvest] {text}") + "\n"
        self._write(self._stderr.fileno(), line.encode("utf-8", "surrogateescape"))

    def problem(self, text: str) -> None:
        """Say in `run.json`, and in `stderr.log` where there is room, what went wrong besides the run's own end.

        `load` gives a row of `problems` for each. One that is there already is not repeated.
        """
        problems: list[str] = self.about.setdefault("problems", [])
        if text in problems or len(problems) > _PROBLEMS:
            return
        problems.append(text if len(problems) < _PROBLEMS else "there were more problems than are named here")
        try:
            self.note(text)
        except RunFolderError as error:  # the disk is full; `run.json` has some room kept
            _log.debug("%s", error)

    def count(self, model: str, counts: Mapping[str, Any], *, final: bool = True) -> None:
        """Append to `endpoint.jsonl` what one answer of the endpoint used.

        Args:
            counts: by the names of `COUNTS` and `WORDS` of `harvest_nb.endpoint.metering`.
            final: whether the answer said so itself at its end; else the counts are estimated.
        """
        said = {"t": round(time.time(), 6), "model": model, **counts, **({} if final else {"final": False})}
        data = f"{self.redactor.text(json.dumps(said, ensure_ascii=False))}\n".encode(
            "utf-8", "surrogateescape"
        )
        self._stream_bytes += len(data)
        if self._stream_bytes > self._bounds.stream_bytes:
            self.problem("what the endpoint counted is not whole (HARVEST_MAX_STREAM_BYTES)")
            return
        try:
            with (self.path / "endpoint.jsonl").open("ab", buffering=0) as file:
                self._write(file.fileno(), data)
        except (OSError, RunFolderError) as error:
            self.problem(f"what the endpoint counted is not whole: {error}")

    def _write(self, descriptor: int, data: bytes) -> None:
        try:
            append_whole(descriptor, data)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> RunFolderError:
        return RunFolderError(
            f"Cannot write to run folder {self.path}: {error.strerror}",
            hint="free some space; what was written before is whole",
        )

    def put(self, name: str, data: bytes) -> None:
        """Write a file of the folder, redacted, whole or not at all; `name` may lead into a subfolder.

        Raises:
            RunFolderError: it cannot be written.
        """
        self._replace(self.path / self.redactor.text(name), self.redactor.data(data))

    def _replace(self, target: Path, data: bytes) -> None:
        # A name of its own, as the file's may already be as long as names can be.
        temporary = target.with_name(f".{secrets.token_hex(8)}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            temporary.replace(target)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise self._unwritable(error) from error

    def finish(self, **changes: Any) -> None:
        """Write how the run ended and close the files; a disk that is full has kept room for that.

        Raises:
            RunFolderError: `run.json` cannot be written, and says that the run goes on.
        """
        try:
            self._make_room()
            # A network disk may not know the file any more; one that is closed says nothing.
            with contextlib.suppress(OSError, ValueError):
                if os.fstat(self._stream.fileno()).st_nlink == 0:
                    changes["exit_reason"] = f"{changes.get('exit_reason') or 'ended'}; {_REMOVED}"
            self.save(**changes)
        finally:
            self.close()

    def _make_room(self) -> None:
        with contextlib.suppress(OSError):
            self._reserve.unlink()

    def close(self) -> None:
        """Close the files. Safe to call twice."""
        if not self._stream.closed:
            self._make_room()
            with contextlib.suppress(OSError):
                os.fsync(self._stream.fileno())
            self._stream.close()
            self._stderr.close()


def is_written(folder: Path) -> bool:
    """Whether a live process still records into that run folder."""
    try:
        return is_locked(folder / "stream.jsonl")
    except OSError:
        return False  # it cannot be opened, or its disk knows no locks


def entries_of(
    path: Path, *, below: Path | None = None, on_bad: Callable[[int], None] = lambda line: None
) -> list[dict[str, Any]]:
    """Return the JSON objects of a file of lines, none if there is no such file.

    Args:
        below: see `harvest_nb.files.open_regular`.
        on_bad: called with the number, from 1, of each line that cannot be read and is left out.

    Raises:
        OSError: it cannot be read, or leads out of `below`.
    """
    try:
        data = read_regular(path, below=below)
    except FileNotFoundError:
        return []
    found, most = [], bounds().json_values
    for number, line in enumerate(io.BytesIO(data), start=1):
        try:
            entry = json_within(line, most) if line.strip() else None
        except ValueError:
            on_bad(number)
            continue
        if isinstance(entry, dict):
            found.append(entry)
        elif entry is not None:
            on_bad(number)
    return found


def append_whole(descriptor: int, data: bytes) -> None:
    """Append to a file whole or not at all: half a line would be a problem for every reader.

    Raises:
        OSError: it cannot be written; what stood there before is as it was.
    """
    view = memoryview(data)
    written = 0
    try:
        while written < len(view):
            written += os.write(descriptor, view[written:])
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
        raise


def now() -> str:
    """The time as run folders write it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
