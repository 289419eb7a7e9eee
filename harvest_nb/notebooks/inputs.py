"""A notebook's parameters: what it takes, and whether what is given fits, before anything runs.

papermill itself only logs a warning about an unknown parameter and checks no types.
"""

# mypy: disable-error-code="no-untyped-call"
# papermill, nbformat and nbclient come without (complete) types.

from __future__ import annotations

import ast
import json
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

import nbformat
from pydantic import TypeAdapter, ValidationError

from harvest_nb.errors import NotebookError, ParameterError

__all__ = ["Parameter", "assignments", "check_parameters", "parameters", "read_notebook"]

_TYPES: Mapping[str, Any] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "list": list,
    "dict": dict,
    "Optional": Optional,
    "Union": Union,
}


@dataclass(frozen=True)
class Parameter:
    """One parameter: `type` is its annotation as written, `default` its value, `help` its comment."""

    name: str
    type: str
    default: Any
    help: str = ""

    def accepts(self, value: Any) -> bool:
        """Whether `value` has the annotated type (strictly: no text for numbers, no 1 for true)."""
        try:
            TypeAdapter(_resolve(self.type)).validate_python(value, strict=True)
        except ValidationError:
            return False
        return True

    def parse(self, text: str) -> Any:
        """`text` from a command line as a value of this parameter's type.

        Raises:
            ParameterError: it cannot be read as one.
        """
        candidates: list[Any] = []
        try:
            candidates.append(json.loads(text))
        except json.JSONDecodeError:
            spelled = {"True": True, "False": False, "None": None}
            if text in spelled:
                candidates.append(spelled[text])
        # `str` first where both fit: a run named 42 is text.
        for value in [text, *candidates] if self.type.startswith("str") else [*candidates, text]:
            if self.accepts(value):
                return value
        raise ParameterError(
            f"The parameter {self.name} cannot be {text!r}: expected {self.type}",
            parameter=self.name,
            expected=self.type,
        )


def read_notebook(path: Path) -> Any:
    """The notebook in `path` as an nbformat node, version 4.

    Raises:
        NotebookError: it is missing or not a notebook.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except FileNotFoundError:
        raise NotebookError(f"There is no notebook {path}", notebook=path.stem) from None
    except (OSError, UnicodeDecodeError, nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise NotebookError(f"{path} cannot be read as a notebook: {reason}", notebook=path.stem) from error
    return notebook


def parameters(path: Path) -> tuple[Parameter, ...]:
    """The parameters of a notebook, in the order of its `parameters` cell; none without such a cell.

    Raises:
        NotebookError: the notebook cannot be read, or its `parameters` cell is not one that papermill
            understands: one `name: type = literal  # comment` a line.
    """
    from papermill.inspection import inspect_notebook

    path = Path(path)
    cells = [cell for cell in read_notebook(path).cells if "parameters" in cell.metadata.get("tags", [])]
    if not cells:
        return ()
    if len(cells) > 1:
        raise NotebookError(f"{path} has {len(cells)} cells tagged `parameters`, not one", notebook=path.stem)
    written = _assigned(path, cells[0].source)
    try:
        seen = inspect_notebook(path)
    except ValueError as error:  # papermill knows by the kernel how to read the cell
        raise NotebookError(
            f"The parameters of {path} cannot be read: {error}",
            hint="choose a kernel for it in Jupyter and save it",
            notebook=path.stem,
        ) from error
    if list(seen) != list(written):
        missed = sorted(set(written) ^ set(seen))
        raise NotebookError(
            f"papermill cannot read the parameter {', '.join(missed)} of {path}",
            hint="write one `name: type = literal  # comment` a line, with types such as int or Optional[str]",
            notebook=path.stem,
        )
    found = []
    for name, raw in seen.items():
        kind, default = written[name]
        parameter = Parameter(name, kind, default, raw["help"])
        if not parameter.accepts(default):
            raise NotebookError(
                f"The default of {name} in {path} is {default!r}, which is not {kind}", notebook=path.stem
            )
        found.append(parameter)
    return tuple(found)


def _assigned(path: Path, source: str) -> dict[str, tuple[str, Any]]:
    found: dict[str, tuple[str, Any]] = {}
    try:
        for line in ast.parse(source).body:
            if isinstance(line, ast.ImportFrom) and line.module == "typing":
                continue
            if (
                isinstance(line, ast.AnnAssign)
                and isinstance(line.target, ast.Name)
                and line.value is not None
            ):
                kind = ast.unparse(line.annotation)
                _resolve(kind)
                found[line.target.id] = (kind, ast.literal_eval(line.value))
                continue
            raise ValueError(f"line {line.lineno} is not `name: type = literal`")
    except (SyntaxError, ValueError) as error:
        raise NotebookError(
            f"The `parameters` cell of {path} cannot be used: {error}", notebook=path.stem
        ) from None
    return found


def _resolve(annotation: str) -> Any:
    """The type that an annotation names, without evaluating it as code."""

    def resolve(node: ast.expr) -> Any:
        if isinstance(node, ast.Name) and node.id in _TYPES:
            return _TYPES[node.id]
        if isinstance(node, ast.Constant) and node.value is None:
            return types.NoneType
        if isinstance(node, ast.Subscript):
            inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            resolved = tuple(resolve(item) for item in inner)
            return resolve(node.value)[resolved if len(resolved) > 1 else resolved[0]]
        raise ValueError(f"the type {ast.unparse(node)} is not one of {', '.join(_TYPES)}")

    return resolve(ast.parse(annotation, mode="eval").body)


def check_parameters(path: Path, given: Mapping[str, Any]) -> tuple[Parameter, ...]:
    """The notebook's parameters, once everything in `given` is known to fit them.

    Raises:
        ParameterError: one is unknown or of another type; it names notebook, parameter, expected type and
            the allowed names.
        NotebookError: see `parameters`.
    """
    known = {parameter.name: parameter for parameter in parameters(path)}
    allowed = ", ".join(f"{p.name}: {p.type}" for p in known.values()) or "none"
    for name, value in given.items():
        data = {"notebook": path.stem, "parameter": name, "allowed": list(known)}
        if name not in known:
            raise ParameterError(
                f"The notebook {path.stem} has no parameter {name}", hint=f"it takes {allowed}", **data
            )
        if not known[name].accepts(value):
            raise ParameterError(
                f"The parameter {name} of the notebook {path.stem} is a {type(value).__name__}, "
                f"expected {known[name].type}",
                hint=f"it takes {allowed}",
                expected=known[name].type,
                **data,
            )
    return tuple(known.values())


_ASSIGNMENT = re.compile(r"(?:(?P<notebook>[\w-]+)\.)?(?P<name>\w+)=(?P<text>.*)", re.DOTALL)


def assignments(
    paths: Iterable[Path], texts: Iterable[str]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """`name=value` and `notebook.name=value` from a command line, read by the types of the parameters.

    Returns:
        What `run_notebooks` takes as `parameters` and as `per_notebook`.

    Raises:
        ParameterError: a text is no assignment, or names no notebook, no parameter or no value of its type.
    """
    known = {path.stem: {p.name: p for p in parameters(path)} for path in paths}
    common: dict[str, Any] = {}
    single: dict[str, dict[str, Any]] = {}
    for text in texts:
        match = _ASSIGNMENT.fullmatch(text)
        if match is None:
            raise ParameterError(f"{text!r} is not `name=value` or `notebook.name=value`")
        stem, name = match["notebook"], match["name"]
        if stem is not None and stem not in known:
            raise ParameterError(f"There is no notebook {stem}", hint=f"known: {', '.join(known)}")
        homes = [p[name] for key, p in known.items() if name in p and stem in (None, key)]
        if not homes:
            names = sorted({n for key, p in known.items() if stem in (None, key) for n in p})
            where = f"The notebook {stem} has" if stem else "These notebooks have"
            raise ParameterError(
                f"{where} no parameter {name}", hint=f"allowed: {', '.join(names)}", parameter=name
            )
        for home in homes[1:]:
            home.parse(match["text"])
        (common if stem is None else single.setdefault(stem, {}))[name] = homes[0].parse(match["text"])
    return common, single
