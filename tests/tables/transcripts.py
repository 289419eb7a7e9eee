"""Writes small transcripts and stream logs as the CLI does, for tests that work totals out by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

START = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
MODEL = "claude-sonnet-4-5"
"""USD per million tokens: input 3, output 15, 5-minute write 3.75, 1-hour write 6, read 0.3."""


def usage(
    inp: int = 0, out: int = 0, five: int = 0, hour: int = 0, read: int = 0, **more: Any
) -> dict[str, Any]:
    return {
        "input_tokens": inp,
        "output_tokens": out,
        "cache_creation_input_tokens": five + hour,
        "cache_read_input_tokens": read,
        "cache_creation": {"ephemeral_5m_input_tokens": five, "ephemeral_1h_input_tokens": hour},
        "service_tier": "standard",
        **more,
    }


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def call(ident: str, name: str = "Bash", **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": ident, "name": name, "input": given}


@dataclass
class Transcript:
    """One session's file; `at` are seconds after `START`."""

    session: str = "11111111-0000-4000-8000-000000000001"
    agent: str | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    cwd: str = "/home/me/app"

    def row(self, at: float, kind: str, **more: Any) -> dict[str, Any]:
        number = len(self.rows)
        row = {
            "parentUuid": self.rows[-1].get("uuid") if self.rows else None,
            "isSidechain": self.agent is not None,
            "userType": "external",
            "cwd": self.cwd,
            "sessionId": self.session,
            "version": "2.1.200",
            "gitBranch": "main",
            "type": kind,
            "uuid": f"{self.session[:8]}-{self.agent or 'main'}-{number}",
            "timestamp": (START + timedelta(seconds=at)).isoformat().replace("+00:00", "Z"),
            **({"agentId": self.agent} if self.agent else {}),
            **more,
        }
        self.rows.append(row)
        return row

    def user(self, at: float, content: Any, **more: Any) -> dict[str, Any]:
        return self.row(at, "user", message={"role": "user", "content": content}, **more)

    def result(self, at: float, ident: str, content: Any, **more: Any) -> dict[str, Any]:
        block = {"type": "tool_result", "tool_use_id": ident, "content": content, "is_error": False}
        return self.user(at, [block], **more)

    def answer(
        self,
        at: float,
        ident: str | None,
        spent: dict[str, Any] | None,
        *blocks: dict[str, Any],
        stop: str | None = "end_turn",
        model: str = MODEL,
        request: str | None = "",
        **more: Any,
    ) -> None:
        """A response: one row per block, each with the same usage."""
        for block in blocks or (text("Yes."),):
            message: dict[str, Any] = {
                "role": "assistant",
                "type": "message",
                "model": model,
                "content": [block],
            }
            message |= {"stop_reason": stop}
            if ident is not None:
                message["id"] = ident
            if spent is not None:
                message["usage"] = spent
            named = {} if request is None else {"requestId": request or f"req_{ident}"}
            self.row(at, "assistant", message=message, **named, **more)

    def write(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        return path


def stream(session: str, *messages: dict[str, Any], model: str = MODEL) -> list[dict[str, Any]]:
    """A stream log: `system/init` and `messages`, all of one session."""
    init = {"type": "system", "subtype": "init", "model": model, "cwd": "/home/me/app"}
    init |= {"claude_code_version": "2.1.200"}
    lines = [init, *messages]
    return [
        {**line, "session_id": session, "uuid": line.get("uuid", f"{session}-{number}")}
        for number, line in enumerate(lines)
    ]


def streamed(ident: str, spent: dict[str, Any], *blocks: dict[str, Any], **more: Any) -> dict[str, Any]:
    message: dict[str, Any] = {"id": ident, "type": "message", "role": "assistant", "model": MODEL}
    message |= {"content": list(blocks or (text("Yes."),)), "usage": spent, "stop_reason": None}
    return {"type": "assistant", "message": message, "parent_tool_use_id": None, **more}


def result(total: float, models: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    message = {"type": "result", "subtype": "success", "is_error": False, "num_turns": 1}
    message |= {"total_cost_usd": total, "result": "Yes."}
    return {**message, **({"modelUsage": models} if models is not None else {}), **more}


def model_usage(
    inp: int, out: int, five: int, hour: int, read: int, cost: float, **more: Any
) -> dict[str, Any]:
    return {
        "inputTokens": inp,
        "outputTokens": out,
        "cacheReadInputTokens": read,
        "cacheCreationInputTokens": five + hour,
        "cacheCreationEphemeral5mInputTokens": five,
        "cacheCreationEphemeral1hInputTokens": hour,
        "webSearchRequests": 0,
        "costUSD": cost,
        **more,
    }


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
