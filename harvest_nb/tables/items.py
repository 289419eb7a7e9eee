"""One record of any kind of file, reduced to what the tables need: the same shape for streams and transcripts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from harvest_nb.tables.known import KEYS, MESSAGE_KEYS, STREAM_TYPES, TRANSCRIPT_TYPES, USAGE_KEYS
from harvest_nb.tables.problems import Problem
from harvest_nb.tables.read import Line
from harvest_nb.tables.values import as_bool, as_dict, as_int, as_list, as_str, as_time, from_epoch, to_json

__all__ = ["CALLS", "OUTCOMES", "SYNTHETIC", "Block", "Item", "ItemReader", "is_recording"]

CALLS = frozenset({"tool_use", "server_tool_use", "mcp_tool_use"})
OUTCOMES = frozenset({"tool_result", "mcp_tool_result", "web_search_tool_result", "web_fetch_tool_result"})
SYNTHETIC = "<synthetic>"
"""Model of messages that the CLI writes itself: no request was made for them."""

_MARKS = ("sessionId", "parentUuid", "isSidechain", "leafUuid")
_KEPT_WHOLE = frozenset({"result", "control_request", "control_response", "rate_limit_event"})
_RESULT = frozenset({"total_cost_usd", "modelUsage", "usage", "is_error", "subtype"})
_UNTYPED = "unknown"
_SPOKEN = frozenset({"assistant", "user"})


@dataclass(slots=True)
class Block:
    """A content block of a message."""

    kind: str
    text: str
    chars: int
    call: str | None = None
    """Id of the tool call that it is, or that it answers."""
    name: str | None = None
    is_error: bool = False


@dataclass(slots=True)
class Item:
    """A record with its place. `source` is `stream`, `transcript`, or `nested` for a message in a progress row."""

    file: Path
    line: int
    offset: int
    size: int
    source: str
    type: str
    subtype: str | None
    time: datetime | None
    session: str | None
    agent: str | None
    seq: int | None = None
    dir: str | None = None
    uuid: str | None = None
    parent: str | None = None
    logical_parent: str | None = None
    version: str | None = None
    sidechain: bool | None = None
    request_id: str | None = None
    message_id: str | None = None
    key: str | None = None
    """What counts as one response: `message_id`, else the request's id, else what the row itself is."""
    model: str | None = None
    stop_reason: str | None = None
    usage: dict[str, Any] | None = None
    blocks: list[Block] = field(default_factory=list)
    parent_call: str | None = None
    cwd: str | None = None
    branch: str | None = None
    entrypoint: str | None = None
    meta: bool = False
    compact: bool = False
    whole: dict[str, Any] = field(default_factory=dict)
    """The record itself, where few are of its kind and tables need more of them than the fields above."""
    # Worked out when the run is put together:
    sender: str = ""
    turn: int | None = None
    prompt_no: int = 0
    copy: bool = False

    @property
    def synthetic(self) -> bool:
        """Whether the CLI wrote it in the model's name."""
        return self.model == SYNTHETIC


def is_recording(value: dict[str, Any]) -> bool:
    """Whether a record is a line of a run folder's stream."""
    return "dir" in value and "seq" in value and isinstance(value.get("message"), dict)


class ItemReader:
    """Makes items of one file's records, and notes what is odd about them."""

    def __init__(self, path: Path, *, agent: str | None = None, recording: bool = False) -> None:
        self.path, self.agent, self.recording = path, agent, recording
        self.notes: list[Problem] = []
        self._unknown: dict[tuple[str, str], tuple[Problem, int]] = {}

    def items(self, line: Line) -> Iterator[Item]:
        """The item of one record; two for a progress row that holds a sub-agent's message."""
        value = line.value
        if is_recording(value):
            yield from self._recorded(line, value)
            return
        if self.recording:
            self._note("malformed_record", "a line of the stream needs seq, dir and a message object", line)
            return
        item = self._item(line, value, self._time(value, line))
        yield item
        if item.type == "progress" and item.subtype == "agent_progress":
            nested = self._nested(line, value, item)
            if nested is not None:
                yield nested

    def close(self) -> list[Problem]:
        """The problems noted, and how often each unknown word came."""
        for (kind, word), (problem, count) in self._unknown.items():
            more = f" ({count} times, first here)" if count > 1 else ""
            if word == _UNTYPED:
                problem.detail = f"a record without a type{more}; it is kept"
                continue
            problem.detail = (
                f"an assistant {kind} `{word}`{more}"
                if problem.reason in ("missing_id", "missing_usage")
                else f"{kind} `{word[:60]}` is not known to this version{more}; it is kept"
            )
        return self.notes

    def _recorded(self, line: Line, value: dict[str, Any]) -> Iterator[Item]:
        seq, direction = as_int(value.get("seq")), value["dir"]
        if seq is None or direction not in ("in", "out"):
            self._note("malformed_record", "a line of the stream needs seq, dir and a message object", line)
            return
        time = from_epoch(value.get("t"))
        if time is None:
            self._note("bad_time", "`t` is no time: the message is kept without one", line, salvaged=True)
        item = self._item(line, value["message"], time, source="stream")
        item.seq, item.dir = seq, direction
        yield item

    def _time(self, value: dict[str, Any], line: Line) -> datetime | None:
        given = value.get("timestamp")
        time = as_time(given)
        if time is None and given is not None:
            self._note(
                "bad_time", "`timestamp` is no time: the record is kept without one", line, salvaged=True
            )
        return time

    def _nested(self, line: Line, value: dict[str, Any], outer: Item) -> Item | None:
        data = as_dict(value.get("data"))
        message = data.get("message")
        if not isinstance(message, dict) or message.get("type") not in _SPOKEN:
            return None
        item = self._item(line, message, self._time(message, line) or outer.time, source="nested")
        item.agent = as_str(data.get("agentId")) or "sidechain"
        item.session, item.version, item.cwd = outer.session, outer.version, outer.cwd
        item.parent_call = as_str(value.get("parentToolUseID"))
        item.sidechain = True
        return item

    def _item(
        self, line: Line, value: dict[str, Any], time: datetime | None, source: str | None = None
    ) -> Item:
        kind = value.get("type")
        kind = kind if isinstance(kind, str) and kind else _UNTYPED
        if source is None:
            source = "transcript" if any(mark in value for mark in _MARKS) else _source(kind, value)
        if kind not in (STREAM_TYPES if source == "stream" else TRANSCRIPT_TYPES):
            self._strange("type", kind, line)
        if not value.keys() <= KEYS:
            for key in value.keys() - KEYS:
                self._strange("key", key, line)
        item = Item(
            self.path, line.number, line.offset, line.size, source, kind, _subtype(value, kind), time,
            as_str(value.get("sessionId")) or as_str(value.get("session_id")),
            as_str(value.get("agentId")) or as_str(value.get("agent_id")) or self.agent,
        )  # fmt: skip
        item.uuid = as_str(value.get("uuid"))
        item.parent_call = as_str(value.get("parent_tool_use_id"))
        item.request_id = as_str(value.get("requestId")) or as_str(value.get("request_id"))
        if source == "transcript":
            self._transcript(item, value)
        if kind in _SPOKEN:
            self._spoken(item, value, line)
        elif kind == "stream_event":
            self._event(item, value)
        elif kind == "result" and not value.keys() & _RESULT:
            pass  # a workflow's journal
        elif kind in _KEPT_WHOLE or kind == "system":
            item.whole = value
            item.model = as_str(value.get("model"))
            item.cwd = item.cwd or as_str(value.get("cwd"))
            item.version = item.version or as_str(value.get("claude_code_version"))
        elif kind == "cost-state":
            item.whole = {"total_cost_usd": value.get("totalCostUSD"), "modelUsage": value.get("modelUsage")}
        elif kind == "attachment":
            attached = as_dict(value.get("attachment"))
            item.whole = {key: attached.get(key) for key in ("durationMs", "hookEvent")}
        return item

    def _transcript(self, item: Item, value: dict[str, Any]) -> None:
        item.parent = as_str(value.get("parentUuid"))
        item.logical_parent = as_str(value.get("logicalParentUuid"))
        item.version, item.cwd = as_str(value.get("version")), as_str(value.get("cwd"))
        item.branch, item.entrypoint = as_str(value.get("gitBranch")), as_str(value.get("entrypoint"))
        item.sidechain = as_bool(value.get("isSidechain"))
        item.meta, item.compact = value.get("isMeta") is True, value.get("isCompactSummary") is True
        if item.sidechain and item.agent is None:
            item.agent = "sidechain"

    def _spoken(self, item: Item, value: dict[str, Any], line: Line) -> None:
        message = value.get("message")
        if isinstance(message, str | list):
            kind = "string" if isinstance(message, str) else "list"
            self._note(
                f"message_is_{kind}", "`message` is no object: taken as its content", line, salvaged=True
            )
        elif not isinstance(message, dict):
            self._note("no_message", f"a record of type {item.type} without a `message` object", line)
        inner = as_dict(message)
        if not inner.keys() <= MESSAGE_KEYS:
            for key in inner.keys() - MESSAGE_KEYS:
                self._strange("key", f"message.{key}", line)
        content = message if isinstance(message, str | list) else inner.get("content")
        item.blocks = _blocks(content)
        if item.type == "user":
            meta = as_list(value.get("tool_result_meta"))
            result = as_dict(value.get("toolUseResult") or value.get("tool_use_result"))
            agent = as_str(result.get("agentId"))
            if meta or agent:
                item.whole = {"meta": meta, "agent": agent}
            return
        item.message_id, item.model = as_str(inner.get("id")), as_str(inner.get("model"))
        item.stop_reason = as_str(inner.get("stop_reason"))
        usage = inner.get("usage")
        if isinstance(usage, dict) and usage and not item.synthetic:
            item.usage = usage
            if not usage.keys() <= USAGE_KEYS:
                for key in usage.keys() - USAGE_KEYS:
                    self._strange("key", f"message.usage.{key}", line)
        elif isinstance(message, dict) and not item.synthetic:
            self._strange("message without", "message.usage", line)
        item.key = item.message_id
        if item.key is None and not item.synthetic and isinstance(message, dict):
            item.key = f"request {item.request_id}" if item.request_id else _own_key(item, value)
            if item.usage:
                self._note(
                    "missing_id", "a response without `message.id`: " + item.key[:60], line, salvaged=True
                )
            else:
                self._strange("message without", "message.id", line)

    def _event(self, item: Item, value: dict[str, Any]) -> None:
        event = as_dict(value.get("event"))
        inner = as_dict(event.get("message"))
        item.message_id = as_str(value.get("api_message_id")) or as_str(inner.get("id"))
        item.model = as_str(inner.get("model"))
        kind = event.get("type")
        if kind in ("message_start", "message_delta"):
            item.usage = as_dict(inner.get("usage") if kind == "message_start" else event.get("usage"))
            item.stop_reason = as_str(as_dict(event.get("delta")).get("stop_reason"))
        item.key = item.message_id

    def _note(self, reason: str, detail: str, line: Line, *, salvaged: bool = False) -> None:
        self.notes.append(Problem(self.path, reason, detail, line.number, line.offset, salvaged=salvaged))

    def _strange(self, kind: str, word: str, line: Line) -> None:
        found = self._unknown.get((kind, word))
        if found is None:
            missing = "missing_usage" if word == "message.usage" else "missing_id"
            reason = f"unknown_{kind}" if kind in ("type", "key") else missing
            problem = Problem(self.path, reason, "", line.number, line.offset, salvaged=True)
            self.notes.append(problem)
            self._unknown[kind, word] = (problem, 1)
        else:
            self._unknown[kind, word] = (found[0], found[1] + 1)


def _source(kind: str, value: dict[str, Any]) -> str:
    return "stream" if kind in STREAM_TYPES or "session_id" in value else "transcript"


def _own_key(item: Item, value: dict[str, Any]) -> str:
    """A key for a response that names neither itself nor its request: a copy of the row has the same."""
    if item.uuid:
        return f"row {item.uuid}"
    spelled = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    return f"row {hashlib.blake2b(spelled, digest_size=12).hexdigest()}"


def _subtype(value: dict[str, Any], kind: str) -> str | None:
    inner = {
        "stream_event": ("event", "type"),
        "control_request": ("request", "subtype"),
        "control_response": ("response", "subtype"),
        "rate_limit_event": ("rate_limit_info", "status"),
        "progress": ("data", "type"),
        "attachment": ("attachment", "type"),
    }.get(kind)
    return as_str(as_dict(value.get(inner[0])).get(inner[1])) if inner else as_str(value.get("subtype"))


def _blocks(content: Any) -> list[Block]:
    if isinstance(content, str):
        return [Block("text", content, len(content))]
    found: list[Block] = []
    for block in as_list(content):
        if isinstance(block, str):
            found.append(Block("text", block, len(block)))
        elif isinstance(block, dict):
            kind = as_str(block.get("type")) or "unknown"
            text = _text(block, kind)
            call = as_str(block.get("id") if kind in CALLS else block.get("tool_use_id"))
            name = as_str(block.get("name")) if kind in CALLS else None
            found.append(Block(kind, text, len(text), call, name, block.get("is_error") is True))
    return found


def _text(block: dict[str, Any], kind: str) -> str:
    """The text of a content block; a tool's input as JSON; `""` for what is no text."""
    if kind in CALLS:
        return to_json(block.get("input"))
    for key in ("text", "thinking"):
        if isinstance(block.get(key), str):
            return str(block[key])
    content = block.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(_part(part) for part in content)
    return to_json(content) if isinstance(content, dict) and kind in OUTCOMES else ""


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    keys = ("text", "content", "tool_name")
    return (
        next((part[key] for key in keys if isinstance(part.get(key), str)), "")
        if isinstance(part, dict)
        else ""
    )
