"""What a run brings home from its sandbox besides its messages: the CLI's transcript and the memory graph."""

from __future__ import annotations

import asyncio
import tarfile
import tempfile
from collections.abc import AsyncIterator
from pathlib import PurePosixPath
from typing import IO

from harvest_nb.bounds import bounds
from harvest_nb.errors import RunFolderError
from harvest_nb.files import plain_part
from harvest_nb.machine.held import Held, holding
from harvest_nb.sandbox.base import Sandbox
from harvest_nb.session.folder import RunFolder

__all__ = ["collect_memory", "collect_transcript"]

_IN_MEMORY = 16 * 1024**2  # bytes; what is larger goes through a temporary file
# Packs regular files of at most $3 bytes; names larger ones on standard error.
_PACK = (
    '[ -e "$1" ] || exit 0; cd "$1" || exit; sid=$2; most=$3; set --; for found in */"$sid".jsonl */"$sid"; do '
    '[ ! -e "$found" ] || set -- "$@" "./$found"; done; [ $# = 0 ] && exit; '
    'find "$@" -type f -size +"$most"c >&2; '
    'find "$@" -type f ! -size +"$most"c -print0 | tar -cf - --no-recursion --null -T -'
)
_NAMED = 5  # how many files that are left out are named
_SAID = 64 * 1024  # bytes of tar's and find's standard error that are looked at
_CHANGED = 1  # tar's exit code when a file grew while it was read


async def collect_transcript(
    sandbox: Sandbox, folder: RunFolder, session_id: str | None, *, expected: bool = False
) -> None:
    """Copy the session's JSONL with its `subagents/` and `tool-results/` into `transcript/`.

    The CLI keeps them as `projects/<key of the working directory>/<session id>.jsonl` and
    `…/<session id>/` under `CLAUDE_CONFIG_DIR`. `run.json` says in `transcript_whole` whether all of it is there.

    Args:
        expected: whether there must be one, as something was answered.
    """
    if session_id is None:
        return
    projects, most = sandbox.home / ".claude" / "projects", bounds()
    program = ["sh", "-c", _PACK, "sh", str(projects), session_id, str(most.read_bytes)]
    process = await sandbox.spawn(program, cwd=sandbox.home)
    missing: list[str] = []

    async def save(file: IO[bytes], item: Held) -> bool:
        whole = await _save(process.stdout, file, most.artifact_bytes, item)
        if not whole:  # at once: what it goes on to send would wait to be read
            await process.kill()
        return whole

    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as packed, holding("the transcript") as item:
        try:
            said, whole = await asyncio.gather(_beginning(process.stderr), save(packed, item))
            code = await process.wait()
        except BaseException:
            await process.kill()
            raise
        lines = said.decode("utf-8", "replace").splitlines()
        large = [line for line in lines if line.startswith("./")]
        reasons = [line for line in lines if not line.startswith("./")]
        missing += [
            f"{plain_part(name[:200])} is larger than {most.read_bytes:,} bytes" for name in large[:_NAMED]
        ]
        if len(large) > _NAMED:
            missing.append(f"{len(large) - _NAMED} more files are too large")
        if not whole:
            missing.append(
                f"its files are larger than {most.artifact_bytes:,} bytes (HARVEST_MAX_ARTIFACT_BYTES)"
            )
        elif code not in (0, _CHANGED):
            why = f": {plain_part(reasons[0][:200])}" if reasons else ""
            missing.append(f"packing it ended with exit code {code}{why}")
        if packed.tell():
            packed.seek(0)
            # Redacting takes a while where tools said much, and other sessions go on meanwhile.
            missing += await asyncio.to_thread(
                _unpack, packed, folder, session_id, most.artifact_files, broken=not whole
            )
        elif expected and not missing:
            missing.append("the sandbox holds none")
    for what in missing:
        folder.problem(f"the transcript was not collected whole: {what}")
    folder.about["transcript_whole"] = not missing


async def _beginning(chunks: AsyncIterator[bytes]) -> bytes:
    kept = bytearray()
    async for chunk in chunks:
        kept += chunk[: max(0, _SAID - len(kept))]
    return bytes(kept)


async def _save(chunks: AsyncIterator[bytes], file: IO[bytes], most: int, item: Held) -> bool:
    """Write `chunks` to `file`; False as soon as there are more than `most` bytes."""
    async for chunk in chunks:
        if file.tell() + len(chunk) > most:
            return False
        file.write(chunk)
        item.size += len(chunk)
    return True


def _unpack(packed: IO[bytes], folder: RunFolder, session_id: str, most: int, *, broken: bool) -> list[str]:
    """Write the archive's files to `transcript/`, and return a sentence for each kind of file that could not be.

    Args:
        most: how many files at most.
        broken: whether it is known that the archive breaks off.
    """
    failures: list[str] = []
    written = 0
    try:
        with tarfile.open(fileobj=packed) as archive:
            for entry in archive:
                # Without the working directory's key; links and names that lead elsewhere are left out.
                parts = PurePosixPath(entry.name).parts[1:]
                ours = parts == (f"{session_id}.jsonl",) or (len(parts) > 1 and parts[0] == session_id)
                if not entry.isfile() or not ours or ".." in parts:
                    continue
                if written == most:
                    failures.append(f"it has more than {most:,} files (HARVEST_MAX_ARTIFACT_FILES)")
                    break
                written += 1
                content = archive.extractfile(entry)
                assert content is not None
                try:
                    folder.put("/".join(("transcript", *map(plain_part, parts))), content.read())
                except RunFolderError as error:  # one file's trouble is not the others'
                    failures.append(error.message)
    except tarfile.ReadError as error:
        if not broken:
            failures.append(f"what tar sent cannot be read: {error}")
    if len(failures) > _NAMED:
        failures[_NAMED:] = [f"{len(failures) - _NAMED} more files could not be written"]
    return failures


async def collect_memory(sandbox: Sandbox, folder: RunFolder, when: str) -> None:
    """Copy the memory server's store to `memory.<when>.jsonl`; a store that is not there is an empty one.

    Raises:
        OSError: it is no regular file, or larger than `HARVEST_MAX_READ_BYTES`.
    """
    try:
        data = await sandbox.read(sandbox.memory_file, plain=True)
    except FileNotFoundError:
        data = b""
    await asyncio.to_thread(folder.put, f"memory.{when}.jsonl", data)
