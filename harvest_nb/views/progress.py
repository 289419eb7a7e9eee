"""A build's progress: a bar in a terminal, a line in a notebook's cell, quiet where nobody looks."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from harvest_nb.snapshot import BuildProgress
from harvest_nb.views.live import in_notebook

__all__ = ["BuildBar"]


class BuildBar:
    """Shows `BuildProgress`: `with BuildBar() as bar: await build(on_progress=bar.show)`.

    In a terminal the current step and line move in place; elsewhere each step is printed once as it begins, and
    nothing at all where the variable `CI` is set.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._last = ""
        self._quiet = bool(os.environ.get("CI"))
        self._bar: Progress | None = None
        self._handle: Any = None
        if console is None and in_notebook():
            from IPython import display

            ipython: Any = display  # untyped
            self._handle = ipython.display({"text/plain": "building …"}, raw=True, display_id=True)
        elif self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TimeElapsedColumn(),
                TextColumn("{task.fields[line]}", style="dim", markup=False),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task("building", total=None, line="")

    def show(self, progress: BuildProgress) -> None:
        """Show how far the build has come."""
        head = f"step {progress.step} of {progress.steps}" if progress.steps else "preparing"
        title = f"{head}: {' '.join(progress.instruction.split())[:90]}"
        line = progress.line.strip().replace("\n", " ")[:100]
        if self._bar is not None:
            self._bar.update(
                self._task,
                description=title[:70],
                total=progress.steps or None,
                completed=progress.step,
                line=line,
            )
        elif self._handle is not None:
            text = f"{progress.seconds:6.1f} s  {title}\n          {line}"
            self._handle.update({"text/plain": text}, raw=True)
            self._last = title
            return
        if title != self._last or not progress.steps:
            self._last = title
            cached = " (cached)" if progress.cached else ""
            said = f"{title}{cached}" if progress.steps else f"{progress.instruction}: {line}"
            if self._bar is None and not self._quiet:
                self._console.print(
                    f"{progress.seconds:7.1f} s  {said}", highlight=False, markup=False, soft_wrap=True
                )

    def __enter__(self) -> BuildBar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
