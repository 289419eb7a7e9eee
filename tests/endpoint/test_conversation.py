"""Reading a conversation: what a person wrote, and which answer is due, whatever the CLI put between."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest_nb.endpoint.conversation import Conversation, own_words
from tests.endpoint.conftest import REMINDER, assistant, body, call, result, user

NOTICE = (
    "<system-reminder>\n[SYSTEM NOTIFICATION - NOT USER INPUT]\n<task-notification>\n<task-id>a1</task-id>\n"
    "</task-notification>\n</system-reminder>"
)
SUMMARY = "This session is being continued from a previous conversation that ran out of context. "


def test_a_prompt_is_what_somebody_wrote() -> None:
    c = Conversation(body(user(REMINDER, "go on", REMINDER)))
    assert (c.own_prompt, c.step, c.prompt_number, c.agent) == ("go on", 0, 0, "main")
    assert "Today's date" in c.prompt


@pytest.mark.parametrize(
    "text",
    [
        REMINDER["text"],
        "Tool loaded.",
        "[Request interrupted by user for tool use]\n",
        NOTICE,
        "<local-command-stdout>Compacted</local-command-stdout>",
        "<command-name>/compact</command-name>\n<command-message>compact</command-message>",
        SUMMARY,
    ],
)
def test_what_the_cli_writes_is_no_prompt(text: str) -> None:
    assert own_words(text) == ""
    c = Conversation(body(user("go"), assistant(call("a")), user(result("a", "x"), text)))
    assert (c.own_prompt, c.step) == ("go", 1)


@given(st.text(min_size=1).filter(lambda text: text.strip() and "<" not in text and "[" not in text))
def test_words_of_ones_own_stay_as_they_are(text: str) -> None:
    if own_words(text):
        assert own_words(text) == text.strip()
        assert own_words(f"{REMINDER['text']}\n{text}") == text.strip()


def test_a_prompt_after_a_cancel_starts_anew_although_it_shares_a_message_with_the_rejected_tool() -> None:
    c = Conversation(
        body(
            user("wait"),
            assistant(call("a")),
            user(
                result("a", "rejected", failed=True), "[Request interrupted by user for tool use]\n", "next"
            ),
        )
    )
    assert (c.own_prompt, c.step, c.prompt_number) == ("next", 0, 1)
    assert (c.results, c.result_tools, c.calls) == (
        [],
        [],
        0,
    )  # they answer nothing that this prompt asked for
    assert c.calls == 0


def test_results_name_their_tools_and_lose_the_reminders() -> None:
    c = Conversation(
        body(
            user("go"),
            assistant(call("a"), call("b", "Read")),
            user(result("b", f"page\n{REMINDER['text']}"), result("a", "no", failed=True)),
        )
    )
    assert c.results == [("page", False), ("no", True)]
    assert c.result_tools == ["Read", "Bash"]
    assert c.calls == 2


def test_a_notice_of_a_background_task_is_no_prompt() -> None:
    c = Conversation(body(user("go"), assistant("waiting"), user(NOTICE)))
    assert (c.own_prompt, c.step, len(c.notifications)) == ("go", 1, 1)


def test_sub_agents_and_side_requests_are_told_apart() -> None:
    assert Conversation(body(user("x")), {"x-claude-code-agent-id": "a1"}).agent == "sub"
    assert Conversation(body(user("x"), tools=())).agent == "side"
    assert Conversation(body(user("x", "CRITICAL: Respond with TEXT ONLY. Do NOT …"))).agent == "compact"


def test_a_compaction_carries_prompt_and_step_on() -> None:
    asked = Conversation(
        body(
            user('say "hi"\\'),
            assistant(call("a")),
            user(result("a", "1")),
            assistant(call("b")),
            user(result("b", "2"), "CRITICAL: Respond with TEXT ONLY. Do NOT call any tools."),
        )
    )
    assert (asked.agent, asked.step) == ("compact", 2)
    # Afterwards the summary comes first, then what was not summarised, word for word.
    later = Conversation(body(user(SUMMARY + asked.summary), assistant(call("c")), user(result("c", "3"))))
    assert (later.own_prompt, later.step) == ('say "hi"\\', 3)
    anew = Conversation(body(user(SUMMARY + asked.summary), assistant("done"), user("next")))
    assert (anew.own_prompt, anew.step) == ("next", 0)
