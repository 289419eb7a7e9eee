"""The tour: a scripted conversation whose every step can only be passed by tools that really ran.

The agent gets a page through an `@` reference in the prompt, reads a file that holds a nonce made for this
run, hashes both with a shell command, and reads the memory graph. Each result is compared with what the desk
knows to be true before the next step is given.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from harvest_nb.endpoint.messages import Block, Text, Thinking, ToolUse
from harvest_nb.endpoint.scripted import Conversation, Script, Step
from harvest_nb.errors import ScenarioError
from harvest_nb.sandbox.base import RULES, Sandbox

__all__ = ["tour"]

GRAPH_TOOL = "mcp__memory__read_graph"
_REFERENCE = re.compile(r"(?<!\S)@([\w./-]*[\w/-])")
_Check = Callable[[Conversation], str | None]


async def tour(sandbox: Sandbox, prompt: str) -> Script:
    """The script for one prompt in one sandbox; writes its nonce to the workspace.

    Args:
        sandbox: where the agent will run; its files are what the results are compared with.
        prompt: names a page by an `@` reference under the sandbox's working directory.

    Raises:
        ScenarioError: the prompt refers to no page, or to one that the sandbox lacks.
    """
    found = _REFERENCE.search(prompt)
    if found is None:
        raise ScenarioError(
            "The tour's prompt refers to no page",
            hint='name one, for example @docs/ai/shared/git-workflow.md, or ask for `endpoint="anthropic"`',
        )
    page_path = sandbox.workdir / found.group(1)
    try:
        page = await sandbox.read(page_path)
    except OSError as error:
        raise ScenarioError(
            f"The prompt refers to @{found.group(1)}, but {page_path} cannot be read: {error}"
        ) from error
    rules = [(await sandbox.read(sandbox.workdir / name)).decode("utf-8") for name in RULES]
    seed = json.loads(await sandbox.read(sandbox.workdir / "memory-seed.json"))
    nonce = f"nonce-{secrets.token_hex(16)}\n"
    nonce_path = sandbox.workspace / f"nonce-{secrets.token_hex(4)}.txt"
    await sandbox.write(nonce_path, nonce.encode())
    checks = _Checks(
        page.decode("utf-8"), rules, nonce.strip(), [entity["name"] for entity in seed["entities"]]
    )
    return Script(
        "tour",
        (
            Step("page", lambda _: _read(found.group(1), nonce_path), checks.page),
            Step("nonce", lambda _: _hash(page_path, nonce_path), checks.nonce),
            Step("hash", lambda _: _look_up(), checks.hashes(page, nonce.encode())),
            Step("load", lambda _: _graph(), checks.loaded),
            Step("graph", lambda c: _answer(found.group(1), page.decode("utf-8"), c), checks.graph),
        ),
    )


class _Checks:
    """What each step must have brought; each method returns a complaint, or None."""

    def __init__(self, page: str, rules: Sequence[str], nonce: str, entities: Sequence[str]) -> None:
        self._page, self._rules, self._nonce, self._entities = page, rules, nonce, entities

    def page(self, c: Conversation) -> str | None:
        missing = [
            name for name, text in zip(RULES, self._rules, strict=True) if text.strip() not in c.system
        ]
        if missing:
            return f"{' and '.join(missing)} not appended to the system prompt"
        lines = [line.strip() for line in self._page.splitlines() if line.strip()]
        text = "\n".join(str(message["content"]) for message in c.body["messages"]) + c.prompt
        absent = [line for line in lines if line not in text and repr(line)[1:-1] not in text]
        if absent:
            return f"the page behind the @ reference did not arrive: {len(absent)} lines, first {absent[0]!r}"
        return None

    def nonce(self, c: Conversation) -> str | None:
        return _expect(c, [self._nonce], "the nonce")

    def hashes(self, *contents: bytes) -> _Check:
        digests = [hashlib.sha256(content).hexdigest() for content in contents]
        return lambda c: _expect(c, digests, "the SHA-256 sums")

    def loaded(self, c: Conversation) -> str | None:
        failed = [text for text, is_error in c.results if is_error]
        if failed or not c.results:
            return f"ToolSearch failed: {failed or 'no result'}"
        return (
            None if GRAPH_TOOL in c.tools | _mentioned(c) else f"{GRAPH_TOOL} is not among the agent's tools"
        )

    def graph(self, c: Conversation) -> str | None:
        return _expect(c, self._entities, "the memory graph's entities")


def _mentioned(c: Conversation) -> set[str]:
    return {GRAPH_TOOL} if GRAPH_TOOL in json.dumps(c.body["messages"][-1]) else set()


def _expect(c: Conversation, wanted: Sequence[str], what: str) -> str | None:
    if not c.results:
        return f"expected a tool result with {what}, got none"
    failed = [text for text, is_error in c.results if is_error]
    if failed:
        return f"expected {what}, but the tool failed: {failed[0][:300]}"
    text = "\n".join(text for text, _ in c.results)
    absent = [item for item in wanted if item not in text]
    return f"expected {what}, not found: {', '.join(absent)}; got {text[:300]!r}" if absent else None


def _read(reference: str, nonce_path: PurePosixPath) -> list[Block]:
    return [
        Thinking(
            f"The page {reference} came with the prompt. The workspace may hold something that belongs to it."
        ),
        Text(f"I have {reference}. Now I read the file in the workspace."),
        ToolUse("Read", {"file_path": str(nonce_path)}),
    ]


def _hash(page: PurePosixPath, nonce_path: PurePosixPath) -> list[Block]:
    return [
        Text("Both files are here. I take their checksums, so that anybody can tell which versions I saw."),
        ToolUse(
            "Bash", {"command": f"sha256sum {page} {nonce_path}", "description": "Checksums of both files"}
        ),
    ]


def _look_up() -> list[Block]:
    return [
        Text("Before I answer I look at what earlier sessions left in the memory graph."),
        ToolUse("ToolSearch", {"query": f"select:{GRAPH_TOOL}", "max_results": 1}),
    ]


def _graph() -> list[Block]:
    return [ToolUse(GRAPH_TOOL, {})]


def _answer(reference: str, page: str, c: Conversation) -> list[Block]:
    headings = [line.lstrip("# ") for line in page.splitlines() if line.startswith("#")]
    title, sections = (headings[0] if headings else reference), headings[1:]
    return [
        Text(
            f"{reference} is “{title}”"
            + (f" and covers: {', '.join(sections)}." if sections else ".")
            + " The checksums match the files in the snapshot, and the memory graph holds its six entities."
        )
    ]
