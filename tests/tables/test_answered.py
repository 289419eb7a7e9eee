"""Another model answers than was asked for, behind a gateway that maps models: each response is counted once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from harvest_nb import load
from harvest_nb.sandbox.host import HostProvider
from harvest_nb.session.open import Setup
from harvest_nb.session.options import SessionOptions
from harvest_nb.session.run import run_session
from harvest_nb.tables import Frames
from harvest_nb.tables.totals import totals
from tests.tables.agreement import agreed, command
from tests.tables.transcripts import (
    model_usage,
    result,
    stream,
    streamed,
    usage,
    write_lines,
)

ASKED, ANSWERED = "claude-sonnet-5-5", "claude-sonnet-4-5-20250929"
"""USD per million tokens: 2 and 10 for input and output; 3 and 15."""
HAIKU, OPUS, OTHER = "claude-haiku-4-5", "claude-opus-5-5", "claude-sonnet-4-6"
"""1 and 5; 4 and 20; 3 and 15."""
SESSION = "99999999-0000-4000-8000-000000000001"
REASON = "answered_by_another_model"


def said(ident: str, model: str, inp: int, out: int, agent: str | None = None, **more: Any) -> dict[str, Any]:
    """A response as a stream has it; with its last event, its output is final."""
    message = streamed(ident, usage(inp, out, **more))
    message["message"]["model"] = model
    return {**message, "agent_id": agent, "parent_tool_use_id": agent and f"toolu_{agent}"}


def final(message: dict[str, Any]) -> list[dict[str, Any]]:
    ident, spent = message["message"]["id"], message["message"]["usage"]
    delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": spent}
    return [message, {"type": "stream_event", "event": delta, "api_message_id": ident}]


def reported(**models: tuple[int, int, float]) -> dict[str, Any]:
    """A result: input, output and USD by model, with `_` for `-`."""
    told = {
        name.replace("_", "-"): model_usage(inp, out, 0, 0, 0, usd)
        for name, (inp, out, usd) in models.items()
    }
    return result(sum(usd for _, _, usd in models.values()), told)


def ask(tmp_path: Path, *lines: dict[str, Any] | list[dict[str, Any]], model: str = ASKED) -> Frames:
    flat = [one for line in lines for one in (line if isinstance(line, list) else [line])]
    return load(write_lines(tmp_path / "log.jsonl", stream(SESSION, *flat, model=model)))


def by_model(frames: Frames) -> dict[str, Decimal]:
    return {row["model"]: row["cost_usd"] for row in totals(frames).rows}


def usd(micros: float) -> Decimal:
    return Decimal(str(micros)) / 1_000_000


def told(frames: Frames) -> list[str]:
    return frames.problems.loc[frames.problems["reason"] == REASON, "detail"].tolist()


def test_it_is_counted_once_at_the_model_that_answered(tmp_path):
    frames = ask(
        tmp_path, final(said("m1", ANSWERED, 100, 10)), reported(claude_sonnet_5_5=(100, 10, 0.0003))
    )
    assert agreed(frames) == usd(450)
    assert command(tmp_path) == 0.00045
    assert by_model(frames) == {ANSWERED: usd(450)}
    run = frames.runs.iloc[0]
    assert (run["residual_reason"], run["cost_source"], run["cost_is_lower_bound"]) == (REASON, "rows", False)
    assert (run["cost_reported_usd"], run["residual_usd"]) == (usd(300), usd(-150))
    assert json.loads(run["residual_parts"]) == {REASON: "-0.00015"}
    (problem,) = frames.problems.to_dict("records")
    assert (problem["reason"], problem["salvaged"]) == (REASON, True)
    assert ASKED in problem["detail"]
    assert ANSWERED in problem["detail"]


@pytest.mark.parametrize(
    "asked",
    [
        "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
        "anthropic/claude-sonnet-4-5",
        "claude-sonnet-4-5@20250929",
    ],
)
def test_another_spelling_is_no_other_model(tmp_path, asked):
    models = {asked: model_usage(100, 10, 0, 0, 0, 0.00045)}
    frames = ask(tmp_path, final(said("m1", ANSWERED, 100, 10)), result(0.00045, models), model=asked)
    assert agreed(frames) == usd(450)
    assert frames.runs["residual_reason"].tolist() == ["equal"]
    assert frames.problems.empty


def test_two_models_of_the_same_price_are_told_apart(tmp_path):
    """The sums agree, so there is no difference to explain; the problem says it all the same."""
    answer = final(said("m1", OTHER, 100, 10))
    frames = ask(tmp_path, answer, reported(claude_sonnet_4_5=(100, 10, 0.00045)), model="claude-sonnet-4-5")
    assert agreed(frames) == usd(450)
    assert frames.runs["residual_reason"].tolist() == ["equal"]
    assert len(told(frames)) == 1


def test_a_placeholder_is_completed_at_the_model_that_answered(tmp_path):
    # 1,000 x 3 + 200 x 15
    frames = ask(tmp_path, said("m1", ANSWERED, 1000, 1), reported(claude_sonnet_5_5=(1000, 200, 0.004)))
    assert agreed(frames) == usd(6000)
    assert by_model(frames) == {ANSWERED: usd(6000)}
    assert frames.costs.query("source == 'result'")["units"].tolist() == [199]
    assert not frames.runs["cost_is_lower_bound"].any()


def test_several_responses_and_subagents_of_several_models(tmp_path):
    """Main thread, a sub-agent with its own model, and the model that writes titles, which nobody recorded."""
    lines = [
        final(said("m1", ANSWERED, 100, 10)),
        final(said("m2", ANSWERED, 300, 20)),
        final(said("s1", OPUS, 50, 5, agent="a1")),
        final(said("s2", OTHER, 70, 7, agent="a2")),
    ]
    models = {
        "claude_sonnet_5_5": (400, 30, 0.0011),
        "claude_opus_4_1": (50, 5, 0.001125),
        "claude_sonnet_4_6": (70, 7, 0.000315),
        "claude_haiku_4_5": (30, 3, 0.000045),
    }
    frames = ask(tmp_path, lines[0] + lines[1] + lines[2] + lines[3], reported(**models))
    # 400 x 3 + 30 x 15; 50 x 4 + 5 x 20; 70 x 3 + 7 x 15; 30 + 15
    assert by_model(frames) == {ANSWERED: usd(1650), OPUS: usd(300), OTHER: usd(315), HAIKU: usd(45)}
    assert agreed(frames) == usd(2310)
    assert len(told(frames)) == 2
    assert command(tmp_path) == 0.00231


def test_a_model_that_answers_for_another_and_is_asked_itself(tmp_path):
    lines = final(said("m1", ANSWERED, 100, 10)) + final(said("s1", ANSWERED, 40, 4, agent="a1"))
    models = {"claude_sonnet_5_5": (100, 10, 0.0003), "claude_sonnet_4_5_20250929": (40, 4, 0.00018)}
    frames = ask(tmp_path, lines, reported(**models))
    assert by_model(frames) == {ANSWERED: usd(630)}
    assert agreed(frames) == usd(630)
    assert len(told(frames)) == 1


def test_a_model_of_which_some_answers_are_anothers(tmp_path):
    lines = final(said("m1", ASKED, 100, 10)) + final(said("m2", ANSWERED, 300, 20))
    frames = ask(tmp_path, lines, reported(claude_sonnet_5_5=(400, 30, 0.0011)))
    assert by_model(frames) == {ASKED: usd(300), ANSWERED: usd(1200)}
    assert agreed(frames) == usd(1500)


@pytest.mark.parametrize("background", [0, 30])
def test_a_model_for_which_two_answer(tmp_path, background):
    lines = final(said("m1", OTHER, 100, 10)) + final(said("m2", ANSWERED, 300, 20))
    models = {"claude_sonnet_5_5": (400 + background, 30, 0.0011 + background * 2e-6)}
    frames = ask(tmp_path, lines, reported(**models))
    # Who answered a request that nobody recorded is not known: it stays at the model that was asked.
    rest = {ASKED: usd(2 * background)} if background else {}
    assert by_model(frames) == {ANSWERED: usd(1200), OTHER: usd(450), **rest}
    agreed(frames)


def test_two_models_for_which_one_answers(tmp_path):
    lines = final(said("m1", ANSWERED, 100, 10)) + final(said("s1", ANSWERED, 40, 4, agent="a1"))
    frames = ask(
        tmp_path, lines, reported(claude_sonnet_5_5=(100, 10, 0.0003), claude_haiku_4_5=(40, 4, 6e-5))
    )
    assert by_model(frames) == {ANSWERED: usd(630)}
    agreed(frames)


def test_requests_that_nobody_recorded_are_the_answering_models_too(tmp_path):
    """A compaction asks the main model, and its answer is in no row."""
    frames = ask(
        tmp_path, final(said("m1", ANSWERED, 100, 10)), reported(claude_sonnet_5_5=(5100, 310, 0.0133))
    )
    # 5,100 x 3 + 310 x 15
    assert by_model(frames) == {ANSWERED: usd(19950)}
    agreed(frames)


def test_responses_of_a_process_that_was_killed_do_not_come_twice(tmp_path):
    """The second process reports its own response only."""
    init = {"type": "system", "subtype": "init", "model": ASKED}
    begin = {"type": "control_request", "request_id": "r", "request": {"subtype": "initialize"}}
    lines = [*final(said("m1", ANSWERED, 100, 10)), begin, init, *final(said("m2", ANSWERED, 300, 20))]
    frames = ask(tmp_path, lines, reported(claude_sonnet_5_5=(300, 20, 0.0008)))
    assert by_model(frames) == {ANSWERED: usd(1650)}
    agreed(frames)


def test_a_model_in_the_background_is_not_taken_for_one_that_was_asked(tmp_path):
    """An interrupted response is in a row and not in the result; what the title cost is in the result only."""
    frames = ask(tmp_path, final(said("m1", ASKED, 100, 10)), reported(claude_haiku_4_5=(300, 30, 0.00045)))
    assert by_model(frames) == {ASKED: usd(300), HAIKU: usd(450)}
    assert told(frames) == []
    agreed(frames)


@pytest.mark.parametrize("unknown", ["asked", "answered", "both"])
def test_models_without_a_price(tmp_path, unknown):
    asked = ASKED if unknown == "answered" else "gateway-large"
    answered = ANSWERED if unknown == "asked" else "gpt-5"
    models = {asked: model_usage(100, 10, 0, 0, 0, 0.0003, costBasis="unknown")}
    frames = ask(tmp_path, final(said("m1", answered, 100, 10)), result(0.0003, models), model=asked)
    assert set(frames.costs["model"]) == {answered}
    assert agreed(frames) == (usd(450) if unknown == "asked" else None)
    assert len(told(frames)) == 1
    assert ("unpriced_model" in set(frames.problems["reason"])) == (unknown != "asked")
    assert command(tmp_path) == (0.00045 if unknown == "asked" else None)


def test_an_older_result_without_the_kinds_of_cache_writes(tmp_path):
    """It says how much was written in all; the rows say for how long."""
    answer = final(said("m1", ANSWERED, 100, 10, hour=1000))
    models = {ASKED: model_usage(100, 10, 1000, 0, 0, 0.0043)}
    for kind in ("5m", "1h"):
        del models[ASKED][f"cacheCreationEphemeral{kind}InputTokens"]
    frames = ask(tmp_path, answer, result(0.0043, models))
    assert agreed(frames) == usd(6450)
    assert frames.costs.query("source == 'result'").empty


@pytest.mark.parametrize("swapped", [True, False], ids=["another model answered", "the CLI knew no price"])
@pytest.mark.parametrize("left_out", ["outputTokens", "webSearchRequests"])
def test_a_count_that_the_result_leaves_out_makes_the_cost_a_lower_bound(tmp_path, swapped, left_out):
    answer = final(said("m1", ANSWERED if swapped else ASKED, 100, 10))
    answer[0]["message"]["content"] = [
        {"type": "tool_use", "id": "toolu_1", "name": "WebSearch", "input": {"query": "x"}}
    ]
    basis = "list" if swapped else "unknown"
    models = {
        ASKED: model_usage(100, 10, 0, 0, 0, 0.0003, costBasis="list"),
        HAIKU: model_usage(300, 30, 0, 0, 0, 0.08, costBasis=basis),
    }
    whole = ask(tmp_path, answer, result(0.0803, models))
    assert not whole.runs["cost_is_lower_bound"].any()
    assert "count_missing" not in set(whole.problems["reason"])
    del models[HAIKU][left_out]
    frames = ask(tmp_path, answer, result(0.0803, models))
    known = usd(450 if swapped else 300) + usd(300 if left_out == "outputTokens" else 450)
    assert agreed(frames) == known
    assert frames.runs["cost_is_lower_bound"].tolist() == [True]
    (detail,) = frames.problems.loc[frames.problems["reason"] == "count_missing", "detail"]
    assert HAIKU in detail


@pytest.mark.slow
def test_the_real_cli_behind_a_gateway(replying: Callable[..., str], tmp_path: Path) -> None:
    tool = {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "echo 42"}}
    replies = [
        {"id": "msg_1", "model": ANSWERED, "content": [tool], "usage": usage(100, 10)},
        {
            "id": "msg_2",
            "model": ANSWERED,
            "content": [{"type": "text", "text": "42."}],
            "usage": usage(200, 20),
        },
    ]
    plan = Setup(
        provider=HostProvider(),
        runs_dir=tmp_path,
        endpoint=replying(replies),
        options=SessionOptions(mcp=[], model=ASKED),
    )
    done = asyncio.run(run_session("what is it?", plan)).check()
    frames = load(done.folder)
    # 300 x 3 + 30 x 15; the CLI takes the prices of the model that it asked for.
    assert agreed(frames) == usd(1350)
    assert command(done.folder) == 0.00135
    assert by_model(frames) == {ANSWERED: usd(1350)}
    assert frames.runs["cost_reported_usd"].tolist() == [usd(900)]
    assert frames.runs["residual_reason"].tolist() == [REASON]
    assert frames.problems["reason"].tolist() == [REASON]
