"""A chat in a terminal: text as it is streamed, tool calls with their results, what the turn came to."""

from __future__ import annotations

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from harvest_nb.views.events import Row

__all__ = ["Talk"]


class Talk:
    """A `harvest_nb.views.live.Surface` without columns, to be read like a conversation."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._streams = console.is_terminal
        self._open: str | None = None
        self._said = ""
        self._awaited = "the session starts"
        self._ticked = False

    def tick(self, seconds: float) -> None:
        """Say that it goes on, and what is awaited, on a line that what comes next takes the place of."""
        if self._streams and not self._console.is_dumb_terminal and self._open is None:
            self.clear()
            said = Text(f"… {self._awaited}, {seconds:.0f} s", style="dim", no_wrap=True)
            said.truncate(self._console.width - 1)
            self._console.print(said, end="")
            self._ticked = True

    def clear(self) -> None:
        """Take away what `tick` has written."""
        if self._ticked:
            self._ticked = False
            self._console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))

    def add(self, row: Row) -> None:
        """Show a row; streamed text is not said twice."""
        said, self._said = self._said, ""
        self.close()
        self._awaited = f"{row.text.split(' ', 1)[0]} runs" if row.kind == "tool" else "the model answers"
        if said and said.strip() == row.text.strip():
            return
        match row.kind:
            case "init":
                pass  # it was ready before the prompt
            case "text":
                self._print(Text(row.text))
            case "thinking":
                self._print(Text(row.text, style="dim italic"))
            case "tool":
                self._print(Text("→ ", style="bold yellow").append(row.short, style="yellow"))
            case "tool result" | "tool error":
                self._result(row)
            case "result" | "note":
                self._print(Text(row.text, style="dim"))
            case "cancelled":
                self._print(Text(row.text, style="yellow"))
            case "retry" | "limit":
                self._print(Text(f"{row.kind}: {row.text}", style="yellow"))
            case _:
                self._print(Text(f"{row.kind}: {row.text}", style="bold red"))

    def _result(self, row: Row) -> None:
        style = "red" if row.kind == "tool error" else "green"
        for line in row.head:
            self._print(Text("  │ ", style=style).append(line, style="dim" if style == "green" else style))

    def typing(self, kind: str, text: str, new: str) -> None:
        """Write what is new, at once."""
        if not self._streams:
            return
        if self._open is not None and (self._open != kind or text == new):
            self.close()
        self.clear()
        self._open, self._said = kind, text
        style = "dim italic" if kind == "thinking" else ""
        self._console.print(Text(new, style=style), end="", soft_wrap=True)

    def close(self) -> None:
        """End the line that is being written."""
        self.clear()
        if self._open is not None:
            self._open = None
            self._console.print()

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)
