"""Permission questions put to a person: buttons in a notebook, a line in a terminal."""

from __future__ import annotations

import asyncio
import html
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from claude_agent_sdk import PermissionResultAllow, PermissionResultDeny, ToolPermissionContext
from rich.console import Console
from rich.text import Text

from harvest_nb.errors import SettingsError
from harvest_nb.views.live import in_notebook
from harvest_nb.views.plain import plain

if TYPE_CHECKING:
    from prompt_toolkit.output import Output

__all__ = ["Answer", "CellQuestions", "Questions", "TerminalQuestions", "prompt_output", "questions_here"]

Answer = Literal["allow", "always", "deny", "stop"]
_LONGEST_QUESTION = 20_000
_DOUBLE_CLICK = 0.5  # seconds


class Questions:
    """A `can_use_tool` callback that asks one question at a time; “always” holds for a tool from then on.

    `stop` is called when the answer is to stop the whole turn.
    """

    def __init__(self, stop: Callable[[], None] = lambda: None) -> None:
        self.stop = stop
        self.asking = False
        """Whether a person is being asked now."""
        self._always: set[str] = set()
        self._lock = asyncio.Lock()
        self._open: asyncio.Future[Answer] | None = None

    async def __call__(
        self, tool: str, given: dict[str, Any], _context: ToolPermissionContext
    ) -> PermissionResultAllow | PermissionResultDeny:
        """Ask, unless the tool may always be used."""
        async with self._lock:
            self.asking = tool not in self._always
            try:
                answer: Answer = await self._ask(tool, given) if self.asking else "always"
            finally:
                self.asking = False
        if answer == "always":
            self._always.add(tool)
        if answer in ("allow", "always"):
            return PermissionResultAllow()
        if answer == "stop":
            self.stop()
            return PermissionResultDeny(message="The person at the desk stopped the turn.", interrupt=True)
        return PermissionResultDeny(message="The person at the desk said no.")

    async def _ask(self, tool: str, given: dict[str, Any]) -> Answer:
        loop = asyncio.get_running_loop()
        self._open = loop.create_future()
        try:
            self.show(tool, asked_for(given))
            return await self._open
        finally:
            self._open = None
            self.hide()

    def answer(self, answer: Answer) -> None:
        """Answer the question that is open, if there is one; to be called in the loop's own thread."""
        if self._open is not None and not self._open.done():
            self._open.set_result(answer)

    def show(self, tool: str, given: str) -> None:
        """Put the question."""

    def hide(self) -> None:
        """Take it away."""


class CellQuestions(Questions):
    """Questions as a row of buttons; `view` is the widget, empty while nothing is asked."""

    def __init__(self, stop: Callable[[], None] = lambda: None) -> None:
        super().__init__(stop)
        import ipywidgets

        widgets: Any = ipywidgets  # it makes its names at run time
        self._loop = asyncio.get_running_loop()
        self._text = widgets.HTML()
        said: list[tuple[str, Answer, str]] = [
            ("Allow", "allow", "success"),
            ("Always", "always", ""),
            ("Deny", "deny", "danger"),
        ]
        buttons = []
        for label, answer, style in said:
            button = widgets.Button(description=label, button_style=style)
            button.add_class(f"harvest-{answer}")
            button.on_click(lambda _, answer=answer: self._loop.call_soon_threadsafe(self._clicked, answer))
            buttons.append(button)
        self.view = widgets.VBox([self._text, widgets.HBox(buttons)])
        self._last_click = -_DOUBLE_CLICK
        self.hide()

    def _clicked(self, answer: Answer) -> None:
        # The second of two clicks is meant for the question before: nobody has read this one yet.
        before, self._last_click = self._last_click, time.monotonic()
        if self._last_click - before > _DOUBLE_CLICK:
            self.answer(answer)

    def show(self, tool: str, given: str) -> None:
        """Put the question."""
        look = "white-space:pre-wrap;overflow-wrap:anywhere;max-height:20em;overflow-y:auto"
        self._text.value = (
            f"<b>May the agent use {html.escape(plain(tool))}?</b>"
            f'<pre style="{look}">{html.escape(given)}</pre>'
        )
        self.view.layout.display = ""

    def hide(self) -> None:
        """Take it away."""
        self.view.layout.display = "none"


class TerminalQuestions(Questions):
    """Questions in lines; Ctrl-C stops the turn.

    Args:
        before: called before a question is written.
    """

    _WORDS: dict[str, Answer] = {  # noqa: RUF012 - never changed
        "y": "allow", "yes": "allow", "a": "always", "always": "always", "n": "deny", "no": "deny", "": "deny",
    }  # fmt: skip

    def __init__(
        self,
        stop: Callable[[], None] = lambda: None,
        *,
        console: Console | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(stop)
        self.before, self._console = before, console or Console()

    async def _ask(self, tool: str, given: dict[str, Any]) -> Answer:
        from prompt_toolkit import PromptSession

        self.before()
        # A prompt of several lines cuts each of them at the terminal's edge, and with it what is asked for.
        self._console.print(Text(f"May the agent use {plain(tool)}?", style="bold"), soft_wrap=True)
        for line in asked_for(given).splitlines():
            self._console.print(Text(f"    {line}"), soft_wrap=True)
        session: PromptSession[str] = PromptSession(output=prompt_output())
        while True:
            try:
                said = await session.prompt_async("[y]es, [a]lways, [N]o: ", handle_sigint=False)
            except (KeyboardInterrupt, EOFError):
                return "stop"
            if said.strip().lower() in self._WORDS:
                return self._WORDS[said.strip().lower()]


def prompt_output() -> Output:
    """Return what a prompt is written to: the terminal, also where answers go elsewhere, as in `chat | tee answers`.

    The terminal is not asked where its cursor stands: one that does not answer would hold back for a second what
    comes after the prompt, such as the word on Ctrl-C.
    """
    from prompt_toolkit.output import create_output
    from prompt_toolkit.output.vt100 import Vt100_Output

    output = create_output(always_prefer_tty=True)
    if isinstance(output, Vt100_Output):
        output.enable_cpr = False
    return output


def asked_for(given: Mapping[str, Any]) -> str:
    """A tool's input as a person must see it who answers for it: in full, an argument a line or more."""
    parts = [f"{key}: {value if isinstance(value, str) else repr(value)}" for key, value in given.items()]
    text = plain("\n".join(parts))
    if len(text) <= _LONGEST_QUESTION:
        return text
    cut = _LONGEST_QUESTION // 2
    return f"{text[:cut]}\n… ({len(text) - 2 * cut:,} characters are not shown) …\n{text[-cut:]}"


def questions_here() -> Questions:
    """What can ask the person who is there.

    Raises:
        SettingsError: nobody is.
    """
    if in_notebook():
        from IPython.display import display

        asking = CellQuestions()
        display(asking.view)  # type: ignore[no-untyped-call]
        return asking
    if sys.stdin is not None and sys.stdin.isatty():
        return TerminalQuestions()
    raise SettingsError("There is nobody to ask for permission", hint="give a callback, or allowed tools")
