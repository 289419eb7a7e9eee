"""Opening a session: sandbox, endpoint, options and run folder, and all of it put away at the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from claude_agent_sdk import ClaudeAgentOptions, SessionStore, __version__

from harvest_nb.bounds import bounds
from harvest_nb.endpoint import Endpoint, Scenario, open_endpoint
from harvest_nb.endpoint.open import check_listening, check_spec, recorded_model
from harvest_nb.errors import EngineError, RunFolderError, SandboxError, SandboxGone, SessionError, TokenError
from harvest_nb.machine.held import holding
from harvest_nb.redact import SHORTEST, Redactor, all_secrets
from harvest_nb.sandbox.base import Limits, Provider, Sandbox, reap_command
from harvest_nb.sandbox.pool import Relabelling
from harvest_nb.sandbox.pools import shared_pool
from harvest_nb.sandbox.uncancelled import to_the_end
from harvest_nb.session.collect import collect_memory, collect_transcript
from harvest_nb.session.folder import RunFolder, now
from harvest_nb.session.options import (
    SessionOptions,
    config_dir,
    recordable,
    sdk_options,
    starting,
    taken_up,
)
from harvest_nb.session.resume import Past, claimed, project_key, put_back
from harvest_nb.session.session import Session
from harvest_nb.session.store import TranscriptStore
from harvest_nb.session.turn import died
from harvest_nb.settings import ENDPOINT_TOKEN, TOKEN_VARIABLES

__all__ = ["DEFAULT_MODEL", "LIVE", "Setup", "open_session"]

_log = logging.getLogger(__name__)
DEFAULT_MODEL = "claude-sonnet-4-5"
LIVE = "anthropic"
_COLLECT_SECONDS = 120.0
_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Setup:
    """Everything about a session but its prompts.

    Args:
        provider: makes the sandbox; it is removed at the end.
        sandbox: one that exists and stays, instead of a new one.
        snapshot: the image, for providers that have one.
        endpoint: `"scripted"` (on loopback, no token), a cassette's path (likewise), `"anthropic"` (live; needs
            `tokens`), or a gateway's base URL (sent the token `HARVEST_ENDPOINT_TOKEN`, if there is one).
        scenario: what the scripted endpoint says; see `harvest_nb.endpoint.open_endpoint`.
        record: a cassette to write.
        tokens: by variable name, given explicitly; nothing ambient is used. Never recorded.
        network: `"none"` (the default) or `"open"`: the model is reached without, tools may need it.
        limits: what the sandbox may use at most.
        pool: how many sandboxes like this one's stand ready for the sessions of this event loop that ask for them
            too; see `harvest_nb.sandbox.pools`. 0: none, each is made when it is needed.
        ttl: the sandbox's lease in seconds. It is renewed while this process's event loop runs, so it is also how
            long a notebook's cell may compute before it loses a session that it holds open.
        secrets: values by name that are replaced in whatever is recorded, besides the tokens and the provider's own.
            One under six characters cannot be: a warning names it.
        port: the loopback endpoint's port on the desk; 0 takes a free one.
        mcp: `"require"` ends a prompt whose MCP servers did not connect, `"warn"` goes on.
        idle_timeout: seconds without any message after which a prompt is ended; an endpoint's pings are none.
        timeout: seconds after which a prompt is ended in any case; those of a run count from its beginning.
        parameters: recorded as they are, for tables to group by.
        past: a recorded session to go on with.
    """

    provider: Provider | None = None
    sandbox: Sandbox | None = None
    snapshot: str | None = None
    endpoint: str | Path = "scripted"
    scenario: str | Path | Scenario | None = None
    record: Path | None = None
    options: SessionOptions = field(default_factory=SessionOptions)
    tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    runs_dir: Path = Path("runs")
    network: str | None = None
    limits: Limits | None = None
    pool: int = 0
    ttl: float = 600.0
    port: int = 0
    mcp: str = "require"
    idle_timeout: float = 600.0
    timeout: float | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    past: Past | None = None

    def known_secrets(self) -> dict[str, str]:
        """What nothing that is recorded or shown may hold, also what this session itself has no use for."""
        own = (getattr(holder, "secrets", {}) for holder in (self.provider, self.sandbox))
        return all_secrets(self.tokens, *own, self.secrets)

    def checked(self) -> Setup:
        """This set-up with its defaults filled in.

        Raises:
            TokenError: a live session without `CLAUDE_CODE_OAUTH_TOKEN`, or a token that no request could carry.
            EndpointError: the endpoint is not known, or its cassette cannot be read.
            SessionError: another value is not known, or there is no provider.
        """
        # As from the environment and .env: a line break at the end belongs to the file that a token was read from.
        tokens = {name: value.strip() for name, value in self.tokens.items()}
        kind = check_spec(self.endpoint)
        live = kind == LIVE
        if self.mcp not in ("require", "warn"):
            raise SessionError(f"Unknown value {self.mcp!r} for mcp", hint='use "require" or "warn"')
        if self.provider is None and self.sandbox is None:
            raise SessionError("A session needs a provider or a sandbox")
        if self.pool and (self.pool < 0 or self.sandbox is not None):
            raise SessionError(f"pool={self.pool}: give a number of sandboxes to keep ready, and no sandbox")
        if self.pool and not isinstance(self.provider, Relabelling):
            raise SessionError(
                f"The provider {getattr(self.provider, 'name', self.provider)!r} keeps no sandboxes ready",
                hint='leave out `pool`, or use provider="docker" or "host"',
            )
        if live and not tokens.get("CLAUDE_CODE_OAUTH_TOKEN"):
            raise TokenError(
                "A live run needs CLAUDE_CODE_OAUTH_TOKEN",
                hint="set it in the environment, .env or .env.local (`claude setup-token` makes one)",
            )
        if not live:
            tokens.pop("CLAUDE_CODE_OAUTH_TOKEN", None)
        if kind != "gateway":
            tokens.pop(ENDPOINT_TOKEN, None)
        for name in {*TOKEN_VARIABLES, ENDPOINT_TOKEN} & tokens.keys():
            value = tokens[name]
            if not (value.isascii() and value.isprintable()):
                raise TokenError(
                    f"The value of {name} holds characters that no request can carry as a credential",
                    hint="copy it again, without line breaks or typographic quotes in it",
                )
        model = self.options.model or (
            None if live or kind == "gateway" else recorded_model(self.endpoint) or DEFAULT_MODEL
        )
        return replace(
            self,
            tokens=tokens,
            options=replace(self.options, model=model),
            # Whoever answers is asked through a proxy of this process: the sandbox itself needs no network.
            network=self.network or "none",
        )


@contextlib.asynccontextmanager
async def open_session(
    setup: Setup, prompt: str = "", *, on_folder: Callable[[RunFolder], None] = lambda _: None
) -> AsyncIterator[Session]:
    """A session that is ready for `ask`, recorded in a run folder of its own.

    At the end the CLI is ended, its transcript and the memory graph are brought home, and the sandbox is removed
    unless it was given.

    Args:
        prompt: the first prompt, if it is known; it is recorded, and scenarios may need it.
        on_folder: told the run folder as soon as there is one.

    Raises:
        TokenError, SessionError: see `Setup.checked`; nothing has been started then.
        SandboxError, EngineError, EndpointError, RunFolderError: something cannot be made; the run folder says so.
    """
    checked = setup.checked()
    redactor = Redactor(setup.known_secrets())  # of what was given, also what `checked` has no use for
    setup = checked
    folder = _folder(setup, prompt, redactor)
    on_folder(folder)
    for name in redactor.unprotected:
        told = f"{name} has fewer than {SHORTEST} characters, and is recorded as it is wherever it is printed"
        _log.warning("%s", told)
        folder.problem(told)
    session: Session | None = None
    ended: tuple[str, str | None] | None = None
    with holding(f"run {folder.id}", last=lambda: _cut(folder, session)):
        try:
            async with contextlib.AsyncExitStack() as stack:
                async with _in_time(setup.timeout):
                    await check_listening(setup.endpoint)  # before a sandbox costs anything
                    sandbox = await _sandbox(stack, setup, folder)
                    session = await _session(stack, setup, folder, sandbox, prompt)
                yield session
        except asyncio.CancelledError:
            ended = ("cancelled", "cancelled from the desk")
            raise
        except BaseException as error:
            ended = died(error)
            raise
        finally:
            _finish(folder, session, ended)


@contextlib.asynccontextmanager
async def _in_time(timeout: float | None) -> AsyncIterator[None]:
    """Raise SessionError where the block takes longer than the prompts may."""
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise  # somebody else's
        raise SessionError(
            f"The session did not begin within {timeout:g} s", hint="raise `timeout`"
        ) from error


def _cut(folder: RunFolder, session: Session | None) -> str:
    """Record how the run ends where this process is ended before it has been put away; return where it is."""
    status, reason = "cancelled", "cancelled from the desk"
    if session is not None and session.results and not session.busy:
        status, reason = session.results[-1].status, session.results[-1].reason or ""
    try:
        folder.save(
            status=status,
            exit_reason=f"{reason}; not put away",
            ended=now(),
            total_cost_usd=session.cost_usd if session is not None else None,
        )
    except RunFolderError as error:
        return str(error)
    return f"run folder: {folder.path}"


def _folder(setup: Setup, prompt: str, redactor: Redactor) -> RunFolder:
    provider = setup.sandbox.provider if setup.sandbox is not None else getattr(setup.provider, "name", None)
    return RunFolder(
        setup.runs_dir,
        redactor,
        {
            "prompt": prompt,
            "provider": provider,
            "endpoint": check_spec(setup.endpoint),
            "model": setup.options.model,
            "sdk_version": __version__,
            "transcript_whole": False,
            "parameters": dict(setup.parameters),
        },
    )


async def _sandbox(stack: contextlib.AsyncExitStack, setup: Setup, folder: RunFolder) -> Sandbox:
    network = setup.network or "none"
    sandbox = setup.sandbox
    if sandbox is None:
        provider = setup.provider
        assert provider is not None
        item = stack.enter_context(holding(f"a {provider.name} sandbox", reap_command(provider.name)))
        if setup.pool:
            assert isinstance(provider, Relabelling)
            provider = await shared_pool(
                provider,
                setup.pool,
                snapshot=setup.snapshot,
                limits=setup.limits,
                network=network,
                ttl=setup.ttl,
            )
        sandbox = await provider.create(
            setup.snapshot,
            labels={"harvest.run": folder.id},
            ttl=setup.ttl,
            limits=setup.limits,
            network=network,
        )
        opened = sandbox
        item.what = f"the {provider.name} sandbox {sandbox.id}"

        async def close() -> None:
            try:
                await to_the_end(opened.close)
            except (EngineError, SandboxError) as error:
                # The run has ended, and how is told already; the sandbox ends itself when its lease lapses.
                item.stays = True
                folder.problem(f"the sandbox could not be removed: {error}")
                _log.warning(
                    "Run %s has ended, but its sandbox could not be removed: %s", folder.id, str(error)
                )

        _record_problems(stack, opened, folder)
        stack.push_async_callback(close)
    else:
        _record_problems(stack, sandbox, folder)
    folder.mark("sandbox_created")
    folder.save(
        sandbox_id=sandbox.id, image=sandbox.image, manifest_hash=sandbox.manifest_hash, network=network
    )
    return sandbox


def _record_problems(stack: contextlib.AsyncExitStack, sandbox: Sandbox, folder: RunFolder) -> None:
    """At the end, put into the run folder what has gone wrong with the sandbox since now."""
    before = len(sandbox.problems)

    def record() -> None:
        for text in sandbox.problems[before:]:
            folder.problem(text)

    stack.callback(record)


async def _session(
    stack: contextlib.AsyncExitStack, setup: Setup, folder: RunFolder, sandbox: Sandbox, prompt: str
) -> Session:
    past = setup.past
    if past is not None:
        past = await asyncio.to_thread(claimed, past, folder.path)
        folder.save(resumed_from=past.about())
        for note in past.notes:
            folder.problem(f"resumed from run {past.run_id}: {note}")
            _log.warning("Resuming run %s: %s", past.run_id, note)  # before the first prompt costs anything
        await put_back(sandbox, past)
    await collect_memory(sandbox, folder, "before")
    env, endpoint = await _endpoint(stack, sandbox, prompt, setup, folder)
    options = await sdk_options(sandbox, setup.options, tuple(setup.tokens))
    store = TranscriptStore(
        folder.path / "transcript",
        await project_key(sandbox),
        redact=lambda text: folder.redactor.text(text),
        on_problem=folder.problem,
    )
    options.session_store = cast("SessionStore", store)  # without the summaries, which are optional
    options.session_store_flush = "eager"
    session_id = str(uuid.uuid4())
    begin: Callable[[ClaudeAgentOptions], ClaudeAgentOptions]
    if past is None:
        begin = partial(starting, session_id=session_id)
    else:
        begin = partial(
            taken_up, session_id=past.session_id, fork_to=session_id if past.fork else None, at=past.at
        )
        session_id = session_id if past.fork else past.session_id
    folder.save(options=recordable(begin(options)), tokens=sorted(setup.tokens), session_id=session_id)
    session = Session(
        sandbox,
        folder,
        options,
        env,
        session_id=session_id,
        begin=begin,
        endpoint=endpoint,
        mcp=setup.mcp,
        idle_timeout=setup.idle_timeout,
        timeout=setup.timeout,
    )

    async def put_away() -> None:
        await to_the_end(lambda: _put_away(session, folder))

    stack.push_async_callback(put_away)
    return session


async def _put_away(session: Session, folder: RunFolder) -> None:
    """End the CLI and bring home what it leaves, in bounded time; a sandbox that has gone leaves nothing.

    What the prompts came to is known by then, and no file that an agent has put in the way takes it back.
    """
    bring = {
        "transcript": partial(
            collect_transcript,
            session.sandbox,
            folder,
            session.session_id,
            expected=any(result.num_turns for result in session.results),
        ),
        "memory graph": partial(collect_memory, session.sandbox, folder, "after"),
    }
    try:
        await session.close()
        for what, collect in bring.items():
            try:
                async with asyncio.timeout(_COLLECT_SECONDS):
                    await _while_it_answers(session.sandbox, collect())
            except SandboxGone:
                folder.problem(f"the {what} was not collected: the sandbox had gone")
            except (asyncio.CancelledError, KeyboardInterrupt):
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, it takes back nothing of the outcome
                folder.problem(f"the {what} was not collected whole: {str(error) or type(error).__name__}")
    except SandboxGone:
        return  # the prompt's own end has told it


async def _while_it_answers(sandbox: Sandbox, work: Coroutine[Any, Any, None]) -> None:
    """Await `work`, unless the sandbox leaves what it is sent unanswered for `HARVEST_MAX_SILENT_SECONDS`.

    Raises:
        TimeoutError: it does not answer.
    """
    most = bounds().silent_seconds
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            if sandbox.silent > most:
                raise TimeoutError(
                    f"the sandbox has not answered for {most:g} s (HARVEST_MAX_SILENT_SECONDS)"
                )
            await asyncio.wait([task], timeout=_LOOK_SECONDS)
        task.result()
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=1)


def _finish(folder: RunFolder, session: Session | None, ended: tuple[str, str | None] | None) -> None:
    results = session.results if session is not None else []
    if results and (ended is None or ended[0] == "cancelled"):
        ended = (results[-1].status, results[-1].reason)
    status, reason = ended or ("success", "closed without a prompt")
    told = [result.num_turns for result in results if result.num_turns is not None]
    try:
        folder.finish(
            status=status,
            exit_reason=reason,
            ended=now(),
            num_turns=sum(told) if told else None,
            total_cost_usd=session.cost_usd if session is not None else None,
        )
    except RunFolderError as error:
        if status == "success":
            raise
        _log.error("%s", error)  # what ended the run is raised


async def _endpoint(
    stack: contextlib.AsyncExitStack, sandbox: Sandbox, prompt: str, setup: Setup, folder: RunFolder
) -> tuple[dict[str, str], Endpoint]:
    """The CLI's environment, and who answers it."""
    env = {
        "HOME": str(sandbox.home),
        "CLAUDE_CONFIG_DIR": config_dir(sandbox),
        "MEMORY_FILE_PATH": str(sandbox.memory_file),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        # Without this the session may start before its MCP servers have connected, and lack their tools.
        "MCP_CONNECTION_NONBLOCKING": "0",
        "MCP_TIMEOUT": "60000",
        **{name: value for name, value in setup.tokens.items() if name != ENDPOINT_TOKEN},
    }
    endpoint = await stack.enter_async_context(
        open_endpoint(
            setup.endpoint,
            scenario=setup.scenario,
            sandbox=sandbox,
            prompt=prompt,
            port=setup.port,
            record=setup.record,
            upstream_token=setup.tokens.get(ENDPOINT_TOKEN) or setup.tokens.get("CLAUDE_CODE_OAUTH_TOKEN"),
            tokens=setup.known_secrets(),
            budget_usd=setup.options.max_budget_usd,
            server_tools=setup.network == "open",
        )
    )
    endpoint.on_usage = lambda model, counts, final: folder.count(model, counts, final=final)
    endpoint.on_problem = folder.problem
    folder.redactor = folder.redactor.knowing({"ENDPOINT_SECRET": endpoint.secret})
    endpoint.inside = await sandbox.forward("127.0.0.1", endpoint.port)
    return env | {
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{endpoint.inside}",
        "CLAUDE_CODE_OAUTH_TOKEN": endpoint.secret,
    }, endpoint
