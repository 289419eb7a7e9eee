"""What a result reports beyond the rows, of models whose responses had other prices than the standard ones."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from harvest_nb.tables import Frames, load
from tests.tables.agreement import agreed
from tests.tables.transcripts import model_usage, result, stream, streamed, usage, write_lines

SESSION = "aaaaaaaa-0000-4000-8000-00000000000a"
MODEL = "claude-opus-4-6"
"""USD per million tokens: input 5, output 25; in fast mode 6 times as much, in the US 1.1 times."""


def placeholders(
    tmp_path: Path, reported: float, output: int, *conditions: dict[str, Any], **more: Any
) -> Frames:
    """A response of 1,000 input tokens under each of the conditions, each with a placeholder of 1 for its output."""
    said = [streamed(f"msg_{n}", usage(1000, 1, **more)) for n, more in enumerate(conditions)]
    for one in said:
        one["message"]["model"] = MODEL
    models = {MODEL: model_usage(1000 * len(said), output, 0, 0, 0, reported, **more)}
    return load(write_lines(tmp_path / "a.jsonl", stream(SESSION, *said, result(reported, models))))


@pytest.mark.parametrize(
    ("given", "factor"),
    [
        ({}, 1),
        ({"speed": "fast"}, 6),
        ({"inference_geo": "us"}, 1.1),
        ({"speed": "fast", "inference_geo": "us"}, 6.6),
    ],
)
def test_where_all_had_the_same_prices_the_rest_has_them_too(tmp_path, given, factor):
    # 2,000 x 5 + 1,000 x 25 millionths
    cost = round(0.035 * factor, 6)
    frames = placeholders(tmp_path, cost, 1000, given, given)
    run = frames.runs.iloc[0]
    assert run["residual_reason"] == "placeholder_output"
    assert frames.costs["cost_usd"].sum() == run["cost_usd"] == run["cost_repriced_usd"] == Decimal(str(cost))
    assert frames.problems.empty


def test_where_they_had_different_prices_nobody_knows_which_the_rest_had(tmp_path):
    frames = placeholders(tmp_path, 0.11, 1000, {"speed": "fast"}, {"speed": "standard"})
    run = frames.runs.iloc[0]
    assert (run["residual_reason"], run["cost_reported_usd"]) == ("mixed_prices", Decimal("0.11"))
    assert run[["cost_usd", "cost_repriced_usd"]].isna().all()
    rest = frames.costs[frames.costs["source"] == "result"]
    assert rest["units"].tolist() == [998]
    assert rest["cost_usd"].isna().all()
    assert frames.problems["reason"].tolist() == ["unpriced_rest"]
    assert MODEL in frames.problems["detail"].iloc[0]


def test_the_rest_costs_what_the_cli_reports_at_list_prices(tmp_path):
    frames = placeholders(tmp_path, 0.11, 1000, {"speed": "fast"}, {"speed": "standard"}, costBasis="list")
    assert agreed(frames) == frames.runs["cost_reported_usd"].iloc[0] == Decimal("0.11")
    (rest,) = frames.costs[frames.costs["source"] == "result"].to_dict("records")
    assert (rest["model"], rest["component"]) == (MODEL, "unitemised")
    assert frames.problems.empty


@pytest.mark.parametrize(
    ("amount", "total", "cost"),
    [
        (0.4, 0.403, "0.403"),
        (0.0, 0.003, "0.003"),
        (0.4, 0.001, None),  # less than the rows
        (0.4, 900, None),  # a total that is not its models' sum
    ],
)
def test_a_model_without_a_price_costs_what_the_cli_reports_at_list_prices(tmp_path, amount, total, cost):
    said = streamed("msg_1", usage(1000))
    models = {
        said["message"]["model"]: model_usage(1000, 0, 0, 0, 0, 0.003, costBasis="list"),
        "claude-nonsense-9": model_usage(5, 5, 0, 0, 0, amount, costBasis="list"),
        "claude-haiku-4-5": model_usage(0, 0, 0, 0, 0, 0, costBasis="list"),
    }
    frames = load(write_lines(tmp_path / "a.jsonl", stream(SESSION, said, result(total, models))))
    assert agreed(frames) == (cost and Decimal(cost))
    rest = frames.costs[frames.costs["source"] == "result"]
    assert set(rest["model"]) == (set() if amount == 0 else {"claude-nonsense-9"})
    assert ("unpriced_rest" in set(frames.problems["reason"])) == (cost is None)


def test_rows_that_the_result_does_not_count_are_not_taken_off_the_rest(tmp_path):
    said = [streamed(f"msg_{n}", usage(1000)) for n in range(2)]
    models = {
        said[0]["message"]["model"]: model_usage(1000, 0, 0, 0, 0, 0.003, costBasis="list"),
        "claude-nonsense-9": model_usage(5, 5, 0, 0, 0, 0.4, costBasis="list"),
    }
    frames = load(write_lines(tmp_path / "a.jsonl", stream(SESSION, *said, result(0.403, models))))
    assert agreed(frames) is None


def test_a_model_without_a_price_that_only_the_result_names_is_told(tmp_path):
    said = streamed("msg_1", usage(1000))
    models = {
        said["message"]["model"]: model_usage(1000, 0, 0, 0, 0, 0.003),
        "claude-nonsense-9": model_usage(5, 5, 0, 0, 0, 0.4),
    }
    frames = load(write_lines(tmp_path / "a.jsonl", stream(SESSION, said, result(0.403, models))))
    assert frames.costs["cost_usd"].isna().tolist() == [False, True, True]
    (problem,) = frames.problems.to_dict("records")
    assert (problem["reason"], problem["line"], problem["run_id"]) == ("unpriced_rest", 3, SESSION)
    assert "claude-nonsense-9" in problem["detail"]
    assert frames.runs["cost_usd"].isna().all()
    assert frames.runs["cost_reported_usd"].tolist() == [Decimal("0.403")]
