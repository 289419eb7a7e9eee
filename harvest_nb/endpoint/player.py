"""What a scripted model answers to a request: from a Python `Script`, or from the rules of a scenario file."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from harvest_nb.endpoint.conversation import Conversation
from harvest_nb.endpoint.faults import Fault
from harvest_nb.endpoint.messages import Block, Text, Thinking, ToolUse
from harvest_nb.endpoint.placeholders import filler
from harvest_nb.endpoint.scenario import AnswerSpec, Rule, ScenarioFile
from harvest_nb.errors import EndpointError, ScenarioError
from harvest_nb.sandbox.base import Sandbox

__all__ = ["Answer", "Player", "Rules", "Scenario", "Script", "Step", "rules_for"]


@dataclass(frozen=True)
class Answer:
    """What one request gets. `usage` overrides single figures of the counted ones."""

    name: str
    blocks: Sequence[Block]
    usage: Mapping[str, int] = field(default_factory=dict)
    delay: float = 0.0
    pace: float = 0.0
    piece: int = 48
    stop: str | None = None
    fault: Fault | None = None


class Player(Protocol):
    """Decides what is answered."""

    @property
    def name(self) -> str:
        """What failures are reported under."""

    def answer(self, c: Conversation) -> Answer:
        """The answer to one request.

        Raises:
            ScenarioError: the request is not what was expected.
        """


@dataclass(frozen=True)
class Step:
    """One answer. `check` returns what is wrong with the request, or None."""

    name: str
    answer: Callable[[Conversation], Sequence[Block]]
    check: Callable[[Conversation], str | None] = lambda _: None
    delay: float = 0.0
    """Seconds before the answer begins."""


@dataclass(frozen=True)
class Script:
    """A conversation: steps in order; the last one answers whatever comes after."""

    name: str
    steps: tuple[Step, ...]

    def answer(self, c: Conversation) -> Answer:
        """See `Player`."""
        step = self.steps[min(c.step, len(self.steps) - 1)]
        complaint = step.check(c)
        if complaint is not None:
            raise ScenarioError(f"step “{step.name}” of script “{self.name}”: {complaint}")
        return Answer(step.name, step.answer(c), delay=step.delay)


Scenario = Callable[[Sandbox, str], Awaitable[Script]]
"""Makes the scripted endpoint's script for a prompt in a sandbox."""


@dataclass(frozen=True)
class Rules:
    """A scenario file, in one sandbox. `values` are its placeholders' values."""

    name: str
    scenario: ScenarioFile
    values: Mapping[str, str]

    def answer(self, c: Conversation) -> Answer:
        """See `Player`."""
        fill = filler(
            {**self.values, "prompt": c.own_prompt, "session": c.session}, [text for text, _ in c.results]
        )
        for number, rule in enumerate(self.scenario.rules):
            if rule.when.fits(c, fill):
                return self._answer(c, number, rule, fill)
        raise ScenarioError(
            f"scenario “{self.name}” has no rule for this request: agent {c.agent}, step {c.step}, "
            f"prompt {c.own_prompt[:120]!r}, results of {c.result_tools or 'no tool'}"
        )

    def _answer(self, c: Conversation, number: int, rule: Rule, fill: Callable[[Any], Any]) -> Answer:
        index = min(c.step, len(rule.steps) - 1)
        spec: AnswerSpec = rule.steps[index] if rule.steps else rule
        place = f"rules[{number}]" + (f".steps[{index}]" if rule.steps else "")
        named = " ".join(name for name in (rule.name, spec.name if spec is not rule else "") if name)
        place += f" ({named})" if named else ""
        complaint = spec.expect.complaint(c, fill)
        if complaint is not None:
            raise ScenarioError(f"{place} of scenario “{self.name}”: {complaint}")
        blocks: list[Block] = []
        if spec.thinking is not None:
            blocks.append(Thinking(fill(spec.thinking)))
        if spec.text is not None:
            blocks.append(Text(fill(spec.text)))
        blocks += [ToolUse(name, fill(given)) for call in spec.tools for name, given in call.items()]
        return Answer(
            place,
            blocks,
            {key: value for key, value in spec.usage.model_dump().items() if value is not None},
            spec.delay,
            spec.pace,
            spec.piece,
            spec.stop_reason,
            spec.fault,
        )


@contextlib.contextmanager
def refused_file(kind: type[EndpointError], source: str, name: str) -> Iterator[None]:
    """Raise `kind`, naming the file and where its name comes from, when a sandbox refuses it."""
    try:
        yield
    except OSError as error:
        raise kind(
            f"{source} brings a file that cannot be written, {name[:200]!r}: {error.strerror}",
            hint="its files must lie below the sandbox's workspace",
        ) from error


async def rules_for(name: str, scenario: ScenarioFile, sandbox: Sandbox, nonce: str) -> Rules:
    """Write a scenario's files into the sandbox's workspace and return its rules.

    Raises:
        ScenarioError: a file cannot be written there, or would lie elsewhere.
    """
    values = {
        "workdir": str(sandbox.workdir),
        "workspace": str(sandbox.workspace),
        "home": str(sandbox.home),
        "nonce": nonce,
    }
    fill = filler(values, [])
    for path, content in scenario.files.items():
        with refused_file(ScenarioError, f"Scenario {name}", path):
            await sandbox.write(
                fill(path), fill(content).encode("utf-8", "surrogatepass"), within=sandbox.workspace
            )
    return Rules(name, scenario, values)
