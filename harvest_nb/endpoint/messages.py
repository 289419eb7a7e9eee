"""The Messages API as a server speaks it: blocks, usage and the streaming events.

Source: Anthropic's API reference, "Streaming Messages" (event names, order and fields).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "Block",
    "Reply",
    "Text",
    "Thinking",
    "ToolUse",
    "Usage",
    "error_body",
    "events",
    "new_id",
    "whole",
]

_PIECE = 48  # characters a delta: long texts arrive in several, as from the real endpoint


def new_id(prefix: str) -> str:
    """A made-up identifier in the API's form, such as `msg_01…`."""
    return f"{prefix}_01{uuid.uuid4().hex[:22]}"


@dataclass(frozen=True)
class Text:
    """A text block."""

    text: str


@dataclass(frozen=True)
class Thinking:
    """A thinking block; the signature is made up, as nothing but the real endpoint checks one."""

    thinking: str


@dataclass(frozen=True)
class ToolUse:
    """A call of a tool by its full name (`Bash`, `mcp__memory__read_graph`)."""

    name: str
    input: Mapping[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=lambda: new_id("toolu"))


Block = Text | Thinking | ToolUse


@dataclass(frozen=True)
class Usage:
    """Tokens of one response, in the API's terms: `input_tokens` excludes what the cache served or took."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0
    cache_creation_5m: int = 0
    cache_creation_1h: int = 0

    def at_start(self) -> dict[str, Any]:
        """The `usage` of `message_start`, whose output figure is only a placeholder."""
        return {
            "input_tokens": self.input_tokens,
            "cache_creation_input_tokens": self.cache_creation_5m + self.cache_creation_1h,
            "cache_read_input_tokens": self.cache_read_input_tokens,
            "cache_creation": {
                "ephemeral_5m_input_tokens": self.cache_creation_5m,
                "ephemeral_1h_input_tokens": self.cache_creation_1h,
            },
            "output_tokens": 1,
            "service_tier": "standard",
        }

    def at_end(self) -> dict[str, Any]:
        """The `usage` of `message_delta`, with the final output figure."""
        return {**self.at_start(), "output_tokens": self.output_tokens}


@dataclass(frozen=True)
class Reply:
    """One response of the model. `piece` is the number of characters a delta."""

    blocks: tuple[Block, ...]
    usage: Usage
    model: str
    stop: str | None = None
    piece: int = _PIECE

    @property
    def stop_reason(self) -> str:
        """The one given, else `tool_use` when a tool is called, else `end_turn`."""
        return self.stop or (
            "tool_use" if any(isinstance(block, ToolUse) for block in self.blocks) else "end_turn"
        )


def events(reply: Reply) -> Iterator[dict[str, str]]:
    """The server-sent events of a streamed response, as `{"event", "data"}`."""

    def event(kind: str, **data: Any) -> dict[str, str]:
        return {"event": kind, "data": json.dumps({"type": kind, **data})}

    yield event(
        "message_start",
        message={
            "id": new_id("msg"),
            "type": "message",
            "role": "assistant",
            "model": reply.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": reply.usage.at_start(),
        },
    )
    for index, block in enumerate(reply.blocks):
        start, deltas = _parts(block, reply.piece)
        yield event("content_block_start", index=index, content_block=start)
        for delta in deltas:
            yield event("content_block_delta", index=index, delta=delta)
        yield event("content_block_stop", index=index)
    yield event(
        "message_delta",
        delta={"stop_reason": reply.stop_reason, "stop_sequence": None},
        usage=reply.usage.at_end(),
    )
    yield event("message_stop")


def _parts(block: Block, size: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    match block:
        case Text(text):
            return {"type": "text", "text": ""}, [
                {"type": "text_delta", "text": piece} for piece in _pieces(text, size)
            ]
        case Thinking(thinking):
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in _pieces(thinking, size)]
            return {"type": "thinking", "thinking": "", "signature": ""}, [
                *deltas,
                {"type": "signature_delta", "signature": uuid.uuid4().hex},
            ]
        case ToolUse(name, arguments, ident):
            pieces = _pieces(json.dumps(dict(arguments)), size)
            return {"type": "tool_use", "id": ident, "name": name, "input": {}}, [
                {"type": "input_json_delta", "partial_json": piece} for piece in pieces
            ]


def _pieces(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)] or [""]


def whole(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The message that a stream's events (their parsed data) add up to, as a request without `stream` gets it."""
    message: dict[str, Any] = {}
    blocks: dict[int, dict[str, Any]] = {}
    given: dict[int, str] = {}
    for data in parts:
        match data["type"]:
            case "message_start":
                message = dict(data["message"])
            case "content_block_start":
                blocks[data["index"]] = dict(data["content_block"])
            case "content_block_delta":
                block, delta = blocks[data["index"]], data["delta"]
                if delta["type"] == "input_json_delta":
                    given[data["index"]] = given.get(data["index"], "") + delta["partial_json"]
                else:
                    name = delta["type"].removesuffix("_delta")
                    block[name] = block.get(name, "") + delta[name]
            case "message_delta":
                message |= data["delta"] | {"usage": data["usage"]}
    for index, text in given.items():
        blocks[index]["input"] = json.loads(text or "{}")
    message["content"] = [blocks[index] for index in sorted(blocks)]
    return message


def error_body(kind: str, message: str) -> dict[str, Any]:
    """The body of an error response; what no UTF-8 can hold (half a surrogate pair) is escaped in it."""
    message = message.encode("utf-8", "backslashreplace").decode()
    return {"type": "error", "error": {"type": kind, "message": message}}
