"""Run several notebooks, some of them side by side: parameters shared out, what cannot run here left out.

Notebooks depend on each other only through their parameters and through what the caller says in `after`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

from jupyter_core.utils import ensure_event_loop
from rich.console import Console

from harvest_nb.errors import NotebookError, ParameterError
from harvest_nb.machine.command import Cancelled, Stop
from harvest_nb.notebooks.inputs import parameters, read_notebook
from harvest_nb.notebooks.leaving import remove_left
from harvest_nb.notebooks.live_table import LiveTable
from harvest_nb.notebooks.report import write_junit
from harvest_nb.notebooks.run import CellFailure, NotebookResult, run_notebook, vet
from harvest_nb.redact import Redactor
from harvest_nb.settings import load_settings

__all__ = ["run_notebooks"]


class _Planned(NamedTuple):
    """One notebook of a batch; `reason` says why it is not run (empty: it is)."""

    path: Path
    given: dict[str, Any]
    reason: str


def run_notebooks(
    paths: Iterable[Path],
    out_dir: Path,
    parameters: Mapping[str, Any] | None = None,
    *,
    per_notebook: Mapping[str, Mapping[str, Any]] | None = None,
    requires: Mapping[str, str | None] | None = None,
    after: Mapping[str, Sequence[str]] | None = None,
    jobs: int = 1,
    cell_timeout: int = 600,
    cwd: Path | None = None,
    live: bool = False,
    secrets: Redactor | None = None,
    console: Console | None = None,
    junit: Path | None = None,
) -> list[NotebookResult]:
    """Run notebooks, `jobs` at once; a failing one does not keep the others from running.

    Args:
        parameters: common values, each given to those notebooks that have the parameter.
        per_notebook: values by the notebook's name; they win over common ones.
        requires: what is here: name to None, or to the reason why it is not (`{"docker": "HARVEST_ENGINE=off"}`).
            A notebook says what it needs in its metadata, `{"harvest": {"requires": ["docker"]}}`.
        after: by a notebook's name, those that must have ended before it starts, as it reads what they write.
        jobs: how many run at the same time, each in a kernel of its own.
        console: where progress is shown; default: nowhere.
        junit: where JUnit XML is written, also after Ctrl-C.
        cell_timeout, cwd, live, secrets: see `run_notebook`.

    Returns:
        The results in the order of `paths`, whatever ended first.

    Raises:
        ParameterError, NotebookError: before any notebook has run.
        KeyboardInterrupt: after all kernels have ended, the sandboxes that they left have been removed, and the report
            has been written.
    """
    todo = _planned([Path(p) for p in paths], parameters or {}, per_notebook or {}, requires or {})
    names = [each.path.stem for each in todo]
    earlier = {name: (after or {}).get(name, ()) for name in names}
    _check_order(earlier, after or {})
    redactor = Redactor(load_settings(cwd).tokens()) if secrets is None else secrets
    for each in todo:
        vet(each.path, each.given, redactor)
    results: dict[str, NotebookResult] = {}
    stop = Stop()

    def run(each: _Planned) -> NotebookResult:
        name = each.path.stem
        began = time.monotonic()
        try:
            return run_notebook(
                each.path, out_dir, each.given, cell_timeout=cell_timeout, cwd=cwd, live=live, secrets=redactor,
                on_cell=lambda cell, cells: table.show(name, f"cell {cell + 1} of {cells}"), stop=stop,
            )  # fmt: skip
        except Cancelled:
            kept = Path(out_dir) / each.path.name
            return NotebookResult(
                name, time.monotonic() - began, "failed", "interrupted", each.path, kept if kept.exists() else None,
                error=CellFailure("KeyboardInterrupt", "interrupted"),
            )  # fmt: skip
        finally:
            _close(ensure_event_loop())  # this thread's own, which papermill has made

    with LiveTable(console, names) as table, ThreadPoolExecutor(jobs) as pool:
        running: dict[Future[NotebookResult], str] = {}
        try:
            waiting = list(todo)
            while waiting or running:
                for each in [each for each in waiting if all(n in results for n in earlier[each.path.stem])]:
                    if each.reason:
                        results[each.path.stem] = NotebookResult(
                            each.path.stem, 0.0, "skipped", each.reason, each.path
                        )
                        table.end(results[each.path.stem])
                    elif len(running) < jobs:
                        table.show(each.path.stem, "starting")
                        running[pool.submit(run, each)] = each.path.stem
                    else:
                        continue
                    waiting.remove(each)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    results[running.pop(future)] = future.result()
                    table.end(future.result())
        except BaseException:
            stop.ask()
            for future in wait(running).done:
                with suppress(Exception):  # what ended the batch is raised
                    results[running[future]] = future.result()
                    table.end(future.result())
            remove_left()
            raise
        finally:
            done = [results[name] for name in names if name in results]
            if junit is not None:
                write_junit(done, junit)
    return done


_LET_GO = 2.0  # seconds for a task to end after it was cancelled


def _close(loop: asyncio.AbstractEventLoop) -> None:
    """Close a loop and end what is left on it, as after a cell that was interrupted."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left, timeout=_LET_GO))
    loop.close()


def _check_order(earlier: Mapping[str, Sequence[str]], after: Mapping[str, Sequence[str]]) -> None:
    """Raise NotebookError where one waits for a notebook that is not there, or some for each other in a circle."""
    unknown = {*after, *(name for names in after.values() for name in names)} - set(earlier)
    if unknown:
        raise NotebookError(
            f"There is no notebook {', '.join(sorted(unknown))}", hint=f"known: {', '.join(earlier)}"
        )
    try:
        TopologicalSorter(earlier).prepare()
    except CycleError as error:
        names = ", ".join(sorted(set(error.args[1])))
        raise NotebookError(
            f"The notebooks {names} wait for each other", hint="see which must be run after which"
        ) from None


def _planned(
    paths: list[Path],
    common: Mapping[str, Any],
    single: Mapping[str, Mapping[str, Any]],
    requires: Mapping[str, str | None],
) -> list[_Planned]:
    """Return each notebook with its parameters and the reason not to run it."""
    paths = list(dict.fromkeys(paths))
    stems = [path.stem for path in paths]
    for path in paths:
        if stems.count(path.stem) > 1:
            both = [str(other) for other in paths if other.stem == path.stem]
            raise NotebookError(
                f"Two notebooks are named {path.stem}: {' and '.join(both)}",
                hint="run them one after the other, with a folder for each: what they gave bears their names",
                notebook=path.stem,
            )
    known = {path: [p.name for p in parameters(path)] for path in paths}
    for name in single:
        if name not in stems:
            raise ParameterError(f"There is no notebook {name}", hint=f"known: {', '.join(stems)}")
    taken = {name for names in known.values() for name in names}
    for name in common:
        if name not in taken:
            allowed = sorted(taken)
            raise ParameterError(
                f"None of the notebooks {', '.join(stems)} has a parameter {name}",
                hint=f"allowed: {', '.join(allowed) or 'none'}",
                parameter=name,
                allowed=allowed,
            )
    todo = []
    for path, names in known.items():
        given = {name: value for name, value in common.items() if name in names}
        needs = read_notebook(path).metadata.get("harvest", {}).get("requires", [])
        unheard = [need for need in needs if need not in requires]
        if unheard:
            raise NotebookError(
                f"The notebook {path.stem} requires {', '.join(unheard)}, and nobody says whether it is here",
                hint=f"known: {', '.join(requires) or 'none'}",
                notebook=path.stem,
            )
        reasons = [f"it needs {need}: {requires[need]}" for need in needs if requires[need] is not None]
        todo.append(_Planned(path, {**given, **single.get(path.stem, {})}, "; ".join(reasons)))
    return todo
