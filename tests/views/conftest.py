"""A recorded run for the charts: three turns, one of them a sub-agent's, written line by line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harvest_nb.tables import Frames, load

SPENT = {"input_tokens": 1000, "cache_read_input_tokens": 100_000, "cache_creation": {}}


def _answer(ident: str, content: dict[str, Any], output: int, **more: Any) -> dict[str, Any]:
    message = {"id": ident, "model": "claude-sonnet-4-5", "content": [content]}
    return {"type": "assistant", "message": {**message, "usage": {**SPENT, "output_tokens": output}}, **more}


def _result(call: str) -> dict[str, Any]:
    block = {"type": "tool_result", "tool_use_id": call, "content": "ok"}
    return {"type": "user", "message": {"content": [block]}}


def _call(ident: str, name: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": ident, "name": name, "input": {}}


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run folder; `model` prices it, `total` is what the CLI reported."""

    def write(run_id: str = "run-1", *, begin: float = 1_795_000_000, total: float = 0.1215) -> Path:
        talk = [
            (0.0, "out", {"type": "user", "message": {"content": "Look & <see>"}}),
            (1.0, "in", {"type": "system", "subtype": "init", "session_id": "s"}),
            (2.0, "in", _answer(f"{run_id}-a", _call("t1", "mcp__memory__read_graph"), 100)),
            (2.5, "in", _result("t1")),
            (
                3.0,
                "in",
                _answer(f"{run_id}-b", _call("t2", "Bash"), 100, parent_tool_use_id="toolu_subagent"),
            ),
            (3.5, "in", {**_result("t2"), "parent_tool_use_id": "toolu_subagent"}),
            (4.0, "in", _answer(f"{run_id}-c", {"type": "text", "text": "Done."}, 1500)),
            (5.0, "in", {"type": "result", "subtype": "success", "total_cost_usd": total, "modelUsage": {}}),
        ]
        folder = tmp_path / run_id
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({"schema": 1, "run_id": run_id, "status": "success"}))
        with (folder / "stream.jsonl").open("w") as stream:
            for seq, (at, way, message) in enumerate(talk):
                line = {"seq": seq, "t": begin + at, "dir": way, "message": message}
                stream.write(json.dumps(line) + "\n")
        return folder

    return write


@pytest.fixture
def frames(record: Callable[..., Path]) -> Frames:
    return load(record())
