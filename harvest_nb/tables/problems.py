"""What could not be read as it should: rows of `problems`, or the first of them raised."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harvest_nb.errors import RunFolderError

__all__ = ["Problem", "Problems"]


@dataclass(slots=True)
class Problem:
    """Something that could not be read as it should; `line` from 1, `offset` in bytes from 0.

    `salvaged`: the content was read all the same.
    """

    path: Path
    reason: str
    detail: str
    line: int | None = None
    offset: int | None = None
    salvaged: bool = False
    run_id: str | None = None


class Problems(list[Problem]):
    """Collects problems; with `strict` the first one is raised instead."""

    def __init__(self, *, strict: bool = False) -> None:
        super().__init__()
        self.strict = strict

    def add(self, problem: Problem) -> None:
        """Keep `problem`.

        Raises:
            RunFolderError: in strict mode.
        """
        if self.strict:
            place = "" if problem.line is None else f", line {problem.line} (byte {problem.offset})"
            raise RunFolderError(
                f"{problem.path}{place}: {problem.detail}",
                hint="load(..., strict=False) keeps what can be read and lists the rest in frames.problems",
                reason=problem.reason,
                line=problem.line,
                offset=problem.offset,
            )
        self.append(problem)

    def add_all(self, problems: Iterable[Problem]) -> None:
        """Keep each of `problems`."""
        for problem in problems:
            self.add(problem)
