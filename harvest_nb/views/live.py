"""A session while it runs: one row an event, in a terminal or in a notebook's cell."""

from __future__ import annotations

import html
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from claude_agent_sdk import Message, ResultMessage, StreamEvent
from rich.console import Console
from rich.text import Text as RichText

from harvest_nb.session.result import RunResult
from harvest_nb.views.events import LONGEST, LOOKS, Row, ended, rows
from harvest_nb.views.plain import plain

__all__ = ["HtmlRows", "LiveFlow", "Surface", "in_notebook"]

_EVERY = 0.1  # seconds between two updates of a cell
_TYPED = 20_000  # characters of a block that is being streamed: each update sends all of them
_MOST = 300  # rows of a table: each update sends all of them
_MARGIN = 23  # columns before a row's text
_NARROW = "white-space:nowrap;vertical-align:top"
_CODE = "display:block;white-space:pre-wrap;background:none;color:inherit"
_WORDS = "text-align:left;vertical-align:top;white-space:pre-wrap;overflow-wrap:anywhere"


class Surface(Protocol):
    """What shows rows, and the text that is being streamed until its row comes."""

    def add(self, row: Row) -> None:
        """Show a row; what was typed before it is whole by now."""

    def typing(self, kind: str, text: str, new: str) -> None:
        """Show what a block says so far, and what of it is new."""

    def close(self) -> None:
        """Show nothing any more."""


class LiveFlow:
    """Shows messages as they come: `on_message=LiveFlow().show`.

    In a notebook the display belongs to the cell that made it. In a terminal each event is printed once, text
    while it is streamed; where the output is no terminal, when it is whole.

    Args:
        console: the terminal, if it is not standard output.
        surface: what shows the rows instead.
        own_figures: `end` tells what a prompt came to, instead of the CLI's result message.
    """

    def __init__(
        self, console: Console | None = None, surface: Surface | None = None, *, own_figures: bool = False
    ) -> None:
        self._own_figures = own_figures
        self._typed = ""
        if surface is None:
            surface = _cell() if console is None and in_notebook() else _Terminal(console or Console())
        self._surface = surface
        self._start = time.monotonic()

    def show(self, message: Message) -> None:
        """Show one message."""
        if isinstance(message, StreamEvent):
            self._stream(message.event)
            return
        if self._own_figures and isinstance(message, ResultMessage):
            return
        for row in rows(message, time.monotonic() - self._start):
            self._surface.add(row)

    def _stream(self, event: Mapping[str, Any]) -> None:
        match event:
            case {"type": "message_start"} | {"type": "content_block_start"}:
                self._typed = ""
            case {"delta": {"type": "text_delta", "text": new}}:
                self._type("text", new)
            case {"delta": {"type": "thinking_delta", "thinking": new}}:
                self._type("thinking", new)

    def _type(self, kind: str, new: str) -> None:
        new = plain(new)
        self._typed = (self._typed + new)[-_TYPED:]
        self._surface.typing(kind, self._typed, new)

    def add(self, kind: str, text: str) -> None:
        """Show a row of the desk's own."""
        self._surface.add(Row(time.monotonic() - self._start, kind, plain(text)))

    def end(self, result: RunResult) -> None:
        """Show how the prompt ended, if that has not been seen: cancelled, died, refused."""
        told = ended(result, every=self._own_figures)
        if told is not None:
            self.add(*told)

    def close(self) -> None:
        """Bring the display to its last state."""
        self._surface.close()


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")


class _Terminal:
    """Rows, one a line; text appears while it is streamed, and its row then only ends the line."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start = time.monotonic()
        self._open = self._streamed = ""

    def add(self, row: Row) -> None:
        streamed, self._streamed = self._streamed, ""
        if self._open:
            self._console.print()
            self._open = ""
        # Of a long text the end is compared, which is all that was kept.
        said, text = streamed.strip(), row.text.strip()
        if said and (text == said or (len(streamed) == _TYPED and text.endswith(said))):
            return
        self._console.print(self._head(row.kind, row.seconds).append(row.short))

    def typing(self, kind: str, text: str, new: str) -> None:
        if not self._console.is_terminal:
            return
        if self._open and (self._open != kind or text == new):
            self._console.print()
            self._open = ""
        if not self._open:
            self._console.print(self._head(kind, time.monotonic() - self._start), end="")
            self._open = kind
        self._streamed = text
        piece = new.replace("\n", "\n" + " " * _MARGIN)
        self._console.print(RichText(piece, style=LOOKS[kind][0]), end="", soft_wrap=True)

    @staticmethod
    def _head(kind: str, seconds: float) -> RichText:
        line = RichText(f"{seconds:7.2f} s  ", style="dim")
        return line.append(f"{kind:<12}", style=LOOKS[kind][0])

    def close(self) -> None:
        if self._open:
            self._console.print()
            self._open = ""


def _line(row: Row) -> str:
    """Return a row of the HTML table, of bounded length whatever the row says."""
    return (
        f'<tr><td style="text-align:right;opacity:.7;{_NARROW}">{row.seconds:.2f} s</td>'
        f'<td style="color:{LOOKS[row.kind][1]};text-align:left;{_NARROW}"><b>{row.kind}</b></td>'
        f'<td style="{_WORDS}">{_whole(row)}</td></tr>'
    )


def table(rows: Iterable[str], typing: str = "", before: int = 0) -> str:
    """Return an HTML table of `rows`, with the text that is being streamed below them."""
    lines = list(rows)
    look = "table-layout:fixed;width:100%;line-height:1.45" if lines else ""
    # Every table has the same columns, as a chat has one for each prompt; a widget's own lines are twice as high.
    columns = '<colgroup><col style="width:5.5em"><col style="width:7.5em"><col></colgroup>' * bool(lines)
    if typing:
        lines.append(f'<tr><td></td><td>…</td><td style="{_WORDS}">{html.escape(typing)}</td></tr>')
    if not lines:
        lines = ["<tr><td>starting the session …</td></tr>"]
    if before:
        lines.insert(
            0, f'<tr><td></td><td>…</td><td style="{_WORDS}">{before:,} earlier rows are recorded</td></tr>'
        )
    return f'<table class="harvest-flow" style="{look}">{columns}{"".join(lines)}</table>'


def _whole(row: Row) -> str:
    """What is said with its lines unless it is very long, a tool's result with its first ones; as HTML."""
    if row.kind in ("tool result", "tool error"):
        return f'<code style="{_CODE}">{html.escape(chr(10).join(row.head))}</code>'
    if row.kind not in ("you", "text", "thinking") or len(row.text) > 10 * LONGEST:
        return html.escape(row.short)
    parts = _fenced(row.text.strip("\n"))  # every other one is code
    return "".join(
        f'<code style="{_CODE}">{html.escape(part)}</code>' if odd % 2 else html.escape(part)
        for odd, part in enumerate(parts)
    )


def _fenced(text: str) -> list[str]:
    """Split text at its code fences: every other part is code. A fence that is not closed is text."""
    lines = text.split("\n")
    ends = [
        number for number, line in enumerate(lines) if line.startswith("```") and not line[3:].strip(" \t")
    ]
    parts: list[str] = []
    start = number = place = 0
    while number < len(lines):
        line = lines[number]
        while place < len(ends) and ends[place] <= number:
            place += 1
        if not line.startswith("```") or "`" in line[3:] or place == len(ends):
            number += 1
            continue
        end = ends[place]
        parts += ["\n".join(lines[start:number]).strip("\n"), "\n".join(lines[number + 1 : end])]
        start = number = end + 1
    return [*parts, "\n".join(lines[start:]).strip("\n")]


class HtmlRows:
    """Rows as an HTML table that grows: a cell's display, or a turn of the chat's view.

    Args:
        show: puts the table, as HTML, in the place of the one before.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._rows: deque[str] = deque(maxlen=_MOST)
        self._before = 0
        self._typing = ""
        self._shown = 0.0
        self._update()

    def add(self, row: Row) -> None:
        """Add an event; what was being streamed is in it."""
        self._before += len(self._rows) == _MOST
        self._rows.append(_line(row))
        self._typing = ""
        self._update()

    def typing(self, kind: str, text: str, new: str) -> None:
        """Show what is being streamed so far, a few times a second."""
        self._typing = text
        if time.monotonic() - self._shown > _EVERY:
            self._update()

    def close(self) -> None:
        """Come to the last state."""
        self._typing = ""
        self._update()

    def _update(self) -> None:
        self._shown = time.monotonic()
        self._show(table(self._rows, self._typing, before=self._before))


def _cell() -> HtmlRows:
    """Rows in the display of the cell that runs now."""
    from IPython import display

    ipython: Any = display  # untyped
    handle = ipython.display(ipython.HTML(""), display_id=True)
    return HtmlRows(lambda content: handle.update(ipython.HTML(content)))
