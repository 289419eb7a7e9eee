"""Run several notebooks, one after the other: parameters shared out, what cannot run here left out.

Notebooks depend on each other only through their parameters.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from harvest_nb.errors import NotebookError, ParameterError
from harvest_nb.notebooks.inputs import parameters, read_notebook
from harvest_nb.notebooks.report import write_junit
from harvest_nb.notebooks.run import CellFailure, NotebookResult, run_notebook, vet
from harvest_nb.redact import Redactor
from harvest_nb.settings import load_settings

__all__ = ["run_notebooks"]


def run_notebooks(
    paths: Iterable[Path],
    out_dir: Path,
    parameters: Mapping[str, Any] | None = None,
    *,
    per_notebook: Mapping[str, Mapping[str, Any]] | None = None,
    requires: Mapping[str, str | None] | None = None,
    cell_timeout: int = 600,
    cwd: Path | None = None,
    live: bool = False,
    secrets: Redactor | None = None,
    console: Console | None = None,
    junit: Path | None = None,
) -> list[NotebookResult]:
    """Run notebooks one after the other; a failing one does not keep the others from running.

    Args:
        parameters: common values, each given to those notebooks that have the parameter.
        per_notebook: values by the notebook's name; they win over common ones.
        requires: what is here: name to None, or to the reason why it is not (`{"docker": "HARVEST_ENGINE=off"}`).
            A notebook says what it needs in its metadata, `{"harvest": {"requires": ["docker"]}}`.
        console: where progress is shown; default: nowhere.
        junit: where JUnit XML is written, also after Ctrl-C.
        cell_timeout, cwd, live, secrets: see `run_notebook`.

    Raises:
        ParameterError, NotebookError: before any notebook has run.
        KeyboardInterrupt: after the kernel has ended and the report has been written.
    """
    todo = _planned([Path(p) for p in paths], parameters or {}, per_notebook or {}, requires or {})
    out = console or Console(quiet=True)
    redactor = Redactor(load_settings(cwd).tokens()) if secrets is None else secrets
    for path, given, _ in todo:
        vet(path, given, redactor)
    results: list[NotebookResult] = []
    try:
        for path, given, reason in todo:
            name = escape(path.stem)
            if reason:
                out.print(f"[yellow]-[/] {name} not run: {escape(reason)}")
                results.append(NotebookResult(path.stem, 0.0, "skipped", reason, path))
                continue
            start = time.monotonic()
            try:
                with out.status(f"{name} …") as status:
                    results.append(
                        run_notebook(
                            path,
                            out_dir,
                            given,
                            cell_timeout=cell_timeout,
                            cwd=cwd,
                            live=live,
                            secrets=redactor,
                            on_cell=partial(_progress, status, name),
                        )
                    )
            except KeyboardInterrupt:
                seconds = time.monotonic() - start
                executed = Path(out_dir) / path.name
                failure = CellFailure("KeyboardInterrupt", "interrupted")
                kept = executed if executed.exists() else None
                results.append(
                    NotebookResult(path.stem, seconds, "failed", "interrupted", path, kept, error=failure)
                )
                raise
            _say(out, results[-1])
    finally:
        if junit is not None:
            write_junit(results, junit)
    return results


def _progress(status: Status, name: str, cell: int, cells: int) -> None:
    status.update(f"{name}: cell {cell + 1} of {cells}")


def _say(out: Console, result: NotebookResult) -> None:
    name = escape(result.name)
    if result.outcome == "ok":
        out.print(f"[green]✓[/] {name} in {result.seconds:.1f} s")
    else:
        out.print(f"[red]✗[/] {name} failed after {result.seconds:.1f} s: {escape(result.reason)}")


def _planned(
    paths: list[Path],
    common: Mapping[str, Any],
    single: Mapping[str, Mapping[str, Any]],
    requires: Mapping[str, str | None],
) -> list[tuple[Path, dict[str, Any], str]]:
    """Each notebook with its parameters and the reason not to run it (empty: run it)."""
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
        todo.append((path, {**given, **single.get(path.stem, {})}, "; ".join(reasons)))
    return todo
