"""Asks the real CLI what it charges: scripted usage in, `modelUsage.costUSD` out.

    python -m tests.tables.observe_cli_prices            # says where the committed table differs
    python -m tests.tables.observe_cli_prices --write    # writes tests/tables/cli_prices.json anew
    python -m tests.tables.observe_cli_prices claude-opus-5 claude-haiku-4-5

One process of the bundled CLI for each model name, one prompt for each case. Its figures are cumulative, so
a case costs what the total grew by. The endpoint is on loopback and every credential is made up.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import claude_agent_sdk

TABLE = Path(__file__).parent / "cli_prices.json"
PROGRAM = Path(str(claude_agent_sdk.__file__)).parent / "_bundled" / "claude"
COMPONENTS = ("input", "output", "cache_write_5m", "cache_write_1h", "cache_read", "web_search")
ALL = (1000, 1000, 1000, 1000, 1000, 0)
CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    **{
        part: ((*tuple(1000 * (part == other) for other in COMPONENTS[:5]), 0), {}) for part in COMPONENTS[:5]
    },
    "web_search": ((0, 0, 0, 0, 0, 1), {}),
    "mixed": (ALL, {}),
    "fast": (ALL, {"speed": "fast"}),
    "us": (ALL, {"inference_geo": "us"}),
    "batch": (ALL, {"service_tier": "batch"}),
    # Last: the CLI would compact the conversation before another prompt.
    "long": ((150_000, 1000, 30_000, 30_000, 30_000, 0), {}),
}
"""Units of each component, and what else the usage says."""

MODELS = [
    "claude-opus-5-5",
    "claude-sonnet-5-5",
    "claude-haiku-5-5",
    "claude-opus-5",
    "claude-sonnet-5",
    "claude-fable-5",
    "claude-fable-5-1",
    "claude-fable-5-2",
    "claude-mythos-5",
    "claude-mythos-5-1",
    "claude-mythos-5-2",
    "claude-mythos-preview",
    "claude-opus-4-8",
    "claude-opus-4-7",
    "claude-opus-4-6",
    "claude-opus-4-5",
    "claude-opus-4-5-20251101",
    "claude-opus-4-1",
    "claude-opus-4-1-20250805",
    "claude-opus-4-0",
    "claude-opus-4-20250514",
    "claude-sonnet-4-6",
    "claude-sonnet-4-5",
    "claude-sonnet-4-5-20250929",
    "claude-sonnet-4-0",
    "claude-sonnet-4-20250514",
    "claude-haiku-4-5",
    "claude-haiku-4-5-20251001",
    "claude-3-7-sonnet-20250219",
    "claude-3-5-sonnet-20241022",
    "claude-3-5-haiku-20241022",
    "claude-3-opus-20240229",
    "claude-3-sonnet-20240229",
    "claude-3-haiku-20240307",
    "claude-opus-5[1m]",
    "claude-fable-5[1m]",
    "claude-sonnet-5[1m]",
    "claude-sonnet-4-5[1m]",
    "us.anthropic.claude-opus-4-5-20251101-v1:0",
    "eu.anthropic.claude-sonnet-4-5-20250929-v1:0",
    "anthropic.claude-sonnet-4-6",
    "claude-opus-4-5@20251101",
    "claude-nonsense-9",
]
"""Every model that the CLI of this version prices, names of other clouds, and some that it does not know."""


def usage_of(case: str) -> dict[str, Any]:
    """The `usage` object that the endpoint answers with."""
    (inp, out, five, hour, read, searches), more = CASES[case]
    return {
        "input_tokens": inp,
        "output_tokens": out,
        "cache_creation_input_tokens": five + hour,
        "cache_read_input_tokens": read,
        "cache_creation": {"ephemeral_5m_input_tokens": five, "ephemeral_1h_input_tokens": hour},
        "server_tool_use": {"web_search_requests": searches, "web_fetch_requests": 0},
        "service_tier": "standard",
        **more,
    }


class _Endpoint(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked: list[str]
    case: list[str]

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing."""

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_HEAD  # noqa: N815

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "count_tokens" in self.path:
            self.do_HEAD()
            return
        self.asked.append(body["model"])
        usage = usage_of(self.case[0])
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        head = {
            "id": f"msg_{len(self.asked)}",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
        }
        self._send("message_start", message={**head, "content": [], "stop_reason": None, "usage": usage})
        self._send("content_block_start", index=0, content_block={"type": "text", "text": ""})
        self._send("content_block_delta", index=0, delta={"type": "text_delta", "text": "Yes."})
        self._send("content_block_stop", index=0)
        self._send("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)
        self._send("message_stop")
        self.close_connection = True

    def _send(self, kind: str, **data: Any) -> None:
        self.wfile.write(f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode())


def observe(model: str, cases: list[str] | None = None) -> dict[str, Any]:
    """What the CLI makes of each case for `model`.

    Raises:
        RuntimeError: the CLI ended early, or asked the endpoint more or less than once for a prompt.
    """
    waiting = list(cases or CASES)
    cell, asked = [waiting[0]], list[str]()
    handler = type("Handler", (_Endpoint,), {"asked": asked, "case": cell})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found: dict[str, Any] = {"priced_as": None, "cost_basis": None, "cost_usd": {}}
    with tempfile.TemporaryDirectory() as home, _cli(model, home, server.server_port) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        before = Decimal(0)
        _say(process)
        for line in process.stdout:
            message = json.loads(line)
            if message.get("type") != "result":
                continue
            case = waiting.pop(0)
            if len(asked) != 1 or message.get("is_error"):
                raise RuntimeError(f"{model}, {case}: asked {asked}, {message.get('result')}")
            used = message["modelUsage"]
            found["priced_as"] = ", ".join(used)
            found["cost_basis"] = ", ".join(sorted({item.get("costBasis", "") for item in used.values()}))
            told = sum((Decimal(str(item["costUSD"])) for item in used.values()), Decimal(0))
            found["cost_usd"][case] = float((told - before).quantize(Decimal("1e-12")))
            before = told
            asked.clear()
            if not waiting:
                process.stdin.close()
                break
            cell[0] = waiting[0]
            _say(process)
    server.shutdown()
    server.server_close()
    if waiting:
        raise RuntimeError(f"{model}: the CLI ended before {waiting}")
    return found


def _cli(model: str, home: str, port: int) -> subprocess.Popen[bytes]:
    work = Path(home) / "work"
    work.mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": home,
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}",
        "CLAUDE_CODE_OAUTH_TOKEN": "made-up",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    argv = [str(PROGRAM), "--output-format", "stream-json", "--input-format", "stream-json", "--verbose"]
    return subprocess.Popen(
        [*argv, "--model", model, "--tools", ""],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=work,
    )


def _say(process: subprocess.Popen[bytes]) -> None:
    message = {"type": "user", "message": {"role": "user", "content": "Is it?"}}
    assert process.stdin is not None
    process.stdin.write(json.dumps(message).encode() + b"\n")
    process.stdin.flush()


def cli_version() -> str:
    """The bundled CLI's version."""
    done = subprocess.run([str(PROGRAM), "--version"], capture_output=True, text=True, check=True)
    return done.stdout.split()[0]


def main(words: list[str]) -> int:
    """Observe, and write or compare."""
    models = [word for word in words if not word.startswith("-")] or MODELS
    with ThreadPoolExecutor(2) as pool:
        seen = dict(zip(models, pool.map(observe, models), strict=True))
    table = {"cli_version": cli_version(), "models": seen}
    if "--write" in words:
        TABLE.write_text(json.dumps(table, indent=1) + "\n")
        print(f"wrote {len(seen)} models x {len(CASES)} cases of CLI {table['cli_version']}")
        return 0
    committed = json.loads(TABLE.read_text())["models"]
    wrong = {model: found for model, found in seen.items() if committed.get(model) != found}
    print(json.dumps(wrong, indent=1) if wrong else f"{len(seen)} models as committed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
