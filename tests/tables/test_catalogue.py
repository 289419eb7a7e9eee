"""One small case for each oddity of real transcripts and logs, with totals worked out by hand.

At claude-sonnet-4-5's prices: input 3, output 15, 5-minute write 3.75, 1-hour write 6, read 0.3 USD per million.
"""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import zstandard

from harvest_nb.errors import RunFolderError
from harvest_nb.prices import load_prices
from harvest_nb.tables import Frames, load, validate
from tests.tables.transcripts import (
    MODEL,
    Transcript,
    call,
    model_usage,
    result,
    stream,
    streamed,
    text,
    usage,
    write_lines,
)

TOKENS = [f"{kind}_tokens" for kind in ("input", "output", "cache_write_5m", "cache_write_1h", "cache_read")]
OTHER = "22222222-0000-4000-8000-000000000002"


def tokens(frames: Frames) -> list[int]:
    return [int(frames.usage[column].sum()) for column in TOKENS]


def usd(frames: Frames) -> Decimal:
    return Decimal(frames.costs["cost_usd"].sum())


def reasons(frames: Frames) -> list[str]:
    return sorted(frames.problems["reason"])


def only(frame: pd.DataFrame) -> dict[str, Any]:
    assert len(frame) == 1
    return dict(frame.iloc[0])


@pytest.fixture
def log() -> Transcript:
    one = Transcript()
    one.user(0, "Is it?")
    return one


def test_a_response_in_several_rows_counts_once(log, tmp_path):
    log.answer(
        2, "msg_1", usage(100, 10, 0, 1000, 2000), text("Let me see."), call("toolu_1"), stop="tool_use"
    )
    frames = load(log.write(tmp_path / "a.jsonl"))
    assert tokens(frames) == [100, 10, 0, 1000, 2000]
    # 300 + 150 + 6,000 + 600 millionths
    assert usd(frames) == Decimal("0.00705")
    row = only(frames.usage)
    assert (row["n_rows"], row["output_final"], row["source"]) == (2, True, "transcript")
    assert (row["cost_usd"], row["is_copy"], row["is_sidechain"]) == (Decimal("0.00705"), False, False)
    message = only(frames.messages.query("type == 'assistant'"))
    assert (message["n_rows"], message["n_blocks"], message["first_line"], message["last_line"]) == (
        2,
        2,
        2,
        3,
    )
    assert reasons(frames) == []


def test_rows_of_a_response_with_a_tool_result_between_them(log, tmp_path):
    log.answer(2, "msg_1", usage(100, 1), call("toolu_1"), stop=None)
    log.result(3, "toolu_1", "done")
    log.answer(4, "msg_1", usage(100, 40), call("toolu_2"), stop="tool_use")
    log.result(5, "toolu_2", "done")
    frames = load(log.write(tmp_path / "a.jsonl"))
    assert tokens(frames) == [100, 40, 0, 0, 0]
    assert list(frames.tool_calls["status"]) == ["ok", "ok"]
    assert list(frames.tool_calls["turn"]) == [1, 1]


@pytest.mark.parametrize("stops", [(None, None, "end_turn"), ("end_turn", None, None)])
def test_the_row_with_a_stop_reason_wins_over_the_larger_placeholder(log, tmp_path, stops):
    for stop, out in zip(stops, (7, 9, 8), strict=True):
        log.answer(2, "msg_1", usage(1, out), stop=stop)
    row = only(load(log.write(tmp_path / "a.jsonl")).usage)
    assert row["output_tokens"] == (8 if stops[-1] else 7)
    assert row["output_final"]


def test_without_a_stop_reason_the_output_is_a_lower_bound(log, tmp_path):
    log.answer(2, "msg_1", usage(1, 3), stop=None)
    log.answer(2, "msg_1", usage(1, 5), stop=None)
    frames = load(log.write(tmp_path / "a.jsonl"))
    row = only(frames.usage)
    assert (row["output_tokens"], row["output_final"]) == (5, False)
    run = only(frames.runs)
    assert (run["n_not_final"], run["cost_is_lower_bound"], run["residual_reason"]) == (1, True, "no_result")


def test_one_id_with_and_without_a_request_id_counts_once(log, tmp_path):
    log.answer(2, "msg_1", usage(10, 5), request=None)
    log.answer(2, "msg_1", usage(10, 5), request="req_1")
    log.answer(2, None, usage(10, 5), request="req_1")
    frames = load(log.write(tmp_path / "a.jsonl"))
    assert tokens(frames) == [10, 5, 0, 0, 0]
    assert only(frames.usage)["request_id"] == "req_1"
    assert reasons(frames) == ["missing_id"]


def test_a_response_without_any_id_counts_once_also_when_its_row_is_copied(log, tmp_path):
    log.answer(2, None, usage(10, 5), request=None)
    log.rows.append(log.rows[-1])
    frames = load(log.write(tmp_path / "a.jsonl"))
    assert tokens(frames) == [10, 5, 0, 0, 0]
    assert reasons(frames) == ["missing_id", "missing_id"]


def fork(log: Transcript) -> Transcript:
    """A session that repeats `log` under its own id, as a fork does, and goes on."""
    other = Transcript(OTHER, rows=[{**row, "sessionId": OTHER} for row in log.rows])
    other.user(10, "And now?")
    other.answer(12, "msg_2", usage(20, 10))
    return other


def test_a_forked_session_repeats_what_the_first_one_made(log, tmp_path):
    log.answer(2, "msg_1", usage(10, 5))
    log.write(tmp_path / "b.jsonl")
    fork(log).write(tmp_path / "a.jsonl")
    frames = load(tmp_path)
    assert tokens(frames) == [30, 15, 0, 0, 0]
    runs = frames.runs.set_index("run_id")
    assert list(runs.loc[[log.session, OTHER], "n_responses"]) == [1, 1]
    assert list(runs.loc[[log.session, OTHER], "n_copied"]) == [0, 1]
    assert runs.loc[OTHER, "resumed_from"] == log.session
    assert len(frames.messages) == 4
    whole = load(tmp_path, view="session")
    assert tokens(whole) == [40, 20, 0, 0, 0]
    assert whole.usage["is_copy"].sum() == 1
    assert set(whole.usage.loc[whole.usage["is_copy"], "session_id"]) == {OTHER}
    assert list(whole.sessions.set_index("session_id").loc[[log.session, OTHER], "n_responses"]) == [1, 2]
    assert len(whole.messages) == 6


def test_a_conversation_that_forks_within_its_file(log, tmp_path):
    log.answer(2, "msg_1", usage(1, 1))
    asked = log.user(3, "This?")
    log.answer(4, "msg_2", usage(1, 1))
    again = log.user(60, "Or that?")
    again["parentUuid"] = asked["parentUuid"]
    log.answer(63, "msg_3", usage(1, 1))
    frames = load(log.write(tmp_path / "a.jsonl"))
    assert list(frames.turns["wait_s"]) == [2, 1, 3]
    # From the answer at 4 s to the prompt at 60 s.
    assert list(frames.turns["idle_s"]) == [0, 1, 56]


def test_times_out_of_order_and_parents_that_are_gone(log, tmp_path):
    log.answer(5, "msg_1", usage(1, 2))
    log.answer(4, "msg_2", usage(3, 4), text("Earlier."))
    log.rows[-1]["parentUuid"] = "nowhere"
    frames = load(log.write(tmp_path / "a.jsonl"))
    assert tokens(frames) == [4, 6, 0, 0, 0]
    assert list(frames.turns["message_id"]) == ["msg_2", "msg_1"]
    assert (frames.turns["wait_s"] >= 0).all()


def test_compactions_are_counted_and_their_summary_is_no_prompt(log, tmp_path):
    log.row(3, "system", subtype="compact_boundary", logicalParentUuid="x", compactMetadata={"preTokens": 9})
    log.user(4, "This session continues another.", isCompactSummary=True, isVisibleInTranscriptOnly=True)
    frames = load(log.write(tmp_path / "a.jsonl"))
    run = only(frames.runs)
    assert (run["n_compactions"], run["n_prompts"]) == (1, 1)
    assert frames.messages["is_compact_summary"].sum() == 1
    assert "x" in set(frames.records["logical_parent_uuid"])


def test_synthetic_messages_are_messages_and_no_requests(log, tmp_path):
    log.answer(2, "msg_x", usage(0, 0), text("API Error: 529"), model="<synthetic>", isApiErrorMessage=True)
    frames = load(log.write(tmp_path / "a.jsonl"))
    assert frames.usage.empty
    assert frames.turns.empty
    assert list(frames.messages["is_synthetic"]) == [False, True]
    assert reasons(frames) == []


def test_cache_writes_without_a_split_are_five_minutes(log, tmp_path):
    spent = usage(0, 0, 400)
    del spent["cache_creation"]
    log.answer(2, "msg_1", spent)
    log.answer(3, "msg_2", usage(0, 0, 100, 1000))
    frames = load(log.write(tmp_path / "a.jsonl"))
    assert tokens(frames) == [0, 0, 500, 1000, 0]
    # 500 x 3.75 + 1,000 x 6 millionths
    assert usd(frames) == Decimal("0.007875")


def test_a_long_prompt_costs_more_as_a_whole(log, tmp_path):
    log.answer(2, "msg_1", usage(200_000, 100, 0, 0, 1))
    # 200,000 x 6 + 100 x 22.5 + 1 x 0.6 millionths
    assert usd(load(log.write(tmp_path / "a.jsonl"))) == Decimal("1.2022506")


def test_fast_mode_us_inference_and_batches(log, tmp_path):
    cases: list[dict[str, Any]] = [{"speed": "fast"}, {"inference_geo": "us"}, {"service_tier": "batch"}]
    for number, more in enumerate(cases):
        log.answer(number, f"msg_{number}", usage(1000, **more), model="claude-opus-4-8")
    frames = load(log.write(tmp_path / "a.jsonl"))
    # 5 USD per million: twice, 1.1 times, half
    assert list(frames.usage["cost_usd"]) == [Decimal("0.01"), Decimal("0.0055"), Decimal("0.0025")]


def test_a_refusal_that_fell_back_is_two_requests(log, tmp_path):
    tries = [
        {"type": "message", "model": "claude-fable-5", **usage(1000, 10)},
        {"type": "fallback_message", "model": "claude-opus-4-8", **usage(1000, 20)},
    ]
    log.answer(2, "msg_1", usage(1000, 20, iterations=tries), model="claude-opus-4-8")
    frames = load(log.write(tmp_path / "a.jsonl"))
    assert tokens(frames) == [2000, 30, 0, 0, 0]
    # 1,000 x 10 + 10 x 50 = 10,500 and 1,000 x 5 + 20 x 25 = 5,500 millionths
    assert usd(frames) == Decimal("0.016")
    assert set(frames.usage["source"]) == {"iteration"}
    assert len(frames.turns) == 1


def test_one_iteration_is_the_response_itself(log, tmp_path):
    log.answer(2, "msg_1", usage(7, 3, iterations=[{"type": "message", **usage(7, 3)}]))
    frames = load(log.write(tmp_path / "a.jsonl"))
    assert tokens(frames) == [7, 3, 0, 0, 0]
    assert set(frames.usage["source"]) == {"transcript"}


def test_calls_without_results_and_results_without_calls(log, tmp_path):
    log.answer(2, "msg_1", usage(1, 1), call("toolu_1"), stop="tool_use")
    log.result(3, "toolu_9", "whose?")
    frames = load(log.write(tmp_path / "a.jsonl"))
    assert only(frames.tool_calls)["status"] == "no_result"
    assert list(frames.blocks["tool_use_id"].dropna()) == ["toolu_1", "toolu_9"]


def test_every_shape_of_a_tool_result(log, tmp_path):
    names = ("toolu_s", "toolu_l", "toolu_d", "toolu_n", "toolu_p")
    log.answer(2, "msg_1", usage(1, 1), *(call(name) for name in names), stop="tool_use")
    log.result(3, "toolu_s", "text", toolUseResult="text")
    log.result(3, "toolu_l", [text("a"), text("b")], toolUseResult=[{"x": 1}])
    log.result(3, "toolu_d", {"a": 1}, toolUseResult={"a": 1})
    log.result(3, "toolu_n", None)
    saved = (
        "<persisted-output>\nOutput too large (36KB). Full output saved to: /home/me/tool-results/b2.txt\n"
    )
    log.result(4, "toolu_p", saved)
    frames = load(log.write(tmp_path / "a.jsonl"))
    calls = frames.tool_calls.set_index("tool_use_id")
    assert list(calls["result"])[:4] == ["text", "a\nb", '{"a":1}', ""]
    assert calls.loc["toolu_p", "result_path"] == "/home/me/tool-results/b2.txt"
    assert list(calls["duration_s"]) == [1, 1, 1, 1, 2]
    assert list(calls["status"]) == ["ok"] * 5
    assert reasons(frames) == []


def test_glued_lines_are_both_read(log, tmp_path):
    log.answer(2, "msg_1", usage(1, 2))
    log.answer(3, "msg_2", usage(3, 4))
    path = log.write(tmp_path / "a.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].rstrip() + lines[2])
    frames = load(path)
    assert tokens(frames) == [4, 6, 0, 0, 0]
    problem = only(frames.problems)
    assert (problem["reason"], problem["line"], problem["offset"]) == ("glued_lines", 2, len(lines[0]))
    assert (problem["salvaged"], problem["run_id"]) == (True, log.session)
    with pytest.raises(RunFolderError, match="line 2"):
        load(path, strict=True)


@pytest.mark.slow
def test_a_record_that_breaks_off_before_another_in_the_same_line(log, tmp_path):
    log.answer(2, "msg_1", usage(1, 2), text("Lost."))
    log.answer(3, "msg_2", usage(3, 4))
    path = log.write(tmp_path / "a.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    for cut in range(1, len(lines[1]) - 1, 7):
        path.write_bytes(lines[0] + lines[1][:cut] + lines[2])
        frames = load(path)
        assert "msg_2" in set(frames.usage["message_id"]), cut
        assert reasons(frames) == ["glued_lines", "truncated_line"]


def test_nul_in_a_string_and_no_last_newline_are_fine(log, tmp_path):
    log.answer(2, "msg_1", usage(1, 2), text("a\0b"))
    path = log.write(tmp_path / "a.jsonl")
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    frames = load(path)
    assert tokens(frames) == [1, 2, 0, 0, 0]
    assert reasons(frames) == []
    assert frames.files["lines"].tolist() == [2]


def test_long_lines_are_read(log, tmp_path):
    log.result(1, "toolu_1", "x" * 2_000_000)
    frames = load(log.write(tmp_path / "a.jsonl"))
    assert frames.blocks["chars"].max() == 2_000_000
    assert reasons(frames) == []


def test_message_as_text_or_as_a_list(log, tmp_path):
    log.row(1, "user", message="Hello?")
    log.row(2, "user", message=[text("Hello!")])
    log.row(3, "assistant", message="Hi.")
    log.row(4, "user")
    frames = load(log.write(tmp_path / "a.jsonl"))
    expected = ["message_is_list", "message_is_string", "message_is_string", "no_message"]
    assert reasons(frames) == expected
    assert list(frames.blocks["text"]) == ["Is it?", "Hello?", "Hello!", "Hi."]
    assert len(frames.records) == 5


def test_unknown_types_and_keys_are_kept_and_told(log, tmp_path):
    log.row(1, "brand-new-type")
    log.row(2, "brand-new-type", surprise=1)
    log.answer(3, "msg_1", usage(1, 2, quantum_tokens=9))
    frames = load(log.write(tmp_path / "a.jsonl"))
    assert reasons(frames) == ["unknown_key", "unknown_key", "unknown_type"]
    assert list(frames.problems["line"]) == [2, 3, 4]
    assert "message.usage.quantum_tokens" in " ".join(frames.problems["detail"])
    assert "2 times" in frames.problems["detail"].iloc[0]
    assert list(frames.records["type"]) == ["user", "brand-new-type", "brand-new-type", "assistant"]
    assert frames.problems["salvaged"].all()


def test_sub_agents_in_files_of_their_own_and_in_progress_rows(tmp_path):
    """Both hold msg_s; the file's row counts. msg_p is in a progress row alone, with a placeholder."""
    top = tmp_path / "projects" / "-home-me-app"
    main = Transcript()
    main.user(0, "Look.")
    main.answer(1, "msg_1", usage(10, 5), call("toolu_a", "Task", prompt="look"), stop="tool_use")
    for ident, out in (("msg_s", 1), ("msg_p", 2)):
        message: dict[str, Any] = {
            "id": ident,
            "role": "assistant",
            "type": "message",
            "model": MODEL,
            "content": [text("Hm.")],
        }
        message |= {"usage": usage(100, out), "stop_reason": None}
        nested: dict[str, Any] = {
            "type": "assistant",
            "message": message,
            "uuid": f"n-{ident}",
            "requestId": "r",
        }
        nested |= {"timestamp": main.rows[-1]["timestamp"]}
        data = {"type": "agent_progress", "agentId": "a1", "message": nested, "prompt": "look"}
        main.row(2, "progress", data=data, parentToolUseID="toolu_a", toolUseID="agent_msg_1")
    told = {"agentId": "a1", "totalTokens": 99_999, "usage": usage(89_242, 7485), "status": "completed"}
    main.result(9, "toolu_a", "Seen.", toolUseResult=told)
    main.write(top / f"{main.session}.jsonl")
    agent = Transcript(main.session, agent="a1")
    agent.user(2, "look")
    agent.answer(4, "msg_s", usage(100, 60))
    agent.write(top / main.session / "subagents" / "agent-a1.jsonl")
    frames = load(tmp_path)
    assert tokens(frames) == [210, 67, 0, 0, 0]
    rows = frames.usage.set_index("message_id")
    assert list(rows.loc[["msg_1", "msg_s", "msg_p"], "source"]) == [
        "transcript",
        "transcript",
        "agent_progress",
    ]
    assert list(rows.loc[["msg_1", "msg_s", "msg_p"], "agent"]) == ["main", "a1", "a1"]
    assert list(rows.loc[["msg_1", "msg_s", "msg_p"], "is_sidechain"]) == [False, True, True]
    assert list(rows.loc[["msg_1", "msg_s", "msg_p"], "output_final"]) == [True, True, False]
    run = only(frames.runs)
    assert (run["run_id"], run["n_agents"], run["project"]) == (main.session, 1, "-home-me-app")
    assert only(frames.tool_calls)["spawned_agent"] == "a1"
    assert reasons(frames) == []


def test_several_sessions_in_one_file_are_several_runs(log, tmp_path):
    log.answer(2, "msg_1", usage(1, 1))
    other = Transcript(OTHER)
    other.answer(5, "msg_2", usage(2, 2))
    log.rows += [{"type": "summary", "summary": "Two", "leafUuid": "x"}, *other.rows]
    frames = load(log.write(tmp_path / "a.jsonl"))
    assert list(frames.runs["run_id"]) == [log.session, OTHER]
    assert list(frames.runs["n_responses"]) == [1, 1]
    assert list(frames.records["session_id"]) == [log.session] * 3 + [OTHER]


def test_an_unknown_model_is_missing_and_never_free(log, tmp_path):
    log.answer(2, "msg_1", usage(10, 5), model="xiaomi/mimo-v2.5-pro[1m]")
    log.answer(3, "msg_2", usage(1000, 0), model="us.anthropic.claude-sonnet-4-5-20250929-v1:0")
    log.answer(4, "msg_3", usage(1000, 0), model="claude-opus-5[1m]")
    frames = load(log.write(tmp_path / "a.jsonl"))
    assert frames.usage["cost_usd"].isna().tolist() == [True, False, False]
    assert list(frames.usage["cost_usd"])[1:] == [Decimal("0.003"), Decimal("0.005")]
    problem = only(frames.problems)
    assert (problem["reason"], problem["line"]) == ("unpriced_model", 2)
    assert pd.isna(only(frames.runs)["cost_usd"])


def test_fast_mode_without_a_price_is_missing_and_says_what_to_add(log, tmp_path):
    table = tmp_path / "prices.toml"
    model = "".join(
        f'{part} = "1"\n' for part in ("input", "output", "cache_write_5m", "cache_write_1h", "cache_read")
    )
    entry = f'version = "1"\n[[model]]\nname = "claude-opus-4-8"\nsource = "s"\n{model}'
    table.write_text(entry)
    log.answer(2, "msg_1", usage(1000, 0, speed="standard"), model="claude-opus-4-8")
    log.answer(3, "msg_2", usage(1000, 5, speed="fast"), model="claude-opus-4-8")
    log.answer(4, "msg_3", usage(1000, 5, speed="fast"), model="claude-opus-4-8")
    path = log.write(tmp_path / "a.jsonl")
    frames = load(path, prices=load_prices(table))
    assert frames.usage["cost_usd"].isna().tolist() == [False, True, True]
    assert pd.isna(only(frames.runs)["cost_usd"])
    assert frames.costs.loc[frames.costs["message_id"] == "msg_2", "cost_usd"].isna().all()
    problem = only(frames.problems)
    assert (problem["reason"], problem["line"]) == ("unpriced_fast_mode", 3)
    assert "claude-opus-4-8" in problem["detail"]
    assert 'when = { speed = "fast" }' in problem["detail"]
    assert "[[modifier]]" in problem["detail"]
    table.write_text(
        entry
        + '[[modifier]]\nwhen = { speed = "fast" }\nmodels = ["claude-opus-4-8"]\nfactor = "3"\nsource = "s"\n'
    )
    frames = load(path, prices=load_prices(table))
    assert reasons(frames) == []
    # 1,000 + 2 x 3 x 1,005 millionths
    assert usd(frames) == Decimal("0.00703")


HAIKU = {"claude-haiku-4-5-20251001": model_usage(1000, 20, 0, 0, 0, 0.0011)}
TOLD = {MODEL: model_usage(30, 500, 0, 1000, 0, 0.01359), **HAIKU}
"""30 x 3 + 500 x 15 + 1,000 x 6 = 13,590 millionths; 1,000 x 1 + 20 x 5 = 1,100."""


def said() -> list[dict[str, Any]]:
    first = streamed("msg_1", usage(10, 2, 0, 1000), call("toolu_1", "Bash"))
    return [first, streamed("msg_2", usage(20, 3))]


def test_a_stream_has_placeholders_and_its_result_has_the_whole(tmp_path):
    path = write_lines(tmp_path / "out.txt", stream(OTHER, *said(), result(0.01469, TOLD)))
    frames = load(path)
    assert tokens(frames) == [30, 5, 0, 1000, 0]
    assert not frames.usage["output_final"].any()
    run = only(frames.runs)
    assert run["cost_rows_usd"] == Decimal("0.006165")
    assert run["cost_usd"] == run["cost_reported_usd"] == Decimal("0.01469")
    assert run["residual_reason"] == "placeholder_output"
    parts = json.loads(run["residual_parts"])
    assert {key: Decimal(value) for key, value in parts.items()} == {
        "placeholder_output": Decimal("0.007425"),
        "background_model": Decimal("0.0011"),
    }
    # `costs` has what the result says beyond the rows, and so comes to what was reported.
    assert usd(frames) == Decimal("0.01469")
    assert reasons(frames) == []


def test_a_stream_without_a_result_is_a_lower_bound(tmp_path):
    frames = load(write_lines(tmp_path / "a.jsonl", stream(OTHER, *said())))
    run = only(frames.runs)
    assert (run["residual_reason"], run["cost_is_lower_bound"], run["cost_source"]) == (
        "no_result",
        True,
        "rows",
    )


def test_an_older_stream_reports_a_sum_only(tmp_path):
    last = result(0.01469, subtype="error_max_turns", usage=usage(20, 300))
    frames = load(write_lines(tmp_path / "a.jsonl", stream(OTHER, *said(), last)))
    run = only(frames.runs)
    assert (run["result_subtype"], run["residual_reason"]) == ("error_max_turns", "placeholder_output")
    assert usd(frames) == run["cost_usd"] == Decimal("0.01469")
    extra = only(frames.costs.query("source == 'result'"))
    assert (extra["component"], extra["cost_usd"]) == ("unitemised", Decimal("0.008525"))


def test_several_runs_in_one_stream_log(tmp_path):
    other = "33333333-0000-4000-8000-000000000003"
    lines = stream(OTHER, *said(), result(0.01469, TOLD))
    lines += stream(
        other, streamed("msg_3", usage(5, 1)), result(0.003, {MODEL: model_usage(5, 199, 0, 0, 0, 0.003)})
    )
    lines += stream(OTHER + "x", streamed("msg_4", usage(5, 1)))
    frames = load(write_lines(tmp_path / "a.jsonl", lines))
    assert list(frames.runs["run_id"]) == [OTHER, other, OTHER + "x"]
    assert frames.runs["cost_usd"].sum() == Decimal("0.01469") + Decimal("0.003") + Decimal("0.00003")


def test_a_result_is_cumulative_within_a_process_and_begins_again_in_the_next(tmp_path):
    """The second result has grown from the first; the third is a resumed process, though its total is larger."""
    first = result(0.01359, {MODEL: model_usage(30, 500, 0, 1000, 0, 0.01359)})
    second = result(0.01389, {MODEL: model_usage(130, 500, 0, 1000, 0, 0.01389)})
    third = result(0.03, {MODEL: model_usage(10_000, 500, 0, 1000, 0, 0.0435)}, total_cost_usd=0.0435)
    lines = stream(
        OTHER,
        *said(),
        first,
        streamed("msg_3", usage(100, 0)),
        second,
        streamed("msg_4", usage(10_000, 2, 0, 1000)),
        third,
    )
    frames = load(write_lines(tmp_path / "a.jsonl", lines))
    run = only(frames.runs)
    assert run["n_processes"] == 2
    assert run["cost_reported_usd"] == Decimal("0.01389") + Decimal("0.0435")
    assert list(frames.result_usage["is_last"]) == [False, True, True]


def test_sub_agents_that_no_row_shows_are_named_as_the_reason(tmp_path):
    asks = streamed("msg_1", usage(10, 2), call("toolu_1", "Task", prompt="look"))
    told = {MODEL: model_usage(40_010, 2, 0, 0, 0, 0.12006)}
    frames = load(write_lines(tmp_path / "a.jsonl", stream(OTHER, asks, result(0.12006, told))))
    assert only(frames.runs)["residual_reason"] == "subagents_not_recorded"
    assert usd(frames) == Decimal("0.12006")


def test_a_stream_and_its_transcript_are_one_run(log, tmp_path):
    log.answer(2, "msg_1", usage(10, 400, 0, 1000), call("toolu_1", "Bash"), stop="tool_use")
    log.answer(3, "msg_2", usage(20, 100))
    log.write(tmp_path / "projects" / "-p" / f"{log.session}.jsonl")
    write_lines(tmp_path / "log.jsonl", stream(log.session, *said(), result(0.01469, TOLD)))
    frames = load(tmp_path)
    run = only(frames.runs)
    assert (run["kind"], run["n_responses"], run["n_not_final"]) == ("stream and transcript", 2, 0)
    assert run["residual_reason"] == "background_model"
    assert tokens(frames) == [30, 500, 0, 1000, 0]
    assert usd(frames) == Decimal("0.01469")


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_is_a_stream_log(tmp_path, indent):
    path = tmp_path / "turns.json"
    path.write_text(json.dumps(stream(OTHER, *said(), result(0.01469, TOLD)), indent=indent))
    frames = load(path)
    assert usd(frames) == Decimal("0.01469")
    assert reasons(frames) == []
    starts = [path.read_bytes()[offset : offset + 1] for offset in frames.records["offset"]]
    assert starts == [b"{"] * 4


@pytest.mark.parametrize("indent", [None, 2])
def test_a_single_result_is_a_run(tmp_path, indent):
    path = tmp_path / "result.json"
    path.write_text(json.dumps({**result(0.01469, TOLD), "session_id": OTHER}, indent=indent))
    frames = load(path)
    run = only(frames.runs)
    assert (run["cost_usd"], run["residual_reason"]) == (Decimal("0.01469"), "no_rows")
    assert usd(frames) == Decimal("0.01469")
    assert list(frames.files["kind"]) == ["result"]
    assert len(frames.result_usage) == 2


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.jsonl", "a"])
def test_packed_files_are_known_by_their_content(log, tmp_path, pack, name):
    log.answer(2, "msg_1", usage(1, 2))
    data = log.write(tmp_path / "plain.jsonl").read_bytes()
    (tmp_path / "plain.jsonl").unlink()
    # Two members, as appending to a packed log makes them.
    (tmp_path / name).write_bytes(pack(data[:300]) + pack(data[300:]))
    frames = load(tmp_path)
    assert tokens(frames) == [1, 2, 0, 0, 0]
    assert reasons(frames) == []
    (tmp_path / name).write_bytes((pack(data[:300]) + pack(data[300:]))[:-9])
    assert "damaged_compression" in reasons(load(tmp_path / name))


def test_zstd_frames_that_hold_nothing_are_passed_over(log, tmp_path):
    """Parallel and seekable compressors write their tables into such frames."""
    log.answer(2, "msg_1", usage(1, 2))
    data = log.write(tmp_path / "plain.jsonl").read_bytes()
    (tmp_path / "plain.jsonl").unlink()
    table = b"\x5e\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"\x28\xb5\x2f\xfd"
    pack = zstandard.compress
    (tmp_path / "a.jsonl.zst").write_bytes(table + pack(data[:300]) + table + pack(data[300:]) + table)
    frames = load(tmp_path)
    assert tokens(frames) == [1, 2, 0, 0, 0]
    assert list(frames.files["compression"]) == ["zstd"]
    assert reasons(frames) == []


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_what_packed_data_have_lost_is_not_salvaged(log, tmp_path, pack):
    log.answer(2, "msg_1", usage(1, 2))
    data = log.write(tmp_path / "plain.jsonl").read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(pack(data) + pack(data)[:-9])
    problems = load(tmp_path / "a.jsonl.gz").problems
    assert not problems.loc[problems["reason"] == "damaged_compression", "salvaged"].any()


def test_a_config_directory_is_read_and_what_lies_beside_its_transcripts_is_not(log, tmp_path):
    log.answer(2, "msg_1", usage(1, 2))
    log.write(tmp_path / "projects" / "-p" / f"{log.session}.jsonl")
    for name in (
        "file-history/a/b.jsonl",
        f"projects/-p/{log.session}/tool-results/x.jsonl",
        "plugins/t.jsonl",
    ):
        Transcript(OTHER).write(tmp_path / name)
    (tmp_path / "settings.json").write_text("{}")
    (tmp_path / "history.jsonl").write_text('{"display": "hi", "timestamp": 1}\n')
    frames = load(tmp_path)
    assert list(frames.runs["run_id"]) == [log.session]
    assert sorted(frames.files["kind"]) == ["other", "transcript"]
    assert reasons(frames) == []


def test_any_mixture_of_inputs(log, writer, tmp_path):
    log.answer(2, "msg_9", usage(1, 2))
    log.write(tmp_path / "t.jsonl")
    write_lines(tmp_path / "s.log", stream(OTHER, *said(), result(0.01469, TOLD)))
    frames = load(writer.two_turns().write(), tmp_path / "t.jsonl", tmp_path / "s.log")
    assert sorted(frames.runs["kind"]) == ["run_folder", "stream", "transcript"]
    assert [problem for name, frame in frames for problem in validate(name, frame)] == []
    assert usd(frames) == Decimal("0.02121") + Decimal("0.01469") + Decimal("0.000033")
    assert frames.runs["price_digest"].nunique() == 1


def test_files_that_hold_no_records_are_told(tmp_path):
    (tmp_path / "other.jsonl").write_text('{"event": "boot"}\n{"event": "halt"}\n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "notes.txt").write_text("hello")
    frames = load(tmp_path)
    assert dict(zip(frames.files["path"].map(lambda p: Path(p).name), frames.files["kind"], strict=True)) == {
        "other.jsonl": "unknown",
        "empty.jsonl": "empty",
        "notes.txt": "other",
    }
    assert reasons(frames) == ["unknown_format"]
    assert (len(frames.records), len(frames.runs)) == (2, 0)


def test_a_transcripts_own_account_is_reconciled(log, tmp_path):
    log.answer(2, "msg_1", usage(1000, 100))
    log.rows.append(
        {
            "type": "cost-state",
            "sessionId": log.session,
            "totalCostUSD": 0.0045,
            "modelUsage": {MODEL: model_usage(1000, 100, 0, 0, 0, 0.0045)},
        }
    )
    frames = load(log.write(tmp_path / "a.jsonl"))
    assert only(frames.runs)["residual_reason"] == "equal"
    assert list(frames.result_usage["subtype"]) == ["cost_state"]


def test_a_workflows_journal_belongs_to_its_session(log, tmp_path):
    log.answer(2, "msg_1", usage(1, 2))
    top = tmp_path / "projects" / "-p"
    log.write(top / f"{log.session}.jsonl")
    agent = Transcript(log.session, agent="w1")
    agent.answer(3, "msg_2", usage(3, 4))
    inside = top / log.session / "subagents" / "workflows" / "wf_1"
    agent.write(inside / "agent-w1.jsonl")
    steps = [
        {"type": "started", "key": "k", "agentId": "w1"},
        {"type": "result", "key": "k", "agentId": "w1"},
    ]
    write_lines(inside / "journal.jsonl", steps)
    frames = load(tmp_path)
    run = only(frames.runs)
    assert (run["run_id"], run["n_records"], run["residual_reason"]) == (log.session, 5, "no_result")
    assert tokens(frames) == [4, 6, 0, 0, 0]
