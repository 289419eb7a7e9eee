"""The chat that `harvest-nb chat` holds: prompts from a terminal or a pipe, answers to standard output."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from prompt_toolkit import PromptSession
from prompt_toolkit.formatted_text import HTML
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harvest_nb.cli.common import readable
from harvest_nb.cli.ctrl_c import ending
from harvest_nb.cli.keyboard import History, keys
from harvest_nb.errors import HarvestError
from harvest_nb.paths import cache_dir
from harvest_nb.redact import Redactor
from harvest_nb.session.chat import Chat
from harvest_nb.session.open import DEFAULT_MODEL, LIVE
from harvest_nb.views.live import LiveFlow
from harvest_nb.views.permission import Questions, TerminalQuestions, prompt_output
from harvest_nb.views.plain import plain
from harvest_nb.views.talk import Talk

__all__ = ["Terminal", "ledger"]

T = TypeVar("T")
_COMMAND = re.compile(r"/([A-Za-z][\w-]*)(?:\s+(.*))?$", re.DOTALL)
_ALONE = {"help", "cost", "quit", "exit"}
_HELP = """\
/cost            what each prompt has cost
/model [NAME]    the model from the next turn on
/attach [FILE]   send a file along with the next prompt; alone: list them
/fork [UUID]     go on as a branch, from a message if one is named
/resume [RUN]    go on with a recorded session (a folder, a run's id, latest); alone: list them
/help            this
/quit            leave (Ctrl-D does too)

Enter sends, Alt-Enter begins a new line, pasted lines stay together. Ctrl-C stops the turn, not the session;
here, where nothing runs, it leaves."""


class Terminal:
    """Reads prompts and commands, and answers them.

    Args:
        chat: what is talked to; its caller closes it.
        console: where everything is written.
        questions: what asks for permission, if anything does.
    """

    def __init__(self, chat: Chat, console: Console, questions: Questions | None = None) -> None:
        self.chat, self.console = chat, console
        self.interrupted = False
        """Whether Ctrl-C has ended the chat."""
        self._stopping: asyncio.Future[None] | None = None
        self._leaving = False
        self._attached: list[Path] = []
        self._turn: asyncio.Task[Any] | None = None
        self._line: PromptSession[str] | None = None
        self._reading: asyncio.Task[bool] | None = None
        self._questions = questions
        if questions is not None:
            questions.stop = self._stop_turn
            options = replace(chat.setup.options, can_use_tool=questions)
            chat.setup = replace(chat.setup, options=options)

    async def talk(self) -> bool:
        """Talk with a person until they leave."""
        redactor = Redactor(self.chat.setup.known_secrets())
        line: PromptSession[str] = PromptSession(
            history=History(cache_dir() / "chat-history", redactor),
            key_bindings=keys(),
            multiline=True,
            output=prompt_output(),
        )
        self._line = line
        self._say(f"{self._about()}. /help says what can be done; Ctrl-D leaves.")
        warming = asyncio.create_task(self._warm())
        try:
            while True:
                try:
                    said = await line.prompt_async(HTML("<b>&gt; </b>"), handle_sigint=False)
                except KeyboardInterrupt:
                    ending.begin()
                    self.interrupted = True
                    break
                except EOFError:
                    break
                if not await self.take(said):
                    break
        finally:
            warming.cancel()
            self._leaving = True
            if not ending.code:
                self._say("ending the session …")
        return True

    async def read(self, prompts: AsyncIterator[str], *, commands: bool = True) -> bool:
        """Answer prompts from a pipe; returns whether each of them succeeded. Ctrl-C stops the turn and ends it."""
        self._reading = asyncio.create_task(self._read(prompts, commands))
        try:
            return await self._reading
        except asyncio.CancelledError:
            me = asyncio.current_task()
            if not self.interrupted or me is None or me.cancelling():
                self._reading.cancel()
                await asyncio.wait([self._reading])
                raise
            return False

    async def _read(self, prompts: AsyncIterator[str], commands: bool) -> bool:
        async for said in prompts:
            if said.strip():
                self._say(f"> {said.strip()}", style="bold")
                if not await self.take(said, commands=commands) or self.interrupted:
                    break
        return not self.interrupted and all(result.ok for result in self.chat.results)

    async def _warm(self) -> None:
        """Have the sandbox and the CLI come up while the first prompt is typed."""
        with contextlib.suppress(HarvestError):  # the first prompt meets it again, and says so
            await (await self.chat.open()).start()

    def _stop_turn(self) -> None:
        self.interrupt()

    def interrupt(self) -> bool:
        """Stop the turn that is under way; of a pipe, all that would come after it too.

        Returns:
            False where there is nothing that could be stopped, or it is being stopped already.
        """
        if self._stopping is not None and not self._stopping.done():
            return False
        self.interrupted = self._reading is not None
        if self.interrupted or self._leaving:
            ending.begin()
        if self.chat.busy:
            if not self.interrupted:
                ending.say("stopping the turn …")
            self._stopping = asyncio.ensure_future(self.chat.cancel())
        elif self._turn is not None and not self._turn.done():
            if not self.interrupted:
                ending.say("stopping …")
            self._stopping = self._turn
            self._turn.cancel()
        elif self._reading is not None:
            self._reading.cancel()
        elif self._line is not None and self._line.app.is_running:
            self._line.app.exit(exception=KeyboardInterrupt())
        elif not self._leaving:
            return False
        return True

    async def take(self, said: str, *, commands: bool = True) -> bool:
        """Answer one prompt or command; returns whether to go on."""
        said = said.strip()
        found = _COMMAND.match(said) if commands else None
        try:
            if found:
                return await self._command(found[1].lower(), (found[2] or "").strip())
            if said:
                await self._ask(said)
        except HarvestError as error:
            self._say(str(error), style="bold red")
        return True

    async def _ask(self, prompt: str) -> None:
        talk = Talk(self.console)
        flow = LiveFlow(surface=talk, own_figures=True)
        if isinstance(self._questions, TerminalQuestions):
            self._questions.before = talk.clear
        attachments, self._attached = self._attached, []
        asked = self.chat.ask(prompt, attachments=attachments, on_message=flow.show)
        try:
            result = await self._stoppable(asked, talk)
            if result is None:
                self._say("cancelled before it began", style="yellow")
                return
            flow.end(result)
            if result.status == "died":
                self._say("The next prompt goes on with what had been said.")
        finally:
            flow.close()

    async def _stoppable(self, work: Coroutine[Any, Any, T], talk: Talk) -> T | None:
        """What the work gives, or None when Ctrl-C has stopped it; meanwhile a line says that it goes on."""
        self._turn = turn = asyncio.create_task(work)
        began = time.monotonic()
        try:
            while not turn.done():
                await asyncio.wait([turn], timeout=1)
                if not turn.done() and (self._questions is None or not self._questions.asking):
                    talk.tick(time.monotonic() - began)
            return await turn
        except asyncio.CancelledError:
            me = asyncio.current_task()
            if me is None or me.cancelling():
                turn.cancel()
                await asyncio.wait([turn])
                raise
            return None
        finally:
            talk.close()

    async def _command(self, name: str, argument: str) -> bool:
        match name:
            case _ if argument and name in _ALONE:
                self._say(f"/{name} takes nothing after it.", style="yellow")
            case "quit" | "exit":
                return False
            case "help":
                self._say(_HELP)
            case "cost":
                self.console.print(ledger(self.chat))
            case "model" if argument:
                if await self._stoppable(self._set_model(argument), Talk(self.console)):
                    self._say(f"The model is {argument} from the next turn on.")
            case "model":
                self._say(self._about())
            case "attach":
                self._attach(argument)
            case "fork":
                await self.chat.fork(argument or None)
                self._say("The next prompt goes on as a branch; the recorded session stays as it is.")
            case "resume" if argument:
                await self.chat.resume(argument)
                past = self.chat.setup.past
                assert past is not None
                self._say(f"The next prompt goes on with run {past.run_id}.")
            case "resume":
                self._list_runs()
            case _:
                self._say(f"There is no command /{name}; /help lists them.", style="yellow")
        return True

    async def _set_model(self, name: str) -> bool:
        await self.chat.set_model(name)
        return True

    def _attach(self, argument: str) -> None:
        if argument:
            self._attached.append(readable(Path(argument).expanduser()))
        names = ", ".join(str(path) for path in self._attached)
        self._say(f"With the next prompt goes: {names or 'no file'}.")

    def _list_runs(self) -> None:
        from harvest_nb.tables import load

        runs = self.chat.setup.runs_dir
        recent = sorted(runs.glob("*/transcript"))[-10:]
        if not recent:
            self._say(f"There is no run to go on with in {runs}.")
            return
        table = Table("run", "prompt", "prompts", "USD", box=None, header_style="bold")
        for row in load(*[path.parent for path in recent]).runs.to_dict("records"):
            prompt = " ".join(plain(str(row["prompt"])).split())
            cost = row["cost_usd"]
            known = cost is not None and cost == cost
            table.add_row(
                row["run_id"],
                Text(prompt[:60]),
                str(row["n_prompts"]),
                f"{cost:.4f}" if known else "",
            )
        self.console.print(table)

    def _about(self) -> str:
        setup = self.chat.setup
        model = setup.options.model or (DEFAULT_MODEL if setup.endpoint != LIVE else "the CLI's own model")
        provider = setup.provider.name if setup.provider is not None else "a given sandbox"
        return f"{model} at the {setup.endpoint} endpoint, in a {provider} sandbox"

    def _say(self, text: str, style: str = "dim") -> None:
        self.console.print(plain(text), style=style, markup=False, highlight=False, soft_wrap=True)


def ledger(chat: Chat) -> Table:
    """What each prompt came to, and what all cost, in US dollars."""
    table = Table("prompt", "status", "turns", "s", "USD", box=None, header_style="bold", show_footer=True)
    for result in chat.results:
        cost = "unknown" if result.cost_usd is None else f"{result.cost_usd:.4f}"
        turns = "" if result.num_turns is None else str(result.num_turns)
        status = f"{result.status} ({', '.join(result.cut_short)})" if result.cut_short else result.status
        prompt = Text(" ".join(plain(result.prompt).split())[:50])
        table.add_row(prompt, status, turns, f"{result.seconds:.1f}", cost)
    total = chat.cost_usd
    table.columns[-1].footer = "nothing yet" if total is None else f"{total:.4f}"
    table.columns[0].footer = "in all"
    return table
