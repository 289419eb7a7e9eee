"""The real CLI, driven without a token: what the frames say equals what it says."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from harvest_nb.tables import load
from tests.tables.observe_cli_prices import TABLE, cli_version, observe

pytestmark = pytest.mark.slow

MODELS = ["claude-sonnet-4-5", "claude-opus-4-5", "claude-haiku-4-5", "claude-sonnet-5-5", "claude-opus-5-5"]
SEARCHES = {"server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 0}}


@pytest.mark.parametrize("model", MODELS)
def test_rows_result_and_prices_agree_for_a_session_with_a_tool(drive, writer, model):
    looking = [writer.text("I will look."), writer.call("toolu_1", "Bash", command="echo $((6 * 7))")]
    replies = [
        {"id": "msg_1", "content": looking, "usage": writer.usage(101, 203, 1009, 2003, 0)},
        {
            "id": "msg_2",
            "content": [writer.text("42.")],
            "usage": writer.usage(11, 17, 0, 503, 3001, **SEARCHES),
        },
        {"id": "msg_3", "content": [writer.text("Still 42.")], "usage": writer.usage(5, 7, 0, 0, 3511)},
    ]
    frames = load(drive(replies, ["What is 6 times 7?", "And now?"], model=model))
    run = frames.runs.iloc[0]
    assert frames.problems.empty
    assert run["cli_version"]
    assert run["residual_reason"] == "equal", dict(run)
    assert abs(run["residual_prices_usd"]) <= Decimal("1e-6")
    assert (run["n_prompts"], run["n_turns"], run["n_not_final"], run["n_processes"]) == (2, 3, 0, 1)
    assert list(frames.usage["output_tokens"]) == [203, 17, 7]
    last = frames.result_usage.query("is_last").iloc[0]
    assert last["output_tokens"] == frames.usage["output_tokens"].sum()
    assert last["web_search_requests"] == frames.usage["web_search_requests"].sum() == 2
    call = frames.tool_calls.iloc[0]
    assert (call["status"], call["result"], call["turn"]) == ("ok", "42", 1)


def test_the_stream_alone_has_placeholders_and_partial_messages_mend_that(drive, writer):
    replies = [{"id": "msg_1", "content": [writer.text("Hello.")], "usage": writer.usage(10, 999)}]
    folder = drive(replies, ["Hi"])
    for file in (folder / "transcript").rglob("*.jsonl"):
        file.unlink()
    frames = load(folder)
    assert frames.usage["output_tokens"].tolist() == [1]
    assert not frames.usage["output_final"].any()
    assert frames.runs["residual_reason"].tolist() == ["placeholder_output"]
    assert frames.runs["residual_usd"].tolist() == [Decimal(998 * 15) / 1_000_000]


def test_partial_messages_carry_the_final_figure(drive, writer):
    replies = [{"id": "msg_1", "content": [writer.text("Hello.")], "usage": writer.usage(10, 999)}]
    folder = drive(replies, ["Hi"], options=("--include-partial-messages",))
    for file in (folder / "transcript").rglob("*.jsonl"):
        file.unlink()
    frames = load(folder)
    assert frames.usage["output_tokens"].tolist() == [999]
    assert frames.runs["residual_reason"].tolist() == ["equal"]


@pytest.mark.parametrize("model", ["claude-opus-4-6", "claude-haiku-5-5"])
def test_the_committed_table_is_what_the_cli_says(model):
    """A sample; `python -m tests.tables.observe_cli_prices` asks for the rest."""
    committed = json.loads(TABLE.read_text())
    assert committed["cli_version"] == cli_version()
    assert committed["models"][model] == observe(model)


def test_a_result_alone_and_the_configs_transcript_say_the_same(drive, writer, tmp_path):
    """`claude --output-format json` and what the CLI leaves under its config directory, each without the other."""
    replies = [
        {"id": "msg_1", "content": [writer.text("Hello.")], "usage": writer.usage(10, 999, 100, 200, 300)}
    ]
    folder = drive(replies, ["Hi"])
    told = json.loads((folder / "stream.jsonl").read_text().splitlines()[-1])["message"]
    (tmp_path / "result.json").write_text(json.dumps(told))
    cost = Decimal(str(told["total_cost_usd"]))
    for path in (folder, tmp_path / "result.json", tmp_path / "home" / ".claude"):
        frames = load(path)
        assert abs(Decimal(frames.costs["cost_usd"].sum()) - cost) <= Decimal("1e-6"), path
        assert frames.problems.empty, frames.problems.to_string()
