"""What no reason accounts for is told, whatever else there is; and counts that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harvest_nb import load
from harvest_nb.prices import canonical_model
from harvest_nb.tables.usage import counts

SESSION = "5e551011-0000-4000-8000-000000000001"


def stream(tmp_path: Path, usage: dict[str, Any], result: dict[str, Any]) -> Path:
    common = {"session_id": SESSION}
    message = {
        "id": "msg_1",
        "role": "assistant",
        "model": "claude-haiku-4-5-20251001",
        "stop_reason": "end_turn",
    }
    lines = [
        {"type": "system", "subtype": "init", "model": "claude-haiku-4-5-20251001", **common},
        {
            "type": "assistant",
            "uuid": "u1",
            "message": {
                **message,
                "content": [{"type": "text", "text": "x"}],
                "stop_reason": "end_turn",
                "usage": usage,
            },
            **common,
        },
        {"type": "result", "subtype": "success", "is_error": False, "num_turns": 1, **common, **result},
    ]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def model_usage(tokens: int, cost: float) -> dict[str, Any]:
    plain = {"cacheReadInputTokens": 0, "cacheCreationInputTokens": 0, "webSearchRequests": 0}
    return {"claude-haiku-4-5-20251001": {"inputTokens": tokens, "outputTokens": 0, "costUSD": cost, **plain}}


def test_a_total_that_is_not_the_sum_of_its_models_is_unexplained(tmp_path: Path) -> None:
    usage = {"input_tokens": 1000, "output_tokens": 0}
    path = stream(tmp_path, usage, {"total_cost_usd": 100.001, "modelUsage": model_usage(1000, 0.001)})
    frames = load(path)
    assert frames.runs["residual_reason"].iloc[0] == "unexplained"
    (detail,) = frames.problems[frames.problems["reason"] == "unexplained_residual"]["detail"]
    assert "100.0000 have no known reason" in detail


def test_a_total_that_is_the_sum_is_no_problem(tmp_path: Path) -> None:
    usage = {"input_tokens": 1000, "output_tokens": 0}
    path = stream(tmp_path, usage, {"total_cost_usd": 0.001, "modelUsage": model_usage(1000, 0.001)})
    frames = load(path)
    assert frames.runs["residual_reason"].iloc[0] == "equal"
    assert "unexplained_residual" not in set(frames.problems["reason"])


def test_other_prices_are_told_as_such(tmp_path: Path) -> None:
    usage = {"input_tokens": 1000, "output_tokens": 0}
    path = stream(tmp_path, usage, {"total_cost_usd": 0.5, "modelUsage": model_usage(1000, 0.5)})
    assert load(path).runs["residual_reason"].iloc[0] == "price_table_differs"


@pytest.mark.parametrize(
    ("usage", "five", "hour"),
    [
        ({"cache_creation_input_tokens": 100}, 100, 0),
        ({"cache_creation": {"ephemeral_1h_input_tokens": 60}}, 0, 60),
        ({"cache_creation_input_tokens": -1}, None, None),
        ({"cache_creation": 7}, None, None),
        ({}, None, None),
        ({"input_tokens": 1, "output_tokens": 1}, 0, 0),
        ({"input_tokens": 1, "output_tokens": 1, "cache_creation": None}, 0, 0),
        (
            {
                "cache_creation_input_tokens": 9,
                "cache_creation": {"ephemeral_5m_input_tokens": -1, "ephemeral_1h_input_tokens": 4},
            },
            5,
            4,
        ),
        ({"cache_creation": {"ephemeral_5m_input_tokens": -1, "ephemeral_1h_input_tokens": 4}}, None, 4),
        ({"cache_creation_input_tokens": 100, "cache_creation": {"ephemeral_5m_input_tokens": 10}}, 100, 0),
        (
            {
                "cache_creation_input_tokens": 100,
                "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 60},
            },
            40,
            60,
        ),
    ],
)
def test_no_cache_write_is_lost_to_a_split(usage: dict[str, Any], five: int | None, hour: int | None) -> None:
    found = counts(usage)
    assert (found["cache_write_5m_tokens"], found["cache_write_1h_tokens"]) == (five, hour)


def test_a_nested_count_that_is_none_is_told(tmp_path: Path) -> None:
    usage = {
        "input_tokens": 1,
        "output_tokens": 1,
        "cache_creation_input_tokens": 500,
        "cache_creation": {"ephemeral_1h_input_tokens": "500", "ephemeral_5m_input_tokens": 0},
    }
    frames = load(stream(tmp_path, usage, {"total_cost_usd": 0.1}))
    bad = frames.problems[frames.problems["reason"] == "bad_count"]["detail"]
    assert any("ephemeral_1h_input_tokens is 500" in detail for detail in bad)
    # The sum and the other kind say what it must have been.
    assert frames.usage["cache_write_5m_tokens"].iloc[0] == 0
    assert frames.usage["cache_write_1h_tokens"].iloc[0] == 500


@pytest.mark.parametrize(
    "name",
    [
        "us-gov.anthropic.claude-opus-4-5-20251101-v1:0",
        "claude-opus-4-5-20251101",
        "claude-opus-4-5-20251101@default",
    ],
)
def test_names_of_the_clouds_lead_to_one_model(name: str) -> None:
    assert canonical_model(name) == "claude-opus-4-5-20251101"


OLD = {"inputTokens": 1000, "outputTokens": 0, "cacheReadInputTokens": 0, "cacheCreationInputTokens": 0}
HAIKU = "claude-haiku-4-5-20251001"


@pytest.mark.parametrize("other", ["claude-haiku-4-5", "claude-sonnet-4-5"])
def test_an_older_result_says_nothing_of_searches_where_there_were_none(tmp_path: Path, other: str) -> None:
    """`webSearchRequests` came later than `modelUsage`."""
    plain = {"input_tokens": 1000, "output_tokens": 0}
    told = {HAIKU: {**OLD, "costUSD": 0.001}}
    run = load(stream(tmp_path, plain, {"total_cost_usd": 0.001, "modelUsage": told})).runs.iloc[0]
    assert run["residual_reason"] == "equal"
    assert run["cost_repriced_usd"] == run["cost_reported_usd"]
    # What was done in the background is in no row; nothing says that it searched.
    price = 0.001 if "haiku" in other else 0.003
    told = {HAIKU: {**OLD, "inputTokens": 500, "costUSD": 0.0005}, other: {**OLD, "costUSD": price}}
    said = {"total_cost_usd": 0.0005 + price, "modelUsage": told}
    frames = load(stream(tmp_path, {"input_tokens": 500, "output_tokens": 0}, said))
    run = frames.runs.iloc[0]
    assert run["residual_reason"] != "count_missing"
    assert run["cost_repriced_usd"] == run["cost_reported_usd"] == frames.costs["cost_usd"].sum()
    assert frames.result_usage["web_search_requests"].isna().all()  # nobody said it


@pytest.mark.parametrize("how", ["a count", "an odd count", "a tool", "a sub-agent"])
def test_an_older_result_leaves_open_how_many_searches_there_were(tmp_path: Path, how: str) -> None:
    plain: dict[str, Any] = {"input_tokens": 1000, "output_tokens": 0}
    if "count" in how:
        plain["server_tool_use"] = {"web_search_requests": 2 if how == "a count" else "2"}
    path = stream(
        tmp_path, plain, {"total_cost_usd": 0.031, "modelUsage": {HAIKU: {**OLD, "costUSD": 0.031}}}
    )
    if "count" not in how:
        name = "WebSearch" if how == "a tool" else "Task"
        block = {"type": "tool_use", "id": "t1", "name": name, "input": {}}
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines[1]["message"]["content"].append(block)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert load(path).runs["residual_reason"].iloc[0] == "count_missing"
