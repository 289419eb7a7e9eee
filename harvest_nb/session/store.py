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

from harvest_nb.errors import RunFolderError
from harvest_nb.session.folder import append_whole, entries_of

__all__ = ["TranscriptStore"]


class TranscriptStore:
    """A `claude_agent_sdk.SessionStore` over `<session id>.jsonl` and `<session id>/<subpath>.jsonl` in a folder.

    Args:
        folder: a run folder's `transcript/`; made at the first entry.
        project_key: the CLI's key of the working directory whose sessions lie in `folder` itself; those of other
            directories lie in a folder named after their key.
        redact: applied to each line before it is written.
    """

    def __init__(
        self, folder: Path, project_key: str | None = None, redact: Callable[[str], str] = lambda text: text
    ) -> None:
        self._folder, self._project, self._redact = folder, project_key, redact
        self._seen: dict[Path, set[str]] = {}
        self._lock = asyncio.Lock()

    def path(self, key: SessionKey) -> Path:
        """The file of a key.

        Raises:
            RunFolderError: the key would lead out of the folder.
        """
        project = [] if key["project_key"] == self._project else [key["project_key"]]
        subpath = key.get("subpath")
        parts = [key["session_id"], *PurePosixPath(subpath).parts] if subpath else [key["session_id"]]
        for part in (*project, *parts):
            if part in ("", ".", "..", "/") or "/" in part or "\0" in part:
                raise RunFolderError(f"A transcript's key leads out of its folder: {part!r}")
        return self._folder.joinpath(*project, *parts[:-1], f"{parts[-1]}.jsonl")

    async def append(self, key: SessionKey, entries: list[SessionStoreEntry]) -> None:
        """Write entries that are not there yet; an entry's `uuid` tells whether it is."""
        path = self.path(key)
        async with self._lock:
            seen = self._seen.get(path)
            if seen is None:
                seen = self._seen[path] = {
                    str(entry["uuid"]) for entry in entries_of(path) if entry.get("uuid")
                }
            lines, new = [], set[str]()
            for entry in entries:
                ident = entry.get("uuid")
                if ident is not None and (ident in seen or ident in new):
                    continue
                if ident is not None:
                    new.add(ident)
                lines.append(self._redact(json.dumps(entry, ensure_ascii=False)) + "\n")
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab+", buffering=0) as file:
                if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                    lines.insert(0, "\n")  # whoever wrote the last line was killed in the middle
                append_whole(file.fileno(), "".join(lines).encode("utf-8", "surrogatepass"))
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
