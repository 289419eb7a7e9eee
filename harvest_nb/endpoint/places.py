"""Where a sandbox keeps things, as placeholders: what lets a recording made in one be played in another."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from harvest_nb.sandbox.base import Sandbox

__all__ = ["Places", "deep", "rewrite"]

_MARK = re.compile(r"\{harvest:(\w+)\}")


class Places:
    """The paths of one sandbox, and other values of one machine, by name."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)
        # The longest first: the workspace lies under the working directory.
        names = sorted((n for n in self._values if self._values[n]), key=lambda n: -len(self._values[n]))
        parts = [f"(?P<{name}>{re.escape(self._values[name])})" for name in names]
        self._found = re.compile(rf"(?<![\w.-])(?:{'|'.join(parts)})(?![\w-]|\.\w)") if parts else None

    @classmethod
    def of(cls, sandbox: Sandbox) -> Places:
        """The places of `sandbox`."""
        key = re.sub(r"[^A-Za-z0-9]", "-", str(sandbox.workdir))  # the CLI's name for a working directory
        return cls(
            {
                "workspace": str(sandbox.workspace),
                "workdir": str(sandbox.workdir),
                "memory": str(sandbox.memory_file),
                "project": f"{sandbox.home}/.claude/projects/{key}",
                "home": str(sandbox.home),
            }
        )

    def with_values(self, **more: str) -> Places:
        """These, and values such as a session's id."""
        return Places({**self._values, **more})

    def to_marks(self, text: str) -> str:
        """`text` with each place as `{harvest:NAME}`."""
        if self._found is None:
            return text
        return self._found.sub(lambda match: f"{{harvest:{match.lastgroup}}}", text)

    def from_marks(self, text: str) -> str:
        """`text` with each `{harvest:NAME}` as this sandbox has it."""
        return _MARK.sub(lambda match: self._values.get(match.group(1), match.group()), text)


def rewrite(events: list[Any], change: Callable[[str], str]) -> list[Any]:
    """Apply `change` to the texts of a stream's events (their data).

    What a block says comes in pieces, and what `change` looks for may lie across several: each block is changed
    as a whole, and given back in as many pieces.
    """
    pieces: dict[tuple[int, str], list[int]] = {}
    for number, data in enumerate(events):
        if isinstance(data, dict) and data.get("type") == "content_block_delta":
            name, index = _text_field(data.get("delta")), data.get("index", 0)
            if name is not None and isinstance(index, int):
                pieces.setdefault((index, name), []).append(number)
    pieced: set[int] = set()
    changed: dict[int, tuple[str, str]] = {}
    for (_, name), numbers in pieces.items():
        pieced.update(numbers)
        text = "".join(events[number]["delta"][name] for number in numbers)
        new = change(text)
        if new != text:
            size = -(-len(new) // len(numbers))
            for place, number in enumerate(numbers):
                changed[number] = (name, new[place * size : (place + 1) * size])
    return [
        {**data, "delta": {**data["delta"], changed[number][0]: changed[number][1]}}
        if number in changed
        else data
        if number in pieced
        else deep(data, change)
        for number, data in enumerate(events)
    ]


def _text_field(delta: Any) -> str | None:
    if not isinstance(delta, Mapping):  # an endpoint says what it likes
        return None
    return next(
        (name for name in ("text", "partial_json", "thinking") if isinstance(delta.get(name), str)), None
    )


def deep(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with every text in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: deep(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [deep(item, change) for item in value]
    return value
