"""A session's options: the executor's own call, and what a caller may change in it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any

from claude_agent_sdk import CanUseTool, ClaudeAgentOptions, HookMatcher, PermissionMode
from claude_agent_sdk.types import HookEvent, McpSdkServerConfig

from harvest_nb.errors import SessionError
from harvest_nb.mcp_servers import mcp_config
from harvest_nb.sandbox.base import RULES, Sandbox

__all__ = ["SessionOptions", "config_dir", "recordable", "sdk_options", "starting", "taken_up"]

# Where nothing isolates the agent, what it may do without asking is named instead of everything.
_HOST_ALLOWED = ("Read", "Glob", "Grep", "ToolSearch", "Bash(sha256sum:*)", "Bash(ls:*)", "Bash(cat:*)")

# Of an MCP server: their values may be secrets.
_NAMES_ONLY = ("env", "headers")


@dataclass(frozen=True)
class SessionOptions:
    """What a caller may change."""

    model: str | None = None
    max_turns: int | None = None
    max_budget_usd: float | None = None
    allowed_tools: Sequence[str] = ()
    disallowed_tools: Sequence[str] = ()
    mcp: Sequence[str] | None = None
    """Names of the MCP servers to start (default: those that need no token and those whose token is given)."""
    tools: Mapping[str, McpSdkServerConfig] = field(default_factory=dict)
    """In-process MCP servers by name, made by `claude_agent_sdk.create_sdk_mcp_server`."""
    can_use_tool: CanUseTool | None = None
    """Asked before each tool that nothing else allows; replaces bypassed permissions."""
    hooks: Mapping[HookEvent, Sequence[HookMatcher]] = field(default_factory=dict)
    permission_mode: PermissionMode | None = None
    """Default: `bypassPermissions` where the sandbox isolates, `dontAsk` where it does not, and `default` with
    `can_use_tool`."""
    schema: Mapping[str, Any] | None = None
    """A JSON schema; the answer then comes as `RunResult.structured`."""
    partial_messages: bool = True
    env: Mapping[str, str] = field(default_factory=dict)
    """Settings for the CLI by variable name, such as `CLAUDE_CODE_MAX_RETRIES`; recorded by name. No secrets: those
    are `Setup.tokens`, which are redacted wherever they appear."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Handed to `ClaudeAgentOptions` as it is; its `env` is added to the session's own."""


def config_dir(sandbox: Sandbox) -> str:
    """Where the CLI in `sandbox` keeps its transcripts (`CLAUDE_CONFIG_DIR`)."""
    return str(sandbox.home / ".claude")


async def sdk_options(sandbox: Sandbox, chosen: SessionOptions, tokens: Sequence[str]) -> ClaudeAgentOptions:
    """The SDK's options for a session in `sandbox`, as relevance-api-node would make them.

    Args:
        tokens: names of the token variables that the sandbox will have.

    Raises:
        FileNotFoundError: the sandbox lacks one of the `RULES` files.
    """
    rules = [(await sandbox.read(sandbox.workdir / name)).decode("utf-8") for name in RULES]
    servers: dict[str, Any] = mcp_config(tokens, chosen.mcp)
    if not sandbox.isolated and chosen.mcp is None:
        servers.pop("playwright", None)  # the browser server needs the image's browser
    servers |= chosen.tools
    allowed = [*chosen.allowed_tools]
    if not sandbox.isolated and chosen.can_use_tool is None:
        allowed += [*_HOST_ALLOWED, *(f"mcp__{name}" for name in servers)]
    arguments: dict[str, Any] = {
        "system_prompt": {"type": "preset", "preset": "claude_code", "append": "\n\n".join(rules)},
        "cwd": str(sandbox.workdir),
        "mcp_servers": servers,
        "strict_mcp_config": True,
        "setting_sources": [],
        "permission_mode": chosen.permission_mode or _permission_mode(sandbox, chosen),
        "allowed_tools": allowed,
        "disallowed_tools": [*chosen.disallowed_tools],
        "include_partial_messages": chosen.partial_messages,
        "max_buffer_size": 256 * 1024**2,
        "model": chosen.model,
        "max_turns": chosen.max_turns,
        "max_budget_usd": chosen.max_budget_usd,
        "can_use_tool": chosen.can_use_tool,
        "hooks": {event: [*matchers] for event, matchers in chosen.hooks.items()} or None,
        "output_format": {"type": "json_schema", "schema": dict(chosen.schema)} if chosen.schema else None,
        # The SDK drops the transcript's mirror unless it knows the sandbox's folder by this variable.
        "env": {**chosen.extra.get("env", {}), **chosen.env, "CLAUDE_CONFIG_DIR": config_dir(sandbox)},
    }
    return _answering(ClaudeAgentOptions(**(arguments | {**chosen.extra, "env": arguments["env"]})))


def _answering(options: ClaudeAgentOptions) -> ClaudeAgentOptions:
    """`options` whose callbacks fail in words where their own work was cancelled.

    The SDK takes any cancellation for the CLI's withdrawal of its question, answers nothing, and the CLI would wait
    for ever: no watchdog ends a prompt that waits for a person.
    """
    ask = options.can_use_tool
    hooks = {
        event: [
            replace(matcher, hooks=[_told(hook, f"{event} hook") for hook in matcher.hooks])
            for matcher in matchers
        ]
        for event, matchers in (options.hooks or {}).items()
    }
    return replace(
        options,
        can_use_tool=_told(ask, "permission callback") if ask is not None else None,
        hooks=hooks or None,
    )


def _told(callback: Callable[..., Awaitable[Any]], what: str) -> Callable[..., Awaitable[Any]]:
    @wraps(callback, updated=())
    async def answer(*given: Any) -> Any:
        try:
            return await callback(*given)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise  # the CLI has withdrawn its question, or the session ends
            raise SessionError(f"the {what} was cancelled") from error

    answer.__qualname__ = getattr(callback, "__qualname__", type(callback).__name__)
    return answer


def _permission_mode(sandbox: Sandbox, chosen: SessionOptions) -> PermissionMode:
    if chosen.can_use_tool is not None:
        return "default"
    return "bypassPermissions" if sandbox.isolated else "dontAsk"


def starting(options: ClaudeAgentOptions, session_id: str) -> ClaudeAgentOptions:
    """`options` for a CLI that begins the session `session_id`."""
    return replace(options, session_id=session_id, resume=None, fork_session=False, resume_session_at=None)


def taken_up(
    options: ClaudeAgentOptions, session_id: str, *, fork_to: str | None = None, at: str | None = None
) -> ClaudeAgentOptions:
    """`options` for a CLI that goes on with `session_id`.

    Args:
        fork_to: the id under which it goes on instead, leaving the session as it is.
        at: UUID of the last message that counts.
    """
    return replace(
        options,
        resume=session_id,
        session_id=fork_to,
        fork_session=fork_to is not None,
        resume_session_at=at,
    )


def recordable(options: ClaudeAgentOptions) -> dict[str, Any]:
    """The options as `run.json` keeps them: what differs from the SDK's defaults, callbacks and `env` by name."""
    plain = ClaudeAgentOptions()
    kept = {
        name: _servers(value) if name == "mcp_servers" else _plain(value)
        for name, value in vars(options).items()
        if name not in ("env", "debug_stderr", "session_store", "stderr") and value != getattr(plain, name)
    }
    return kept | {"env": sorted(options.env)}  # names only


def _servers(servers: Any) -> Any:
    if not isinstance(servers, dict):
        return _plain(servers)
    return {
        name: {key: sorted(item) if key in _NAMES_ONLY else _plain(item) for key, item in server.items()}
        for name, server in servers.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return getattr(value, "__qualname__", None) or type(value).__name__
