"""What the endpoint's tests share: requests as the CLI sends them, and a stand-in for a sandbox's places."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path, PurePosixPath
from typing import Any

import httpx

from harvest_nb.endpoint import Endpoint
from harvest_nb.sandbox.relayd.channels import below

REMINDER = {"type": "text", "text": "<system-reminder>\nToday's date is 2026-11-24.\n</system-reminder>"}


class FolderSandbox:
    """As much of a sandbox as an endpoint uses, in a folder of this machine."""

    def __init__(self, base: Path) -> None:
        self.workdir = PurePosixPath(base / "app")
        self.workspace = self.workdir / "workspace"
        self.home = PurePosixPath(base / "home")
        self.memory_file = self.home / "memory" / "memory.jsonl"

    async def write(
        self, path: str | PurePosixPath, data: bytes, *, within: PurePosixPath | None = None
    ) -> None:
        target = Path((within or self.workdir) / path)
        if within is not None:
            target = below(Path(within), target)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    async def read(self, path: str | PurePosixPath) -> bytes:
        return Path(self.workdir / path).read_bytes()


def user(*parts: Any) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts],
    }


def assistant(*parts: Any) -> dict[str, Any]:
    return user(*parts) | {"role": "assistant"}


def call(ident: str, name: str = "Bash", **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": ident, "name": name, "input": given}


def result(ident: str, text: str, *, failed: bool = False) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": ident, "content": text, "is_error": failed}


def body(
    *messages: dict[str, Any], tools: tuple[str, ...] = ("Bash",), stream: bool = True
) -> dict[str, Any]:
    return {
        "model": "claude-sonnet-4-5",
        "system": "You are Claude Code.",
        "tools": [{"name": name, "input_schema": {}} for name in tools],
        "messages": list(messages),
        "stream": stream,
    }


async def post(
    endpoint: Endpoint, content: Any, *, secret: str | None = None, timeout: float = 20, **headers: str
) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=timeout) as client:
        return await client.post(
            f"http://127.0.0.1:{endpoint.port}/v1/messages?beta=true",
            content=json.dumps(content),  # in ASCII, as half a surrogate pair must be
            headers={
                "content-type": "application/json",
                "authorization": f"Bearer {secret or endpoint.secret}",
                **{name.replace("_", "-"): value for name, value in headers.items()},
            },
        )


def sent(response: httpx.Response) -> list[dict[str, Any]]:
    """The data of a stream's events."""
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]


def said(response: httpx.Response) -> str:
    """The text of a streamed answer."""
    return "".join(
        event["delta"].get("text", "") for event in sent(response) if event["type"] == "content_block_delta"
    )


def asked_for(response: httpx.Response) -> dict[str, Any]:
    """The input of a streamed answer's tool call."""
    pieces = (
        e["delta"].get("partial_json", "") for e in sent(response) if e["type"] == "content_block_delta"
    )
    given: dict[str, Any] = json.loads("".join(pieces))
    return given


async def leave_in_mid_request(endpoint: Endpoint, path: str) -> None:
    """Ask with a body that is cut short, and wait until that has been noted."""
    _, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
    lines = (
        f"POST {path} HTTP/1.1",
        "host: x",
        f"authorization: Bearer {endpoint.secret}",
        "content-length: 99",
    )
    writer.write("\r\n".join([*lines, "", '{"model"']).encode())
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()
    await writer.wait_closed()
    async with asyncio.timeout(5):
        while not endpoint.log:
            await asyncio.sleep(0.01)
