"""Run folders made by hand, with totals worked out by hand; and the real CLI driven without a token."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import claude_agent_sdk
import pytest

from tests.tables.transcripts import usage

START = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
SESSION = "5e551000-0000-4000-8000-000000000001"
MODEL = "claude-sonnet-4-5"


@dataclass
class Writer:
    """Writes one run folder; times are seconds after `START`."""

    path: Path
    run_id: str = "run-1"
    model: str = MODEL
    lines: list[dict[str, Any]] = field(default_factory=list)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    usage = staticmethod(usage)

    @staticmethod
    def model_usage(
        inp: int, out: int, five: int, hour: int, read: int, cost: float, basis: str = "list"
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
            "costBasis": basis,
        }

    @staticmethod
    def text(words: str) -> dict[str, Any]:
        return {"type": "text", "text": words}

    @staticmethod
    def call(ident: str, name: str, **given: Any) -> dict[str, Any]:
        return {"type": "tool_use", "id": ident, "name": name, "input": given}

    def say(self, at: float, message: dict[str, Any], direction: str = "in") -> None:
        self.lines.append(
            {"seq": len(self.lines), "t": START.timestamp() + at, "dir": direction, "message": message}
        )

    def prompt(self, at: float, text: str) -> None:
        message = {"type": "user", "message": {"role": "user", "content": text}}
        self.say(at, message, "out")

    def initialize(self, at: float) -> None:
        request = {"type": "control_request", "request_id": "r", "request": {"subtype": "initialize"}}
        self.say(at, request, "out")
        self.say(at, {"type": "control_response", "response": {"subtype": "success", "request_id": "r"}})
        init = {"type": "system", "subtype": "init", "session_id": SESSION, "model": self.model}
        self.say(at, {**init, "claude_code_version": "2.1.330"})

    def answer(
        self,
        at: float,
        ident: str,
        content: list[dict[str, Any]],
        spent: dict[str, Any],
        *,
        placeholder: int = 2,
        step: float = 0.0,
        parent: str | None = None,
        agent: str | None = None,
        transcript: bool = True,
        partial: bool = False,
        model: str | None = None,
    ) -> None:
        """One response: a row per block, `step` seconds apart, with a placeholder for output tokens."""
        head = {"id": ident, "role": "assistant", "model": model or self.model}
        early = {**head, "usage": {**spent, "output_tokens": placeholder}, "stop_reason": None}
        common = {"parent_tool_use_id": parent, "session_id": SESSION}
        if agent:
            common["agent_id"] = agent
        if partial:
            event = {"type": "message_start", "message": {**early, "content": []}}
            self.say(at, {"type": "stream_event", "event": event, **common})
        stop = "tool_use" if any(block["type"] == "tool_use" for block in content) else "end_turn"
        for index, block in enumerate(content):
            self.say(
                at + step * index, {"type": "assistant", "message": {**early, "content": [block]}, **common}
            )
            if transcript:
                row = {**head, "content": [block], "usage": spent, "stop_reason": stop}
                self.row(at + step * index, row, agent)
        if partial:
            delta = {
                "type": "message_delta",
                "delta": {"stop_reason": stop},
                "usage": {"output_tokens": spent["output_tokens"]},
            }
            self.say(at + step * len(content), {"type": "stream_event", "event": delta, **common})

    def row(self, at: float, message: dict[str, Any], agent: str | None = None) -> None:
        moment = datetime.fromtimestamp(START.timestamp() + at, UTC).isoformat().replace("+00:00", "Z")
        row = {"type": "assistant", "message": message, "timestamp": moment, "sessionId": SESSION}
        self.rows.setdefault(agent or "main", []).append({**row, "requestId": f"req_{message['id']}"})

    def tool_result(
        self,
        at: float,
        call: str,
        content: Any,
        *,
        error: bool = False,
        parent: str | None = None,
        **more: Any,
    ) -> None:
        block = {"type": "tool_result", "tool_use_id": call, "content": content, "is_error": error}
        message = {"type": "user", "message": {"role": "user", "content": [block]}}
        self.say(at, {**message, "parent_tool_use_id": parent, "session_id": SESSION, **more})

    def result(self, at: float, total: float, models: dict[str, Any] | None = None, **more: Any) -> None:
        message = {"type": "result", "subtype": "success", "total_cost_usd": total, "num_turns": 1, **more}
        self.say(at, {**message, "session_id": SESSION, "modelUsage": models or {}})

    def two_turns(self, *, transcript: bool = True, partial: bool = False) -> Writer:
        """A prompt, a shell command, an answer. Worked out at claude-sonnet-4-5's prices, USD per Mtok.

        | response | input 3 | output 15 | 5m 3.75 | 1h 6 | read 0.3 | cost in millionths of a dollar |
        |---|---|---|---|---|---|---|
        | msg_a | 100 | 50 (placeholder 2) | 1,000 | 2,000 | 0 | 300 + 750 + 3,750 + 12,000 + 0 = 16,800 |
        | msg_b | 20 | 30 (placeholder 2) | 0 | 500 | 3,000 | 60 + 450 + 0 + 3,000 + 900 = 4,410 |
        | both | 120 | 80 (placeholders 4) | 1,000 | 2,500 | 3,000 | 21,210; with placeholders 20,070 |
        """
        more: dict[str, Any] = {"transcript": transcript, "partial": partial}
        self.initialize(1.0)
        self.prompt(1.5, "count to two")
        first = [self.text("I will look."), self.call("toolu_1", "Bash", command="echo 1 2")]
        self.answer(3.0, "msg_a", first, self.usage(100, 50, 1000, 2000), step=0.5, **more)
        self.tool_result(4.25, "toolu_1", "1 2")
        self.answer(5.0, "msg_b", [self.text("One, two.")], self.usage(20, 30, 0, 500, 3000), **more)
        self.result(
            9.0,
            0.02121,
            {self.model: self.model_usage(120, 80, 1000, 2500, 3000, 0.02121)},
            result="One, two.",
        )
        return self

    def write(self) -> Path:
        self.path.mkdir(parents=True, exist_ok=True)
        meta = {
            "schema": 1,
            "run_id": self.run_id,
            "prompt": "count to two",
            "provider": "host",
            "endpoint": "scripted",
            "model": self.model,
            "session_id": SESSION,
            "created": START.isoformat(),
            "started": datetime.fromtimestamp(START.timestamp() + 0.6, UTC).isoformat(),  # of the CLI
            "ended": datetime.fromtimestamp(START.timestamp() + 10, UTC).isoformat(),
            "status": "success",
            "marks": {"sandbox_created": 0.5, "cli_started": 0.75, "init": 1.0, "result": 9.0},
            **self.meta,
        }
        (self.path / "run.json").write_text(json.dumps(meta))
        (self.path / "stream.jsonl").write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        folder = self.path / "transcript"
        for agent, rows in self.rows.items():
            name = f"{SESSION}.jsonl" if agent == "main" else f"{SESSION}/subagents/agent-{agent}.jsonl"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return self.path


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., Writer]:
    """Begins a run folder: `new_run()`, or `new_run("another-name")`."""

    def make(run_id: str = "run-1", folder: Path | None = None, **more: Any) -> Writer:
        return Writer((folder or tmp_path) / run_id, run_id=run_id, **more)

    return make


@pytest.fixture(scope="session")
def new_run_anywhere() -> Callable[[Path], Writer]:
    """Begins a run folder in a given place; for properties, which share one fixture over many examples."""
    return lambda folder: Writer(folder / "run-1")


@pytest.fixture
def writer(new_run: Callable[..., Writer]) -> Writer:
    return new_run()


class _Endpoint(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    replies: list[dict[str, Any]]

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: tests print nothing."""

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_HEAD  # noqa: N815

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        reply = self.replies.pop(0)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        stop = "end_turn"
        head = {"id": reply["id"], "type": "message", "role": "assistant"}
        head["model"] = reply.get("model", body["model"])
        early = {**reply["usage"], "output_tokens": min(1, reply["usage"]["output_tokens"])}
        self._send("message_start", message={**head, "content": [], "stop_reason": None, "usage": early})
        for index, block in enumerate(reply["content"]):
            if block["type"] == "tool_use":
                stop = "tool_use"
                opening = {**block, "input": {}}
                delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
            else:
                opening = {"type": "text", "text": ""}
                delta = {"type": "text_delta", "text": block["text"]}
            self._send("content_block_start", index=index, content_block=opening)
            self._send("content_block_delta", index=index, delta=delta)
            self._send("content_block_stop", index=index)
        self._send("message_delta", delta={"stop_reason": stop}, usage=reply["usage"])
        self._send("message_stop")
        self.close_connection = True

    def _send(self, kind: str, **data: Any) -> None:
        self.wfile.write(f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode())


def _bundled_cli() -> Path:
    return Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"


@pytest.fixture
def replying() -> Iterator[Callable[[list[dict[str, Any]]], str]]:
    """Serves scripted replies, each under the model it names or else the one that was asked; gives the base URL."""
    servers: list[ThreadingHTTPServer] = []

    def serve(replies: list[dict[str, Any]]) -> str:
        handler = type("Handler", (_Endpoint,), {"replies": list(replies)})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def drive(tmp_path: Path, replying: Callable[[list[dict[str, Any]]], str]) -> Callable[..., Path]:
    """Runs the real CLI against scripted replies and gives the run folder of what it said."""

    def run(
        replies: list[dict[str, Any]],
        prompts: list[str],
        *,
        model: str = MODEL,
        options: tuple[str, ...] = (),
    ) -> Path:
        home, work, folder = (tmp_path / name for name in ("home", "work", "recorded"))
        for path in (home, work):
            path.mkdir(exist_ok=True)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "ANTHROPIC_BASE_URL": replying(replies),
            "CLAUDE_CODE_OAUTH_TOKEN": "made-up",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }
        argv = [str(_bundled_cli()), "--output-format", "stream-json", "--verbose", "--input-format"]
        argv += ["stream-json", "--model", model, "--allowedTools", "Bash", *options]
        return _record(argv, environment, work, home, folder, prompts)

    return run


def _record(
    argv: list[str], environment: dict[str, str], work: Path, home: Path, folder: Path, prompts: list[str]
) -> Path:
    writer = Writer(folder, run_id="recorded")
    waiting = list(prompts)

    def send(process: subprocess.Popen[bytes]) -> None:
        message = {"type": "user", "message": {"role": "user", "content": waiting.pop(0)}}
        writer.say(time.time() - START.timestamp(), message, "out")
        assert process.stdin is not None
        process.stdin.write(json.dumps(message).encode() + b"\n")
        process.stdin.flush()

    with subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=work,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        send(process)
        for line in process.stdout:
            message = json.loads(line)
            writer.say(time.time() - START.timestamp(), message)
            if message.get("type") == "result":
                if waiting:
                    send(process)
                else:
                    process.stdin.close()
    assert process.returncode == 0
    writer.meta = {"started": None, "ended": None, "created": None}
    writer.write()
    for file in (home / ".claude" / "projects").glob("*/*"):
        target = folder / "transcript" / file.name
        target.parent.mkdir(exist_ok=True)
        _ = shutil.copytree(file, target) if file.is_dir() else shutil.copy(file, target)
    return folder
