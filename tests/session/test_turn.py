"""Which result answers a prompt, and what the prompt has cost, whatever ends in the background meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
from claude_agent_sdk import Message, ResultMessage, StreamEvent, TaskNotificationMessage, TaskStartedMessage

from harvest_nb.session.kept import Kept
from harvest_nb.session.turn import Prompted
from tests.memory import peak_memory

NOTIFIED: Any = {"kind": "task-notification"}


def started(task: str) -> Message:
    return TaskStartedMessage("task_started", {}, task_id=task, description="", uuid="u", session_id="s")


def ended(task: str) -> Message:
    return TaskNotificationMessage(
        "task_notification", {}, task, "completed", output_file="", summary="", uuid="u", session_id="s"
    )


def result(text: str, total: float, **more: Any) -> ResultMessage:
    return ResultMessage("success", 1, 1, False, 1, "s", result=text, total_cost_usd=total, **more)


@pytest.mark.parametrize(
    ("order", "answer"),
    [
        (["own", "ends other", "other"], "own"),
        (["ends other", "own", "other"], "own"),
        (["ends other", "other", "own"], "own"),
        (["starts mine", "own", "ends mine", "mine"], "mine"),
        (["starts mine", "own", "ends other", "ends mine", "both"], "both"),
        (["starts mine", "own", "ends other", "other", "ends mine", "mine"], "mine"),
        (["starts mine", "own", "ends mine", "mine", "ends other", "other"], "mine"),
        (["own", "of an older CLI"], "of an older CLI"),
    ],
)
async def test_the_answer_is_what_the_prompt_brought(order: list[str], answer: str) -> None:
    turn = Prompted("hello", lambda _: None, "TOKEN", Kept(2**20))
    total = 0.0
    for each in order:
        verb, _, task = each.partition(" ")
        if verb in ("starts", "ends"):
            turn.handle(started(task) if verb == "starts" else ended(task))
            continue
        total += 1
        more = {"own": {"user_message_uuid": turn.id}, "of an older CLI": {}}.get(each, {"origin": NOTIFIED})
        turn.handle(result(each, total, **more))
    assert turn.outcome is not None
    assert turn.outcome.result == answer
    # Each prompt's cost is the difference of totals: what others' tasks used meanwhile must not fall between two.
    assert (turn.total_cost_usd, turn.num_turns) == (total, total)


async def test_only_what_others_left_is_no_answer() -> None:
    turn = Prompted("hello", lambda _: None, "TOKEN", Kept(2**20))
    for message in (ended("other"), result("other", 1.0, origin=NOTIFIED)):
        turn.handle(message)
    assert (turn.outcome, turn.total_cost_usd) == (None, None)


async def test_long_names_and_partial_messages_take_no_memory_without_end() -> None:
    turn = Prompted("hello", lambda _: None, "TOKEN", Kept(100_000))
    before = peak_memory(reset=True)
    for number in range(60):
        long = f"{number}" + "x" * 2_000_000
        calls = [{"type": "tool_use", "id": long, "name": long, "input": {}}]
        turn.raw({"type": "assistant", "message": {"content": calls}})
        turn.handle(started(long))
        turn.handle(ended(long))
        turn.handle(StreamEvent(uuid=str(number), session_id="s", event={"delta": long}))
    assert peak_memory() - before < 40e6
    assert len(turn.cut_short) == 60
    assert turn.messages == []


async def test_blocks_of_an_odd_shape_are_left_to_the_sdk_which_names_them() -> None:
    turn = Prompted("hello", lambda _: None, "TOKEN", Kept(2**20))
    calls = [
        {"type": "tool_use", "name": "Bash"},
        {"type": "tool_use", "id": "t1"},
        {"type": "tool_use"},
        "text",
    ]
    turn.raw({"type": "assistant", "message": {"content": calls}})
    assert turn.cut_short == ("a tool",)
    turn.raw({"type": "user", "message": {"content": [{"type": "tool_result"}, "text"]}})
    assert turn.cut_short == ("a tool",)
    turn.raw({"type": "user", "message": {"content": [{"type": "tool_result", "tool_use_id": "t1"}]}})
    assert len(turn.cut_short) == 0
