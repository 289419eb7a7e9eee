"""The verbs about sessions, with their displays: `run`, `resume`, `chat`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from claude_agent_sdk import CanUseTool, HookMatcher, Message, PermissionMode
from claude_agent_sdk.types import HookEvent, McpSdkServerConfig

from harvest_nb.endpoint import Scenario
from harvest_nb.endpoint.open import check_spec
from harvest_nb.errors import SettingsError
from harvest_nb.providers import get_provider, name_for
from harvest_nb.sandbox.base import Provider
from harvest_nb.session.chat import Chat
from harvest_nb.session.open import LIVE, Setup
from harvest_nb.session.options import SessionOptions
from harvest_nb.session.result import RunResult
from harvest_nb.session.resume import find_past
from harvest_nb.session.run import run_session
from harvest_nb.settings import ENDPOINT_TOKEN, given_tokens, load_settings
from harvest_nb.snapshot import Snapshot
from harvest_nb.views.chat import ChatView
from harvest_nb.views.live import LiveFlow
from harvest_nb.views.permission import questions_here

__all__ = ["SessionArguments", "chat", "plan", "resume", "run", "shown"]

TALK = "conversation"
"""The scenario of a scripted endpoint that goes on with something, or is talked to."""


class SessionArguments(TypedDict, total=False):
    """What `run`, `resume` and `chat` take alike; `run` says what each is."""

    provider: str | Provider
    snapshot: Snapshot | str | None
    endpoint: str | Path
    scenario: str | Path | Scenario | None
    record: Path | str | None
    model: str | None
    max_turns: int | None
    max_budget_usd: float | None
    allowed_tools: Sequence[str]
    disallowed_tools: Sequence[str]
    permission_mode: PermissionMode | None
    can_use_tool: CanUseTool | Literal["ask"] | None
    hooks: Mapping[HookEvent, Sequence[HookMatcher]] | None
    tools: Mapping[str, McpSdkServerConfig] | None
    schema: Mapping[str, Any] | None
    partial_messages: bool
    mcp_servers: Sequence[str] | None
    mcp: str
    tokens: Mapping[str, str] | None
    runs_dir: Path | str | None
    network: str | None
    pool: int
    port: int
    idle_timeout: float
    timeout: float | None
    parameters: Mapping[str, Any] | None


async def run(
    prompt: str,
    *,
    provider: str | Provider = "docker",
    snapshot: Snapshot | str | None = None,
    endpoint: str | Path = "scripted",
    scenario: str | Path | Scenario | None = None,
    record: Path | str | None = None,
    attachments: Sequence[Path | str] = (),
    model: str | None = None,
    max_turns: int | None = None,
    max_budget_usd: float | None = None,
    allowed_tools: Sequence[str] = (),
    disallowed_tools: Sequence[str] = (),
    permission_mode: PermissionMode | None = None,
    can_use_tool: CanUseTool | Literal["ask"] | None = None,
    hooks: Mapping[HookEvent, Sequence[HookMatcher]] | None = None,
    tools: Mapping[str, McpSdkServerConfig] | None = None,
    schema: Mapping[str, Any] | None = None,
    partial_messages: bool = True,
    mcp_servers: Sequence[str] | None = None,
    mcp: str = "require",
    tokens: Mapping[str, str] | None = None,
    runs_dir: Path | str | None = None,
    network: str | None = None,
    pool: int = 0,
    port: int = 0,
    idle_timeout: float = 600.0,
    timeout: float | None = None,
    parameters: Mapping[str, Any] | None = None,
    on_message: Callable[[Message], None] | None = None,
    check: bool = True,
) -> RunResult:
    """Run one prompt in a new sandbox, showing the session as it goes, and record it in a run folder.

    Args:
        provider: `"docker"`, `"daytona"`, `"host"`, or a provider.
        snapshot: the image (default: `HARVEST_IMAGE`, else the namespace's, see `Settings.image`).
        endpoint: `"scripted"` and the path of a cassette need no token; `"anthropic"` is live and costs money, and so
            may the base URL of a gateway (`"http://…"`), which is sent `HARVEST_ENDPOINT_TOKEN` if that is set.
        scenario: what the scripted endpoint says: a shipped scenario's name, a file, or a callable.
        record: a cassette to write.
        attachments: files of the desk; they are put into the workspace and named in the prompt.
        model: the model's name (default: the scripted endpoint's, or the CLI's own choice when live).
        max_budget_usd: the CLI ends the run when it has cost more (default: no bound, for a live run
            `HARVEST_LIVE_BUDGET_USD`, else 5).
        permission_mode: default: everything may be done where the sandbox isolates, only what is allowed where
            it does not, and `"default"` with `can_use_tool`.
        can_use_tool: asked before each tool that nothing else allows; `"ask"` asks the person who is there.
        hooks: the SDK's hooks, by event.
        tools: in-process MCP servers by name, made by `claude_agent_sdk.create_sdk_mcp_server`.
        schema: a JSON schema; the answer then comes as `RunResult.structured`.
        partial_messages: have text streamed while it is generated.
        mcp_servers: names of MCP servers to start (default: those without a token, and those whose token is given).
        mcp: `"require"` ends a run whose MCP servers did not connect, `"warn"` goes on.
        tokens: by variable name (default: those in `.env` and `.env.local`); for a live run the environment's
            `CLAUDE_CODE_OAUTH_TOKEN` counts too.
        runs_dir: where the run folder is made (default: `HARVEST_RUNS`, else `runs`).
        network: `"none"` (default) or `"open"`. The model is reached without; web tools and some MCP servers need it.
        pool: how many sandboxes stand ready for the next runs that ask for them in the same way (`docker`, `host`);
            they are removed when the event loop or the kernel ends, or by `harvest_nb.sandbox.pools.close_pools`.
        port: the loopback endpoint's port on the desk; 0 takes a free one.
        idle_timeout: seconds without any message after which the run is ended; an endpoint's pings are none.
        timeout: seconds after which the run is ended in any case, what it has is kept.
        parameters: recorded as they are, for tables to group by.
        on_message: called with each typed message instead of the display.
        check: raise unless the run succeeds.

    Raises:
        SessionError: the run did not succeed; `.result` is what there is of it.
        TokenError, EngineError, SandboxError, EndpointError: it could not start.
    """
    setup = plan(
        provider=provider, snapshot=snapshot, endpoint=endpoint, scenario=scenario, record=record, model=model,
        max_turns=max_turns, max_budget_usd=max_budget_usd, allowed_tools=allowed_tools,
        disallowed_tools=disallowed_tools, permission_mode=permission_mode, can_use_tool=can_use_tool,
        hooks=hooks, tools=tools, schema=schema, partial_messages=partial_messages, mcp_servers=mcp_servers,
        mcp=mcp, tokens=tokens, runs_dir=runs_dir, network=network, pool=pool, port=port, idle_timeout=idle_timeout,
        timeout=timeout, parameters=parameters,
    )  # fmt: skip
    return await shown(prompt, setup, attachments, on_message, check)


async def resume(
    run: Path | str,
    prompt: str,
    *,
    fork: bool = False,
    at: str | None = None,
    attachments: Sequence[Path | str] = (),
    on_message: Callable[[Message], None] | None = None,
    check: bool = True,
    **arguments: Unpack[SessionArguments],
) -> RunResult:
    """Go on with a recorded session in a new sandbox, and record that in a run folder of its own.

    The first who goes on with a run keeps its session id; whoever comes later gets a branch.

    Args:
        run: a run folder, a run's id, a session's id, or `"latest"`.
        fork: under a session id of its own in any case.
        at: UUID of the last message that counts.

    Other arguments and errors: see `run`.

    Raises:
        RunFolderError: there is no such run, or nothing to go on from.
    """
    return await shown(prompt, plan(run, fork=fork, at=at, **arguments), attachments, on_message, check)


def chat(
    prompts: Sequence[str] | None = None,
    *,
    resume: Path | str | None = None,
    fork: bool = False,
    at: str | None = None,
    on_message: Callable[[Message], None] | None = None,
    check: bool = True,
    **arguments: Unpack[SessionArguments],
) -> ChatView:
    """Talk with an agent in one session.

    `await chat(prompts=[…])` sends the prompts one after another and closes the session; `.results`, `.folder`
    and `.frame`, the ledger, are there afterwards. `chat()` shows a view to type into, in a notebook; it stays
    until it is closed or the kernel ends. In a terminal use `harvest-nb chat`.

    Args:
        prompts: what to say; None for the view.
        resume: a recorded session to go on with, as in `resume`; so are `fork` and `at`.
        on_message: called with each typed message instead of the display.
        check: with `prompts`, raise at the first one that does not succeed.

    Other arguments and errors: see `run`.
    """
    setup = plan(resume, fork=fork, at=at, talk=True, headless=prompts is not None, **arguments)
    ask = arguments.get("can_use_tool") == "ask"
    return ChatView(Chat(setup), prompts, on_message=on_message, check=check, ask=ask)


def plan(
    past: Path | str | None = None,
    *,
    fork: bool = False,
    at: str | None = None,
    talk: bool = False,
    headless: bool = True,
    **arguments: Unpack[SessionArguments],
) -> Setup:
    """The set-up that the verbs' arguments mean.

    Args:
        past: a recorded session to go on with.
        talk: whether the scripted endpoint should be one to talk to, unless a scenario is named.
        headless: whether nobody is there who could be asked, where `can_use_tool` is `"ask"`.
    """
    given: dict[str, Any] = {**arguments}
    if given.get("mcp", "require") not in ("require", "warn"):
        raise SettingsError(f"Unknown value {given['mcp']!r} for mcp", hint='use "require" or "warn"')
    if past is None and (fork or at is not None):
        raise SettingsError(
            f"{'fork' if fork else 'at'} says how to go on with a recorded session, and none is named",
            hint="name it with `resume`",
        )
    settings = load_settings()
    provider, snapshot = given.pop("provider", "docker"), given.pop("snapshot", None)
    tokens, runs_dir, record = (
        given.pop("tokens", None),
        given.pop("runs_dir", None),
        given.pop("record", None),
    )
    permit = given.pop("can_use_tool", None)
    if permit == "ask":
        if talk and headless:
            raise SettingsError(
                "There is nobody to ask for permission", hint="give a callback, or allowed tools"
            )
        permit = None if talk else questions_here()
    passed = dict(given_tokens() if tokens is None else tokens)
    endpoint = given.get("endpoint", "scripted")
    if endpoint == LIVE and tokens is None and settings.claude_code_oauth_token is not None:
        passed["CLAUDE_CODE_OAUTH_TOKEN"] = settings.claude_code_oauth_token.get_secret_value()
    if check_spec(endpoint) == "gateway" and tokens is None and settings.harvest_endpoint_token is not None:
        passed[ENDPOINT_TOKEN] = settings.harvest_endpoint_token.get_secret_value()
    if endpoint == "scripted" and (talk or past is not None) and given.get("scenario") is None:
        given["scenario"] = TALK
    runs = Path(runs_dir) if runs_dir is not None else settings.runs_dir
    found = None if past is None else find_past(past, runs, fork=fork, at=at)
    names = {"mcp_servers": "mcp"}
    of_session = (
        "model", "max_turns", "max_budget_usd", "allowed_tools", "disallowed_tools", "permission_mode",
        "hooks", "tools", "schema", "partial_messages", "mcp_servers",
    )  # fmt: skip
    options = {names.get(key, key): given.pop(key) for key in of_session if key in given}
    # `None` stands for a default throughout.
    options = {key: value for key, value in options.items() if value is not None}
    if endpoint == LIVE:
        options.setdefault("max_budget_usd", settings.live_budget_usd)
    rest: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    made = get_provider(provider) if isinstance(provider, str) else provider
    # A provider may have been made for a snapshot of its own.
    default = getattr(made, "snapshot", settings.image)
    return Setup(
        provider=made,
        snapshot=name_for(made, snapshot or default),
        record=None if record is None else Path(record),
        options=SessionOptions(**options, can_use_tool=permit),
        tokens=passed,
        secrets=settings.tokens(),
        runs_dir=runs,
        past=found,
        **rest,
    )


async def shown(
    prompt: str,
    setup: Setup,
    attachments: Sequence[Path | str],
    on_message: Callable[[Message], None] | None,
    check: bool,
    on_cancelled: Callable[[RunResult], None] = lambda _: None,
) -> RunResult:
    """Run a prompt with its display; `on_cancelled` as in `run_session`, the rest as in `run`."""
    flow = LiveFlow() if on_message is None else None
    show = flow.show if flow is not None else on_message
    assert show is not None

    def cancelled(result: RunResult) -> None:
        if flow is not None:
            flow.end(result)
        on_cancelled(result)

    try:
        result = await run_session(
            prompt, setup, attachments=attachments, on_message=show, on_cancelled=cancelled
        )
        if flow is not None:
            flow.end(result)
    finally:
        if flow is not None:
            flow.close()
    return result.check() if check else result
