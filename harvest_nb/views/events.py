"""What is shown of a session's messages: rows for a reader, whatever shows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from claude_agent_sdk import (
    AssistantMessage,
    Message,
    RateLimitEvent,
    ResultMessage,
    SystemMessage,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)

from harvest_nb.session.result import RunResult
from harvest_nb.views.plain import plain

__all__ = ["LONGEST", "LOOKS", "Row", "arguments", "ended", "rows"]

LONGEST = 400
_LINES = 8  # of a tool's result
# Okabe and Ito's palette, told apart by colour-blind readers too, of a lightness that can be read on white and on
# black; (terminal style, CSS colour).
LOOKS: Mapping[str, tuple[str, str]] = {
    "init": ("bold blue", "#157FC4"),
    "thinking": ("dim italic", "#7a7a7a"),
    "text": ("", "inherit"),
    "tool": ("bold yellow", "#B87A00"),
    "tool result": ("green", "#008F68"),
    "tool error": ("bold red", "#D6480A"),
    "retry": ("yellow", "#B87A00"),
    "limit": ("yellow", "#B87A00"),
    "result": ("bold green", "#008F68"),
    "error": ("bold red", "#D6480A"),
    "cancelled": ("bold yellow", "#B87A00"),
    "you": ("bold", "#157FC4"),
    "note": ("dim", "#7a7a7a"),
}
# What the CLI tells the model when a turn is stopped; `ended` tells a person.
_INTERRUPTED = "[Request interrupted by user"
_STOPPED = "The user doesn't want to proceed with this tool use."


@dataclass(frozen=True)
class Row:
    """One event: seconds since the session was asked for, its kind, and its text in full."""

    seconds: float
    kind: str
    text: str

    @property
    def short(self) -> str:
        """The text on one line, cut where it is long."""
        line = " ".join(self.text.split())
        return line if len(line) <= LONGEST else f"{line[:LONGEST]}… ({len(self.text):,} characters)"

    @property
    def head(self) -> list[str]:
        """The text's first lines, each cut where it is long, and how many more there are."""
        lines = self.text.rstrip().splitlines()
        first = [
            line if len(line) <= LONGEST else f"{line[:LONGEST]}… ({len(line):,} characters)"
            for line in lines[:_LINES]
        ]
        more = len(lines) - len(first)
        return first + [f"… {more} more line{'s' * (more > 1)}"] * (more > 0)


def rows(message: Message, seconds: float) -> list[Row]:
    """The rows of one typed message; messages that say nothing to a reader give none."""

    def row(kind: str, text: str) -> Row:
        return Row(seconds, kind, plain(text))

    match message:
        case SystemMessage(subtype="init", data=data):
            servers = ", ".join(f"{s['name']} ({s['status']})" for s in data.get("mcp_servers", []))
            tools = len(data.get("tools", []))
            return [
                row(
                    "init",
                    f"{data.get('model')} in {data.get('cwd')}, {tools} tools; MCP: {servers or 'none'}",
                )
            ]
        case SystemMessage(subtype="api_retry", data=data):
            return [row("retry", _retry(data))]
        case UserMessage(content=list() as blocks):
            return [found for block in blocks for found in _of_answer(block, row)]
        case AssistantMessage(content=blocks):
            return [found for block in blocks if (found := _of_block(block, row)) is not None]
        case RateLimitEvent(rate_limit_info=info) if info.status != "allowed":
            return [row("limit", f"{info.status}, resets at {info.resets_at}")]
        case ResultMessage(terminal_reason=str() as why) if why.startswith("aborted"):
            return []  # stopped from the desk, which `ended` tells
        case ResultMessage() as result:
            cost = "cost unknown" if result.total_cost_usd is None else f"${result.total_cost_usd:.4f}"
            told = f"{result.subtype}, {result.num_turns} turns, {result.duration_ms / 1000:.2f} s, {cost}"
            return [row("error" if result.is_error else "result", f"{told}: {result.result or ''}")]
    return []


def _retry(data: Mapping[str, Any]) -> str:
    what = f"{data.get('error')} ({data.get('error_status') or 'no answer'})"
    delay = (data.get("retry_delay_ms") or 0) / 1000
    return f"{what}, attempt {data.get('attempt')} of {data.get('max_retries')} in {delay:.1f} s"


def ended(result: RunResult, *, every: bool = False) -> tuple[str, str] | None:
    """Kind and text of the row that tells how a prompt ended; None where a result message has told it.

    With `every` there is always one, and its figures are the prompt's own: a result message holds what the process
    has cost, not what the prompt has.
    """
    cost = "cost unknown" if result.cost_usd is None else f"${result.cost_usd:.4f}"
    turns = "" if result.num_turns is None else f"{result.num_turns} turn{'s' * (result.num_turns != 1)}, "
    figures = f"{turns}{result.seconds:.1f} s, {cost}"
    if result.ok:
        return ("result", figures) if every else None
    if not every and result.status == "error" and str(result.reason).startswith("error_"):
        return None
    return ("cancelled" if result.status == "cancelled" else "error"), f"{result.reason}; {figures}"


def _of_block(block: Any, row: Callable[[str, str], Row]) -> Row | None:
    match block:
        case TextBlock(text=text):
            return row("text", text)
        case ThinkingBlock(thinking=text):
            return row("thinking", text)
        case ToolUseBlock(name=name, input=given):
            return row("tool", f"{name} {arguments(given)}")
        case ToolResultBlock():  # of a tool that the endpoint itself runs
            return _of_result(block, row)
    return None


def _of_answer(block: Any, row: Callable[[str, str], Row]) -> list[Row]:
    match block:
        case TextBlock(text=text):
            return _of_note(text, row)
        case ToolResultBlock():
            return [_of_result(block, row)]
    return []


def _of_note(text: str, row: Callable[[str, str], Row]) -> list[Row]:
    """What the CLI or another agent says in the person's place."""
    return [] if text.startswith(_INTERRUPTED) else [row("note", text)]


def _of_result(block: ToolResultBlock, row: Callable[[str, str], Row]) -> Row:
    said = _content(block.content)
    if block.is_error and said.startswith(_STOPPED):
        return row("tool error", "stopped")
    return row("tool error" if block.is_error else "tool result", said)


def arguments(given: Mapping[str, Any]) -> str:
    """A tool's input on one line."""
    return ", ".join(f"{key}={value!r}" for key, value in given.items())


def _content(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(
            str(part.get("text") or part.get("tool_name") or part.get("type")) for part in content
        )
    return str(content or "(nothing)")
