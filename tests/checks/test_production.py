"""What the messages of a production call must show; the call itself is made in test_snapshot."""

from __future__ import annotations

from typing import Any

import pytest

from harvest_nb.checks.production import HARD_PROMPT, judge_messages

GOOD: list[dict[str, Any]] = [
    {
        "type": "system",
        "subtype": "init",
        "cwd": "/app",
        "mcp_servers": [{"name": "memory", "status": "connected"}],
    },
    {"type": "assistant"},
    {"type": "user"},
    {"type": "assistant"},
    {"type": "result", "subtype": "success", "is_error": False, "result": "done"},
]


def test_a_whole_exchange_is_fine():
    assert judge_messages(GOOD, "/app", "memory") == []


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "no system/init message"),
        (GOOD[1:], "no system/init message"),
        (GOOD[:-1], "no result at the end"),
        ([*GOOD[:2], *GOOD[3:]], "no user message"),
        ([GOOD[0] | {"cwd": "/"}, *GOOD[1:]], "working directory is /"),
        ([GOOD[0] | {"mcp_servers": []}, *GOOD[1:]], "memory: not started"),
        ([GOOD[0] | {"mcp_servers": [{"name": "memory", "status": "failed"}]}, *GOOD[1:]], "memory: failed"),
        ([*GOOD[:-1], GOOD[-1] | {"is_error": True, "result": "API Error"}], "API Error"),
        ([*GOOD[:-1], {"type": "result", "subtype": "error_max_turns"}], "error_max_turns"),
    ],
)
def test_what_is_missing_is_named(messages, problem):
    assert problem in "; ".join(judge_messages(messages, "/app", "memory"))


def test_the_prompt_is_as_hard_as_the_issue_asks():
    assert all(part in HARD_PROMPT for part in ('"', "'", "`", "${", "\n", "\\n", "$("))
