"""What was said in a recorded session: its transcript, and what the desk had heard before that was written down."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harvest_nb.files import read_regular
from harvest_nb.session.folder import entries_of

__all__ = ["main_thread"]


def main_thread(
    folder: Path, session_id: str, on_gap: Callable[[str], None] = lambda gap: None
) -> list[dict[str, Any]]:
    """Return the transcript's entries, main thread only, as the CLI keeps them; empty if nothing was said.

    The CLI mirrors a message a moment after it has sent it. Where the desk or the CLI was killed in that moment, or
    the transcript could not be written, the stream holds what the transcript lacks; it comes after it, each message
    as the child of the one before.

    Args:
        on_gap: called with a sentence for each part of the conversation that is not there as the CLI wrote it.
    """
    name = f"transcript/{session_id}.jsonl"
    bad: list[int] = []
    kept = entries_of(folder / name, below=folder, on_bad=bad.append)
    if bad:
        lines = ", ".join(map(str, bad[:10])) + (" …" if len(bad) > 10 else "")
        on_gap(f"{name} cannot be read in {len(bad)} of its lines ({lines}): the model will not see them")
    about = json.loads(read_regular(folder / "run.json", below=folder))
    whole = about.get("transcript_whole")
    if whole is True or (whole is None and about.get("status") not in ("running", "died")):
        return kept
    uuids = [uuid for entry in kept if isinstance(uuid := entry.get("uuid"), str)]
    known, parent = set(uuids), uuids[-1] if uuids else None
    unwritten = _unwritten(folder, known)
    if unwritten:
        on_gap(
            f"{name} lacks the last {len(unwritten)} messages: the model will see them as stream.jsonl has them"
        )
    for line in unwritten:
        message = line["message"]
        kept.append(
            {
                "parentUuid": parent,
                "isSidechain": False,
                "userType": "external",
                "entrypoint": "sdk-py",
                "type": message["type"],
                "message": message["message"],
                "uuid": message["uuid"],
                "timestamp": message.get("timestamp") or about.get("created"),
                "sessionId": session_id,
                "version": about.get("cli_version"),
            }
        )
        parent = message["uuid"]
    return kept


def _unwritten(folder: Path, known: set[str]) -> list[dict[str, Any]]:
    """Return the stream's last messages, of those that a transcript keeps, from the first on that it does not have."""
    found: list[dict[str, Any]] = []
    for line in entries_of(folder / "stream.jsonl", below=folder):
        match line:
            case {"message": {"type": "user" | "assistant", "uuid": str(uuid), "message": {}} as message}:
                if message.get("parent_tool_use_id"):
                    continue  # a sub-agent's, which has a transcript of its own
                if uuid in known or line.get("dir") == "out":
                    found.clear()  # what came before is written down, or was stopped before anybody heard it
                if uuid not in known:
                    found.append(line)
    return found
