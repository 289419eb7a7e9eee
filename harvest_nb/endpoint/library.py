"""Scenario files by name or path, read with errors that name file, line and remedy."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from harvest_nb.endpoint.scenario import ScenarioFile
from harvest_nb.errors import ScenarioError

__all__ = ["FOLDER", "find_scenario", "load_scenario", "scenario_names"]

FOLDER = Path(__file__).parent / "scenarios"


def scenario_names() -> list[str]:
    """Names of the shipped scenarios."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_scenario(scenario: str | Path) -> Path:
    """The file of a shipped scenario's name, or of a path.

    Raises:
        ScenarioError: there is none.
    """
    path = Path(scenario)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if not path.is_file():
            raise ScenarioError(f"There is no scenario file {path}", hint="give a path that exists")
        return path
    if (FOLDER / f"{scenario}.yaml").is_file():
        return FOLDER / f"{scenario}.yaml"
    names = scenario_names()
    near = difflib.get_close_matches(str(scenario), names, n=1)
    raise ScenarioError(
        f"There is no scenario {str(scenario)!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
        hint=f"use one of {', '.join(names)}, or the path of a .yaml file",
    )


def load_scenario(scenario: str | Path) -> ScenarioFile:
    """A scenario, checked.

    Raises:
        ScenarioError: it does not exist, or is not a scenario; names file, line and place.
    """
    path = find_scenario(scenario)
    try:
        text = path.read_text("utf-8")
        data = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ScenarioError(
            f"{path} cannot be read as YAML: {error}",
            hint="mind the indentation, and quote texts with a colon",
        ) from error
    if not isinstance(data, dict):
        raise ScenarioError(f"{path} is not a scenario", hint="it needs `about` and `rules`")
    try:
        return ScenarioFile.model_validate(data)
    except ValidationError as error:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        lines = [
            f"{path}:{_line(root, found['loc'])}: {_place(found['loc'])}: "
            + found["msg"].removeprefix("Value error, ")
            for found in error.errors()
        ]
        raise ScenarioError(
            "\n".join(lines), hint=f"the shipped scenarios are examples: {FOLDER}", errors=error.errors()
        ) from error


def _place(loc: tuple[Any, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.lstrip(".") or "the file"


def _line(node: yaml.Node | None, loc: tuple[Any, ...]) -> int:
    """Where in the file `loc` is, or the nearest place above it."""
    line = node.start_mark.line if node is not None else 0
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == part]
            if not found:
                break
            key, node = found[0]
            line = key.start_mark.line
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
    return line + 1
