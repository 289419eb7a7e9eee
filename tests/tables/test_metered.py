"""Counts of the endpoint's proxy that are none, and what of them is compared with the CLI's."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from harvest_nb.tables import Frames, load

LINE = {"t": 1_795_000_000.0, "model": "claude-sonnet-4-5", "input_tokens": 300, "output_tokens": 30}
"""USD per million tokens: 3 and 15."""


def metered(writer: Any, *lines: dict[str, Any], reported_searches: int = 0) -> Frames:
    writer.initialize(1)
    writer.answer(2, "msg_a", [writer.text("x")], writer.usage(300, 30))
    cost = 0.00135 + reported_searches / 100
    models = {
        writer.model: writer.model_usage(300, 30, 0, 0, 0, cost) | {"webSearchRequests": reported_searches}
    }
    writer.result(3, cost, models)
    folder = writer.write()
    (folder / "endpoint.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return load(folder)


def test_a_count_that_the_proxy_leaves_out_is_0(writer):
    frames = metered(writer, LINE)
    assert frames.endpoint_usage["cache_read_tokens"].tolist() == [0]
    assert frames.runs["cost_endpoint_usd"].tolist() == [Decimal("0.00135")]
    assert frames.problems.empty


@pytest.mark.parametrize("count", [None, -1, 2**70, "7", 1.5, True])
@pytest.mark.parametrize("name", ["input_tokens", "cache_write_1h_tokens"])
def test_a_count_that_is_none_is_missing_and_told(writer, name, count):
    frames = metered(writer, LINE, {**LINE, "output_tokens": 0, "input_tokens": 0, name: count})
    first, second = frames.endpoint_usage.to_dict("records")
    assert first["cost_usd"] == Decimal("0.00135")
    assert frames.endpoint_usage[[name, "cost_usd"]].isna().all(axis=1).tolist() == [False, True]
    assert frames.runs["cost_endpoint_usd"].isna().all()
    # A column without one of its counts is not compared.
    (problem,) = frames.problems.to_dict("records")
    assert (problem["reason"], problem["line"], problem["run_id"]) == ("bad_count", 2, second["run_id"])
    assert name in problem["detail"]


def test_the_other_counts_are_compared_all_the_same(writer):
    frames = metered(writer, {**LINE, "input_tokens": -5, "output_tokens": 77})
    assert set(frames.problems["reason"]) == {"bad_count", "endpoint_usage_differs"}


@pytest.mark.parametrize(("counted", "expected"), [(None, []), (1, []), (2, ["endpoint_usage_differs"])])
def test_searches_are_compared_where_the_endpoint_counted_some(writer, counted, expected):
    """An older recording has none."""
    line = LINE if counted is None else {**LINE, "web_search_requests": counted}
    frames = metered(writer, line, reported_searches=1)
    assert list(frames.problems["reason"]) == expected


def test_what_a_price_depends_on_is_read_as_of_the_clis_rows(writer):
    words = {"speed": "fast", "geo": "us", "tier": "standard", "web_search_requests": 2}
    frames = metered(writer, LINE, {**LINE, "model": "claude-opus-4-6", **words})
    # 300 and 30 tokens at 6 times 5 and 25 USD for a million and a tenth more; a search is a cent.
    assert frames.endpoint_usage["cost_usd"].tolist() == [Decimal("0.00135"), Decimal("0.03485")]
    (problem,) = frames.problems.to_dict("records")
    assert problem["reason"] == "endpoint_usage_differs"
    assert "searches" in problem["detail"]
