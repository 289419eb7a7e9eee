"""A chat in a notebook: something to type into, the flow as it goes, Stop, and what it has cost so far."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claude_agent_sdk import Message

from harvest_nb.errors import SettingsError
from harvest_nb.session.chat import Chat
from harvest_nb.session.result import RunResult
from harvest_nb.views.live import LiveFlow, in_notebook
from harvest_nb.views.panel import Panel

if TYPE_CHECKING:
    import pandas

__all__ = ["ChatView"]


class ChatView:
    """What `harvest_nb.chat` gives: awaited with prompts, or looked at without.

    Args:
        chat: what is talked to; it is closed with the view.
        prompts: what to say, in order; None to have a person type.
        check: raise at the first of `prompts` that does not succeed.
        ask: put permission questions to the person, as buttons.
    """

    def __init__(
        self,
        chat: Chat,
        prompts: Sequence[str] | None = None,
        *,
        on_message: Callable[[Message], None] | None = None,
        check: bool = True,
        ask: bool = False,
    ) -> None:
        self.chat = chat
        self._prompts, self._on_message, self._check = prompts, on_message, check
        self._panel: Panel | None = None
        self._shown_in: int | None = None
        self._displays: list[Any] = []
        if prompts is None:
            if not in_notebook():
                raise SettingsError(
                    "chat() shows a view in a notebook, and this is none",
                    hint="give prompts=[…] and await it, or use `harvest-nb chat` in a terminal",
                )
            self._panel = Panel(chat, ask=ask)
            self._take_place()
            self._ipython_display_()
            self._shown_in = _place()[1]

    def _take_place(self) -> None:
        """End the chat that an earlier run of this cell has shown: its view has just gone from the page."""
        cell, execution = _place()
        if cell is None:
            return
        for earlier, when in _in_cells.pop(cell, []):
            if when == execution:
                _in_cells.setdefault(cell, []).append((earlier, when))
            else:
                earlier.loop.call_soon_threadsafe(earlier.end_soon)
        assert self._panel is not None
        _in_cells.setdefault(cell, []).append((self._panel, execution))

    def __await__(self) -> Generator[Any, None, ChatView]:
        return self._run().__await__()

    async def _run(self) -> ChatView:
        """Send the prompts and close; without any, wait until the session is there."""
        if self._prompts is None:
            await self.chat.open()
            return self
        async with self.chat:
            for prompt in self._prompts:
                result = await self._say(prompt)
                if self._check:
                    result.check()
        return self

    async def _say(self, prompt: str) -> RunResult:
        if self._on_message is not None:
            return await self.chat.ask(prompt, on_message=self._on_message)
        flow = LiveFlow(own_figures=True)
        try:
            flow.add("you", prompt)
            result = await self.chat.ask(prompt, on_message=flow.show)
            flow.end(result)
        finally:
            flow.close()
        return result

    async def ask(self, prompt: str) -> RunResult:
        """Send a prompt from a cell, into the view where there is one, and wait for its end."""
        if self._panel is not None:
            return await self._panel.say(prompt)
        return await self._say(prompt)

    async def cancel(self) -> None:
        """Stop the turn that is under way."""
        await self.chat.cancel()

    async def close(self) -> None:
        """End the session and its sandbox; the view stays as it is. Safe to call twice."""
        if self._panel is not None:
            await self._panel.close()
            for shown in self._displays:
                shown.update(self._panel.bundle(), raw=True)
        await self.chat.close()

    @property
    def results(self) -> list[RunResult]:
        """What the prompts so far came to."""
        return self.chat.results

    @property
    def folder(self) -> Path | None:
        """The run folder of the latest session."""
        return self.chat.folder

    @property
    def frame(self) -> pandas.DataFrame:
        """The ledger: one row a prompt, costs in US dollars as the CLI reports them."""
        return self.chat.frame

    @property
    def view(self) -> Any:
        """The widget, or None for a chat with prompts."""
        return None if self._panel is None else self._panel.view

    def _ipython_display_(self) -> None:
        from IPython.display import display

        fresh, self._shown_in = self._panel is not None and self._shown_in == _place()[1], None
        if self._panel is None:
            display({"text/plain": repr(self)}, raw=True)  # type: ignore[no-untyped-call]
        elif not fresh:  # shown by `chat()` itself, which may be the last expression of its cell
            shown: Any = display(self._panel.bundle(), raw=True, display_id=True)  # type: ignore[no-untyped-call]
            self._displays.append(shown)

    def __repr__(self) -> str:
        if self._prompts is not None and not self.chat.sessions:
            return "A chat that has not begun: await it"
        cost = self.chat.cost_usd
        said = "cost unknown" if cost is None else f"${cost:.4f}"
        return f"A chat of {len(self.results)} prompts, {said}, recorded in {self.folder}"


_in_cells: dict[str, list[tuple[Panel, int]]] = {}
"""By a cell's id, the views that its latest run has shown, and which run that was."""


def _place() -> tuple[str | None, int]:
    """The id of the cell that runs now, if its notebook tells one, and the number of its run."""
    from IPython import get_ipython

    shell: Any = get_ipython()
    parent = shell.get_parent() if hasattr(shell, "get_parent") else {}
    return parent.get("metadata", {}).get("cellId"), shell.execution_count
