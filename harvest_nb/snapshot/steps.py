"""Reading the classic builder's stream: steps, their output, what came from the cache, what was made."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BuildLog", "Step"]

_STEP = re.compile(r"Step (?P<number>\d+)/(?P<of>\d+) : (?P<instruction>.*)", re.DOTALL)
_CONTAINER = re.compile(r" ---> Running in (?P<id>[0-9a-f]{12,64})$")
_IMAGE = re.compile(r" ---> (?P<id>[0-9a-f]{12,64})$")
_CACHED = " ---> Using cache"
_BUILDER = ("Step ", " ---> ", "Removing intermediate container ")
_TAIL_LINES = 20
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


@dataclass
class Step:
    """One instruction of the Dockerfile. `cached` is None until the builder has said which."""

    number: int
    of: int
    instruction: str
    cached: bool | None = None
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL_LINES))

    @property
    def name(self) -> str:
        """`Step 3/12: RUN npm ci …`, on one line."""
        return f"Step {self.number}/{self.of}: {' '.join(self.instruction.split())[:200]}"

    @property
    def makes_a_layer(self) -> bool:
        """False for `FROM`, and for `ARG` before it, about whose cache the builder says nothing."""
        return self.instruction.split(maxsplit=1)[0].upper() not in {"FROM", "ARG"}


class BuildLog:
    """The state of one build, fed with the stream's events.

    Attributes:
        steps: those that have begun.
        image: id of the result, once there is one (`sha256:…`).
        error: the builder's error, if it ended with one.
        made: ids of the images that this build made (not those found in the cache), oldest first.
        containers: ids of the containers that it ran steps in.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.image: str | None = None
        self.error: str | None = None
        self.made: list[str] = []
        self.containers: list[str] = []
        self._stages: list[str] = []
        self._rest = ""

    @property
    def stages(self) -> list[str]:
        """Id of the last image of each stage that has one, in the Dockerfile's order."""
        return [image for image in self._stages if image]

    @property
    def step(self) -> Step | None:
        """The step that is under way."""
        return self.steps[-1] if self.steps else None

    @property
    def wholly_cached(self) -> bool:
        """Whether every step came from the cache."""
        return all(step.cached for step in self.steps if step.makes_a_layer)

    @property
    def tail(self) -> list[str]:
        """The last lines of the last step that wrote any."""
        return next((list(step.tail) for step in reversed(self.steps) if step.tail), [])

    def feed(self, event: Mapping[str, Any]) -> list[str]:
        """Take one event in; returns the lines worth showing."""
        if "error" in event:
            self.end()
            self.error = str(event["error"])
            return [self.error]
        if isinstance(aux := event.get("aux"), dict) and "ID" in aux:
            self.image = str(aux["ID"])
        if "status" in event:
            return [str(event["status"])]
        text = str(event.get("stream", ""))
        if text.startswith(_BUILDER):
            # The builder's own words; output that stopped short of a line's end is a line of its own.
            text = "\n" * bool(self._rest) + text
        *whole, self._rest = (self._rest + text).split("\n")
        return self._take_all(whole)

    def end(self) -> list[str]:
        """Take in what is left when the stream has ended; returns the lines worth showing."""
        rest, self._rest = self._rest, ""
        return self._take_all([rest])

    def _take_all(self, raw: list[str]) -> list[str]:
        return [line.removeprefix(" ---> ") for line in map(_clean, raw) if line and self._take(line)]

    def _take(self, line: str) -> bool:
        """Take one line in; whether it is worth showing: a step's beginning, its output, that it is cached."""
        last = self.steps[-1].number if self.steps else 0
        if (match := _STEP.match(line)) and int(match["number"]) == last + 1:
            self.steps.append(Step(int(match["number"]), int(match["of"]), match["instruction"]))
            if match["instruction"].upper().startswith("FROM"):
                self._stages.append("")
            return True
        step = self.step
        if step is None:
            return True
        if line == _CACHED:
            step.cached = True
            return True
        if match := _CONTAINER.match(line):
            step.cached = False
            self.containers.append(match["id"])
        elif match := _IMAGE.match(line):
            if self._stages:
                self._stages[-1] = match["id"]
            if step.cached is None:
                step.cached = not step.makes_a_layer
            if not step.cached:
                self.made.append(match["id"])
        elif not line.startswith(("Removing intermediate container ", "Successfully ")):
            step.tail.append(line)
            return True
        return False


def _clean(line: str) -> str:
    """What a terminal would show of a line: the last of what was written over, without colours."""
    return _ANSI.sub("", line.rstrip("\r").rsplit("\r", 1)[-1]).rstrip()
