"""Totals worked out by hand, and the frames' contract."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from typing import Any

import pandas as pd
import pytest

from harvest_nb.errors import RunFolderError
from harvest_nb.files import file_identity
from harvest_nb.tables import Frames, load, validate


def only(frame: pd.DataFrame) -> dict[str, Any]:
    assert len(frame) == 1
    return dict(frame.iloc[0])


def test_tokens_and_cost_are_those_worked_out_by_hand(writer):
    frames = load(writer.two_turns().write())
    usage = frames.usage.set_index("message_id")
    counts = ["input_tokens", "output_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens"]
    assert list(usage.loc["msg_a", [*counts, "cache_read_tokens"]]) == [100, 50, 1000, 2000, 0]
    assert list(usage.loc["msg_b", [*counts, "cache_read_tokens"]]) == [20, 30, 0, 500, 3000]
    assert usage["output_final"].all()
    assert set(usage["source"]) == {"transcript"}
    by_component = frames.costs.groupby("component", observed=False)["cost_usd"].sum()
    assert {name: str(value.normalize()) for name, value in by_component.items()} == {
        "input": "0.00036",
        "output": "0.0012",
        "cache_write_5m": "0.00375",
        "cache_write_1h": "0.015",
        "cache_read": "0.0009",
        "web_search": "0",
        "unitemised": "0",
    }
    run = only(frames.runs)
    assert (
        run["cost_rows_usd"] == run["cost_reported_usd"] == run["cost_model_usage_usd"] == Decimal("0.02121")
    )
    assert (run["residual_reason"], run["residual_usd"], run["n_not_final"]) == ("equal", 0, 0)
    assert frames.problems.empty


def test_money_is_exact_decimal_and_sums_by_model(writer):
    frames = load(writer.two_turns().write())
    total = frames.costs.groupby("model")["cost_usd"].sum()
    assert total["claude-sonnet-4-5"] == Decimal("0.02121")
    assert isinstance(frames.costs["cost_usd"].sum(), Decimal)


def test_without_a_transcript_the_streams_output_is_called_a_placeholder(writer):
    frames = load(writer.two_turns(transcript=False).write())
    run = only(frames.runs)
    assert frames.usage["output_tokens"].sum() == 4
    assert not frames.usage["output_final"].any()
    assert run["n_not_final"] == 2
    assert run["cost_rows_usd"] == Decimal("0.02007")
    assert run["residual_usd"] == run["residual_tokens_usd"] == Decimal("0.00114")
    assert run["residual_reason"] == "placeholder_output"
    assert (run["cost_usd"], run["cost_source"]) == (Decimal("0.02121"), "both")
    assert not run["cost_is_lower_bound"]
    rows = frames.costs.query("source == 'rows'")
    assert not rows.query("component == 'output'")["is_final"].any()
    assert rows["cost_usd"].sum() == Decimal("0.02007")
    told = only(frames.costs.query("source == 'result'"))
    assert (told["component"], told["units"], told["cost_usd"]) == ("output", 76, Decimal("0.00114"))
    assert frames.costs["cost_usd"].sum() == run["cost_usd"]


def test_partial_messages_give_final_output_without_a_transcript(writer):
    frames = load(writer.two_turns(transcript=False, partial=True).write())
    assert list(frames.usage["output_tokens"]) == [50, 30]
    assert frames.usage["output_final"].all()
    assert set(frames.usage["source"]) == {"stream_event"}
    assert list(frames.turns["first_sign"]) == ["message_start", "message_start"]


def test_a_run_without_a_result_is_a_lower_bound_only_if_rows_are_not_final(writer):
    writer.two_turns(transcript=False)
    writer.lines.pop()
    run = only(load(writer.write()).runs)
    assert run["residual_reason"] == "no_result"
    assert pd.isna(run["cost_reported_usd"])
    assert (run["cost_usd"], run["cost_source"]) == (Decimal("0.02007"), "rows")
    assert run["cost_is_lower_bound"]


def test_only_a_run_whose_recorder_is_gone_is_called_killed(writer):
    """In a copy taken while it goes on, nothing tells."""
    writer.meta = {"status": "running"}
    folder = writer.two_turns().write()
    for status, reason in (("unknown", "end_unknown"), ("died", "killed")):
        frames = load(folder)
        assert only(frames.runs)["status"] == status
        assert only(frames.problems)["reason"] == reason
        writer.meta["stream"] = file_identity(folder / "stream.jsonl")
        writer.write()


def test_reported_cost_is_cumulative_within_a_process(writer):
    writer.two_turns()
    writer.prompt(10, "again")
    writer.answer(11, "msg_c", [writer.text("Again.")], writer.usage(0, 100))
    both = writer.model_usage(120, 180, 1000, 2500, 3000, 0.02271)
    writer.result(12, 0.02271, {writer.model: both})
    frames = load(writer.write())
    run = only(frames.runs)
    # 100 output tokens at 15 USD per million are 0.0015 USD; adding the two results would give 0.04392.
    assert run["cost_reported_usd"] == run["cost_rows_usd"] == Decimal("0.02271")
    assert list(frames.result_usage["cost_step_usd"]) == [Decimal("0.02121"), Decimal("0.0015")]
    assert list(frames.result_usage["is_last"]) == [False, True]
    assert (run["n_prompts"], run["n_processes"]) == (2, 1)


@pytest.mark.parametrize("announced", [True, False])
def test_a_second_process_starts_from_nothing(writer, announced):
    writer.two_turns()
    if announced:
        writer.initialize(10)
    writer.prompt(10.5, "again")
    writer.answer(11, "msg_c", [writer.text("Again.")], writer.usage(0, 100))
    writer.result(12, 0.0015, {writer.model: writer.model_usage(0, 100, 0, 0, 0, 0.0015)})
    run = only(load(writer.write()).runs)
    assert run["n_processes"] == 2
    assert (
        run["cost_reported_usd"] == run["cost_model_usage_usd"] == run["cost_rows_usd"] == Decimal("0.02271")
    )


def test_a_model_without_a_price_is_missing_and_a_problem_never_zero(new_run):
    writer = new_run(model="claude-nonsense-9").two_turns()
    frames = load(writer.write())
    assert frames.costs["cost_usd"].isna().all()
    assert len(frames.costs) == 8
    run = only(frames.runs)
    assert pd.isna(run["cost_rows_usd"])
    assert run["residual_reason"] == "unpriced_model"
    problem = only(frames.problems)
    assert problem["reason"] == "unpriced_model"
    assert "claude-nonsense-9" in problem["detail"]


def test_a_price_the_cli_guessed_is_not_believed(writer):
    writer.two_turns()
    message = writer.lines[-1]["message"]
    message["total_cost_usd"] = 0.5
    message["modelUsage"][writer.model] |= {"costBasis": "unknown", "costUSD": 0.5}
    run = only(load(writer.write()).runs)
    assert run["residual_reason"] == "cli_price_unknown"
    assert (run["cost_usd"], run["cost_source"]) == (Decimal("0.02121"), "rows")


def test_a_model_that_worked_in_the_background_is_named_as_the_reason(writer):
    writer.two_turns()
    message = writer.lines[-1]["message"]
    # 1,000 input tokens of haiku-4-5 at 1 USD per million.
    message["modelUsage"]["claude-haiku-4-5"] = writer.model_usage(1000, 0, 0, 0, 0, 0.001)
    message["total_cost_usd"] = 0.02221
    run = only(load(writer.write()).runs)
    assert run["residual_reason"] == "background_model"
    assert run["residual_usd"] == run["residual_tokens_usd"] == Decimal("0.001")
    assert run["residual_prices_usd"] == 0


def test_requests_the_rows_do_not_show(writer):
    writer.two_turns()
    message = writer.lines[-1]["message"]
    message["modelUsage"][writer.model] = writer.model_usage(1120, 80, 1000, 2500, 3000, 0.02421)
    message["total_cost_usd"] = 0.02421
    run = only(load(writer.write()).runs)
    assert (run["residual_reason"], run["residual_usd"]) == ("requests_not_recorded", Decimal("0.003"))


def test_prices_that_differ_are_told_from_tokens_that_differ(writer):
    writer.two_turns()
    message = writer.lines[-1]["message"]
    message["modelUsage"][writer.model]["costUSD"] = message["total_cost_usd"] = 0.03121
    run = only(load(writer.write()).runs)
    assert run["residual_reason"] == "price_table_differs"
    assert run["residual_prices_usd"] == Decimal("0.01")
    assert run["residual_tokens_usd"] == 0


def test_responses_after_the_last_result_make_the_report_a_lower_bound(writer):
    writer.two_turns()
    writer.prompt(10, "again")
    writer.answer(11, "msg_c", [writer.text("Again.")], writer.usage(0, 100))
    run = only(load(writer.write()).runs)
    assert run["residual_reason"] == "rows_after_result"
    assert (run["cost_usd"], run["cost_source"]) == (Decimal("0.02271"), "rows")
    assert run["cost_is_lower_bound"]


def test_a_resumed_transcript_does_not_bring_old_responses_along(writer):
    old = {"id": "msg_old", "model": writer.model, "content": [], "stop_reason": "end_turn"}
    writer.row(-3600, {**old, "usage": writer.usage(5000, 5000)})
    run = only(load(writer.two_turns().write()).runs)
    assert (run["n_responses"], run["n_copied"]) == (2, 1)
    assert run["residual_reason"] == "equal"


def test_a_response_in_two_runs_is_counted_in_the_first(new_run):
    first = new_run("run-1").two_turns().write()
    second = new_run("run-2").two_turns()
    for line in second.lines:
        line["t"] += 100
    frames = load(second.write(), first)
    runs = frames.runs.set_index("run_id")
    assert list(frames.runs["run_id"]) == ["run-1", "run-2"]
    assert list(runs["n_responses"]) == [2, 0]
    assert list(runs["n_copied"]) == [0, 2]
    assert frames.costs["cost_usd"].sum() == Decimal("0.02121")
    assert only(frames.sessions)["n_runs"] == 2


def test_sub_agents_are_counted_and_named(writer):
    writer.two_turns()
    task = [writer.call("toolu_9", "Agent", prompt="look")]
    writer.answer(10, "msg_c", task, writer.usage(10, 10))
    writer.answer(
        11, "msg_s", [writer.text("Seen.")], writer.usage(0, 7), parent="toolu_9", agent="a1", placeholder=1
    )
    writer.tool_result(12, "toolu_9", "Seen.", tool_use_result={"agentId": "a1", "totalTokens": 99999})
    frames = load(writer.write())
    usage = frames.usage.set_index("message_id")
    assert usage.loc["msg_s", "agent"] == "a1"
    assert usage.loc["msg_s", "output_tokens"] == 7
    call = frames.tool_calls.set_index("tool_use_id").loc["toolu_9"]
    assert (call["spawned_agent"], call["status"], call["duration_s"]) == ("a1", "ok", 2.0)
    assert only(frames.sessions)["n_agents"] == 1


def test_each_iteration_of_a_response_is_priced_as_its_own_model(writer):
    tries = [
        {"model": "claude-fable-5", **writer.usage(1000, 10)},
        {"model": "claude-opus-4-8", **writer.usage(1000, 20)},
    ]
    spent = writer.usage(1000, 20, iterations=tries)
    writer.answer(1, "msg_a", [writer.text("Hm.")], spent, model="claude-opus-4-8")
    frames = load(writer.write())
    assert list(frames.usage["iteration"]) == [0, 1]
    # 1,000 x 10 + 10 x 50 = 10,500 and 1,000 x 5 + 20 x 25 = 5,500 millionths.
    costs = frames.costs.groupby("model")["cost_usd"].sum()
    assert costs["claude-fable-5"] == Decimal("0.0105")
    assert costs["claude-opus-4-8"] == Decimal("0.0055")


def test_synthetic_messages_are_messages_but_no_requests(writer):
    writer.two_turns()
    writer.answer(9.5, "msg_x", [writer.text("API error")], writer.usage(0, 0), model="<synthetic>")
    frames = load(writer.write())
    assert "msg_x" not in set(frames.usage["message_id"])
    assert frames.messages.query("message_id == 'msg_x'")["sender"].tolist() == ["cli"]


def test_old_usage_without_a_split_is_five_minutes(writer):
    spent = writer.usage(0, 0, 700)
    del spent["cache_creation"]
    writer.answer(1, "msg_a", [writer.text("Old.")], spent)
    usage = only(load(writer.write()).usage)
    assert (usage["cache_write_5m_tokens"], usage["cache_write_1h_tokens"]) == (700, 0)


def test_a_count_that_is_none_is_a_problem(writer):
    writer.answer(1, "msg_a", [writer.text("?")], writer.usage(-5, 3))
    frames = load(writer.write())
    row = only(frames.usage)
    assert pd.isna(row["input_tokens"])
    assert pd.isna(row["cost_usd"])
    assert row["output_tokens"] == 3
    assert only(frames.problems)["reason"] == "bad_count"
    # The model's price depends on the length of the prompt, which is missing too.
    assert frames.costs.set_index("component")["cost_usd"].isna().to_dict() == {"input": True, "output": True}


def test_turns_say_where_the_time_went(writer):
    writer.two_turns()
    turns = load(writer.write()).turns
    first, second = turns.iloc[0], turns.iloc[1]
    # Prompt at 1.5 s; blocks at 3.0 and 3.5; tool result at 4.25; the answer's only block at 5.0.
    assert (first["wait_s"], first["stream_s"], first["tools_s"]) == (1.5, 0.5, 0.75)
    assert (first["start_s"], first["total_s"]) == (0.5, 2.75)
    assert (second["wait_s"], second["stream_s"], second["tools_s"]) == (0.75, 0, 0)
    assert list(turns["stop_reason"]) == ["tool_use", "end_turn"]
    assert list(turns["n_tool_calls"]) == [1, 0]


def test_tool_calls_are_joined_with_their_results(writer):
    calls = [
        writer.call("toolu_1", "Bash", command="false"),
        writer.call("toolu_2", "mcp__memory__read_graph"),
        writer.call("toolu_3", "Read", file_path="/x"),
    ]
    writer.answer(1, "msg_a", calls, writer.usage(1, 1))
    writer.tool_result(2.5, "toolu_1", "exit 1", error=True)
    decision = {"id": "toolu_2", "permission_decision": {"decision": "accept"}}
    saved = [writer.text("<persisted-output> 20 MB")]
    writer.tool_result(3, "toolu_2", saved, tool_result_meta=[decision])
    frames = load(writer.write())
    calls_frame = frames.tool_calls.set_index("tool_use_id")
    assert list(calls_frame["status"]) == ["error", "ok", "no_result"]
    assert calls_frame.loc["toolu_1", "duration_s"] == 1.5
    assert calls_frame.loc["toolu_2", "server"] == "memory"
    assert calls_frame.loc["toolu_2", "permission"] == "accept"
    assert calls_frame.loc["toolu_2", "result_saved"]
    assert calls_frame["result"].isna().tolist() == [False, False, True]
    assert only(frames.runs)["n_tool_errors"] == 1


def test_records_keep_every_line_in_both_directions(writer):
    frames = load(writer.two_turns(partial=True).write())
    stream = frames.records.query("source == 'stream'")
    assert len(stream) == len(writer.lines)
    assert list(stream["seq"]) == list(range(len(writer.lines)))
    assert set(stream["sender"]) == {"user", "desk", "model", "tool", "cli"}
    assert stream["t_s"].iloc[0] == 0
    assert len(frames.records) == len(writer.lines) + len(writer.rows["main"])
    kinds = frames.blocks["kind"].tolist()
    assert kinds == ["text", "text", "tool_use", "tool_result", "text"]


def test_every_frame_has_its_documented_columns_and_types(writer):
    for frames in (load(writer.two_turns(partial=True).write()), load(_empty(writer))):
        assert [problem for name, frame in frames for problem in validate(name, frame)] == []


def _empty(writer: Any) -> Any:
    writer.lines.clear()
    writer.rows.clear()
    return writer.write()


def test_a_response_is_one_message_with_all_its_rows(writer):
    frames = load(writer.two_turns(partial=True).write())
    said = frames.messages.query("type == 'assistant'")
    assert list(said["message_id"]) == ["msg_a", "msg_b"]
    assert list(said["n_rows"]) == [4, 3]  # message_start, a row for each block, message_delta
    assert list(said["n_blocks"]) == [2, 1]
    assert len(frames.messages) == 8  # two control, init, prompt, two answers, tool result, result


def test_validate_notices_a_wrong_type_and_a_wrong_order(writer):
    frame = load(writer.two_turns().write()).usage
    assert validate("usage", frame.assign(input_tokens=frame["input_tokens"].astype(float)))
    assert validate("usage", frame[sorted(frame.columns)])
    assert validate("turns", frame)


def test_describe_documents_every_column_of_every_frame(writer):
    frames = load(writer.two_turns().write())
    for name, frame in frames:
        table = Frames.describe(name)
        assert list(table["column"]) == list(frame.columns)
        assert table["meaning"].str.len().min() > 5
    assert set(Frames.describe()["frame"]) == {name for name, _ in frames}


def test_a_folder_of_runs_is_searched_and_each_run_loaded_once(new_run, tmp_path):
    for name in ("a", "b"):
        run = new_run(name, tmp_path / "deep" / "er")
        run.answer(1, f"msg_{name}", [run.text("Hi.")], run.usage(1, 1))
        run.write()
    frames = load(tmp_path, tmp_path / "deep" / "er" / "a", tmp_path / "deep" / "er" / "a" / "run.json")
    assert list(frames.runs["run_id"]) == ["a", "b"]
    assert frames.problems.empty


def test_the_same_run_in_two_folders_is_a_problem(new_run, tmp_path):
    new_run("a", tmp_path / "one").two_turns().write()
    new_run("a", tmp_path / "two").two_turns().write()
    frames = load(tmp_path)
    assert len(frames.runs) == 1
    assert only(frames.problems)["reason"] == "duplicate_run"


@pytest.mark.parametrize("name", ["nothing-here", "empty"])
def test_a_path_that_is_no_run_folder_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunFolderError, match=name) as caught:
        load(tmp_path / name)
    assert caught.value.hint


def test_a_later_schema_is_refused(writer):
    writer.meta["schema"] = 2
    with pytest.raises(RunFolderError, match="schema 2"):
        load(writer.two_turns().write())


def test_tables_need_nothing_that_runs_agents():
    code = "import harvest_nb.tables, sys; print([m for m in ('docker', 'claude_agent_sdk') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_result_without_model_usage_is_reconciled_by_its_total_alone(writer):
    writer.two_turns(transcript=False)
    del writer.lines[-1]["message"]["modelUsage"]
    run = only(load(writer.write()).runs)
    assert run["residual_reason"] == "placeholder_output"
    assert pd.isna(run["cost_model_usage_usd"])
    writer.lines[-1]["message"]["total_cost_usd"] = 0.001
    frames = load(writer.write())
    assert only(frames.runs)["residual_reason"] == "unexplained"
    assert only(frames.problems)["reason"] == "unexplained_residual"


def test_rows_of_a_model_that_the_result_does_not_know(writer):
    writer.two_turns()
    writer.lines[-1]["message"]["modelUsage"] = {"claude-haiku-4-5": writer.model_usage(0, 0, 0, 0, 0, 0.0)}
    writer.lines[-1]["message"]["total_cost_usd"] = 0.0
    writer.answer(8, "msg_h", [writer.text("Hm.")], writer.usage(1), model="claude-haiku-4-5")
    writer.lines[-1], writer.lines[-2] = writer.lines[-2], writer.lines[-1]
    for seq, line in enumerate(writer.lines):
        line["seq"] = seq
    run = only(load(writer.write()).runs)
    assert run["residual_reason"] == "rows_not_in_result"
