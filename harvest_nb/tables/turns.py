"""`turns`: one model response and its tools each, with where the time went."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from harvest_nb.tables.folder import Run
from harvest_nb.tables.items import CALLS, Item
from harvest_nb.tables.values import as_dict, as_float, as_list, as_str, seconds

__all__ = ["turn_rows"]

_HOOK_ATTACHMENTS = ("hook_success", "hook_non_blocking_error", "hook_blocking_error", "hook_cancelled")


@dataclass
class _Turn:
    items: list[Item] = field(default_factory=list)
    answered: bool = False
    start: datetime | None = None
    idle: float = 0.0
    hooks: float = 0.0
    hooks_in_tools: float = 0.0


def turn_rows(run: Run, stops: Mapping[str, str | None]) -> Iterator[dict[str, Any]]:
    """Rows of `turns`, in order of their numbers; `stops` are the stop reasons by response.

    The CLI does not say when a request goes out. `start` is the last thing its agent had to wait for: the
    prompt, a tool result, the start of the sub-agent, or the CLI's own `status: requesting`.
    """
    turns = _collect(run)
    first = True
    for number, turn in sorted(turns.items()):
        row = _row(run, number, turn)
        if row is None:
            continue
        if first:
            row |= _beginning(run)
            first = False
        yield {**row, "stop_reason": stops.get(turn.items[0].key or "")}


def _collect(run: Run) -> dict[int, _Turn]:
    turns: dict[int, _Turn] = {}
    ready: dict[str, datetime | None] = {}
    ended: dict[str, datetime | None] = {}
    idle: dict[str, float] = {}
    latest: dict[str, _Turn] = {}
    hooks: dict[str, Item] = {}
    times = {item.uuid: item.time for item in run.story if item.uuid}
    for item in run.story:
        agent, moment = item.agent or "main", item.time
        if item.turn is not None:
            turn = turns.setdefault(item.turn, _Turn())
            if item.sender == "model" and not turn.answered:
                turn.answered = True
                # A fork or a parallel sub-agent: what came before in the file is not what was waited for.
                parent = times.get(item.parent) if item.parent else None
                turn.start = parent or ready.get(agent)
                turn.idle, idle[agent] = idle.get(agent, 0.0), 0.0
            turn.items.append(item)
            latest[agent] = turn
        if item.sender in ("user", "tool") or item.subtype in ("init", "status"):
            if item.sender == "user" and ended.get(agent):
                idle[agent] = idle.get(agent, 0.0) + max(seconds(moment, ended[agent]) or 0.0, 0.0)
            ready[agent] = moment
        started = as_str(item.whole.get("tool_use_id")) if item.subtype == "task_started" else None
        if started:
            ready[run.agents.get(started, started)] = moment
        spent, within = _hook_seconds(item, hooks)
        if spent and agent in latest:
            latest[agent].hooks += spent
            latest[agent].hooks_in_tools += spent if within else 0.0
        if item.sender in ("model", "tool") or spent:
            ended[agent] = moment or ended.get(agent)
    return turns


def _hook_seconds(item: Item, started: dict[str, Item]) -> tuple[float, bool]:
    """Seconds that hooks took, where a record says so, and whether they ran while tools did."""
    whole = item.whole
    if item.subtype == "stop_hook_summary":
        infos = (as_dict(info) for info in as_list(whole.get("hookInfos")))
        return sum(as_float(info.get("durationMs")) or 0.0 for info in infos) / 1000, False
    if item.type == "attachment" and item.subtype in _HOOK_ATTACHMENTS:
        event = as_str(whole.get("hookEvent")) or ""
        return (as_float(whole.get("durationMs")) or 0.0) / 1000, event.endswith("ToolUse")
    key = as_str(whole.get("hook_id")) if item.type == "system" else None
    if key and item.subtype == "hook_started":
        started[key] = item
    elif key and item.subtype == "hook_response" and key in started:
        spent = max(seconds(item.time, started[key].time) or 0.0, 0.0)
        return spent, (as_str(whole.get("hook_event")) or "").endswith("ToolUse")
    return 0.0, False


def _row(run: Run, number: int, turn: _Turn) -> dict[str, Any] | None:
    response = [item for item in turn.items if item.sender == "model"]
    if not response:
        return None
    first = response[0]
    timed = [item.time for item in response if item.time is not None]
    begin, end = (timed[0], max(timed)) if timed else (None, None)
    answered = [item.time for item in turn.items if item.sender == "tool" and item.time is not None]
    wait = seconds(begin, turn.start)
    # Rows of a transcript are not written in the order of their times: no answer precedes its question.
    wait = None if wait is None else max(wait, 0.0)
    stream = seconds(end, begin)
    tools: float | None = 0.0
    hooks = turn.hooks
    if any(item.sender == "tool" for item in turn.items):
        took = seconds(max(answered), end) if answered else None
        tools = None if took is None else max(took, 0.0)
    if tools is not None:
        hooks_in_tools = min(turn.hooks_in_tools, tools)
        tools -= hooks_in_tools
        hooks += hooks_in_tools - turn.hooks_in_tools
    blocks = {(block.kind, block.call, block.text) for item in response for block in item.blocks}
    return {
        "run_id": run.run_id,
        "turn": number,
        "agent": first.agent,
        "message_id": first.message_id,
        "model": next((item.model for item in response if item.model), None),
        "prompt_no": first.prompt_no,
        "start": turn.start,
        "start_s": seconds(turn.start, run.origin),
        "idle_s": turn.idle,
        "wait_s": wait,
        "stream_s": stream,
        "tools_s": tools,
        "hooks_s": hooks,
        "total_s": _add(wait, stream, tools, hooks),
        "first_sign": "message_start" if first.type == "stream_event" else "block",
        "n_blocks": len(blocks),
        "n_tool_calls": len({block[1] for block in blocks if block[0] in CALLS}),
        "is_copy": first.copy,
    }


def _beginning(run: Run) -> dict[str, Any]:
    """What came before the first turn of a run of ours: sandbox, CLI, MCP servers."""
    marks = as_dict(run.meta.get("marks"))
    sandbox, cli, init = (as_float(marks.get(name)) for name in ("sandbox_created", "cli_started", "init"))
    return {
        "sandbox_s": sandbox,
        "cli_start_s": _less(cli, sandbox),
        "mcp_connect_s": _less(init, cli),
    }


def _add(*parts: float | None) -> float | None:
    return None if None in parts else sum(part for part in parts if part is not None)


def _less(later: float | None, earlier: float | None) -> float | None:
    return None if later is None or earlier is None else max(later - earlier, 0.0)
