"""Finds what in a request has the endpoint itself reach other places of the internet."""

from __future__ import annotations

from typing import Any

__all__ = ["reaches_out"]

# Types of tools that run at the endpoint and fetch or send (the Messages API's reference, "Server tools").
_TOOLS = ("web_", "mcp_", "code_execution")


def reaches_out(body: Any) -> str | None:
    """Return the name of a request's tool, server or source that is reached from the endpoint, or None."""
    if not isinstance(body, dict):
        return None
    if body.get("mcp_servers"):
        return "`mcp_servers`"
    tools = body.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind.startswith(_TOOLS):
            return f"`{kind[:100]}`"
    left: list[Any] = [body.get("messages"), body.get("system")]
    while left:
        item = left.pop()
        if isinstance(item, list):
            left.extend(item)
        elif isinstance(item, dict):
            source = item.get("source")
            if isinstance(source, dict) and source.get("type") == "url":
                return "a source with a URL"
            left.extend(value for value in item.values() if isinstance(value, list | dict))
    return None
