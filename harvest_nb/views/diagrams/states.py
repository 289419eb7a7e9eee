"""The message states of a session's stream: the diagram's data, and the check of recorded runs against it.

A state is what the last message on the main thread was. Messages that only accompany it (partial messages,
hooks, rate limits, the CLI's notices, the control protocol) do not change it, and neither do those of
subagents, which happen inside a tool call. A CLI that is ended in the middle of a turn writes nothing any more: what
tells of it is the next one's `initialize`. Imports nothing that draws, so tables and tests can use it alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harvest_nb.errors import RunFolderError
from harvest_nb.files import read_regular

__all__ = ["END", "START", "STATES", "TRANSITIONS", "check_run", "check_transitions", "state_of"]

START = "start"
END = "end"

STATES: Mapping[str, str] = {
    "prompt": "user (a prompt)",
    "init": "system/init",
    "assistant": "assistant (text, thinking)",
    "tool_use": "assistant (tool_use)",
    "tool_result": "user (tool_result)",
    "result": "result",
    "ended": "the CLI was ended",
}
"""State to the SDK message that it stands for."""

TRANSITIONS: Mapping[tuple[str, str], str] = {
    (START, "prompt"): "",
    (START, "init"): "prompt not recorded",
    ("prompt", "init"): "the CLI is ready",
    ("init", "assistant"): "first response",
    ("init", "tool_use"): "",
    ("init", "result"): "cancelled or refused",
    ("assistant", "assistant"): "next block",
    ("assistant", "tool_use"): "asks for a tool",
    ("assistant", "tool_result"): "",
    ("assistant", "result"): "done",
    ("tool_use", "tool_use"): "parallel call",
    ("tool_use", "assistant"): "",
    ("tool_use", "tool_result"): "it has run",
    ("tool_use", "result"): "",
    ("tool_result", "tool_result"): "of a parallel call",
    ("tool_result", "assistant"): "next turn",
    ("tool_result", "tool_use"): "",
    ("tool_result", "result"): "cancelled, or a limit",
    ("result", "prompt"): "next prompt",
    ("result", "init"): "",
    ("result", END): "",
    ("prompt", "ended"): "cancelled before init, or died",
    ("init", "ended"): "",
    ("assistant", "ended"): "died, or did not stop in time",
    ("tool_use", "ended"): "",
    ("tool_result", "ended"): "",
    ("ended", "prompt"): "another CLI goes on",
    ("ended", "init"): "",
    ("ended", END): "",
}
"""Every step that a stream may take, to its label in the diagram (often empty)."""

# Kinds that may stand between any two states. What is not listed anywhere is reported, not passed over.
_ANYWHERE = frozenset(
    {
        "control_request",
        "control_response",
        "control_cancel_request",
        "command_lifecycle",
        "keep_alive",
        "rate_limit_event",
        "auth_status",
        "tool_progress",
        "tool_use_summary",
        "prompt_suggestion",
        "transcript_mirror",
    }
)
# `system` messages of every subtype but init (status, hook_*, task_*, compact_boundary …) tell of something
# beside the conversation. Partial messages exist only while a response is streamed.
_WITHIN_A_TURN = frozenset({"stream_event"})
_NO_PROMPT = "closed without a prompt"  # the reason that a session gives which was only opened


def state_of(message: Mapping[str, Any], *, from_desk: bool = False) -> str | None:
    """The state that a message brings about; None when it only accompanies the one before.

    Args:
        message: one message of the stream as the CLI or the SDK wrote it (`{"type": …}`).
        from_desk: whether the desk sent it; the same `user` type is then a prompt.

    Raises:
        ValueError: the type is none that the diagram knows.
    """
    kind = message.get("type")
    if message.get("parent_tool_use_id") and kind in ("assistant", "user"):
        return None
    if kind == "system":
        return "init" if message.get("subtype") == "init" else None
    if kind == "assistant":
        return "tool_use" if _has(message, "tool_use", "server_tool_use", "mcp_tool_use") else "assistant"
    if kind == "user":
        if _has(message, "tool_result"):
            return "tool_result"
        # Without tool results it is a prompt, or a notice of the CLI's own ("[Request interrupted by user]").
        return "prompt" if from_desk else None
    if kind == "result":
        return "result"
    if kind in _ANYWHERE or kind in _WITHIN_A_TURN:
        return None
    raise ValueError(f"the type {kind!r} is not in the state diagram")


def _begins(entry: Mapping[str, Any]) -> bool:
    """Whether a recorded line is the desk's first word to a CLI that has just been started."""
    message = entry["message"]
    request = message.get("request") if message.get("type") == "control_request" else None
    return entry["dir"] == "out" and isinstance(request, Mapping) and request.get("subtype") == "initialize"


def _has(message: Mapping[str, Any], *kinds: str) -> bool:
    inner = message.get("message")
    content = inner.get("content") if isinstance(inner, Mapping) else None
    return isinstance(content, list) and any(
        isinstance(block, Mapping) and block.get("type") in kinds for block in content
    )


def check_transitions(messages: Iterable[Mapping[str, Any]], *, ended: bool = True) -> list[str]:
    """What in an observed stream is not a path of the state diagram; an empty list when all of it is.

    Args:
        messages: the stream in order: messages (`{"type": …}`), or lines of a run folder's `stream.jsonl`
            (`{"seq", "t", "dir", "message"}`, where `dir` is `"out"` for what the desk sent).
        ended: whether the stream must have come to a result.
    """
    problems: list[str] = []
    state = START
    place = 0
    for place, entry in enumerate(messages, start=1):
        recorded = "message" in entry and "dir" in entry
        message = entry["message"] if recorded else entry
        try:
            following = state_of(message, from_desk=recorded and entry["dir"] == "out")
        except ValueError as error:
            problems.append(f"message {place}, after {state}: {error}")
            continue
        if recorded and state not in (START, "result", "ended") and _begins(entry):
            following = "ended"
        if following is None:
            if message["type"] in _WITHIN_A_TURN and state in (START, "prompt", "result"):
                problems.append(f"message {place}: {message['type']} after {state}, outside of any turn")
            continue
        if (state, following) not in TRANSITIONS:
            problems.append(f"message {place}: {state} → {following} is no step of the diagram")
        state = following
    if ended and (state, END) not in TRANSITIONS:
        problems.append(f"the stream ends after message {place} at {state}, without a result")
    return problems


def check_run(folder: Path) -> list[str]:
    """`check_transitions` of a recorded run. Only one that succeeded must have come to a result.

    Raises:
        RunFolderError: there is no run in `folder`, or its stream holds a line that is no JSON. The last line
            of a run that did not succeed may be cut short.
    """
    try:
        about = json.loads(read_regular(folder / "run.json", below=folder))
        succeeded = about["status"] == "success" and about.get("exit_reason") != _NO_PROMPT
        lines = read_regular(folder / "stream.jsonl", below=folder).splitlines()
    except (OSError, ValueError, KeyError) as error:
        raise RunFolderError(f"{folder} cannot be read as a run folder: {error}") from error
    messages = []
    for number, line in enumerate(lines, start=1):
        try:
            messages.append(json.loads(line))
        except ValueError as error:
            if succeeded or number < len(lines):
                raise RunFolderError(f"{folder / 'stream.jsonl'}, line {number}: {error}") from error
    return check_transitions(messages, ended=succeeded)
