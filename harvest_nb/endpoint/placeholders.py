"""Placeholders in scenarios: `{workspace}` and the like; every other brace is left as it is."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

__all__ = ["NAMES", "check_placeholders", "filler"]

NAMES: Mapping[str, str] = {
    "workdir": "the agent's working directory",
    "workspace": "the one place under it that the agent may write",
    "home": "the agent's home",
    "prompt": "the latest prompt in its own words",
    "nonce": "a text made anew for each endpoint",
    "result": "the text of all tool results in the last message; `{result.1}` is the first one's",
    "session": "the session's id",
}
_FIELD = re.compile(r"\{(" + "|".join(NAMES) + r")(?:\.(\d+))?\}")
_LIKE_ONE = re.compile(r"(?<![\w$\\{])\{([a-z_]{4,12})\}(?!\})")
_T = TypeVar("_T")


def check_placeholders(value: _T) -> _T:
    """`value` as it is.

    Raises:
        ValueError: something in braces is almost the name of a placeholder.
    """
    for text in _strings(value):
        for name in _LIKE_ONE.findall(text):
            near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.75)
            if near and name not in NAMES:
                raise ValueError(f"there is no placeholder {{{name}}}; did you mean {{{near[0]}}}?")
    return value


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return []


def filler(values: Mapping[str, str], results: list[str]) -> Callable[[Any], Any]:
    """A function that fills the placeholders in every text of a value."""

    def one(match: re.Match[str]) -> str:
        name, number = match.group(1), match.group(2)
        if name == "result":
            if number is None:
                return "\n".join(results)
            return results[int(number) - 1] if 0 < int(number) <= len(results) else ""
        return values.get(name, "") if number is None else match.group()

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            return _FIELD.sub(one, value)
        if isinstance(value, Mapping):
            return {key: fill(item) for key, item in value.items()}
        if isinstance(value, list):
            return [fill(item) for item in value]
        return value

    return fill
