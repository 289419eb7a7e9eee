"""The kind that makes the executor's own call: `query()` of the TypeScript SDK, from a program in the sandbox."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from typing import Any, Literal

from harvest_nb.checks.base import Check, Context, Outcome, program, shorten
from harvest_nb.endpoint.messages import Text, ToolUse
from harvest_nb.endpoint.scripted import Conversation, Endpoint, Script, Step, scripted
from harvest_nb.mcp_servers import mcp_config
from harvest_nb.sandbox.base import Completed

__all__ = ["HARD_PROMPT", "ProductionCallCheck", "judge_messages"]

# Whatever would end a string, start a substitution or a command, or be rewritten on its way, if the prompt were
# ever pasted into a program, a shell line or a template.
HARD_PROMPT = (
    "Quotes \" ' \"\"\" ''' `backticks` and ```fences```; ${process.exit(3)} $(touch broken) $HOME %s {0} {{x}}\n"
    "a second line with \\n and \\\\ and a tab\there; </script> <!-- --> */ // #\n"
    "\n"
    "letters: äöü, 漢字, \u2028 line separator, and the end '); }"
)

_RULES = ("claude.md", "autonomous-agent.md")

# How Daytona's `code_run` starts a program: the code in base64 ($1), then the arguments. JavaScript comes to Node on
# its input; TypeScript goes through a file, as ts-node reads none, and is compiled to CommonJS without a type check.
# Code that is run so lies in no folder of the project: `/tmp` must find the SDK as `/app` does.
_CODE_RUN = {
    "javascript": """printf '%s' "$1" | base64 -d | node - "$2\"""",
    "typescript": """_f=/tmp/dtn_$$.ts
printf '%s' "$1" | base64 -d > "$_f"
npm_config_loglevel=error npx ts-node -T --ignore-diagnostics 5107 -O '{"module":"CommonJS"}' "$_f" "$2"
_dtn_ec=$?
rm -f "$_f"
exit $_dtn_ec""",
}


def judge_messages(messages: list[dict[str, Any]], workdir: str, server: str) -> list[str]:
    """What is wrong with the messages that `query()` gave; empty when nothing is."""
    problems: list[str] = []
    init = next((m for m in messages if m.get("type") == "system" and m.get("subtype") == "init"), None)
    if init is None:
        problems.append("no system/init message")
    else:
        if init.get("cwd") != workdir:
            problems.append(f"the session's working directory is {init.get('cwd')}")
        states = {entry["name"]: entry["status"] for entry in init.get("mcp_servers", [])}
        if states.get(server) not in ("connected", "pending"):
            problems.append(f"MCP server {server}: {states.get(server, 'not started')}")
    problems += [
        f"no {kind} message"
        for kind in ("assistant", "user")
        if kind not in {m.get("type") for m in messages}
    ]
    result = messages[-1] if messages and messages[-1].get("type") == "result" else None
    if result is None:
        problems.append("no result at the end")
    elif result.get("subtype") != "success" or result.get("is_error"):
        problems.append(
            f"result {result.get('subtype')}: {shorten(str(result.get('result') or result.get('errors')))}"
        )
    return problems


class ProductionCallCheck(Check):
    """A program imports the TypeScript SDK and calls `query()` as the executor does, started as `code_run` does.

    It is written in `language`. The `claude_code` preset with both rule files appended, working directory `/app`,
    an MCP server from the environment, against a scripted endpoint on the desk. The prompt is `HARD_PROMPT`; it
    must arrive intact.
    """

    kind: Literal["production_call"]
    server: str = "memory"
    language: Literal["javascript", "typescript"] = "javascript"

    def expected(self) -> str:
        """What the call must bring."""
        return f"query() from {self.language}: prompt intact, rules appended, a tool run for real, result success"

    async def observe(self, context: Context) -> Outcome:
        """Serve the script, make the call, compare what both ends saw."""
        sandbox = context.sandbox
        nonce = secrets.token_hex(16)
        folder = context.scratch / f"call-{secrets.token_hex(4)}"
        await sandbox.write(folder / "nonce.txt", nonce.encode())
        # A store of its own: two memory servers on one file overwrite each other.
        await sandbox.write(folder / "memory.jsonl", b"")
        rules = [sandbox.workdir / name for name in _RULES]
        texts = [(await sandbox.read(path)).decode("utf-8") for path in rules]
        call = {
            "prompt": HARD_PROMPT,
            "rules": [str(path) for path in rules],
            "options": await self._options(context),
        }
        await sandbox.write(folder / "call.json", json.dumps(call).encode())
        async with scripted(_script(f"{folder}/nonce.txt", nonce, texts)) as endpoint:
            env = await _environment(context, endpoint) | {
                "CLAUDE_CONFIG_DIR": str(folder / "claude"),
                "MEMORY_FILE_PATH": str(folder / "memory.jsonl"),
            }
            done = await self._call(context, f"{folder}/call.json", env)
        if endpoint.failures:
            return Outcome(False, shorten(endpoint.failures[0]))
        if not done.ok:
            lines = done.stderr.decode("utf-8", "replace").splitlines()
            said = next((line for line in lines if "Error" in line), " ".join(lines[-3:]))
            return Outcome(False, shorten(said) or f"node ended with {done.exit_code}")
        messages = [json.loads(line) for line in done.text.splitlines() if line.strip()]
        problems = judge_messages(messages, str(sandbox.workdir), self.server)
        if endpoint.requests < 2:
            problems.append(f"the endpoint was asked {endpoint.requests} times")
        return Outcome(
            not problems, shorten("; ".join(problems)) or f"{len(messages)} messages, result success"
        )

    async def _call(self, context: Context, call: str, env: dict[str, str]) -> Completed:
        if not context.sandbox.isolated:
            # A desk's Node may be too old to see by itself that its input is a module.
            return await context.node("production", call, env=env)
        code = program("production.ts" if self.language == "typescript" else "production.mjs")
        packed = base64.b64encode(b"process.argv.splice(1, 1);\n" + code).decode()
        argv = ["sh", "-c", _CODE_RUN[self.language], "sh", packed, call]
        return await context.run(argv, env=env, cwd=context.sandbox.workdir)

    async def _options(self, context: Context) -> dict[str, Any]:
        options: dict[str, Any] = {
            "cwd": str(context.sandbox.workdir),
            "mcpServers": mcp_config(only=[self.server]),
            "allowedTools": ["Bash(sha256sum:*)"],
            "settingSources": [],
            "maxTurns": 4,
        }
        if context.sandbox.isolated:
            return options | {"permissionMode": "bypassPermissions", "allowDangerouslySkipPermissions": True}
        # Outside the image the SDK finds no CLI of its own, and a desk's root may not bypass permissions.
        found = (await context.run(["sh", "-c", "command -v claude"])).check()
        return options | {"pathToClaudeCodeExecutable": found.text.strip()}


async def _environment(context: Context, endpoint: Endpoint) -> dict[str, str]:
    assert endpoint.port is not None
    port = await context.sandbox.forward("127.0.0.1", endpoint.port)
    return {
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}",
        "CLAUDE_CODE_OAUTH_TOKEN": endpoint.secret,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }


def _script(path: str, nonce: str, rules: list[str]) -> Script:
    """A command on a file that only the sandbox has, and an end; what each brought is compared first."""
    digest = hashlib.sha256(nonce.encode()).hexdigest()

    def prompt_and_rules(c: Conversation) -> str | None:
        if HARD_PROMPT not in c.prompt:
            return f"the prompt did not arrive intact: {c.prompt[-300:]!r}"
        absent = [name for name, text in zip(_RULES, rules, strict=True) if text.strip() not in c.system]
        return f"{' and '.join(absent)} not appended to the system prompt" if absent else None

    def tool_ran(c: Conversation) -> str | None:
        seen = "\n".join(text for text, _ in c.results)
        return None if digest in seen else f"the command did not give the file's SHA-256: {seen[:300]!r}"

    run = ToolUse("Bash", {"command": f"sha256sum {path}", "description": "Checksum of a file"})
    return Script(
        "production call",
        (
            Step("prompt", lambda _: [Text("I take the file's checksum."), run], prompt_and_rules),
            Step("checksum", lambda _: [Text("The checksum is there.")], tool_ran),
        ),
    )
