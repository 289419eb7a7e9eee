"""The small machine-readable result with which a notebook ends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from harvest_nb.errors import NotebookError

__all__ = ["RESULT_MIME", "emit", "read_result"]

RESULT_MIME = "application/vnd.harvest.result+json"


def emit(result: Mapping[str, Any]) -> None:
    """Display `result` as this notebook's result: the last thing that its last cell does.

    Args:
        result: names to JSON values (text, finite numbers, booleans, None, lists, mappings); not empty.

    Raises:
        NotebookError: a value is not JSON, with its path in the result.
    """
    from IPython.display import display

    if not result:
        raise NotebookError(
            "The result is empty", hint="emit at least one figure that the notebook stands for"
        )
    plain = _json(result, "result")
    text = "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in plain.items())
    display({RESULT_MIME: plain, "text/plain": text}, raw=True)  # type: ignore[no-untyped-call]


def _json(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise NotebookError(f"{path} has the key {wrong[0]!r}, which is not text")
        return {key: _json(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item, f"{path}[{index}]") for index, item in enumerate(value)]
    # By exact type: numpy's and enum's subclasses would come back as something else.
    if (
        value is None
        or type(value) in (str, bool, int)
        or (type(value) is float and abs(value) < float("inf"))
    ):
        return value
    raise NotebookError(
        f"{path} is {value!r} ({type(value).__name__}), which is not JSON",
        hint="convert it: float(…) or str(…) for Decimal and numpy values, .isoformat() for times",
    )


def read_result(notebook: Any) -> dict[str, Any]:
    """The result that the last code cell of an executed notebook emitted.

    Raises:
        NotebookError: it is missing, there is more than one, or it is not a JSON object.
    """
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = code[-1].outputs if code else []
    found = [output.data[RESULT_MIME] for output in outputs if RESULT_MIME in output.get("data", {})]
    if len(found) != 1:
        raise NotebookError(
            f"The last code cell displayed {len(found) or 'no'} result{'s' if len(found) > 1 else ''}",
            hint="end the notebook with one harvest_nb.notebooks.emit({...})",
        )
    if not isinstance(found[0], Mapping) or not found[0]:
        raise NotebookError(
            f"The result is malformed: {type(found[0]).__name__} instead of a filled JSON object",
            hint="end the notebook with one harvest_nb.notebooks.emit({...})",
        )
    return _json(found[0], "result")  # type: ignore[no-any-return]
