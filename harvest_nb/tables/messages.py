"""`records`, `messages` and `blocks`: each record put to its agent, turn and prompt; rows that say one thing joined."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harvest_nb.tables.folder import Run, agents_of
from harvest_nb.tables.items import CALLS, OUTCOMES, Block, Item
from harvest_nb.tables.values import as_str, seconds

__all__ = ["Message", "block_rows", "join", "message_rows", "place", "record_row"]

_SUMMARY = 100
_SPEAKS = ("assistant", "user", "system")


class Message:
    """One message: an API response with all its rows, or a single record."""

    __slots__ = ("_known", "blocks", "items")

    def __init__(self, item: Item) -> None:
        self.items = [item]
        self.blocks: list[tuple[Block, Item]] = [(block, item) for block in item.blocks]
        self._known = {(block.kind, block.call, block.text) for block in item.blocks}

    def add(self, item: Item) -> None:
        """Another row of the same message: its blocks join, unless a copy of the row has brought them."""
        self.items.append(item)
        fresh = [block for block in item.blocks if (block.kind, block.call, block.text) not in self._known]
        self.blocks += [(block, item) for block in fresh]
        self._known.update((block.kind, block.call, block.text) for block in fresh)


def place(run: Run) -> None:
    """Give every item of the story its agent, sender, prompt and turn.

    A turn is one API response, so that the rows, stream events and tool results of one response share a
    number; numbers go by first appearance.
    """
    run.agents = agents_of(run)
    turns: dict[str, int] = {}
    turn_of_call: dict[str, str] = {}
    streaming: dict[str, str | None] = {}
    prompts = 0
    for item in run.story:
        call = item.parent_call
        agent = item.agent or (run.agents.get(call, call) if call else None) or "main"
        item.agent = agent
        item.sender = _sender(item)
        prompts += item.sender == "user"
        item.prompt_no = prompts
        if item.type == "stream_event":
            if item.subtype == "message_start":
                streaming[agent] = item.message_id
            item.key = item.message_id = item.message_id or streaming.get(agent)
        elif item.sender == "tool":
            calls = (block.call for block in item.blocks)
            item.key = next((turn_of_call[call] for call in calls if call in turn_of_call), None)
        if item.key and not item.synthetic:
            item.turn = turns.setdefault(item.key, len(turns) + 1)
            for block in item.blocks:
                if block.kind in CALLS and block.call:
                    turn_of_call[block.call] = item.key


def join(run: Run) -> list[Message]:
    """The messages of the run: one per response, one for every other record that is a message."""
    found: dict[str, Message] = {}
    messages: list[Message] = []
    for item in run.story:
        if item.source != "stream" and item.type not in _SPEAKS:
            continue
        key = item.key if item.type in ("assistant", "stream_event") else item.uuid
        known = found.get(key) if key else None
        if known is not None:
            known.add(item)
            continue
        message = Message(item)
        messages.append(message)
        if key:
            found[key] = message
    return messages


def record_row(run: Run | None, item: Item) -> dict[str, Any]:
    """A row of `records`."""
    return {
        "run_id": run.run_id if run else None,
        "path": str(item.file),
        "line": item.line,
        "offset": item.offset,
        "bytes": item.size,
        "source": item.source,
        "seq": item.seq,
        "dir": item.dir,
        "time": item.time,
        "t_s": seconds(item.time, run.origin) if run and item.time else None,
        "type": item.type,
        "subtype": item.subtype,
        "sender": item.sender or None,
        "agent": item.agent,
        "turn": item.turn,
        "prompt_no": item.prompt_no if item.sender else None,
        "message_id": _message_id(item),
        "uuid": item.uuid,
        "parent_uuid": item.parent,
        "logical_parent_uuid": item.logical_parent,
        "session_id": item.session,
        "request_id": item.request_id,
        "version": item.version,
        "is_sidechain": item.sidechain,
        "n_blocks": len(item.blocks),
        "summary": summary(item),
    }


def message_rows(run: Run, messages: list[Message]) -> Iterator[dict[str, Any]]:
    """Rows of `messages`."""
    origin = run.origin
    for message in messages:
        first = message.items[0]
        whole = next((item for item in message.items if item.type == "assistant"), first)
        stops = [item.stop_reason for item in message.items if item.stop_reason]
        yield {
            "run_id": run.run_id,
            "seq": first.seq,
            "time": first.time,
            "t_s": seconds(first.time, origin),
            "dir": first.dir,
            "type": whole.type,
            "subtype": whole.subtype,
            "role": whole.type if whole.type in _SPEAKS else None,
            "sender": whole.sender,
            "agent": first.agent,
            "turn": first.turn,
            "prompt_no": first.prompt_no,
            "message_id": _message_id(whole),
            "uuid": whole.uuid,
            "session_id": whole.session,
            "parent_tool_use_id": first.parent_call,
            "model": next((item.model for item in message.items if item.model), None),
            "stop_reason": stops[-1] if stops else None,
            "is_synthetic": whole.synthetic,
            "is_meta": whole.meta,
            "is_compact_summary": whole.compact,
            "is_copy": first.copy,
            "n_rows": len(message.items),
            "n_blocks": len(message.blocks),
            "chars": sum(block.chars for block, _ in message.blocks),
            "path": str(first.file),
            "first_line": first.line,
            "last_line": message.items[-1].line,
            "summary": _words(message.blocks, whole),
        }


def block_rows(run: Run, messages: list[Message]) -> Iterator[dict[str, Any]]:
    """Rows of `blocks`."""
    for message in messages:
        for index, (block, item) in enumerate(message.blocks):
            yield {
                "run_id": run.run_id,
                "seq": item.seq,
                "message_id": _message_id(item),
                "uuid": item.uuid,
                "index": index,
                "kind": block.kind,
                "agent": item.agent,
                "turn": item.turn,
                "is_copy": message.items[0].copy,
                "tool_use_id": block.call,
                "chars": block.chars,
                "text": block.text,
            }


def summary(item: Item) -> str:
    """What a record says, at most 100 characters."""
    return _words([(block, item) for block in item.blocks], item)


def _words(blocks: list[tuple[Block, Item]], item: Item) -> str:
    if blocks:
        text = " | ".join(_said(block) for block, _ in blocks[:_SUMMARY])
    elif item.type == "result":
        text = as_str(item.whole.get("result")) or item.subtype or ""
    else:
        text = item.subtype or item.type
    text = " ".join(text[: 4 * _SUMMARY].split())
    return text if len(text) <= _SUMMARY else text[: _SUMMARY - 1] + "…"


def _said(block: Block) -> str:
    text = block.text[: 2 * _SUMMARY]
    return f"{block.name or '?'} {text}" if block.kind in CALLS else text or f"[{block.kind}]"


def _message_id(item: Item) -> str | None:
    """The response that a record shows, or whose call it answers."""
    if item.message_id or not item.key:
        return item.message_id
    return item.key if item.type == "user" and " " not in item.key else None


def _sender(item: Item) -> str:
    if item.type in ("assistant", "stream_event"):
        return "cli" if item.synthetic else "model"
    if item.type == "user":
        if any(block.kind in OUTCOMES for block in item.blocks):
            return "tool"
        if item.dir is not None:
            return "user" if item.dir == "out" else "cli"
        return "cli" if item.meta or item.compact or item.agent != "main" else "user"
    return "desk" if item.dir == "out" else "cli"
