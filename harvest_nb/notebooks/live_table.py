"""The table of a batch of notebooks: in a terminal it moves while they run, elsewhere a line says how each ended."""

from __future__ import annotations

import contextlib
import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from harvest_nb.notebooks.run import NotebookResult

__all__ = ["LiveTable"]


class LiveTable:
    """Shows what each notebook of a batch is doing; its methods may be called from any thread.

    Args:
        console: where; None shows nothing.
        names: the notebooks, in the order of the rows.
    """

    def __init__(self, console: Console | None, names: list[str]) -> None:
        self._console = console or Console(quiet=True)
        self._doing = dict.fromkeys(names, "waiting")
        self._began: dict[str, float] = {}
        self._live: Live | None = None
        if self._console.is_terminal and not self._console.quiet:
            self._live = Live(
                get_renderable=self._table, console=self._console, refresh_per_second=4, transient=True
            )

    def __enter__(self) -> LiveTable:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, name: str, doing: str) -> None:
        """Say what a notebook is doing; its clock begins with the first call."""
        self._began.setdefault(name, time.monotonic())
        self._doing[name] = doing
        if self._live is not None:
            with contextlib.suppress(OSError):  # a terminal that has gone stops no notebook
                self._live.refresh()  # so that a step shorter than the refresh interval is drawn too

    def end(self, result: NotebookResult) -> None:
        """Say how a notebook ended."""
        self._doing.pop(result.name, None)
        name, seconds = escape(result.name), f"{result.seconds:.1f} s"
        if result.outcome == "ok":
            self._console.print(f"[green]✓[/] {name} in {seconds}")
        elif result.outcome == "skipped":
            self._console.print(f"[yellow]-[/] {name} not run: {escape(result.reason)}")
        else:
            kept = f"; as far as it got: {result.executed}" if result.executed else ""
            told = f"[red]✗[/] {name} failed after {seconds}: {escape(result.reason + kept)}"
            self._console.print(told, soft_wrap=True)
            if result.stderr:
                said = f"the kernel of {result.name} said:\n{result.stderr}"
                self._console.print(said, soft_wrap=True, markup=False, highlight=False, style="dim")

    def _table(self) -> Table:
        table = Table("notebook", "seconds", "", box=None, header_style="bold", padding=(0, 2, 0, 0))
        for name, doing in list(self._doing.items()):
            began = self._began.get(name)
            table.add_row(escape(name), "" if began is None else f"{time.monotonic() - began:.0f}", doing)
        return table
