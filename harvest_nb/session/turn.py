"""One prompt on its way through a session: what came, whether it is over, what was cut short."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from claude_agent_sdk import (
    AssistantMessage,
    Message,
    ResultMessage,
    SystemMessage,
    TaskNotificationMessage,
    TaskStartedMessage,
)

from harvest_nb.errors import HarvestError, SandboxGone, SessionError
from harvest_nb.session.kept import Kept

__all__ = ["Prompted"]

_MOST = 10_000  # tools, and tasks, of one prompt that are followed
_NAME = 200  # characters of an id or a name; those of the CLI are shorter
_CREDENTIALS = {401: "refused", 403: "not allowed to do this"}


def _is_ping(message: Mapping[str, Any]) -> bool:
    """Return whether a message says only that its sender is there: endpoints send such while they hang."""
    match message:
        case {"type": "stream_event", "event": {"type": "ping"}} | {"type": "keep_alive" | "ping"}:
            return True
    return False


class Prompted:
    """Collects what answers one prompt.

    A CLI that reports its state stays `running` while a background agent still owes a turn, so the prompt is over
    when every result has been handled and the state is `idle`; of a CLI that reports none, the first result counts.

    Args:
        on_message: the caller's; what it raises ends the prompt with that error.
        variable: the one that holds the endpoint's credential.
        kept: says whether there is room to keep a message.
    """

    def __init__(self, prompt: str, on_message: Callable[[Message], None], variable: str, kept: Kept) -> None:
        self.prompt, self._on_message, self._variable, self._kept = prompt, on_message, variable, kept
        self.id = str(uuid.uuid4())
        self.began = time.monotonic()
        self.deadline: float | None = None
        """When it is ended in any case, on the monotonic clock."""
        self.last_sign = self.began
        """When the latest message crossed the wire, on the monotonic clock."""
        self.messages: list[Message] = []
        """Those that there was room for."""
        self.num_turns: int | None = None
        """Turns of all results that this prompt brought, or None without any."""
        self._total: float | None = None
        self._answered = False
        self.init: dict[str, Any] | None = None
        self.outcome: ResultMessage | None = None
        self.cancelled = False
        self.unstopped = False
        """Whether it has been ended here, and the CLI has not yet."""
        self.callers_error: Exception | None = None
        """What the caller's `on_message` raised."""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the answer is complete; holds the error that ended the prompt otherwise."""
        self.sent = False
        """Whether the CLI may have heard of it."""
        self.refused: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """The HTTP status by which the endpoint refused the credential; no retry mends that."""
        self.booked = asyncio.Event()
        """Set when its result is known."""
        self._tools: dict[str, str] = {}
        self._own_tasks: set[str] = set()
        self._ended_tasks: set[str] = set()
        """Background tasks that have ended since the last result which they brought."""
        self._results_seen = self._results_handled = 0
        self._state: str | None = None

    async def message(self, prompt: str) -> AsyncIterator[dict[str, Any]]:
        """The prompt as the SDK sends it, under an id of its own that the results of its turns name."""
        yield {
            "type": "user",
            "message": {"role": "user", "content": prompt},
            "parent_tool_use_id": None,
            "uuid": self.id,
        }

    def sign(self) -> None:
        """Something has crossed the wire: nobody has gone to sleep."""
        self.last_sign = time.monotonic()

    def raw(self, message: Mapping[str, Any]) -> None:
        """Take note of a message as it came over the wire, before it is handled."""
        if not _is_ping(message):
            self.sign()
        match message:
            case {"type": "system", "subtype": "session_state_changed", "state": state}:
                self._state = state
                self._settle()
            case {"type": "system", "subtype": "api_retry", "error_status": int(code)} if (
                code in _CREDENTIALS
            ):
                if not self.refused.done():
                    self.refused.set_result(code)
            case {"type": "result"}:
                self._results_seen += 1
            case {"type": "assistant", "message": {"content": list() as blocks}}:
                for block in blocks:
                    match block:
                        case {"type": "tool_use", "id": str(call)} if len(self._tools) < _MOST:
                            self._tools[call[:_NAME]] = str(block.get("name", "a tool"))[:_NAME]
            case {"type": "user", "message": {"content": list() as blocks}} if not self.cancelled:
                for block in blocks:
                    match block:
                        case {"type": "tool_result", "tool_use_id": str(call)}:
                            self._tools.pop(call[:_NAME], None)

    def handle(self, message: Message) -> None:
        """Take in a typed message and show it to the caller."""
        if self._kept.take(message):
            self.messages.append(message)
        match message:
            case SystemMessage(subtype="init"):
                self.init = message.data
            case TaskStartedMessage() if len(self._own_tasks) < _MOST:
                self._own_tasks.add(str(message.task_id)[:_NAME])
            case TaskNotificationMessage() if len(self._ended_tasks) < _MOST:
                self._ended_tasks.add(str(message.task_id)[:_NAME])
            case AssistantMessage():
                self._answered = self._answered or bool(message.content)
            case ResultMessage():
                self.num_turns = (self.num_turns or 0) + message.num_turns
                self._total = message.total_cost_usd
        try:
            self._on_message(message)
        except Exception as error:  # noqa: BLE001 - raised where the caller waits
            self.callers_error = self.callers_error or error
            self.fail(error)
        if isinstance(message, ResultMessage):
            self._results_handled += 1
            if self._answers(message):
                self.outcome = message
            self._settle()

    def _answers(self, result: ResultMessage) -> bool:
        """Whether a result answers this prompt, and not what an earlier prompt has left in the background."""
        named = {*(result.user_message_uuids or ()), result.user_message_uuid} - {None}
        if named or result.origin is None:
            return not named or self.id in named
        ended, self._ended_tasks = self._ended_tasks, set()
        # What follows the prompt's own answer without a pause belongs to it, unless others' tasks alone brought it.
        return self.outcome is not None and (not ended or bool(ended & self._own_tasks))

    def _settle(self) -> None:
        done = self.outcome is not None and self._results_seen == self._results_handled
        if done and (self._state in (None, "idle") or self.cancelled) and not self.over.done():
            self.over.set_result(None)

    def fail(self, error: Exception) -> None:
        """End the prompt with an error, unless it is over."""
        if not self.over.done():
            self.over.set_exception(error)
            self.over.exception()  # whoever waits gets it; nobody waiting is no warning

    def require_mcp(self) -> None:
        """End the prompt unless all MCP servers have connected."""
        states = {server["name"]: server["status"] for server in (self.init or {}).get("mcp_servers", [])}
        bad = ", ".join(f"{name}: {state}" for name, state in states.items() if state != "connected")
        if bad:
            hint = 'see stderr.log; `mcp="warn"` goes on without them'
            self.fail(SessionError(f"MCP servers did not connect ({bad})", hint=hint))

    def finish(self) -> None:
        """End the prompt as it stands."""
        if not self.over.done():
            self.over.set_result(None)

    @property
    def waiting_for(self) -> str:
        """What the prompt waits for, in words: tools by name, or the model."""
        tools = ", ".join(self._tools.values())
        return f"{tools} to end" if tools else "the model's answer"

    @property
    def waits_for_a_person(self) -> bool:
        """Whether the CLI waits for an answer to a permission request."""
        return self._state == "requires_action"

    @property
    def total_cost_usd(self) -> float | None:
        """What the CLI says that the session has cost at the last result, if the prompt was answered."""
        return self._total if self.outcome is not None else None

    @property
    def cut_short(self) -> tuple[str, ...]:
        """Names of the tools that were called and brought no result before the prompt was stopped."""
        return tuple(self._tools.values())

    def status(self) -> tuple[str, str | None]:
        """Status and reason, once it is over."""
        outcome = self.outcome
        if self.refused.done() and not self.cancelled:
            code = self.refused.result()
            return "error", f"The endpoint refused a request with HTTP status {code}{self._advice(code)}"
        finished = outcome is not None and outcome.terminal_reason == "completed" and not outcome.is_error
        if self.cancelled and not finished:
            tools = f", in the middle of {', '.join(self.cut_short)}" if self.cut_short else ""
            return "cancelled", f"cancelled from the desk{tools}"
        if outcome is None:
            return "died", "the claude CLI ended without a result"
        if outcome.is_error:
            said = outcome.result or "; ".join(outcome.errors or []) or "no text"
            said += self._advice(outcome.api_error_status)
            # A request that failed ends in a result of the subtype `success`.
            return "error", said if outcome.subtype == "success" else f"{outcome.subtype}: {said}"
        if outcome.stop_reason == "pause_turn":
            return "error", "the model paused its turn (pause_turn), and the CLI did not ask it to go on"
        # A command of the CLI's own, such as /compact, takes no turn and says nothing.
        if outcome.num_turns and not (outcome.result or outcome.structured_output or self._answered):
            return "error", "the endpoint's answers had no content"
        return "success", outcome.subtype

    def _advice(self, status: int | None) -> str:
        """Which variable to set where a credential is the cause."""
        if status not in _CREDENTIALS:
            return ""
        more = "; `claude setup-token` makes a new one" if self._variable == "CLAUDE_CODE_OAUTH_TOKEN" else ""
        return (
            f" (the credential was {_CREDENTIALS[status]}: set {self._variable} in the environment, .env or "
            f".env.local{more})"
        )


def died(error: BaseException) -> tuple[str, str]:
    """Status and reason for what ended a prompt from outside."""
    gone = isinstance(error, SandboxGone) or (isinstance(error, SessionError) and "code" in error.data)
    message = error.message if isinstance(error, HarvestError) else f"{type(error).__name__}: {error}"
    return ("died" if gone else "error"), message
