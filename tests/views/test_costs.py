"""What the cost charts show is what the frames say."""

from __future__ import annotations

import json

import pytest

from harvest_nb.tables import load
from harvest_nb.views.costs import (
    cost_by_turn,
    cost_table,
    reconciliation,
    reconciliation_table,
    token_and_cost_shares,
)


def rows(chart):
    return [row for data in chart.spec.to_dict()["datasets"].values() for row in data]


def test_shares_hold_all_tokens_and_all_costs(frames):
    chart = token_and_cost_shares(frames)
    tokens = sum(row["n"] for row in rows(chart) if row["bar"] == "share of tokens")
    usd = sum(row["n"] for row in rows(chart) if row["bar"] == "share of cost")
    # Three responses: input 1,000 and cache read 100,000 each, output 100 + 100 + 1,500.
    assert tokens == 304_700
    assert usd == pytest.approx((3 * (3000 + 30_000) + 1700 * 15) / 1e6)
    assert "304,700 tokens" in chart.svg
    assert "web search" not in chart.svg


def test_each_turn_is_as_high_as_its_cost_in_cents(frames):
    chart = cost_by_turn(frames, "run-1")
    heights: dict[int, float] = {}
    for row in rows(chart):
        heights[row["turn"]] = heights.get(row["turn"], 0) + row["cents"]
    assert heights == pytest.approx({1: 3.45, 2: 3.45, 3: 5.55})
    assert "cost in US cents" in chart.svg


def test_the_table_marks_a_lower_bound(frames):
    table = cost_table(frames)
    found = {row.pop("component"): list(row.values())[1:] for row in table.reset_index().to_dict("records")}
    assert found["output"] == ["1,700", "15", "0.025500", "lower bound"]
    assert found["cache read"] == ["300,000", "0.3", "0.090000", ""]


def test_a_model_without_a_price_has_no_cost_in_table_and_chart(record):
    folder = record()
    stream = folder / "stream.jsonl"
    stream.write_text(stream.read_text().replace("claude-sonnet-4-5", "claude-nonsense-9"))
    frames = load(folder)
    table = cost_table(frames)
    assert set(table["cost [USD]"]) == {"n/a"}
    assert set(table["USD per Mtok (web: per 1,000)"]) == {"no price"}
    assert rows(token_and_cost_shares(frames)) == []
    assert token_and_cost_shares(frames).svg.startswith("<svg")


def test_reconciliation_shows_what_agrees_and_why_not(record):
    rows_cost = (3 * 33_000 + 1700 * 15) / 1e6
    frames = load(record("run-1", total=rows_cost), record("run-2", begin=1_795_000_500, total=0.5))
    table = reconciliation_table(frames)
    assert list(table.loc["run-1"]) == ["0.124500", "0.124500", "0.000000", "equal"]
    assert table.loc["run-2", "left over [USD]"] == "0.375500"
    chart = reconciliation(frames)
    assert "1 of 2 runs agree" in chart.description
    reported = [row["cents"] for row in rows(chart) if row["source"].startswith("total_cost_usd")]
    assert reported == pytest.approx([12.45, 50])


def test_a_run_without_a_result_is_reconciled_as_such(record):
    folder = record()
    stream = folder / "stream.jsonl"
    lines = [
        line for line in stream.read_text().splitlines() if json.loads(line)["message"]["type"] != "result"
    ]
    stream.write_text("\n".join(lines) + "\n")
    table = reconciliation_table(load(folder))
    assert list(table.iloc[0])[1:] == ["n/a", "n/a", "no result"]
