"""Going on with a recorded session: in another sandbox, from another point, or as a branch of its own."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import io
import json
import os
import re
import stat
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

from harvest_nb.errors import RunFolderError, SandboxError
from harvest_nb.files import is_plain, read_regular, regular_files
from harvest_nb.sandbox.base import Completed, Sandbox
from harvest_nb.session.folder import entries_of, is_written
from harvest_nb.session.options import config_dir
from harvest_nb.session.said import main_thread

__all__ = [
    "Past",
    "claimed",
    "cost_so_far",
    "find_past",
    "holds_any",
    "project_key",
    "put_back",
    "remove_transcript",
]

_CLAIMS = "resumed.jsonl"
_SECOND = len("20260101T000000")
_SESSION = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
_NAMED = 20  # how many files that are left out are named
_LONGEST_KEY = 200  # beyond it the CLI shortens the key with a hash of its own


@dataclass(frozen=True)
class Past:
    """A recorded session to go on with.

    `fork` goes on under a new session id; `at` is the UUID of the last message that counts.
    """

    folder: Path
    run_id: str
    session_id: str
    fork: bool = False
    at: str | None = None
    notes: tuple[str, ...] = ()
    """What the model will not see, or not as it was, a sentence each."""

    def about(self) -> dict[str, Any]:
        """What `run.json` says of it."""
        return {"run_id": self.run_id, "session_id": self.session_id, "forked": self.fork, "at": self.at}


def find_past(
    run: Path | str, runs_dir: Path = Path("runs"), *, fork: bool = False, at: str | None = None
) -> Past:
    """The session of a recorded run.

    Args:
        run: a run folder, a run's id, a session's id, or `"latest"`.

    Raises:
        RunFolderError: there is no such run, its folder cannot be read or names no session by a UUID, or it holds no
            transcript of the session, or no message `at`.
    """
    folder = _find(run, runs_dir)
    about = _about(folder)
    session_id = about.get("session_id")
    if session_id is not None and not (isinstance(session_id, str) and _SESSION.fullmatch(session_id)):
        # It becomes part of paths, here and in the sandbox.
        raise RunFolderError(
            f"{folder / 'run.json'} names no session that can be gone on with: {str(session_id)[:100]!r} is no UUID",
            hint="take the run's folder from where it was recorded",
        )
    gaps: list[str] = []
    try:
        said = main_thread(folder, session_id, gaps.append) if session_id else []
    except OSError as error:
        raise RunFolderError(f"Cannot read run {folder.name}: {error.filename}: {error.strerror}") from error
    if session_id is None or not said:
        raise RunFolderError(
            f"Run {folder.name} holds no transcript to go on from",
            hint="it ended before the session had begun: run its prompt again",
        )
    if at is not None and not any(entry.get("uuid") == at for entry in said):
        raise RunFolderError(
            f"Run {folder.name} holds no message {at} to go on from",
            hint="the column `uuid` of `load(…).messages` has the messages' UUIDs",
        )
    notes = (*gaps, *_left_out(folder), *_unfinished(folder, about, session_id))
    return Past(folder, str(about["run_id"]), session_id, fork, at, notes)


def _find(run: Path | str, runs_dir: Path) -> Path:
    if isinstance(run, Path) or "/" in run or Path(run).is_dir():
        folder = Path(run)
    elif run == "latest":
        runs = sorted(path.parent for path in runs_dir.glob("*/run.json"))
        if not runs:
            raise RunFolderError(
                f"There is no run in {runs_dir}", hint="run something first: `harvest-nb run …`"
            )
        # Their names tell seconds; `created` tells which of one second came last.
        last = [folder for folder in runs if folder.name[:_SECOND] == runs[-1].name[:_SECOND]]
        folder = max(last, key=lambda folder: str(_about(folder).get("created")))
    else:
        folder = runs_dir / run
        if not folder.is_dir():
            found = sorted(runs_dir.glob(f"*/transcript/{run}.jsonl"))
            folder = found[-1].parent.parent if found else folder
    if not (folder / "run.json").is_file():
        raise RunFolderError(
            f"There is no run {run} in {runs_dir}",
            hint="name a run folder, a run's id, a session's id, or latest",
        )
    return folder.resolve()


def _about(folder: Path) -> dict[str, Any]:
    """Return what a run folder's `run.json` holds. Raises RunFolderError."""
    path = folder / "run.json"
    try:
        about = json.loads(read_regular(path, below=folder))
    except (OSError, ValueError, RecursionError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise RunFolderError(f"Cannot read {path}: {said}") from error
    if not isinstance(about, dict) or "run_id" not in about:
        raise RunFolderError(f"{path} does not describe a run", hint="it needs `run_id` and `session_id`")
    return about


def _left_out(folder: Path) -> Iterator[str]:
    """Yield a sentence for each file that is not handed on: a link could name any file of this machine."""
    found = [folder / "transcript", folder / "memory.after.jsonl"]
    if not found[0].is_symlink():
        found += [
            Path(place, name) for place, folders, names in os.walk(found[0]) for name in (*folders, *names)
        ]
    wrong = [path for path in sorted(found) if _is_no_part(path)]
    for path in wrong[:_NAMED]:
        yield f"{path.relative_to(folder)} is no regular file and is left out"
    if len(wrong) > _NAMED:
        yield f"{len(wrong) - _NAMED} more are no regular files and are left out"


def _is_no_part(path: Path) -> bool:
    """Return whether there is something at `path` that is neither a regular file nor a folder, such as a link."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _unfinished(folder: Path, about: dict[str, Any], session_id: str) -> Iterator[str]:
    """Yield a sentence for each part of a run that did not come home whole, sub-agents and memory."""
    if about.get("transcript_whole") is False:
        yield "its transcript was not collected whole: sub-agents' messages and tools' long results may be missing"
    for path in regular_files(folder / "transcript" / session_id):
        bad: list[int] = []
        if path.suffix == ".jsonl":
            entries_of(path, below=folder, on_bad=bad.append)
        if bad:
            yield f"{path.relative_to(folder)} cannot be read in {len(bad)} of its lines"
    if not is_plain(folder / "memory.after.jsonl"):
        before = is_plain(folder / "memory.before.jsonl")
        which = "the one from before the run" if before else "a new sandbox's own"
        yield f"its memory graph was not collected: {which} is used"


def claimed(past: Past, by: Path) -> Past:
    """`past`, as a fork if somebody else has gone on with that run already.

    The first who does keeps the session id; whoever comes later gets a branch under an id of its own, so that no
    two sessions of one id say different things; so does who comes while the run goes on. Whoever ended before they
    had said anything does not count.

    Args:
        by: the run folder of whoever goes on.
    """
    if past.fork or is_written(past.folder):
        return replace(past, fork=True)
    try:
        with _claims(past.folder / _CLAIMS) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            first = not any(map(_went_on, file))
            file.write(json.dumps({"t": round(time.time(), 3), "by": str(by)}) + "\n")
    except OSError:
        first = False  # an archive that nobody may write to, or no file of its own: a branch does no harm
    return past if first else replace(past, fork=True)


def _claims(path: Path) -> TextIO:
    """Open the list of the runs that went on with one, for reading and appending; a link is refused."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o644)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "a+", encoding="utf-8", errors="replace")


def _went_on(claim: str) -> bool:
    """Whether who claimed a run may have said something, or may still do so."""
    try:
        about = _about(Path(json.loads(claim)["by"]))
    except (RunFolderError, ValueError, KeyError, TypeError):
        return True  # unknown: a branch does no harm
    return about.get("status") == "running" or bool(about.get("prompts"))


async def project_key(sandbox: Sandbox) -> str:
    """The folder's name under `projects/` in which the CLI keeps the sessions of the sandbox's `workdir`.

    Every character but ASCII letters and digits becomes a hyphen (Claude Agent SDK, `_sanitize_path`).

    Raises:
        SandboxError: the path is too long for that.
    """
    path = (await sandbox.run(["pwd", "-P"], cwd=sandbox.workdir)).check().text.rstrip("\n")
    if len(path) > _LONGEST_KEY:
        raise SandboxError(f"The path {path} is too long for a session", hint="use a shorter cache folder")
    return re.sub(r"[^a-zA-Z0-9]", "-", path)


async def cost_so_far(sandbox: Sandbox, session_id: str) -> float | None:
    """What the CLI's transcript in `sandbox` says that a session has cost, in US dollars; None without a transcript.

    A CLI that ends in peace leaves a `cost-state`, and the next one goes on from that figure; one that was killed
    leaves none.
    """
    # A working directory's key begins with a hyphen.
    find = 'cd "$1"/projects && cat ./*/"$2".jsonl | { grep \'"type":"cost-state"\' || :; } | tail -n 1'
    exists = f'ls "$1"/projects/*/"$2".jsonl > /dev/null && {find}'
    kept = await _in_config(sandbox, exists, session_id)
    if not kept.ok:
        return None
    try:
        return float(json.loads(kept.text)["totalCostUSD"])
    except (ValueError, KeyError, TypeError):
        return 0.0


async def holds_any(sandbox: Sandbox, session_id: str, prompts: Sequence[str]) -> bool:
    """Return whether the CLI's transcript of a session in `sandbox` holds a complete row of one of these prompts.

    `claude --resume` fails on a transcript without rows of the conversation.

    Args:
        prompts: the UUIDs under which they were sent.

    Raises:
        SandboxError: the transcript is there and cannot be searched.
    """
    if not prompts:
        return False
    # By standard input: an argument holds 128 KiB at most, and a long conversation has more.
    lines = "".join(f'"uuid":"{prompt}".*}}$\n' for prompt in prompts)
    search = (
        'ls "$1"/projects/*/"$2".jsonl > /dev/null 2>&1 || exit 1; grep -q -f - "$1"/projects/*/"$2".jsonl'
    )
    found = await _in_config(sandbox, search, session_id, input=lines.encode())
    if found.exit_code > 1:
        found.check()
    return found.ok


async def remove_transcript(sandbox: Sandbox, session_id: str) -> None:
    """Remove the CLI's transcript of a session from `sandbox`, so that a CLI can start one under the same id.

    Raises:
        SandboxError: it cannot be removed.
    """
    remove = 'rm -rf -- "$1"/projects/*/"$2".jsonl "$1"/projects/*/"$2"'
    (await _in_config(sandbox, remove, session_id)).check()


async def _in_config(sandbox: Sandbox, script: str, session_id: str, **given: Any) -> Completed:
    """Run a shell script in `sandbox`; its `$1` is the CLI's folder, its `$2` the session's id."""
    return await sandbox.run(
        ["sh", "-c", script, "sh", config_dir(sandbox), session_id], cwd=sandbox.home, **given
    )


async def put_back(sandbox: Sandbox, past: Past) -> None:
    """Put a session's transcript, its sub-agents and its memory graph where the CLI in `sandbox` looks for them.

    Raises:
        SandboxError: the sandbox does not take them.
    """
    base = f"{config_dir(sandbox)}/projects/{await project_key(sandbox)}"
    packed = await asyncio.to_thread(_pack, past.folder, past.session_id)
    unpack = 'mkdir -p "$1" && tar -C "$1" -xf -'
    (await sandbox.run(["sh", "-c", unpack, "sh", base], input=packed, cwd=sandbox.home)).check()
    for memory in (past.folder / "memory.after.jsonl", past.folder / "memory.before.jsonl"):
        if is_plain(memory):
            await sandbox.write(sandbox.memory_file, await asyncio.to_thread(read_regular, memory))
            break


def _pack(folder: Path, session_id: str) -> bytes:
    transcript, buffer = folder / "transcript", io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        _add(archive, Path(f"{session_id}.jsonl"), _jsonl(main_thread(folder, session_id)))
        if (transcript / session_id).is_symlink() or transcript.is_symlink():
            return buffer.getvalue()
        for path in regular_files(transcript / session_id):
            name = path.relative_to(transcript)
            if path.suffix == ".jsonl":
                entries = entries_of(path)
                about = [entry for entry in entries if entry.get("type") == "agent_metadata"]
                if about:
                    kept = {key: value for key, value in about[-1].items() if key != "type"}
                    _add(archive, name.with_suffix(".meta.json"), json.dumps(kept).encode())
                _add(archive, name, _jsonl([entry for entry in entries if entry not in about]))
            else:
                _add(archive, name, read_regular(path))
    return buffer.getvalue()


def _jsonl(entries: list[dict[str, Any]]) -> bytes:
    # Without spaces, as the CLI writes them: it looks for some by their bytes.
    lines = (json.dumps(entry, ensure_ascii=False, separators=(",", ":")) for entry in entries)
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")


def _add(archive: tarfile.TarFile, name: Path, data: bytes) -> None:
    entry = tarfile.TarInfo(PurePosixPath(name).as_posix())
    entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
    archive.addfile(entry, io.BytesIO(data))
