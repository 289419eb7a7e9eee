"""A conversation: a session that any task may talk to, and that can go on as another one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claude_agent_sdk import Message, PermissionMode

from harvest_nb.errors import RunFolderError, SandboxError, SessionError
from harvest_nb.machine.ending import before_the_end, go_on, has_stopped
from harvest_nb.session.folder import RunFolder
from harvest_nb.session.open import Setup, open_session
from harvest_nb.session.result import RunResult
from harvest_nb.session.resume import find_past
from harvest_nb.session.session import Session

if TYPE_CHECKING:
    import pandas

__all__ = ["Chat"]

_EXIT_SECONDS = 20


class Chat:
    """Prompts one after another, in one session until `resume`, `fork`, or the loss of its sandbox makes another.

    A session must be closed by the task that opened it, so each has a task of its own; `ask`, `cancel` and the
    rest may come from any task. Use it as `async with`, or close it.

    Args:
        setup: how sessions are opened; nothing is started before the first use.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.sessions: list[Session] = []
        """The sessions so far; the last one is talked to."""
        self._folders: list[RunFolder] = []
        self._opened: asyncio.Future[Session] | None = None
        self._owner: asyncio.Task[None] | None = None
        self._putting: asyncio.Task[None] | None = None
        self._end = asyncio.Event()
        self._lock = asyncio.Lock()
        self._record = setup.record
        self._stop: asyncio.Future[None] | None = None
        self._idle = asyncio.Event()
        self._unsent: list[RunResult] = []
        self._closed = False

    async def __aenter__(self) -> Chat:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def results(self) -> list[RunResult]:
        """What the prompts so far came to."""
        return [*(result for session in self.sessions for result in session.results), *self._unsent]

    @property
    def folder(self) -> Path | None:
        """The run folder of the latest session."""
        return self._folders[-1].path if self._folders else None

    @property
    def folders(self) -> list[Path]:
        """The run folders of all sessions, in their order."""
        return [folder.path for folder in self._folders]

    @property
    def cost_usd(self) -> float | None:
        """What all sessions have reported, in US dollars; None before the first result."""
        told = [cost for session in self.sessions if (cost := session.cost_usd) is not None]
        return sum(told) if told else None

    @property
    def busy(self) -> bool:
        """Whether a prompt is being answered."""
        return self._stop is not None

    @property
    def frame(self) -> pandas.DataFrame:
        """The ledger: one row a prompt, costs in US dollars as the CLI reports them."""
        import pandas

        rows = [
            {
                "prompt": result.prompt,
                "status": result.status,
                "cost_usd": result.cost_usd,
                "turns": result.num_turns,
                "seconds": round(result.seconds, 2),
                "cut_short": ", ".join(result.cut_short),
                "run_id": result.id,
            }
            for result in self.results
        ]
        columns = ["prompt", "status", "cost_usd", "turns", "seconds", "cut_short", "run_id"]
        frame = pandas.DataFrame(rows, columns=columns)
        return frame.astype({"cost_usd": "float64", "turns": "Int64", "seconds": "float64"})

    async def open(self, prompt: str = "") -> Session:
        """The session to talk to, opened if there is none.

        A caller that is cancelled stops waiting; the opening itself goes on for whoever comes next.

        Raises:
            TokenError, SandboxError, EngineError, EndpointError, RunFolderError, SessionError: as `open_session`.
            SessionError: the conversation has been closed.
        """
        return await asyncio.shield(await self._begin(prompt))

    async def _begin(self, prompt: str) -> asyncio.Future[Session]:
        async with self._lock:
            if self._closed:
                raise SessionError("The conversation has been closed", hint="begin another one")
            if self._opened is None or (self._opened.done() and self._opened.exception() is not None):
                self._end = asyncio.Event()
                self._opened = asyncio.get_running_loop().create_future()
                self._owner = asyncio.create_task(self._own(self._opened, self._end, prompt), name="chat")
                _open[self._owner] = self
                self._owner.add_done_callback(_open.pop)
            return self._opened

    async def _own(self, opened: asyncio.Future[Session], end: asyncio.Event, prompt: str) -> None:
        """Open a session, keep it until `end`, and put it away, all in one task."""
        try:
            async with open_session(self.setup, prompt, on_folder=self._folders.append) as session:
                session.take_on(self._unsent)
                self._unsent = []
                self.sessions.append(session)
                opened.set_result(session)
                await end.wait()
        except BaseException as error:
            if opened.done():
                raise
            cancelled = isinstance(error, asyncio.CancelledError)
            opened.set_exception(
                SessionError("The session was closed before it began") if cancelled else error
            )
            opened.exception()  # whoever waits gets it; nobody waiting is no warning
            if cancelled:
                raise

    async def ask(
        self,
        prompt: str,
        *,
        attachments: Sequence[Path | str] = (),
        on_message: Callable[[Message], None] = lambda _: None,
    ) -> RunResult:
        """Send a prompt and wait for its end; see `Session.ask`, and `open` for what may be raised besides.

        When the sandbox has gone meanwhile, the session goes on in a new one from its transcript.
        """
        if not prompt.strip():
            raise SessionError("The prompt is empty", hint="say what the agent should do")
        if self._stop is not None:
            raise SessionError("Another prompt is being answered", hint="wait for it, or cancel it")
        stop = self._stop = asyncio.get_running_loop().create_future()
        try:
            session = await self._until(stop, self._present(prompt))
            if session is None:
                return await self._never_sent(prompt)
            if not session.folder.about["prompt"]:
                session.folder.save(prompt=prompt)
            return await session.ask(prompt, attachments=attachments, on_message=on_message)
        finally:
            self._stop = None
            self._idle.set()

    async def _until(self, stop: asyncio.Future[None], work: Coroutine[Any, Any, Session]) -> Session | None:
        """What `work` comes to, or None when `stop` comes first."""
        working = asyncio.create_task(work, name="session")
        either: set[asyncio.Future[Any]] = {working, stop}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not working.done():
                working.cancel()
                await asyncio.wait([working])
        if working.cancelled():
            return None
        session = working.result()
        return None if stop.done() else session

    async def _present(self, prompt: str) -> Session:
        session = await self.open(prompt)
        if not session.sandbox.gone:
            return session
        folder = session.folder.path
        try:
            await self.resume(folder)
        except RunFolderError:
            # It had said nothing yet that could be taken up.
            await self._put_away()
        return await self.open(prompt)

    async def _never_sent(self, prompt: str) -> RunResult:
        """The session goes on opening for whoever comes next, and takes this prompt into its ledger."""
        if not self._folders:
            opened = await self._begin(prompt)
            while not self._folders:
                await asyncio.sleep(0)
                if opened.done():
                    opened.result()
        reason = "cancelled from the desk before the session had begun"
        result = RunResult.without_session(self._folders[-1], prompt, "cancelled", reason)
        there = self._opened
        ready = there is not None and there.done() and there.exception() is None and not self._lock.locked()
        # One that is put away, or has gone, has been told how it ended.
        if ready and there is not None and not there.result().sandbox.gone:
            there.result().take_on([result])
        else:
            self._unsent.append(result)
        return result

    async def cancel(self) -> None:
        """Stop the turn that is under way, also one whose session is only opening; what is there stays.

        Returns once its result is known.
        """
        if self._stop is None:
            return
        self._idle.clear()
        if not self._stop.done():
            self._stop.set_result(None)
        if self.sessions:
            await self.sessions[-1].cancel()
        await self._idle.wait()

    async def resume(self, run: Path | str = "latest", *, fork: bool = False, at: str | None = None) -> None:
        """Go on with a recorded session instead, in a new sandbox; what this one has said is kept.

        Args:
            run: a run folder, a run's id, a session's id, or `"latest"`.
            fork: under a session id of its own.
            at: UUID of the last message that counts.

        Raises:
            RunFolderError: there is no such run, or nothing to go on from; the present session stays then.
        """
        past = await asyncio.to_thread(find_past, run, self.setup.runs_dir, fork=fork, at=at)
        # At once: whoever is cancelled while the present session is put away still means to go on with this one.
        self.setup = replace(self.setup, past=past, record=self._next_record())
        await self._put_away()

    def _next_record(self) -> Path | None:
        """A cassette holds one session: those that follow get a number."""
        first, count = self._record, len(self._folders) + 1
        return None if first is None else first.with_name(f"{first.stem}-{count}{first.suffix}")

    async def fork(self, at: str | None = None) -> None:
        """Go on as a branch under a session id of its own, which leaves the recorded session as it is.

        Raises:
            RunFolderError: nothing has been said yet.
        """
        folder = self.folder
        if folder is None or not self.results:
            raise RunFolderError("There is nothing to fork yet", hint="send a prompt first")
        await self.resume(folder, fork=True, at=at)

    async def set_model(self, model: str | None) -> None:
        """Use another model from the next turn on, also in sessions that follow (None: the CLI's own choice)."""
        if self._opened is not None:
            session = await self.open()
            await session.start()
            await session.set_model(model)
        self.setup = replace(self.setup, options=replace(self.setup.options, model=model))

    async def set_permission_mode(self, mode: PermissionMode) -> None:
        """Use another permission mode from now on, also in sessions that follow."""
        if self._opened is not None:
            session = await self.open()
            await session.start()
            await session.set_permission_mode(mode)
        self.setup = replace(self.setup, options=replace(self.setup.options, permission_mode=mode))

    async def _put_away(self) -> None:
        """To its end, even if the caller is cancelled; whoever wants a session meanwhile waits for that."""
        self._putting = asyncio.create_task(self._end_session(), name="put away")
        await asyncio.shield(self._putting)

    async def _end_session(self) -> None:
        async with self._lock:
            owner, opened = self._owner, self._opened
            if owner is None or opened is None:
                return
            self._end.set()
            if not opened.done():
                owner.cancel()
            await asyncio.wait([owner])
            self._owner = self._opened = None
        if not owner.cancelled() and (error := owner.exception()) is not None:
            # A sandbox that went of itself has been told by the prompt that met it.
            with contextlib.suppress(SandboxError):
                raise error

    async def close(self) -> None:
        """Stop what is under way and put the session and its sandbox away. Safe to call twice."""
        self._closed = True
        await self._put_away()


_open: dict[asyncio.Task[None], Chat] = {}
"""The conversations that have a session, by the task that keeps it."""


def _at_exit() -> None:
    """The process ends: loops that have only stopped, as a kernel's does, go on until their sandboxes are removed."""
    for loop in {owner.get_loop() for owner in _open if has_stopped(owner.get_loop())}:
        ends = [loop.create_task(chat.close()) for owner, chat in _open.items() if owner.get_loop() is loop]
        go_on(loop, asyncio.wait(ends, timeout=_EXIT_SECONDS))


before_the_end(_at_exit)
