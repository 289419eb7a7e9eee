"""`tool_calls`: each call joined with its result."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from harvest_nb.tables.folder import Run
from harvest_nb.tables.items import CALLS, Block, Item
from harvest_nb.tables.messages import Message
from harvest_nb.tables.values import as_dict, as_list, as_str, seconds

__all__ = ["Answer", "later_answers", "server_of", "tool_call_rows"]

Answer = tuple[Item, Block]
"""A result and the record it stands in."""

_LATE = datetime.max.replace(tzinfo=UTC)
_SAVED = "<persisted-output>"
_SAVED_TO = re.compile(r"(?:saved to|stored at|written to):?\s+(\S+)")


def later_answers(runs: Iterable[Run], owner: Mapping[str, str]) -> dict[tuple[str, str], Answer]:
    """What runs that repeat another's call say its result was, by that run's id and the call's; the first of each.

    Only the repeated call tells whose result it is: scripted endpoints give the same ids to different calls.
    An id that the repeating run uses for a call of its own as well is left out, for it does not tell which of
    the two a result is of.

    Args:
        runs: in their order of rank, with copies marked.
        owner: id of the run that made a response, by its key.
    """
    found: dict[tuple[str, str], Answer] = {}
    for run in runs:
        repeated: dict[str, tuple[str, datetime | None]] = {}
        own: set[str] = set()
        began = _began(run)
        for item, call in _calls(run):
            made = owner.get(item.key or "") if item.copy else run.run_id
            if made is None or made == run.run_id:
                own.add(call)
            else:
                repeated[call] = made, began.get((item.key, call))
        repeated = {call: whose for call, whose in repeated.items() if call not in own}
        if not repeated:
            continue
        for item in run.items:
            for block in item.blocks:
                if block.call not in repeated or block.kind in CALLS:
                    continue
                made, start = repeated[block.call]
                key = (made, block.call)
                if _is_older(item, start):
                    continue
                if key not in found or (item.time or _LATE) < (found[key][0].time or _LATE):
                    found[key] = (item, block)
    return found


def _calls(run: Run) -> Iterator[tuple[Item, str]]:
    """The calls in all records of a run, with their ids."""
    for item in run.items:
        for block in item.blocks:
            if block.call and block.kind in CALLS:
                yield item, block.call


def _began(run: Run) -> dict[tuple[str | None, str], datetime]:
    """When each call was made, by its response and its id: the first time that any of its rows says.

    A stream's times are the desk's, a transcript's the CLI's: an answer of the one may seem older than its call
    in the other.
    """
    times: dict[tuple[str | None, str], datetime] = {}
    for item, call in _calls(run):
        if item.time is not None:
            times[item.key, call] = min(item.time, times.get((item.key, call), item.time))
    return times


def _is_older(reply: Item, start: datetime | None) -> bool:
    return reply.time is not None and start is not None and reply.time < start


def tool_call_rows(
    run: Run, messages: list[Message], later: Mapping[tuple[str, str], Answer], *, whole: bool
) -> Iterator[dict[str, Any]]:
    """Rows of `tool_calls`, in order of the calls.

    A call that was answered twice keeps its first answer; one that was answered only in another run has it
    from `later`. No answer is older than its call. A result without its call gives no row: its block is in
    `blocks`.

    Args:
        whole: whether `messages` has also what the run repeats of another.
    """
    answers: dict[str, list[Answer]] = {}
    told = [(item, block) for message in messages for block, item in message.blocks]
    # Where a run folder's stream breaks off, its transcript may go on.
    told += [(item, block) for item in run.items for block in item.blocks]
    for item, block in told:
        if block.call and block.kind not in CALLS:
            answers.setdefault(block.call, []).append((item, block))
    began = _began(run)
    spawned = {call: agent for call, agent in run.agents.items() if agent != call}
    seen: set[str] = set()
    for message in messages:
        for block, item in message.blocks:
            key = block.call
            if not key or key in seen or block.kind not in CALLS:
                continue
            seen.add(key)
            start = began.get((item.key, key))
            # What a run repeats answers a call that it repeats, not one of its own that has the same id.
            mine = (
                answer
                for answer in answers.get(key, ())
                if (whole or item.copy or not answer[0].copy) and not _is_older(answer[0], start)
            )
            answer = next(mine, None) or later.get((run.run_id, key))
            yield _row(run, item, block, key, answer, spawned.get(key))


def _row(
    run: Run, item: Item, block: Block, key: str, answer: Answer | None, spawned: str | None
) -> dict[str, Any]:
    name = block.name or "unknown"
    server, tool = server_of(name)
    row: dict[str, Any] = {
        "run_id": run.run_id,
        "tool_use_id": key,
        "tool": name,
        "server": server,
        "mcp_tool": tool,
        "agent": item.agent,
        "turn": item.turn,
        "message_id": item.message_id,
        "status": "no_result",
        "start": item.time,
        "start_s": seconds(item.time, run.origin),
        "input": block.text,
        "input_chars": block.chars,
        "input_bytes": block.chars if block.text.isascii() else len(block.text.encode(errors="replace")),
        "spawned_agent": spawned,
        "is_copy": item.copy,
    }
    if answer:
        reply, outcome = answer
        saved = outcome.text.lstrip().startswith(_SAVED)
        path = _SAVED_TO.search(outcome.text[:2000]) if saved else None
        row |= {
            "status": "error" if outcome.is_error else "ok",
            "end": reply.time,
            "duration_s": seconds(reply.time, item.time),
            "permission": _permission(reply, key),
            "spawned_agent": spawned or _agent(reply, key),
            "result": outcome.text,
            "result_chars": outcome.chars,
            "result_saved": saved,
            "result_path": path[1] if path else None,
        }
    return row


def server_of(name: str) -> tuple[str | None, str | None]:
    """MCP server and tool of a name such as `mcp__memory__read_graph`; nothing for a built-in tool."""
    parts = name.split("__")
    return (parts[1], "__".join(parts[2:])) if len(parts) >= 3 and parts[0] == "mcp" else (None, None)


def _agent(reply: Item, key: str) -> str | None:
    """The sub-agent that a result names, which is of the first call that its record answers."""
    first = next((block.call for block in reply.blocks if block.call), None)
    return as_str(reply.whole.get("agent")) if first == key else None


def _permission(item: Item, key: str) -> str | None:
    for entry in as_list(item.whole.get("meta")):
        if as_dict(entry).get("id") == key:
            return as_str(as_dict(as_dict(entry).get("permission_decision")).get("decision"))
    return None
