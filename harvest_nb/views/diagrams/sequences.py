"""What happens between the parts in a session, in a resume and in a cancel.

The order of the messages was taken from recorded streams of the claude CLI 2.1.330 under the Claude Agent SDK
0.2.187.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harvest_nb.views.diagrams.draw import Diagram

# `draw` has imported mermaid already, quietly.
from mermaid.sequence import (  # isort: skip
    Actor,
    Alt,
    Box,
    Link,
    Loop,
    Note,
    Participant,
    SequenceDiagram,
)

__all__ = ["cancel", "message_flow", "resume"]

_PARTS: Mapping[str, str] = {
    "run": "session",
    "sdk": "Claude Agent SDK",
    "transport": "SandboxTransport",
    "relay": "relay",
    "cli": "claude CLI",
    "mcp": "MCP server",
    "api": "endpoint",
}


class _Cast:
    """Participants with short ids, so that the text stays readable."""

    def __init__(self, *names: str) -> None:
        self.of: dict[str, Participant] = {}
        for name in names:
            self.of[name] = Participant(_PARTS[name])
            self.of[name].id_ = name

    def box(self, title: str, *names: str) -> Box:
        people: list[Actor | Participant] = [self.of[name] for name in names]
        return Box(title, people)

    def ask(self, source: str, target: str, text: str) -> Link:
        return Link(self.of[source], self.of[target], "Solid-arrow", text)

    def tell(self, source: str, target: str, text: str) -> Link:
        return Link(self.of[source], self.of[target], "Dotted-arrow", text)

    def note(self, over: str | list[str], text: str) -> Note:
        if isinstance(over, str):
            return Note(text, self.of[over])
        people: list[Actor | Participant] = [self.of[name] for name in over]
        return Note(text, people)


def message_flow() -> Diagram:
    """One session, from the prompt to the result."""
    c = _Cast(*_PARTS)
    turn: list[Any] = [
        c.ask("cli", "api", "POST /v1/messages"),
        c.note(["relay", "api"], "a loopback endpoint is on the desk: the relay carries the connection"),
        c.tell("api", "cli", "server-sent events"),
        c.tell("cli", "sdk", "stream_event …, assistant (text, tool_use)"),
        c.ask("cli", "mcp", "tools/call"),
        c.tell("mcp", "cli", "result"),
        c.tell("cli", "sdk", "user (tool_result)"),
        c.tell("sdk", "run", "typed messages"),
    ]
    return Diagram.of(
        "message_flow",
        SequenceDiagram(
            "One session: who says what to whom",
            [
                c.box("rgb(227,237,251) desk", "run", "sdk", "transport"),
                c.box("rgb(228,244,232) sandbox", "relay", "cli", "mcp"),
                c.of["api"],
                c.ask("run", "sdk", "connect"),
                c.ask("sdk", "transport", "connect"),
                c.ask("transport", "relay", "SPAWN claude"),
                c.ask("relay", "cli", "starts it"),
                c.ask("sdk", "cli", "control_request initialize"),
                c.tell("cli", "sdk", "control_response"),
                c.ask("run", "sdk", "query(prompt)"),
                c.ask("sdk", "cli", "user (the prompt)"),
                c.ask("cli", "mcp", "starts it, tools/list"),
                c.tell("mcp", "cli", "tools"),
                c.tell("cli", "sdk", "system/init (tools, mcp_servers)"),
                c.note(["sdk", "transport"], "stream.jsonl comes first"),
                Loop("each turn, until the model asks for no tool", turn),
                c.tell("cli", "sdk", "result (usage, total_cost_usd)"),
                c.tell("sdk", "run", "ResultMessage"),
            ],
            auto_number=True,
        ),
    )


def resume() -> Diagram:
    """A session taken up again, in the same sandbox or in a new one."""
    c = _Cast("run", "sdk", "transport", "cli", "api")
    same = [
        c.note("cli", "the transcript is still under CLAUDE_CONFIG_DIR"),
        c.ask("transport", "cli", "SPAWN claude --resume with the session id"),
    ]
    new = [
        c.note("cli", "a new sandbox, empty"),
        c.ask("run", "cli", "unpack projects/(key of cwd)/(session id).jsonl, subagents, tool-results"),
        c.ask("run", "cli", "write the memory graph"),
        c.ask("transport", "cli", "SPAWN claude --resume with the session id, same cwd"),
    ]
    return Diagram.of(
        "resume",
        SequenceDiagram(
            "Resume: the transcript is what carries a session",
            [
                c.box("rgb(227,237,251) desk", "run", "sdk", "transport"),
                c.box("rgb(228,244,232) sandbox", "cli"),
                c.of["api"],
                c.note("run", "somebody else went on with that run: fork_session"),
                c.ask("run", "sdk", "options with resume = session id (fork_session, resume_session_at)"),
                c.ask("sdk", "transport", "connect"),
                Alt({"same sandbox": same, "new sandbox, from the run folder's transcript": new}),  # type: ignore[dict-item]
                c.ask("sdk", "cli", "user (the next prompt)"),
                c.tell("cli", "sdk", "system/init (the same session id, or the fork's)"),
                c.ask("cli", "api", "POST /v1/messages, the whole history"),
                c.tell("api", "cli", "server-sent events"),
                c.tell("cli", "sdk", "assistant …, result"),
                c.note(
                    ["sdk", "cli"], "total_cost_usd goes on from the transcript's cost-state, else from 0"
                ),
                c.note(["run", "sdk"], "what it began with is taken off"),
            ],
            auto_number=True,
        ),
    )


def cancel() -> Diagram:
    """A turn stopped while a tool runs."""
    c = _Cast("run", "sdk", "cli", "api")
    c.of["tool"] = Participant("a running tool")
    c.of["tool"].id_ = "tool"
    interrupt = [
        c.ask("run", "sdk", "interrupt()"),
        c.ask("sdk", "cli", "control_request interrupt"),
        c.tell("cli", "sdk", "control_response"),
    ]
    streaming = [
        *interrupt,
        c.ask("cli", "api", "closes the stream"),
        c.tell("cli", "sdk", "result (error_during_execution, aborted_streaming)"),
    ]
    early = [
        c.ask("run", "cli", "SIGKILL to its process group, through the relay"),
        c.ask("run", "cli", "SPAWN claude, with the same session id, at the next prompt"),
    ]
    running = [
        *interrupt,
        c.ask("cli", "tool", "ends its processes"),
        c.tell("cli", "sdk", "user (tool_result, rejected), for each open call"),
        c.tell("cli", "sdk", "user (Request interrupted by user for tool use)"),
        c.tell("cli", "sdk", "result (error_during_execution, aborted_tools)"),
    ]
    return Diagram.of(
        "cancel",
        SequenceDiagram(
            "Cancel: the turn ends, the session and the sandbox stay",
            [
                c.box("rgb(227,237,251) desk", "run", "sdk"),
                c.box("rgb(228,244,232) sandbox", "cli", "tool"),
                c.of["api"],
                Alt(
                    {
                        "a response is streaming": streaming,
                        "a tool is running": running,
                        "before system/init, or no result in 1.5 s": early,
                    }
                ),
                c.note(["run", "sdk"], "run.json: cancelled, the tools cut short, the cost so far"),
                c.ask("run", "cli", "the next prompt, in the same session and sandbox"),
            ],
            auto_number=True,
        ),
    )
