"""What a run brings home from its sandbox besides its messages: the CLI's transcript and the memory graph."""

from __future__ import annotations

import asyncio
import tarfile
import tempfile
from collections.abc import AsyncIterator
from pathlib import PurePosixPath
from typing import IO

from harvest_nb.sandbox.base import Sandbox
from harvest_nb.session.folder import RunFolder

__all__ = ["collect_memory", "collect_transcript"]

_IN_MEMORY = 16 * 1024**2  # bytes; what is larger goes through a temporary file
_PACK = (
    'cd "$1" || exit; sid=$2; set --; for found in */"$sid".jsonl */"$sid"; do '
    '[ ! -e "$found" ] || set -- "$@" "./$found"; done; [ $# = 0 ] || exec tar -cf - -- "$@"'
)
_CHANGED = 1  # tar's exit code when a file grew while it was read


async def collect_transcript(sandbox: Sandbox, folder: RunFolder, session_id: str | None) -> None:
    """Copy the session's JSONL with its `subagents/` and `tool-results/` into `transcript/`.

    The CLI keeps them as `projects/<key of the working directory>/<session id>.jsonl` and
    `…/<session id>/` under `CLAUDE_CONFIG_DIR`.
    """
    if session_id is None:
        return
    projects = sandbox.home / ".claude" / "projects"
    process = await sandbox.spawn(["sh", "-c", _PACK, "sh", str(projects), session_id], cwd=sandbox.home)
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as packed:
        try:
            said, _ = await asyncio.gather(_all(process.stderr), _save(process.stdout, packed))
            code = await process.wait()
        except BaseException:
            await process.kill()
            raise
        if code not in (0, _CHANGED):
            folder.stderr(f"[harvest] no transcript: {said.decode('utf-8', 'replace').strip()}")
            return
        if packed.tell():
            packed.seek(0)
            # Redacting takes a while where tools said much, and other sessions go on meanwhile.
            await asyncio.to_thread(_unpack, packed, folder, session_id)


async def _all(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def _save(chunks: AsyncIterator[bytes], file: IO[bytes]) -> None:
    async for chunk in chunks:
        file.write(chunk)


def _unpack(packed: IO[bytes], folder: RunFolder, session_id: str) -> None:
    with tarfile.open(fileobj=packed) as archive:
        for entry in archive:
            # Without the working directory's key; links and names that lead elsewhere are the sandbox's own affair.
            parts = PurePosixPath(entry.name).parts[1:]
            if not entry.isfile() or not parts or ".." in parts:
                continue
            if parts[0] in (session_id, f"{session_id}.jsonl"):
                content = archive.extractfile(entry)
                assert content is not None
                folder.put("/".join(("transcript", *parts)), content.read())


async def collect_memory(sandbox: Sandbox, folder: RunFolder, when: str) -> None:
    """Copy the memory server's store to `memory.<when>.jsonl`; a store that is not there is an empty one."""
    try:
        data = await sandbox.read(sandbox.memory_file)
    except FileNotFoundError:
        data = b""
    folder.put(f"memory.{when}.jsonl", data)
