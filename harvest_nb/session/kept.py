"""Bounds the memory that the messages of a session take."""

from __future__ import annotations

import sys
from typing import Any

from claude_agent_sdk import Message, StreamEvent

__all__ = ["Kept"]


class Kept:
    """Counts the memory that a session's messages take, partial and whole ones apart.

    Args:
        most: bytes that whole messages may take. Partial ones, whose text the whole ones repeat, have a bound of the
            same size of their own.
    """

    def __init__(self, most: int) -> None:
        self._left = {True: most, False: most}
        self.is_full = False
        """Whether a whole message has found no room."""

    def take(self, message: Message) -> bool:
        """Return whether there is room for a message; from the first on that has none, no other of its kind has."""
        partial = isinstance(message, StreamEvent)
        if self._left[partial] >= 0:
            self._left[partial] -= _size(message, self._left[partial])
        fits = self._left[partial] >= 0
        self.is_full = self.is_full or not (fits or partial)
        return fits


def _size(value: Any, most: int) -> int:
    """Return about how many bytes a message and its values take, counted no further than a little over `most`."""
    size, values = 0, [value]
    while values and size <= most:
        one = values.pop()
        size += sys.getsizeof(one)
        match one:
            case dict():
                values += [*one, *one.values()]
            case list() | tuple():
                values += one
            case _ if hasattr(one, "__dict__"):  # the SDK's classes
                values.append(vars(one))
    return size
