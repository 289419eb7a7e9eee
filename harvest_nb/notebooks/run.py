"""Run a notebook headless through papermill, and fail closed.

A notebook passes when every cell ran in time, nothing secret is in its outputs, and its last code cell emitted
a result. Everything else is `failed`, with the cell named and the partial notebook kept, or `skipped`, with
the reason why it was not run.
"""

# mypy: disable-error-code="no-untyped-call"
# papermill, nbformat and nbclient come without (complete) types.

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import nbformat
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from papermill.execute import execute_notebook

from harvest_nb.errors import NotebookError, ParameterError
from harvest_nb.machine.command import Stop
from harvest_nb.machine.held import holding
from harvest_nb.notebooks.engine import ENGINE, Job, kernel_environment
from harvest_nb.notebooks.inputs import check_parameters, read_notebook
from harvest_nb.notebooks.result import read_result
from harvest_nb.redact import Redactor, find_secret_shapes, without_secrets
from harvest_nb.settings import load_settings
from harvest_nb.views.plain import plain

__all__ = ["CellFailure", "NotebookResult", "run_notebook", "vet"]

Outcome = Literal["ok", "failed", "skipped"]
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_TAIL = 15  # lines of a traceback that are reported
TIMEOUT = "CellTimeoutError"


@dataclass(frozen=True)
class CellFailure:
    """Where and how a notebook failed.

    `index` counts the cells of the source notebook from 0 (None when no cell is to blame), `count` is the
    number in the margin (`[3]`), `tail` the last lines of the traceback without colour codes.
    """

    ename: str
    evalue: str
    index: int | None = None
    count: int | None = None
    source: str = ""
    tail: str = ""

    @property
    def timed_out(self) -> bool:
        """Whether the cell ran out of time, as opposed to raising something."""
        return self.ename == TIMEOUT

    @property
    def where(self) -> str:
        """The cell in words."""
        if self.index is None:
            return "the notebook as a whole"
        margin = f" [{self.count}]" if self.count else ""
        return f"cell {self.index}{margin} `{self.source.strip().splitlines()[0] if self.source.strip() else ''}`"


@dataclass(frozen=True)
class NotebookResult:
    """One notebook's outcome.

    `executed` is the executed notebook, also when it is partial (None when it was not run); `result` is what
    it emitted; `reason` says why it failed or was not run; `seconds` is wall-clock time with the kernel's start;
    `stderr` is the end of what the kernel itself wrote there, for one that failed.
    """

    name: str
    seconds: float
    outcome: Outcome
    reason: str = ""
    source: Path | None = None
    executed: Path | None = None
    result: Mapping[str, Any] | None = None
    error: CellFailure | None = None
    stderr: str = ""

    def check(self) -> NotebookResult:
        """This result, or `NotebookError` when it failed."""
        if self.outcome != "failed":
            return self
        failure = self.error or CellFailure("NotebookError", self.reason)
        raise NotebookError(
            f"The notebook {self.name} failed: {self.reason}",
            hint=f"what it got to is in {self.executed}" if self.executed else "",
            notebook=self.name,
            cell=failure.index,
            ename=failure.ename,
            evalue=failure.evalue,
        )


def run_notebook(
    path: Path,
    out_dir: Path,
    parameters: Mapping[str, Any] | None = None,
    *,
    cell_timeout: int = 600,
    cwd: Path | None = None,
    live: bool = False,
    secrets: Redactor | None = None,
    on_cell: Callable[[int, int], None] | None = None,
    stop: Stop | None = None,
) -> NotebookResult:
    """Execute one notebook in a kernel of this interpreter; the executed one goes to `out_dir`.

    Args:
        parameters: values for its `parameters` cell, checked before anything runs.
        cell_timeout: seconds that one cell may take.
        cwd: the kernel's working directory; default: the current one.
        live: let the token variables through to the kernel, for runs against Anthropic's endpoint.
        secrets: what must not be in any output; default: the tokens of the settings in `cwd`. Shapes of
            well-known credentials are looked for in any case.
        on_cell: called with the index of each cell that starts and the number of cells.
        stop: interrupts the notebook when asked, also from another thread. Sandboxes that the kernel cannot put away
            then are left for `sandboxes --reap`; `run_notebooks` removes them itself.

    Raises:
        ParameterError: a parameter is unknown, ill-typed, or carries a secret; nothing has run.
        NotebookError: the notebook cannot be read, or would be overwritten by its own output.
        KeyboardInterrupt, Cancelled: after the kernel has ended; the partial notebook is kept.
    """
    path, out_dir = Path(path), Path(out_dir)
    cwd = Path.cwd() if cwd is None else Path(cwd)
    given = dict(parameters or {})
    redactor = Redactor(load_settings(cwd).tokens()) if secrets is None else secrets
    source = vet(path, given, redactor)
    if out_dir.resolve() == path.parent.resolve():
        raise NotebookError(f"{out_dir} holds the notebook's source", hint="choose another output folder")
    out_dir.mkdir(parents=True, exist_ok=True)
    executed = out_dir / path.name
    job = Job(
        cwd, kernel_environment(live=live), redactor, on_cell or (lambda index, cells: None), stop or Stop()
    )
    failure: CellFailure | None = None
    start = time.monotonic()
    try:
        with holding(f"the kernel of {path.stem}", last=lambda: f"{path.stem}, as far as it got: {executed}"):
            execute_notebook(
                path,
                executed,
                parameters=given,
                engine_name=ENGINE,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                execution_timeout=cell_timeout,
                job=job,
            )
    except PapermillExecutionError as error:
        said = _ANSI.sub("", "\n".join(error.traceback))
        evalue, source_, said = (without_secrets(x, redactor) for x in (error.evalue, error.source, said))
        failure = CellFailure(error.ename, evalue, tail=_tail(said), source=source_)
    except CellTimeoutError:
        failure = CellFailure(TIMEOUT, f"the cell took longer than {cell_timeout} s")
    except DeadKernelError:
        failure = CellFailure("DeadKernelError", "the kernel ended while the cell ran")
    seconds = time.monotonic() - start
    done = nbformat.read(executed, as_version=4)
    result: dict[str, Any] | None = None
    if failure is not None:
        failure = _placed(failure, job.cell, source, given, done)
    elif job.leaks:
        failure = CellFailure("SecretLeak", "")
    else:
        try:
            result = read_result(done)
        except NotebookError as error:
            failure = CellFailure("NotebookError", str(error))
    reason = "" if failure is None else f"{failure.where}: {failure.ename}: {failure.evalue}"
    if job.leaks:
        # Said first, whatever else went wrong: somebody may have to revoke it.
        reason = f"secret in its outputs, redacted: {', '.join(sorted(job.leaks))}. {reason}".strip()
        reason = reason.removesuffix("the notebook as a whole: SecretLeak:").strip()
    outcome: Outcome = "ok" if failure is None else "failed"
    stderr = "" if failure is None else _tail(plain(without_secrets(job.stderr, redactor)))
    return NotebookResult(path.stem, seconds, outcome, reason, path, executed, result, failure, stderr)


def vet(path: Path, given: Mapping[str, Any], redactor: Redactor) -> Any:
    """The notebook, once its parameters are known to fit and to carry no secret.

    Raises:
        ParameterError, NotebookError: see `run_notebook`.
    """
    notebook = read_notebook(path)
    check_parameters(path, given)
    for name, value in given.items():
        if redactor.found(str(value)) or find_secret_shapes(str(value)):
            raise ParameterError(
                f"The parameter {name} of the notebook {path.stem} carries a secret",
                hint="parameters are written into the executed notebook; secrets come from the environment",
                notebook=path.stem,
                parameter=name,
            )
    return notebook


def _placed(failure: CellFailure, cell: int, source: Any, given: Mapping[str, Any], done: Any) -> CellFailure:
    """The failure with its cell's place in the source, which has neither injected nor error cells."""
    ids = [c.id for c in source.cells]
    ran = [c for c in done.cells if "papermill-error-cell-tag" not in c.metadata.get("tags", [])]
    there = ran[min(cell, len(ran) - 1)]
    index = ids.index(there.id) if there.id in ids else _parameters_cell(source)
    return replace(
        failure,
        index=index,
        count=there.get("execution_count"),
        source=failure.source or there.source,
    )


def _parameters_cell(source: Any) -> int:
    return next(i for i, c in enumerate(source.cells) if "parameters" in c.metadata.get("tags", []))


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-_TAIL:])
