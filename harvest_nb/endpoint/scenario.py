"""Scenario files: what a scripted model says, written as YAML that a person reads and writes.

A scenario is a list of rules; the first one whose `when` fits the conversation answers. A rule answers once, or
with a list of `steps`, one for each answer that the prompt has had; the last step answers whatever comes after.
What a step expects of the request is checked before it answers: by default each tool that the step before called
must have brought a result that is no error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from harvest_nb.endpoint.conversation import Agent, Conversation
from harvest_nb.endpoint.faults import Fault
from harvest_nb.endpoint.placeholders import check_placeholders

__all__ = ["AnswerSpec", "Expect", "Pattern", "Rule", "ScenarioFile", "UsageSpec", "When"]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _checked_pattern(value: str) -> str:
    if len(value) > 1 and value.startswith("/") and value.endswith("/"):
        try:
            re.compile(value[1:-1])
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
    return check_placeholders(value)


Pattern = Annotated[str, AfterValidator(_checked_pattern)]
"""Text that must be contained (letter case counts), or a regular expression between slashes."""
Filled = Annotated[str, AfterValidator(check_placeholders)]


def found_in(pattern: str, text: str) -> bool:
    """Whether `pattern` (its placeholders filled) occurs in `text`."""
    if len(pattern) > 1 and pattern.startswith("/") and pattern.endswith("/"):
        return re.search(pattern[1:-1], text, re.MULTILINE) is not None
    return pattern in text


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class When(_Spec):
    """Which requests a rule is for. What is not given does not matter, except that `agent` is `main`."""

    agent: Agent | Literal["any"] = "main"
    prompt: Pattern | None = None
    """In the latest prompt's own words."""
    prompt_number: int | None = Field(None, ge=0)
    """The first prompt of a conversation is 0."""
    step: int | list[int] | None = None
    """How many answers the prompt has had."""
    tool: str | None = None
    """A result of this tool is in the last message."""
    result: Pattern | None = None
    """In a tool result of the last message."""
    failed: bool | None = None
    """Whether a tool result of the last message is an error."""
    notified: bool | None = None
    """Whether the last message reports the end of a background task."""
    offers: str | None = None
    """The agent offers this tool."""

    def fits(self, c: Conversation, fill: Any) -> bool:
        """Whether the request is one of these."""
        steps = self.step if isinstance(self.step, list) else [self.step]
        return (
            self.agent in ("any", c.agent)
            and (self.prompt is None or found_in(fill(self.prompt), c.own_prompt))
            and (self.prompt_number is None or self.prompt_number == c.prompt_number)
            and (self.step is None or c.step in steps)
            and (self.tool is None or self.tool in c.result_tools)
            and (self.result is None or any(found_in(fill(self.result), text) for text, _ in c.results))
            and (self.failed is None or self.failed == any(is_error for _, is_error in c.results))
            and (self.notified is None or self.notified == bool(c.notifications))
            and (self.offers is None or self.offers in c.tools)
        )


class Expect(_Spec):
    """What a request must bring, or the run fails. `contains` and `matches` look at all tool results together."""

    results: int | None = Field(None, ge=0)
    """How many tool results (default: as many as the last answer called tools)."""
    contains: list[Filled] = []
    matches: list[Filled] = []
    """Regular expressions."""
    equals: Filled | None = None
    """The whole text of the one result."""
    error: bool | Literal["any"] = False
    """Whether the results must be errors, must not, or may be."""
    system: list[Filled] = []
    """In the system prompt."""
    offers: list[str] = []
    """Tools that the agent must offer."""

    @field_validator("contains", "matches", "system", "offers", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return _listed(value)

    @field_validator("matches")
    @classmethod
    def _regular(cls, value: list[str]) -> list[str]:
        for pattern in value:
            _checked_pattern(f"/{pattern}/")
        return value

    def complaint(self, c: Conversation, fill: Any) -> str | None:
        """What is wrong with the request, or None."""
        results = c.results
        shown = "; ".join(f"{text[:300]!r}" for text, _ in results) or "no tool result"
        wanted = self.results if self.results is not None else c.calls
        if len(results) != wanted:
            return f"expected {wanted} tool results, got {len(results)}: {shown}"
        wrong = [text for text, is_error in results if self.error != "any" and is_error != self.error]
        if wrong and self.error is False:
            return f"the tool failed: {wrong[0][:300]}"
        if wrong:
            return f"the tool should have failed, but brought {wrong[0][:300]!r}"
        text = "\n".join(text for text, _ in results)
        for needle in map(fill, self.contains):
            if needle not in text:
                return f"expected {needle!r} in the tool's result, got {shown}"
        for pattern in map(fill, self.matches):
            if re.search(pattern, text, re.MULTILINE) is None:
                return f"expected the tool's result to match /{pattern}/, got {shown}"
        if self.equals is not None and text.strip() != fill(self.equals).strip():
            return f"expected the tool's result to be {fill(self.equals)!r}, got {shown}"
        for needle in map(fill, self.system):
            if needle not in c.system:
                return f"expected {needle!r} in the system prompt"
        missing = [name for name in self.offers if name not in c.tools]
        return f"the agent does not offer {', '.join(missing)}" if missing else None


class UsageSpec(_Spec):
    """Tokens to report; what is not given is counted from the request and the answer."""

    input: int | None = Field(None, ge=0)
    output: int | None = Field(None, ge=0)
    cache_read: int | None = Field(None, ge=0)
    cache_write_5m: int | None = Field(None, ge=0)
    cache_write_1h: int | None = Field(None, ge=0)


class AnswerSpec(_Spec):
    """One answer: thinking, then text, then tool calls."""

    name: str = ""
    expect: Expect = Expect()
    thinking: Filled | None = None
    text: Filled | None = None
    tools: list[dict[str, dict[str, Any]]] = []
    """Each `Name: {input}`; several are called at once."""
    usage: UsageSpec = UsageSpec()
    delay: float = Field(0.0, ge=0, le=3600)
    """Seconds before the answer begins."""
    pace: float = Field(0.0, ge=0, le=60)
    """Seconds between two deltas."""
    piece: int = Field(48, ge=1)
    """Characters a delta."""
    stop_reason: (
        Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "pause_turn", "refusal"] | None
    ) = None
    fault: Fault | None = None

    @field_validator("tools", mode="before")
    @classmethod
    def _calls(cls, value: Any) -> Any:
        for call in _listed(value):
            if not isinstance(call, Mapping) or len(call) != 1:
                raise ValueError("each tool call is one `Name: {its input}`")
        return [{name: given or {} for name, given in call.items()} for call in _listed(value)]

    @field_validator("tools")
    @classmethod
    def _filled(cls, value: list[dict[str, dict[str, Any]]]) -> list[dict[str, dict[str, Any]]]:
        check_placeholders(value)
        return value

    @model_validator(mode="after")
    def _says_something(self) -> AnswerSpec:
        if self.thinking is None and self.text is None and not self.tools and self.fault is None:
            raise ValueError("an answer needs `text`, `thinking`, `tools` or a `fault`")
        return self


class Rule(AnswerSpec):
    """An answer, or `steps` of them, for the requests that `when` describes."""

    when: When = When()
    steps: list[AnswerSpec] = []

    @model_validator(mode="after")
    def _says_something(self) -> Rule:
        own = {
            "thinking",
            "text",
            "tools",
            "fault",
            "expect",
            "usage",
            "delay",
            "pace",
            "piece",
            "stop_reason",
        }
        if self.steps:
            both = sorted(own & self.model_fields_set)
            if both:
                raise ValueError(f"`steps` and `{both[0]}` exclude each other: put it into a step")
            return self
        if self.thinking is None and self.text is None and not self.tools and self.fault is None:
            raise ValueError("a rule needs `steps`, or an answer: `text`, `thinking`, `tools` or a `fault`")
        return self


class ScenarioFile(_Spec):
    """A whole file."""

    about: str
    """What it is for, and what the CLI was seen to do with it."""
    prompt: str = "Go ahead."
    """A prompt that fits it."""
    files: dict[Filled, Filled] = {}
    """Written before the session starts: path in the sandbox to content."""
    rules: list[Rule] = Field(min_length=1)
