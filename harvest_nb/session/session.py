"""A session in a sandbox that stays: one prompt after another, each of which can be stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from claude_agent_sdk import ClaudeAgentOptions, Message, PermissionMode, ResultMessage, SystemMessage

from harvest_nb.bounds import bounds
from harvest_nb.endpoint import Endpoint
from harvest_nb.endpoint.places import deep
from harvest_nb.errors import RunFolderError, SandboxError, SandboxGone, SessionError
from harvest_nb.sandbox.base import Sandbox
from harvest_nb.sandbox.uncancelled import to_the_end
from harvest_nb.session.attach import attach
from harvest_nb.session.deltas import Deltas
from harvest_nb.session.folder import RunFolder, now
from harvest_nb.session.kept import Kept
from harvest_nb.session.link import CLILink
from harvest_nb.session.options import starting, taken_up
from harvest_nb.session.result import RunResult
from harvest_nb.session.resume import cost_so_far, holds_any, remove_transcript
from harvest_nb.session.turn import Prompted, died

__all__ = ["Session"]

_log = logging.getLogger(__name__)
_PROTOCOL = {"control_request", "control_response", "control_cancel_request"}
_STOP_SECONDS = 1.5  # for the CLI to answer an interrupt; then it is ended, which takes milliseconds


class Session:
    """Made by `harvest_nb.session.open_session`; one prompt at a time.

    Args:
        options: the SDK's, without session id or resume.
        env: the CLI's environment, secrets included.
        begin: makes the first CLI's options from `options`; later ones take up what the session has become.
        endpoint: who answers; what it refuses becomes the prompt's reason.
        mcp: `"require"` ends a prompt whose MCP servers did not connect.
        idle_timeout: seconds without any message after which a prompt is ended.
        timeout: seconds after which a prompt is ended in any case.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        folder: RunFolder,
        options: ClaudeAgentOptions,
        env: Mapping[str, str],
        *,
        session_id: str,
        begin: Callable[[ClaudeAgentOptions], ClaudeAgentOptions],
        endpoint: Endpoint,
        mcp: str,
        idle_timeout: float,
        timeout: float | None = None,
    ) -> None:
        self.sandbox, self.folder, self.session_id = sandbox, folder, session_id
        self.results: list[RunResult] = []
        """What the prompts so far came to."""
        self._options, self._env, self._begin = options, dict(env), begin
        self.endpoint, self._mcp, self._idle, self._timeout = endpoint, mcp, idle_timeout, timeout
        self._link: CLILink | None = None
        self._turn: Prompted | None = None
        self._processes: list[CLILink] = []
        self._closed = False
        self._sent: list[str] = []
        """UUIDs of the prompts sent to this session's CLIs."""
        self._lock = asyncio.Lock()
        self._deltas = Deltas(folder.redactor)
        self._kept = Kept(bounds().messages_bytes)

    @property
    def busy(self) -> bool:
        """Whether a prompt is being answered."""
        return self._turn is not None

    @property
    def cost_usd(self) -> float | None:
        """What all CLI processes of this session have cost, in US dollars; None before the first result.

        What a session had cost before it was taken up again is not in it.
        """
        told = [link.cost - link.brought for link in self._processes if link.cost != link.brought]
        return round(sum(told), 9) if told else None

    async def start(self) -> None:
        """Start the CLI, so that the first prompt need not wait for it. Raises as `CLILink.start` does."""
        async with self._lock:
            if self._link is not None and self._link.alive:
                return
            options, brought = await self._next_options()
            if self._closed:
                raise SessionError("The session has been closed", hint="open another one")
            self._link = link = CLILink(
                self.sandbox,
                options,
                self._env,
                tap=self._tap,
                on_message=self._on_message,
                on_end=self._on_end,
                on_stderr=lambda text, whole: self.folder.stderr(text, whole=whole),
            )
            link.cost = link.brought = brought or 0.0
            if not self._processes:
                self.folder.save(started=now(), cost_before_usd=brought)
            self._processes.append(link)
            await link.start()
            self.folder.mark("cli_started")

    async def _next_options(self) -> tuple[ClaudeAgentOptions, float | None]:
        """The options of the CLI to start now, and what the session that it takes up has cost so far."""
        options = self._begin(self._options)
        if self._processes:
            # The CLI writes its transcript a moment after `init`, a branch's history before the first prompt.
            # Killed before it wrote a prompt, it leaves no file, one that cannot be resumed, or part of the history.
            if await holds_any(self.sandbox, self.session_id, self._sent):
                cost = await cost_so_far(self.sandbox, self.session_id)
                return taken_up(self._options, self.session_id), cost
            if self.session_id != (options.session_id or options.resume):
                options = starting(self._options, self.session_id)  # another one since, as after `/clear`
            if options.session_id is not None:
                await remove_transcript(self.sandbox, options.session_id)
        return options, await cost_so_far(self.sandbox, options.resume) if options.resume else None

    def _tap(self, direction: str, message: dict[str, Any], raw: bytes) -> dict[str, Any]:
        if message.get("type") == "transcript_mirror":
            return message  # it goes to the transcript, line by line
        piece = self._deltas.safe(message) if direction == "in" else None
        if piece is not None:
            message, raw = piece, json.dumps(piece, ensure_ascii=False).encode("utf-8", "surrogatepass")
        safe = self.folder.record(direction, raw)
        # Nothing is shown that is not recorded; only what the SDK itself answers must stay as it came.
        if safe is not None and message.get("type") not in _PROTOCOL:
            message = json.loads(safe)
        if direction == "in" and _by_the_cli(message):
            # Shown with the endpoint's URL: the CLI knows only the address inside the sandbox.
            message = deep(message, self.endpoint.named)
        if self._turn is not None:
            if direction == "in":
                self._turn.raw(message)
            else:
                self._turn.sign()
        return message

    def _on_message(self, message: Message) -> None:
        turn = self._turn
        if turn is None:
            return  # between prompts; recorded all the same
        turn.handle(message)
        if self._kept.is_full:
            self.folder.problem("later messages are in stream.jsonl alone (HARVEST_MAX_MESSAGES_BYTES)")
        if isinstance(message, SystemMessage) and message.subtype == "init":
            self.folder.mark("init")
            self.session_id = message.data.get("session_id", self.session_id)
            self.folder.save(session_id=self.session_id, cli_version=message.data.get("claude_code_version"))
            if self._mcp == "require":
                turn.require_mcp()
        if isinstance(message, ResultMessage):
            self.folder.mark("result")

    def _on_end(self, link: CLILink) -> None:
        turn = self._turn
        if turn is None or link is not self._link:
            return
        if turn.outcome is not None:
            turn.finish()  # after an error result the CLI ends by itself
        else:
            turn.fail(link.error or SessionError("The claude CLI was stopped"))

    async def ask(
        self,
        prompt: str,
        *,
        attachments: Sequence[Path | str] = (),
        on_message: Callable[[Message], None] = lambda _: None,
        began: float | None = None,
    ) -> RunResult:
        """Send a prompt and wait for its end, whatever that is.

        Args:
            attachments: files of the desk; they are put into the workspace and named in the prompt.
            on_message: called with each typed message as it comes; what it raises ends the prompt and is raised.
            began: when its time began to count, on the monotonic clock (default: now).

        Raises:
            SessionError: the prompt is empty, or another one is being answered.
            RunFolderError: what comes cannot be recorded; the CLI is ended.
            asyncio.CancelledError: the calling task was cancelled; the turn is stopped first.
        """
        if not prompt.strip():
            raise SessionError("The prompt is empty", hint="say what the agent should do")
        if self._turn is not None:
            raise SessionError("The session is answering another prompt", hint="wait for it, or cancel it")
        if self._closed:
            raise SessionError("The session has been closed", hint="open another one")
        self.endpoint.latest = None
        turn = self._turn = Prompted(prompt, on_message, self.endpoint.variable, self._kept)
        if self._timeout is not None:
            turn.deadline = (began or turn.began) + self._timeout
        known = len(self.endpoint.failures)
        ended: tuple[str, str | None] = ("error", "not ended")
        try:
            await self._prepared(turn, attachments)
            await self._wait(turn)
            ended = turn.status()
        except asyncio.CancelledError:
            turn.cancelled = True
            try:
                await to_the_end(lambda: self._stop(turn))
            finally:
                ended = turn.status()  # also when the caller was cancelled once more meanwhile
            raise
        except (SandboxError, SessionError) as error:
            # A turn that was stopped from outside while it was still being prepared ends like any other.
            ended = turn.status() if turn.cancelled else died(error)
            if turn.sent:
                await to_the_end(self._drop)
            if error is turn.callers_error:
                raise
        except BaseException as error:
            ended = died(error)
            await to_the_end(self._drop)
            raise
        finally:
            self._turn = None
            refused = self.endpoint.failures[known:]
            if refused and not turn.cancelled:
                ended = ("error", f"The {self.endpoint.kind} endpoint refused: {refused[0]}")
            try:
                result = self._book(turn, *ended)
            finally:
                turn.booked.set()  # whoever cancels waits for it
        return result

    async def _prepared(self, turn: Prompted, attachments: Sequence[Path | str]) -> None:
        """Everything until the CLI has the prompt; left at once when the turn is stopped meanwhile."""

        async def prepare() -> None:
            prompt = await attach(self.sandbox, turn.prompt, attachments)
            await self.start()
            if turn.over.done():
                return  # cancelled meanwhile: nobody waits for an answer any more
            turn.sent = True
            self._sent.append(turn.id)
            await self._send(turn, prompt)

        preparing = asyncio.create_task(prepare(), name="prompt")
        try:
            left = None if turn.deadline is None else max(turn.deadline - time.monotonic(), 0)
            done, _ = await asyncio.wait(
                [preparing, turn.over], timeout=left, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                raise self._too_long()
        finally:
            if not preparing.done():
                preparing.cancel()
                await to_the_end(lambda: asyncio.wait([preparing]))
        if not preparing.cancelled() and (error := preparing.exception()) is not None and not turn.cancelled:
            raise error

    async def _send(self, turn: Prompted, prompt: str) -> None:
        link = self._link
        assert link is not None
        try:
            await link.client.query(turn.message(prompt))
        except OSError as error:  # the CLI has ended: what ended it says more
            await asyncio.sleep(0)
            raise link.error or SessionError(f"The claude CLI takes no input: {error}") from error

    async def _wait(self, turn: Prompted) -> None:
        """Until the prompt is over, or there is no hope of it, or for too long nothing has come."""
        while not turn.over.done():
            if turn.refused.done():
                await self._stop(turn)
                break
            now = time.monotonic()
            left = turn.last_sign + self._idle - now
            if turn.deadline is not None:
                if now >= turn.deadline:
                    raise self._too_long()
                left = min(left, turn.deadline - now)
            if left <= 0 and not turn.waits_for_a_person:
                raise SessionError(
                    f"No message came for {self._idle:g} s, waiting for {turn.waiting_for}",
                    hint="raise `idle_timeout` if it may take that long",
                )
            either: set[asyncio.Future[Any]] = {turn.over, turn.refused}
            await asyncio.wait(either, timeout=max(left, 0.5), return_when=asyncio.FIRST_COMPLETED)
        turn.over.result()

    def _too_long(self) -> SessionError:
        return SessionError(f"The run took more than {self._timeout:g} s", hint="raise `timeout`")

    async def cancel(self) -> None:
        """Stop the turn that is under way; session and sandbox stay. Returns once its result is known."""
        turn = self._turn
        if turn is None:
            return
        if not turn.over.done():
            turn.cancelled = True
            await self._stop(turn)
        await turn.booked.wait()

    async def _stop(self, turn: Prompted) -> None:
        if not turn.sent:
            turn.finish()  # what prepares it stops by that
            return
        link = self._link
        # Before `init` the CLI takes no notice of an interrupt, and one that does not answer is ended.
        if link is not None and link.alive and turn.init is not None and not turn.over.done():
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await link.client.interrupt()
                    await asyncio.wait([turn.over])
            except Exception as error:  # noqa: BLE001 - the SDK raises bare ones; the turn is stopped below
                _log.debug("the CLI did not answer an interrupt: %r", error)
        if not turn.over.done():
            # Done first: the end of the CLI would count as an error.
            turn.finish()
            turn.unstopped = True
        if turn.unstopped:  # also when this is begun again
            await self._drop()
            turn.unstopped = False

    async def _drop(self) -> None:
        """End the CLI at once; the next prompt starts another one with the same session."""
        if self._link is not None:
            await self._link.stop(kill=True)

    def _book(self, turn: Prompted, status: str, reason: str | None) -> RunResult:
        outcome, link = turn.outcome, self._link
        total = turn.total_cost_usd
        cost = None
        if total is not None and link is not None:
            if total < link.cost:  # it did not go on from what was there
                link.cost = link.brought = 0.0
            cost, link.cost = round(total - link.cost, 9), total  # without the noise of binary fractions
        safe = self.folder.redactor.text
        reason = reason and self.endpoint.named(reason)
        # A request that failed ends in a result of the subtype `success`; the CLI does not say who answered.
        if status == "error" and outcome and outcome.is_error and outcome.subtype == "success":
            reason = self.endpoint.with_latest(str(reason))
        result = RunResult(
            id=self.folder.id,
            folder=self.folder.path,
            prompt=safe(turn.prompt),
            status=status,
            reason=reason and safe(reason),
            text=outcome.result if outcome else None,
            structured=outcome.structured_output if outcome else None,
            session_id=self.session_id,
            endpoint=self.endpoint.kind,
            cost_usd=cost,
            total_cost_usd=total,
            num_turns=turn.num_turns,
            cut_short=turn.cut_short if turn.cancelled else (),
            seconds=time.monotonic() - turn.began,
            messages=turn.messages,
        )
        self.results.append(result)
        try:
            self._save_ledger()
        except (
            RunFolderError
        ) as error:  # there may be room again when the run ends, and some is kept for that
            self.folder.problem(f"what a prompt came to could not be written at once: {error.message}")
        return result

    def take_on(self, results: Sequence[RunResult]) -> None:
        """Keep in the ledger what prompts came to that were stopped before this session had begun."""
        if results:
            self.results.extend(replace(item, id=self.folder.id, folder=self.folder.path) for item in results)
            self._save_ledger()

    def _save_ledger(self) -> None:
        self.folder.save(prompts=[item.entry for item in self.results])

    async def set_model(self, model: str | None) -> None:
        """Use another model from the next turn on (None: the CLI's own choice)."""
        await self._live().client.set_model(model)
        self._options.model = model

    async def set_permission_mode(self, mode: PermissionMode) -> None:
        """Use another permission mode from now on."""
        await self._live().client.set_permission_mode(mode)
        self._options.permission_mode = mode

    def _live(self) -> CLILink:
        if self._link is None or not self._link.alive:
            raise SessionError(
                "The session's CLI is not running", hint="send a prompt first, or `await session.start()`"
            )
        return self._link

    async def close(self) -> None:
        """Stop what is under way and end the CLI; the sandbox stays. Safe to call twice."""
        self._closed = True
        await self.cancel()
        if self._link is not None:
            with contextlib.suppress(SandboxGone):
                await self._link.stop()


def _by_the_cli(message: dict[str, Any]) -> bool:
    """Return whether a message holds what the CLI says itself, as of a request that failed."""
    match message:
        case {"type": "result"} | {"type": "assistant", "message": {"model": "<synthetic>"}}:
            return True
    return False
