"""How one prompt ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from claude_agent_sdk import Message

from harvest_nb.errors import SessionError
from harvest_nb.session.folder import RunFolder

__all__ = ["RunResult"]

_KEPT = ("prompt", "status", "reason", "cost_usd", "total_cost_usd", "num_turns", "cut_short", "session_id")


@dataclass(frozen=True)
class RunResult:
    """How a prompt ended. Costs are the CLI's own estimates in US dollars."""

    id: str
    """The run's id, also the name of its folder."""
    folder: Path
    prompt: str
    status: str
    """`success`, `error`, `cancelled` or `died` (the sandbox or the CLI ended first)."""
    reason: str | None
    text: str | None
    structured: Any
    """The answer by the schema that was asked for, or None."""
    session_id: str | None
    endpoint: str
    cost_usd: float | None
    """What this prompt cost; None when the CLI ended before it had said so."""
    total_cost_usd: float | None
    """What the CLI reports up to here: with a session that was resumed, also what it had cost before."""
    num_turns: int | None
    cut_short: tuple[str, ...]
    """Names of the tools that were running when the turn was stopped."""
    seconds: float
    messages: list[Message] = field(repr=False)
    """What came, as far as there was room for it (`HARVEST_MAX_MESSAGES_BYTES`); `stream.jsonl` has all."""

    @classmethod
    def without_session(cls, folder: RunFolder, prompt: str, status: str, reason: str) -> Self:
        """How a prompt ended that no session has come to answer."""
        return cls(
            id=folder.id,
            folder=folder.path,
            prompt=folder.redactor.text(prompt),
            status=status,
            reason=folder.redactor.text(reason),
            text=None,
            structured=None,
            session_id=folder.about.get("session_id"),
            endpoint=folder.about["endpoint"],
            cost_usd=None,
            total_cost_usd=None,
            num_turns=None,
            cut_short=(),
            seconds=0.0,
            messages=[],
        )

    @property
    def entry(self) -> dict[str, Any]:
        """What `run.json` keeps of it, under `prompts`."""
        return {name: getattr(self, name) for name in _KEPT} | {"seconds": round(self.seconds, 3)}

    @property
    def ok(self) -> bool:
        """Whether the prompt reached a result that is no error."""
        return self.status == "success"

    def check(self) -> RunResult:
        """This result, or SessionError naming how the run ended and where its folder is."""
        if self.ok:
            return self
        raise SessionError(
            f"Run {self.id} ended as “{self.status}”: {self.reason}", hint=f"see {self.folder}", result=self
        )
