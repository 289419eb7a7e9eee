"""What one request to the Messages API carries, in a form that a check or a rule can ask.

Everything is read from the request alone, so that retries, resumed and forked sessions, and many sessions at
once need no state. What the CLI adds of its own accord (reminders, notices of an interrupt, what a local command
printed) is told apart from what a person wrote: only the latter is a prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

__all__ = ["Agent", "Conversation", "own_words", "text_of", "tool_results", "without_reminders"]

Agent = Literal["main", "sub", "side", "compact"]
"""Who asks: the session itself, a sub-agent, a side request without tools (a title, say), a compaction."""

# Texts that the CLI writes into the user's messages (2.1.330, seen).
_CLI_TEXTS = re.compile(
    r"\s*(?:Tool loaded\.\s*$|\[Request interrupted by user|\[SYSTEM NOTIFICATION|<task-notification>"
    r"|<local-command-|<command-name>|<command-message>"
    r"|This session is being continued from a previous conversation)"
)
_COMPACT = re.compile(r"\s*(?:CRITICAL: Respond with TEXT ONLY|Your task is to create a detailed summary)")
# What our own summaries carry over a compaction.
_CARRIED = re.compile(r'\[scenario step (\d+) of prompt ("(?:[^"\\]|\\.)*")\]')


def text_of(content: Any) -> str:
    """All text of a content value, a list of blocks, or one block."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(text_of(part) for part in content)
    if isinstance(content, dict):
        return text_of(content.get("text") or content.get("content") or "")
    return ""


def tool_results(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tool results in a message."""
    content = message.get("content")
    return [b for b in content if b.get("type") == "tool_result"] if isinstance(content, list) else []


def _elements(text: str, name: str) -> Iterator[tuple[int, int]]:
    """Yield where each `<name>…</name>` begins and ends; in linear time, as no regular expression would."""
    first, last = f"<{name}>", f"</{name}>"
    end = 0
    while (start := text.find(first, end)) >= 0 and (close := text.find(last, start)) >= 0:
        end = close + len(last)
        yield start, end


def without_reminders(text: str) -> str:
    """Return `text` without the CLI's reminders."""
    parts: list[str] = []
    end = 0
    for start, after in _elements(text, "system-reminder"):
        parts.append(text[end:start])
        end = after
        while end < len(text) and text[end].isspace():
            end += 1
    return "".join([*parts, text[end:]])


def own_words(text: str) -> str:
    """`text` without what the CLI put there; empty when nothing else is in it."""
    rest = without_reminders(text)
    return "" if _CLI_TEXTS.match(rest) or _COMPACT.match(rest) else rest.strip()


def _texts(message: Mapping[str, Any]) -> list[str]:
    content = message["content"]
    if isinstance(content, str):
        return [content]
    return [block["text"] for block in content if block.get("type") == "text"]


def _is_request(body: Any) -> bool:
    """Return whether the parts of a request that are read here have their types."""
    match body:
        case {"model": str(), "messages": [_, *_] as messages, **rest}:
            tools = rest.get("tools") or []
            named = isinstance(tools, list) and all(
                isinstance(tool, dict) and isinstance(tool.get("name"), str) for tool in tools
            )
            return named and all(map(_is_message, messages))
    return False


def _is_message(message: Any) -> bool:
    match message:
        case {"role": str(), "content": str()}:
            return True
        case {"role": str(), "content": list() as blocks}:
            return all(
                isinstance(block, dict)
                and (block.get("type") != "text" or isinstance(block.get("text"), str))
                for block in blocks
            )
    return False


@dataclass(frozen=True)
class Conversation:
    """One request: its body and its headers (names in lower case).

    Raises:
        ValueError: the body is no request of the Messages API.
    """

    body: dict[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _is_request(self.body):
            raise ValueError("no request of the Messages API")

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages so far."""
        found: list[dict[str, Any]] = self.body["messages"]
        return found

    @property
    def system(self) -> str:
        """The system prompt's text."""
        return text_of(self.body.get("system", ""))

    @property
    def tools(self) -> frozenset[str]:
        """Names of the tools that the agent offers."""
        return frozenset(tool["name"] for tool in self.body.get("tools") or [])

    @property
    def session(self) -> str:
        """The session's id, or an empty text."""
        return self.headers.get("x-claude-code-session-id", "")

    @property
    def agent_id(self) -> str:
        """The sub-agent's id, or an empty text."""
        return self.headers.get("x-claude-code-agent-id", "")

    @cached_property
    def agent(self) -> Agent:
        """Who asks."""
        if any(_COMPACT.match(text) for text in _texts(self.messages[-1])):
            return "compact"
        if not self.tools:
            return "side"
        return "sub" if self.agent_id else "main"

    @cached_property
    def prompt_index(self) -> int:
        """Where the latest prompt stands: the last user message with words of somebody's own."""
        for index in range(len(self.messages) - 1, -1, -1):
            message = self.messages[index]
            if message["role"] == "user" and any(own_words(text) for text in _texts(message)):
                return index
        return 0

    @cached_property
    def _carried(self) -> tuple[int, str] | None:
        """Step and prompt that a compaction's summary carries on, when no prompt has come since."""
        if any(own_words(text) for text in _texts(self.messages[self.prompt_index])):
            return None
        found = _CARRIED.findall(text_of(self.messages[0]["content"]))
        return (int(found[-1][0]), str(json.loads(found[-1][1]))) if found else None

    @cached_property
    def own_prompt(self) -> str:
        """The latest prompt in its writer's own words."""
        if self._carried is not None:
            return self._carried[1]
        words = (own_words(text) for text in _texts(self.messages[self.prompt_index]))
        return "\n".join(text for text in words if text)

    @property
    def prompt(self) -> str:
        """All text of the latest prompt, with what the CLI attached to it."""
        return text_of(self.messages[self.prompt_index]["content"])

    @property
    def prompt_number(self) -> int:
        """How many prompts came before the latest one."""
        return sum(
            any(own_words(text) for text in _texts(m))
            for m in self.messages[: self.prompt_index]
            if m["role"] == "user"
        )

    @cached_property
    def step(self) -> int:
        """How many answers the latest prompt has had so far; a compaction's summary carries it on."""
        answers: int = sum(m["role"] == "assistant" for m in self.messages[self.prompt_index :])
        return answers + (self._carried[0] if self._carried is not None else 0)

    @property
    def summary(self) -> str:
        """What a compaction is answered with, so that the conversation can be taken up where it stood."""
        mark = f"[scenario step {self.step} of prompt {json.dumps(self.own_prompt)}]"
        return f"<analysis>Scripted.</analysis>\n<summary>The conversation so far. {mark}</summary>"

    @cached_property
    def _results(self) -> list[dict[str, Any]]:
        """The tool results in the last message; those beside a prompt are of a turn that was stopped before it."""
        prompted = self.prompt_index == len(self.messages) - 1
        return [] if prompted else list(tool_results(self.messages[-1]))

    @property
    def results(self) -> list[tuple[str, bool]]:
        """Text and error flag of each tool result that answers the latest prompt's calls, without reminders."""
        return [
            (without_reminders(text_of(block.get("content", ""))).rstrip("\n"), bool(block.get("is_error")))
            for block in self._results
        ]

    @property
    def result_tools(self) -> list[str]:
        """Names of the tools whose results those are, in their order."""
        names = {
            block["id"]: block["name"]
            for message in self.messages
            if message["role"] == "assistant" and isinstance(message["content"], list)
            for block in message["content"]
            if block.get("type") == "tool_use"
        }
        return [names.get(block["tool_use_id"], "?") for block in self._results]

    @property
    def calls(self) -> int:
        """How many tools the last answer called, when it was given to the latest prompt."""
        for index in range(len(self.messages) - 1, self.prompt_index, -1):
            if self.messages[index]["role"] == "assistant":
                content = self.messages[index]["content"]
                return sum(b.get("type") == "tool_use" for b in content) if isinstance(content, list) else 0
        return 0

    @property
    def notifications(self) -> list[str]:
        """What background tasks reported in the last message."""
        first, last = len("<task-notification>"), len("</task-notification>")
        return [
            text[start + first : end - last]
            for text in _texts(self.messages[-1])
            for start, end in _elements(text, "task-notification")
        ]
