"""Notebooks: what a cell emits, and how notebooks are inspected, run headless and reported.

`emit` is what a notebook itself imports, so nothing here loads papermill before it is needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from harvest_nb.notebooks.result import RESULT_MIME, emit

if TYPE_CHECKING:
    from harvest_nb.notebooks.batch import run_notebooks
    from harvest_nb.notebooks.inputs import Parameter, assignments, parameters
    from harvest_nb.notebooks.report import results_table, write_junit
    from harvest_nb.notebooks.run import CellFailure, NotebookResult, run_notebook

__all__ = [
    "RESULT_MIME",
    "CellFailure",
    "NotebookResult",
    "Parameter",
    "assignments",
    "emit",
    "parameters",
    "results_table",
    "run_notebook",
    "run_notebooks",
    "write_junit",
]

_HOMES = {
    "Parameter": "inputs",
    "assignments": "inputs",
    "parameters": "inputs",
    "CellFailure": "run",
    "NotebookResult": "run",
    "run_notebook": "run",
    "run_notebooks": "batch",
    "results_table": "report",
    "write_junit": "report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
