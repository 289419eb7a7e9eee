"""The rows of a session: what a person is shown of each message, and how it looks in a page."""

from __future__ import annotations

import io

from claude_agent_sdk import (
    AssistantMessage,
    StreamEvent,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)
from rich.console import Console

from harvest_nb.views.events import Row, rows
from harvest_nb.views.live import HtmlRows, LiveFlow


def kinds(message: AssistantMessage | UserMessage) -> list[tuple[str, str]]:
    return [(row.kind, row.text) for row in rows(message, 0.0)]


def test_what_the_cli_tells_the_model_of_a_stop_is_not_for_the_person() -> None:
    refused = "The user doesn't want to proceed with this tool use. The tool use was rejected (eg. …)"
    stopped = UserMessage(
        content=[
            ToolResultBlock(tool_use_id="t", content=refused, is_error=True),
            TextBlock(text="[Request interrupted by user for tool use]"),
        ]
    )
    assert kinds(stopped) == [("tool error", "stopped")]
    assert kinds(UserMessage(content=[TextBlock(text="[Your previous response …]")])) == [
        ("note", "[Your previous response …]")
    ]


def test_nothing_in_a_row_commands_what_shows_it() -> None:
    said = AssistantMessage(
        content=[
            TextBlock(text="\x1b[31mred\x1b[0m"),
            ThinkingBlock(thinking="\x1b]0;title\x07hm", signature=""),
            ToolUseBlock(id="t", name="Ba\x1b[2Jsh", input={"command": "\x1b[2J"}),
        ],
        model="m",
    )
    assert kinds(said) == [("text", "red"), ("thinking", "hm"), ("tool", "Bash command='\\x1b[2J'")]


def test_a_long_answer_that_was_streamed_is_printed_once() -> None:
    out = io.StringIO()
    flow = LiveFlow(Console(file=out, force_terminal=True, no_color=True, width=100))
    words = [f"word{n} " for n in range(6000)]
    for word in words:
        delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
        flow.show(StreamEvent(uuid="u", session_id="s", event=delta))
    flow.show(AssistantMessage(content=[TextBlock(text="".join(words))], model="m"))
    flow.close()
    assert out.getvalue().count("word0 ") == out.getvalue().count("word5999 ") == 1


def test_a_table_keeps_lines_and_code_and_does_not_grow_without_end() -> None:
    pages: list[str] = []
    table = HtmlRows(pages.append)
    table.add(Row(0.1, "text", "See:\n```python\nif a < b:\n    pass\n```\nthat."))
    assert "```" not in pages[-1]
    assert ">if a &lt; b:\n    pass</code>that." in pages[-1]
    table.add(Row(0.2, "tool result", "\n".join(f"line {n}" for n in range(20))))
    assert "line 7\n… 12 more lines" in pages[-1]
    for n in range(1000):
        table.add(Row(n, "text", f"number {n}"))
    table.close()
    assert "702 earlier rows" in pages[-1]
    assert ">number 700<" in pages[-1]
    assert ">number 699<" not in pages[-1]
