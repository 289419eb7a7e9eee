"""Kinds that use Chromium: from Node through Playwright, and through the Playwright MCP server."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

from pydantic import Field

from harvest_nb.checks.base import Check, Context, Outcome, shorten
from harvest_nb.checks.mcp import server_named, started, tool_text
from harvest_nb.checks.mcp_client import mcp_session
from harvest_nb.checks.png import Picture, decode_png

__all__ = ["BrowserMCPCheck", "BrowserNodeCheck", "judge_screenshot", "page_html"]

_LEFT, _RIGHT = (192, 57, 43), (41, 128, 185)
_EXPECTED = "title set by the page's script, screenshot with the page's two colours"


def page_html(title: str) -> str:
    """A page whose script sets `title` and paints its right half; its left half is painted by its style."""
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>not run</title>
<style>html {{ background: rgb{_LEFT} }} div {{ position: fixed; inset: 0 0 0 50% }}</style><div></div>
<script>
document.title = ["{title[:8]}", "{title[8:]}"].join("");
document.querySelector("div").style.background = "rgb{_RIGHT}";
</script></html>"""


def judge_screenshot(data: bytes) -> str:
    """What is wrong with a screenshot of the test page; empty when nothing is.

    Both colours must cover a third of it: a blank or half-drawn page does not pass.
    """
    try:
        picture: Picture = decode_png(data)
    except ValueError as error:
        return f"the screenshot is no readable PNG: {error}"
    shades = picture.colours()
    area = picture.width * picture.height
    if len(shades) < 2:
        return f"the screenshot is blank: {area} pixels of one colour"
    for name, colour in (("style", _LEFT), ("script", _RIGHT)):
        share = sum(count for shade, count in shades.items() if shade[:3] == colour) / area
        if share < 1 / 3:
            return f"the colour from the page's {name} covers {share:.0%} of the screenshot"
    return ""


class BrowserNodeCheck(Check):
    """A Node program opens a local page in Chromium through Playwright, as the sandbox's user.

    `launch` holds Playwright's launch options.
    """

    kind: Literal["browser_node"]
    launch: dict[str, Any] = Field(default_factory=dict)

    def expected(self) -> str:
        """Title and screenshot."""
        return f"Playwright from Node: {_EXPECTED}"

    async def observe(self, context: Context) -> Outcome:
        """Write the page, run the program, look at title and pixels."""
        title = secrets.token_hex(8)
        page, shot = context.scratch / f"{title}.html", context.scratch / f"{title}.png"
        await context.sandbox.write(page, page_html(title).encode())
        env = {"HARVEST_CHECK_LAUNCH": json.dumps(self.launch)}
        done = await context.node("browser", str(page), str(shot), env=env)
        if not done.ok:
            lines = done.stderr.decode("utf-8", "replace").splitlines()
            said = next((line for line in lines if "Error" in line), " ".join(lines[-3:]))
            return Outcome(False, shorten(said) or f"node ended with {done.exit_code}")
        found = json.loads(done.stdout)
        if found["title"] != title:
            return Outcome(False, f"title {found['title']!r}: the page's script did not run")
        data = await context.sandbox.read(shot)
        wrong = judge_screenshot(data)
        return Outcome(
            not wrong, wrong or f"Chromium {found['version']} as uid {found['uid']}, {len(data)} bytes"
        )


class BrowserMCPCheck(Check):
    """The Playwright MCP server opens a local page and takes a screenshot of it."""

    kind: Literal["browser_mcp"]
    server: str = "playwright"

    def expected(self) -> str:
        """Title and screenshot."""
        return f"the {self.server} MCP server: {_EXPECTED}"

    async def observe(self, context: Context) -> Outcome:
        """Serve the page on the sandbox's loopback, navigate, take the screenshot."""
        title = secrets.token_hex(8)
        server = server_named(self.server)
        argv, env = started(server, context)
        env["PLAYWRIGHT_MCP_OUTPUT_DIR"] = str(context.scratch / "playwright")
        folder = context.scratch / f"site-{title}"
        await context.sandbox.write(folder / "index.html", page_html(title).encode())
        async with (
            _served(context, str(folder)) as port,
            mcp_session(context.sandbox, argv, env=env, timeout=self.timeout) as session,
        ):
            opened: Any = await session.call_tool("browser_navigate", {"url": f"http://127.0.0.1:{port}/"})
            said = tool_text(opened)
            if opened.is_error:
                return Outcome(False, f"browser_navigate failed: {shorten(said)}")
            if title not in said:
                return Outcome(False, f"browser_navigate did not report the title: {shorten(said)}")
            shot: Any = await session.call_tool("browser_take_screenshot", {"type": "png"})
            if shot.is_error:
                return Outcome(False, f"browser_take_screenshot failed: {shorten(tool_text(shot))}")
            pictures = [base64.b64decode(block.data) for block in shot.content if block.type == "image"]
            # The browser writes its last state while it goes; a kill alone would leave its processes behind.
            await session.call_tool("browser_close", {})
        if not pictures:
            return Outcome(False, "browser_take_screenshot answered without a picture")
        wrong = judge_screenshot(pictures[0])
        return Outcome(not wrong, wrong or f"page opened, {len(pictures[0])} bytes of screenshot")


@asynccontextmanager
async def _served(context: Context, folder: str) -> AsyncIterator[int]:
    """The port on the sandbox's loopback at which the files of `folder` are served."""
    argv = ["python3", "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", folder]
    process = await context.sandbox.spawn(argv)
    drains: list[asyncio.Task[None]] = []
    try:
        said = b""
        chunks = aiter(process.stdout)
        while b"\n" not in said:
            said += await anext(chunks)
        # "Serving HTTP on 127.0.0.1 port 40123 (http://127.0.0.1:40123/) ..."
        port = int(said.split(b" port ")[1].split()[0])
        drains.append(asyncio.ensure_future(_drain(process.stderr)))
        yield port
    finally:
        await process.kill()
        for task in drains:
            task.cancel()


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    async for _ in chunks:
        pass
