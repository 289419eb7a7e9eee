"""What a record does not say is missing in every frame, never 0, and a cost that depends on it says so."""

from __future__ import annotations

import gzip
import itertools
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harvest_nb.errors import RunFolderError
from harvest_nb.tables import Frames, load
from harvest_nb.tables.totals import totals
from tests.tables.transcripts import (
    MODEL,
    Transcript,
    model_usage,
    result,
    stream,
    streamed,
    usage,
    write_lines,
)

SESSION = "99999999-0000-4000-8000-000000000001"


def without(given: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key not in keys}


def one(tmp_path: Path, spent: dict[str, Any], model: str = MODEL) -> Frames:
    log = Transcript()
    log.answer(1, "msg_1", spent, model=model)
    log.answer(2, "msg_2", usage(1000), model=model)
    return load(log.write(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("key", ["input_tokens", "output_tokens"])
@pytest.mark.parametrize("left_out", [True, False])
def test_a_required_count_that_is_not_there_is_missing(tmp_path, key, left_out):
    given = usage(100, 10, 0, 5, 7)
    frames = one(tmp_path, without(given, key) if left_out else {**given, key: None})
    row = frames.usage.iloc[0]
    assert pd.isna(row[key])
    assert pd.isna(row["cost_usd"])
    assert (row["cache_read_tokens"], row["cache_write_1h_tokens"]) == (7, 5)
    assert frames.problems["reason"].tolist() == ["missing_count"]
    assert key in frames.problems["detail"].iloc[0]
    assert pd.isna(frames.runs["cost_rows_usd"].iloc[0])
    found = totals(frames)
    assert found.rows[0]["cost_usd"] is None
    assert found.total_usd is None
    assert found.priced_usd == frames.costs["cost_usd"].sum() >= Decimal("0.003")
    assert not row["output_final"] or key == "input_tokens"


def test_cache_and_tools_that_were_not_used_may_be_left_out(tmp_path):
    given = without(
        usage(100, 10), "cache_read_input_tokens", "cache_creation_input_tokens", "cache_creation"
    )
    frames = one(tmp_path, {**given, "server_tool_use": None})
    row = frames.usage.iloc[0]
    assert [row[key] for key in ("cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens")] == [
        0
    ] * 3
    assert row["web_search_requests"] == 0
    assert row["cost_usd"] == Decimal("0.00045")
    assert frames.problems.empty


@pytest.mark.parametrize("bad", [-1, "7", 1.5, True, [], 10**12])
def test_a_cache_count_that_is_none_is_missing(tmp_path, bad):
    frames = one(tmp_path, {**usage(100, 10), "cache_read_input_tokens": bad}, model="claude-haiku-4-5")
    row = frames.usage.iloc[0]
    assert pd.isna(row["cache_read_tokens"])
    assert pd.isna(row["cost_usd"])
    assert frames.problems["reason"].tolist() == ["bad_count"]
    by_component = frames.costs[frames.costs["message_id"] == "msg_1"].set_index("component")
    assert by_component.loc["input", "cost_usd"] == Decimal("0.0001")
    assert by_component.loc["cache_read", ["units", "cost_usd"]].isna().all()


def test_where_the_price_hangs_on_the_length_of_the_prompt_a_missing_part_leaves_all_open(tmp_path):
    """claude-sonnet-4-5 costs more beyond 200,000 tokens, for the whole request."""
    frames = one(tmp_path, {**usage(100, 10), "cache_read_input_tokens": -1})
    assert frames.costs.loc[frames.costs["message_id"] == "msg_1", "cost_usd"].isna().all()
    frames = one(tmp_path, {**usage(300_000, 10), "cache_read_input_tokens": -1})
    by_component = frames.costs[frames.costs["message_id"] == "msg_1"].set_index("component")["cost_usd"]
    assert by_component["input"] == Decimal("1.8")
    assert pd.isna(by_component["cache_read"])


def test_an_event_that_tells_the_output_alone_takes_the_rest_from_the_other_rows(tmp_path):
    """The log begins after the response's first event, in whatever order its parts are read."""
    said = streamed("msg_1", usage(100, 2, 0, 1000, 50))
    delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 80}}
    event = {"type": "stream_event", "event": delta, "api_message_id": "msg_1"}
    for number, order in enumerate(itertools.permutations([said, event])):
        path = write_lines(tmp_path / f"{number}.jsonl", stream(SESSION, *order))
        frames = load(path)
        row = frames.usage.iloc[0]
        assert [row["input_tokens"], row["output_tokens"], row["cache_write_1h_tokens"]] == [100, 80, 1000]
        assert (row["cache_read_tokens"], bool(row["output_final"])) == (50, True)
        assert frames.problems.empty
    frames = load(write_lines(tmp_path / "alone.jsonl", stream(SESSION, event)))
    assert frames.usage[["input_tokens", "cache_read_tokens", "cost_usd"]].isna().all(axis=None)
    assert frames.problems["reason"].tolist() == ["missing_count", "unpriced_model"]  # no model either


def test_a_last_event_that_repeats_the_prompt_in_sum_takes_no_price_away(tmp_path):
    """Speed, place and the split of cache writes stand in the other rows, whichever is read first."""
    whole = usage(5, 20, 0, 1000, 0, speed="fast", inference_geo="us")
    costs = set()
    for number, more in enumerate(({}, {"input_tokens": 5, "cache_creation_input_tokens": 1000})):
        delta = {
            "type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 80, **more}
        }  # fmt: skip
        said = streamed("msg_1", whole)
        event = {"type": "stream_event", "event": delta, "api_message_id": "msg_1"}
        for order in ([said, event], [event, said]):
            path = write_lines(tmp_path / f"{number}-{order.index(said)}.jsonl", stream(SESSION, *order))
            (row,) = load(path).usage.to_dict("records")
            assert (row["speed"], row["cache_write_1h_tokens"], row["output_tokens"]) == ("fast", 1000, 80)
            costs.add(row["cost_usd"])
    assert len(costs) == 1


def test_a_result_that_leaves_out_counts(tmp_path):
    told = without(
        model_usage(100, 10, 0, 0, 0, 0.00045), "cacheReadInputTokens", "outputTokens", "webSearchRequests"
    )
    said = [streamed("msg_1", usage(100, 10)), result(0.00045, {MODEL: told}, num_turns=None)]
    frames = load(write_lines(tmp_path / "a.jsonl", stream(SESSION, *said)))
    row = frames.result_usage.iloc[0]
    assert row[["output_tokens", "cache_read_tokens", "web_search_requests"]].isna().all()
    assert row["input_tokens"] == 100
    run = frames.runs.iloc[0]
    assert pd.isna(run["n_turns_reported"])
    assert run["cost_usd"] == Decimal("0.00045")
    assert pd.isna(run["cost_repriced_usd"])
    # Nothing is invented for what the result does not say.
    assert frames.costs["cost_usd"].sum() == Decimal("0.00045")


def test_times_that_nobody_wrote_make_no_duration(tmp_path):
    log = Transcript()
    log.answer(
        1,
        "msg_1",
        usage(1, 1),
        {"type": "tool_use", "id": "t1", "name": "Bash", "input": {}},
        stop="tool_use",
    )
    del log.result(2, "t1", "done")["timestamp"]
    log.answer(4, "msg_2", usage(1, 1))
    frames = load(log.write(tmp_path / "a.jsonl"))
    first = frames.turns.iloc[0]
    assert pd.isna(first["tools_s"])
    assert pd.isna(first["total_s"])


def test_a_run_of_which_a_response_says_nothing_of_its_use_has_no_cost(tmp_path):
    log = Transcript()
    log.answer(1, "msg_1", None)
    path = log.write(tmp_path / "a.jsonl")
    for _ in range(2):
        frames = load(path)
        assert frames.runs[["cost_usd", "cost_rows_usd"]].isna().all(axis=None)
        assert frames.sessions["cost_usd"].isna().all()
        assert "missing_usage" in set(frames.problems["reason"])
        log.answer(2, "msg_2", usage(1000))
        log.write(path)
    # Another row of the same response says it, or a result does.
    log.answer(3, "msg_1", usage(1000))
    assert load(log.write(path)).runs["cost_usd"].tolist() == [Decimal("0.006")]
    said = streamed("msg_1", usage(1000))
    del said["message"]["usage"]
    write_lines(path, stream(SESSION, said, result(0.003, {MODEL: model_usage(1000, 0, 0, 0, 0, 0.003)})))
    frames = load(path)
    assert frames.runs["cost_usd"].tolist() == [Decimal("0.003")]
    assert frames.costs["cost_usd"].sum() == Decimal("0.003")


def test_a_transcript_among_saved_results_is_told(tmp_path):
    """The CLI keeps there what tools gave back, which is not read: it may be a copy of anything."""
    log = Transcript()
    log.answer(1, "msg_1", usage(1000))
    log.write(tmp_path / "projects" / "-p" / f"{log.session}.jsonl")
    other = Transcript(SESSION)
    other.answer(1, "msg_2", usage(1000))
    saved = tmp_path / "projects" / "-p" / log.session / "tool-results"
    for name in ("b.jsonl", "deeper/c.json", "toolu_1.txt"):
        other.write(saved / name)
    packed = saved / "d.jsonl.gz"
    packed.write_bytes(gzip.compress((saved / "b.jsonl").read_bytes()))
    (saved / "e.json").write_text(json.dumps([{"type": "text", "text": json.dumps(other.rows[0])}]))
    frames = load(tmp_path)
    assert list(frames.usage["message_id"]) == ["msg_1"]
    told = frames.problems
    assert set(told["reason"]) == {"left_out"}
    # What a tool printed is text; it may well print records.
    assert sorted(told["path"]) == sorted(
        str(saved / name) for name in ("b.jsonl", "d.jsonl.gz", "deeper/c.json")
    )
    assert not told["salvaged"].any()
    with pytest.raises(RunFolderError, match="tool-results"):
        load(tmp_path, strict=True)
    # Named, it is read.
    assert set(load(tmp_path, saved / "b.jsonl").usage["message_id"]) == {"msg_1", "msg_2"}
    assert set(load(saved).usage["message_id"]) == {"msg_2"}


def test_a_run_folder_below_a_folder_of_that_name_is_whole(new_run, tmp_path):
    """Only what lies in `tool-results` within its transcript is left out, and told."""
    writer = new_run("run-1", tmp_path / "tool-results").two_turns()
    folder = writer.write()
    frames = load(folder)
    assert frames.usage["output_tokens"].tolist() == [50, 30]
    assert frames.problems.empty
    other = Transcript(SESSION)
    other.answer(1, "msg_2", usage(1000))
    path = other.write(folder / "transcript" / SESSION / "tool-results" / "x.jsonl")
    frames = load(folder)
    assert len(frames.usage) == 2
    assert frames.problems[["reason", "path", "run_id"]].to_numpy().tolist() == [
        ["left_out", str(path), "run-1"]
    ]


@pytest.mark.parametrize("message", [{}, {"role": "assistant"}, {"id": "msg_1", "model": MODEL}])
@pytest.mark.parametrize("kind", ["transcript", "stream", "nested"])
def test_a_response_that_says_nothing_of_its_use_is_told(tmp_path, message, kind):
    log = Transcript()
    log.user(0, "Is it?")
    if kind == "nested":
        inner = {"type": "assistant", "message": message, "timestamp": "2026-06-01T12:00:01Z", "uuid": "n1"}
        log.row(1, "progress", data={"type": "agent_progress", "agentId": "a1", "message": inner})
    else:
        log.row(1, "assistant", message=message)
    rows = log.rows
    if kind == "stream":
        rows = stream(SESSION, {"type": "assistant", "message": message})
    frames = load(write_lines(tmp_path / "a.jsonl", rows))
    assert "missing_usage" in set(frames.problems["reason"])
    assert frames.runs["cost_usd"].isna().all()


def test_an_event_that_says_nothing_of_its_use_is_told(tmp_path):
    start = {"type": "message_start", "message": {"id": "msg_1", "model": MODEL}}
    frames = load(
        write_lines(tmp_path / "a.jsonl", stream(SESSION, {"type": "stream_event", "event": start}))
    )
    assert "missing_usage" in set(frames.problems["reason"])
    assert frames.runs["cost_usd"].isna().all()


def test_the_end_of_a_response_whose_beginning_is_not_in_the_log_is_told(tmp_path):
    """No event but the first says whose it is."""
    delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 80}}
    said = [
        {"type": "stream_event", "event": delta},
        {"type": "stream_event", "event": {"type": "message_stop"}},
    ]
    lines = stream(SESSION, *said, streamed("msg_2", usage(1000)))
    frames = load(write_lines(tmp_path / "a.jsonl", lines))
    (problem,) = frames.problems.to_dict("records")
    assert (problem["reason"], problem["line"]) == ("missing_usage", 2)
    assert frames.runs["cost_usd"].isna().all()


def test_an_iteration_that_says_no_output_is_not_final(tmp_path):
    parts = [
        {"type": "message", **without(usage(100), "output_tokens")},
        {"type": "message", **usage(200, 20)},
    ]
    row = one(tmp_path, usage(200, 20, iterations=parts)).usage.iloc[0]
    assert pd.isna(row["output_tokens"])
    assert not row["output_final"]
