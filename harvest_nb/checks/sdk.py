"""Kinds that use what an agent runs on: the CLI, the TypeScript SDK, the relay's streams."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import os
import re
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from harvest_nb.checks.base import Check, Context, Outcome, shorten
from harvest_nb.checks.tools import Argv, find_version
from harvest_nb.errors import CheckError, CommandError

__all__ = ["CLIVersionCheck", "RelayCheck", "TypeScriptSDKCheck", "VersionsCheck", "bundled_cli_version"]

TYPESCRIPT_SDK = "@anthropic-ai/claude-agent-sdk"


def bundled_cli_version() -> str:
    """The version of the CLI that the installed Claude Agent SDK for Python bundles.

    Raises:
        CheckError: the SDK does not say.
    """
    # No public name tells it (the SDK is pinned), and importing the whole SDK for one constant takes seconds.
    found = importlib.util.find_spec("claude_agent_sdk")
    for folder in (found.submodule_search_locations if found else None) or ():
        path = Path(folder) / "_cli_version.py"
        match = (
            re.search(r'^__cli_version__ = "([^"]+)"', path.read_text(), re.MULTILINE)
            if path.is_file()
            else None
        )
        if match:
            return match.group(1)
    raise CheckError(
        "The installed claude-agent-sdk names no bundled CLI version", hint="install the pinned version"
    )


async def _imported(context: Context, package: str) -> dict[str, str]:
    """What the program `sdk.mjs` found: `query` (a JavaScript type), `version`, `resolved` (a path).

    Raises:
        CommandError: the import failed; the message is Node's own.
    """
    done = await context.node("sdk", package)
    if not done.ok:
        # Node's own message stands on the line that names the error; the rest is a stack.
        lines = done.stderr.decode("utf-8", "replace").splitlines()
        said = next((line for line in lines if "Error" in line), " ".join(lines[-3:]))
        raise CommandError(said.strip() or f"node ended with {done.exit_code}", completed=done)
    found: dict[str, str] = json.loads(done.stdout)
    return found


class CLIVersionCheck(Check):
    """The CLI in the sandbox is exactly the version that the Python SDK here bundles."""

    kind: Literal["cli_version"]
    argv: Argv = ("claude", "--version")

    def expected(self) -> str:
        """The bundled version."""
        return f"`{' '.join(self.argv)}` says {bundled_cli_version()}, as bundled with the Python SDK"

    async def observe(self, context: Context) -> Outcome:
        """Call the CLI."""
        done = await context.run(self.argv)
        if not done.ok:
            return Outcome(
                False, f"exit code {done.exit_code}: {shorten(done.stderr.decode('utf-8', 'replace'))}"
            )
        found = find_version(done.text)
        if found is None:
            return Outcome(False, f"no version in: {shorten(done.text) or 'no output'}")
        return Outcome(str(found) == bundled_cli_version(), str(found))


class TypeScriptSDKCheck(Check):
    """The TypeScript SDK can be imported from `/app` and exports `query`."""

    kind: Literal["typescript_sdk"]
    package: str = TYPESCRIPT_SDK

    def expected(self) -> str:
        """What the import gives."""
        return f"import {self.package} from /app: query is a function"

    async def observe(self, context: Context) -> Outcome:
        """Import it in a module whose names resolve from the sandbox's `workdir`."""
        try:
            found = await _imported(context, self.package)
        except CommandError as error:
            return Outcome(False, shorten(error.message))
        seen = f"query is a {found['query']}, version {found['version']}, from {found['resolved']}"
        return Outcome(found["query"] == "function", seen)


class VersionsCheck(Check):
    """The versions that the manifest records are those in the sandbox, and the Python SDK is the one here."""

    kind: Literal["versions"]

    def expected(self) -> str:
        """The recorded ones."""
        return "Node.js, Python, CLI and both SDKs as manifest.json records them"

    async def observe(self, context: Context) -> Outcome:
        """Ask each program and compare."""
        recorded = (await context.manifest()).get("versions") or {}
        found = {
            "node": str(find_version((await context.run(["node", "--version"])).text)),
            "python": str(find_version((await context.run(["python3", "--version"])).text)),
            "cli": str(find_version((await context.run(["claude", "--version"])).text)),
            "sdk_typescript": (await _imported(context, TYPESCRIPT_SDK))["version"],
            "sdk_python": version("claude-agent-sdk"),
        }
        problems = [
            f"{name} is {value}, recorded {recorded.get(name, 'nowhere')}"
            for name, value in found.items()
            if recorded.get(name) != value
        ]
        return Outcome(not problems, "; ".join(problems) or ", ".join(f"{n} {v}" for n, v in found.items()))


class RelayCheck(Check):
    """The relay carries bytes, exit codes, signals, files and connections as they are."""

    kind: Literal["relay"]
    size: int = 1024 * 1024
    """Bytes that go through a process, a file and a connection."""

    def expected(self) -> str:
        """What is carried."""
        return f"{self.size} bytes intact through a process, a file and a connection; exit code 7; a signal as 143"

    async def observe(self, context: Context) -> Outcome:
        """Send random bytes each way and compare."""
        sandbox, data = context.sandbox, os.urandom(self.size)
        problems: list[str] = []
        echoed = await sandbox.run(["cat"], input=data)
        if echoed.stdout != data:
            problems.append(f"a process gave {len(echoed.stdout)} other bytes")
        path = context.scratch / f"relay-{uuid.uuid4().hex}"
        await sandbox.write(path, data)
        if await sandbox.read(path) != data:
            problems.append("a file came back changed")
        code = (await sandbox.run(["sh", "-c", "exit 7"])).exit_code
        if code != 7:
            problems.append(f"exit code 7 came as {code}")
        code = (await sandbox.run(["sh", "-c", "kill -TERM $$"])).exit_code
        if code != 143:
            problems.append(f"a SIGTERM came as {code}")
        digest = await _digest_through_connection(context, data)
        if digest != hashlib.sha256(data).hexdigest():
            problems.append("a connection to the desk changed the bytes")
        return Outcome(not problems, "; ".join(problems) or f"{self.size} bytes three ways, 7, 143")


async def _digest_through_connection(context: Context, data: bytes) -> str:
    """SHA-256 of what a program in the sandbox reads from a server here that sends `data` and closes."""

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = await context.sandbox.forward("127.0.0.1", server.sockets[0].getsockname()[1])
        script = (
            "import hashlib, socket, sys\n"
            "whole = hashlib.sha256()\n"
            "with socket.create_connection(('127.0.0.1', int(sys.argv[1])), 20) as s:\n"
            "    while chunk := s.recv(65536):\n"
            "        whole.update(chunk)\n"
            "sys.stdout.write(whole.hexdigest())\n"
        )
        return (await context.run(["python3", "-I", "-c", script, str(port)])).check().text
