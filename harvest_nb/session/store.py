"""The transcript in the run folder while it grows: the SDK's `SessionStore` over JSONL files."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import cast

from claude_agent_sdk import SessionKey
from claude_agent_sdk.types import SessionListSubkeysKey, SessionStoreEntry, SessionStoreListEntry

from harvest_nb.bounds import bounds
from harvest_nb.errors import RunFolderError
from harvest_nb.files import plain_part
from harvest_nb.session.folder import append_whole, entries_of

__all__ = ["TranscriptStore"]

_LONGEST = 240  # bytes of a part of a key; a file's name may have 255


class TranscriptStore:
    """A `claude_agent_sdk.SessionStore` over `<session id>.jsonl` and `<session id>/<subpath>.jsonl` in a folder.

    Args:
        folder: a run folder's `transcript/`; made at the first entry.
        project_key: the CLI's key of the working directory whose sessions lie in `folder` itself; those of other
            directories lie in a folder named after their key.
        redact: applied to each line before it is written.
        on_problem: called with the first reason why an entry could not be written.
    """

    def __init__(
        self,
        folder: Path,
        project_key: str | None = None,
        redact: Callable[[str], str] = lambda text: text,
        on_problem: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._folder, self._project, self._redact = folder, project_key, redact
        self._on_problem: Callable[[str], None] | None = on_problem
        self._bounds, self._bytes = bounds(), 0
        self._seen: dict[Path, set[str]] = {}
        self._lock = asyncio.Lock()

    def path(self, key: SessionKey) -> Path:
        """The file of a key.

        Raises:
            RunFolderError: the key would lead out of the folder, or is no name.
        """
        project = [] if key["project_key"] == self._project else [key["project_key"]]
        subpath = key.get("subpath")
        parts = [key["session_id"], *PurePosixPath(subpath).parts] if subpath else [key["session_id"]]
        for part in (*project, *parts):
            too_long = len(part.encode("utf-8", "surrogatepass")) > _LONGEST
            if part in ("", ".", "..", "/") or "/" in part or too_long or plain_part(part) != part:
                raise RunFolderError(f"A transcript's key is no name in its folder: {part[:_LONGEST]!r}")
        return self._folder.joinpath(*project, *parts[:-1], f"{parts[-1]}.jsonl")

    async def append(self, key: SessionKey, entries: list[SessionStoreEntry]) -> None:
        """Write entries that are not there yet; an entry's `uuid` tells whether it is.

        Raises:
            RunFolderError: the key is no name, or a bound of the transcript would be passed.
            OSError: they cannot be written.
        """
        try:
            async with self._lock:
                self._append(self.path(key), entries)
        except Exception as error:
            if self._on_problem is not None:
                self._on_problem(f"the transcript could not be written as it grew: {error}")
                self._on_problem = None
            raise  # the SDK tries again

    def _append(self, path: Path, entries: list[SessionStoreEntry]) -> None:
        seen = self._seen.get(path)
        if seen is None:
            if len(self._seen) >= self._bounds.artifact_files:
                raise RunFolderError(
                    f"more than {self._bounds.artifact_files:,} files (HARVEST_MAX_ARTIFACT_FILES)"
                )
            seen = self._seen[path] = {str(entry["uuid"]) for entry in entries_of(path) if entry.get("uuid")}
        lines, new = [], set[str]()
        for entry in entries:
            if ident := str(entry.get("uuid") or ""):
                if ident in seen or ident in new:
                    continue
                new.add(ident)
            lines.append(self._redact(json.dumps(entry, ensure_ascii=False)) + "\n")
        data = "".join(lines).encode("utf-8", "surrogatepass")
        if self._bytes + len(data) > self._bounds.stream_bytes:
            raise RunFolderError(f"more than {self._bounds.stream_bytes:,} bytes (HARVEST_MAX_STREAM_BYTES)")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+", buffering=0) as file:
            if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                data = b"\n" + data  # its writer was killed in the middle of the last line
            append_whole(file.fileno(), data)
        self._bytes += len(data)
        seen |= new  # not before: what could not be written is brought again

    async def load(self, key: SessionKey) -> list[SessionStoreEntry] | None:
        """All entries of a key, or None when it was never written; a line cut at the end is left out."""
        path = self.path(key)
        return cast("list[SessionStoreEntry]", entries_of(path)) if path.is_file() else None

    async def list_sessions(self, project_key: str) -> list[SessionStoreListEntry]:
        """The sessions of a project, `mtime` in milliseconds since 1970."""
        return [
            {"session_id": path.stem, "mtime": path.stat().st_mtime_ns // 1_000_000}
            for path in sorted(self._base(project_key).glob("*.jsonl"))
        ]

    async def list_subkeys(self, key: SessionListSubkeysKey) -> list[str]:
        """Subpaths of a session, such as `subagents/agent-1`."""
        base = self._base(key["project_key"]) / key["session_id"]
        return [path.relative_to(base).with_suffix("").as_posix() for path in sorted(base.rglob("*.jsonl"))]

    async def delete(self, key: SessionKey) -> None:
        """Remove a session with its subkeys, or the one subkey that is named."""
        path = self.path(key)
        async with self._lock:
            path.unlink(missing_ok=True)
            self._seen.pop(path, None)
            if not key.get("subpath"):
                below = path.with_suffix("")
                shutil.rmtree(below, ignore_errors=True)
                for known in [known for known in self._seen if below in known.parents]:
                    del self._seen[known]

    def _base(self, project_key: str) -> Path:
        return self._folder if project_key == self._project else self._folder / project_key
