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
    places = {uuid: entry for entry in kept if isinstance(uuid := entry.get("uuid"), str)}
    unwritten = 0
    left: list[dict[str, Any]] = []
    for line in [*_latest(folder), None]:
        following = None if line is None else places.get(line["message"]["uuid"])
        if line is not None and following is None:
            left.append(line["message"])
            continue
        # Before the one that follows in the stream, else at the end: the CLI goes on from the last entry.
        at = len(kept) if following is None else next(n for n, entry in enumerate(kept) if entry is following)
        parent = next((entry["uuid"] for entry in reversed(kept[:at]) if entry.get("uuid") in places), None)
        for message in left:
            entry = {
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
            kept.insert(at, entry)
            at, parent = at + 1, message["uuid"]
        if left and following is not None and following.get("parentUuid") not in places:
            following["parentUuid"] = parent
        unwritten += len(left)
        left = []
    if unwritten:
        on_gap(f"{name} lacks {unwritten} messages: the model will see them as stream.jsonl has them")
    return kept


def _latest(folder: Path) -> list[dict[str, Any]]:
    """Return the stream's messages since the last prompt, of those that a transcript of the main thread keeps."""
    found: list[dict[str, Any]] = []
    for line in entries_of(folder / "stream.jsonl", below=folder):
        match line:
            case {"message": {"type": "user" | "assistant", "uuid": str(), "message": {}} as message}:
                if message.get("parent_tool_use_id"):
                    continue  # a sub-agent's, which has a transcript of its own
                if line.get("dir") == "out":
                    found.clear()  # what came before is written down, or was stopped before anybody heard it
                found.append(line)
    return found
