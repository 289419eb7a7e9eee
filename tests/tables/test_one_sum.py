"""Checks that all cost sums agree, and equal the true cost for complete recordings."""

from __future__ import annotations

import json
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from harvest_nb.prices import load_prices
from harvest_nb.tables import load
from tests.tables.agreement import agreed, command
from tests.tables.conftest import SESSION, Writer

pytestmark = pytest.mark.slow

MODELS = ["claude-sonnet-5-5", "claude-opus-4-1", "claude-haiku-4-5", "claude-sonnet-4-6", "claude-opus-5-5"]
GPT = "gpt-5"
PRICES = load_prices()
Drawn = dict[str, Any]

counts = st.integers(1, 9_000)
odd: st.SearchStrategy[Any] = st.sampled_from(
    [None, -1, -5_000, 0, 1.5, "7", True, [], {}, 10**9, 10**12, 2**70, 1e308]
)
amounts: st.SearchStrategy[Any] = st.sampled_from(
    [-1000, -0.00007, 0, None, "x", 1e308, 1e-9, 999_999.99, 10**6, True, {}]
)


@st.composite
def requests(draw: st.DrawFn, models: list[str]) -> Drawn:
    """One request: who was asked for how much, and what was recorded of it."""
    return {
        "model": draw(st.sampled_from(models)),
        "tokens": [draw(counts), draw(counts), *draw(st.sampled_from([(0, 0, 0), (5, 0, 0), (0, 700, 90)]))],
        "agent": draw(st.sampled_from([None, None, "a1", "a2"])),
        "final": draw(st.booleans()),
    }


def spend(writer: Writer, number: int, one: Drawn, model: str) -> None:
    """Record the answer to a request."""
    parent = one["agent"] and f"toolu_{one['agent']}"
    content = [writer.text("x"), writer.call(f"t{number}", "Bash")]
    writer.answer(
        2 + number / 1000, f"msg_{one.get('id', number)}", content, one.get("usage") or writer.usage(*one["tokens"]),
        parent=parent, agent=one["agent"], transcript=one["final"], model=model, placeholder=1,
    )  # fmt: skip


def price(model: str, tokens: list[int]) -> Decimal:
    """What tokens cost: input, output, writes of both kinds, reads."""
    rates = PRICES.rates(model)
    assert rates is not None
    kinds = ("input", "output", "cache_write_5m", "cache_write_1h", "cache_read")
    return sum((rates.cost(*item) or Decimal(0) for item in zip(kinds, tokens, strict=True)), Decimal(0))


def figures(models: dict[str, list[int]]) -> dict[str, Any]:
    return {
        model: Writer.model_usage(
            inp,
            out,
            five,
            hour,
            read,
            float(price(model, [inp, out, five, hour, read]) if model != GPT else 0.1),
        )
        for model, (inp, out, five, hour, read) in models.items()
    }


def add(models: dict[str, list[int]], model: str, tokens: list[int]) -> None:
    models[model] = [a + b for a, b in zip(models.get(model, [0] * 5), tokens, strict=True)]


any_gateway = given(
    asked=st.lists(requests(MODELS), min_size=1, max_size=6),
    mapping=st.dictionaries(st.sampled_from(MODELS), st.sampled_from(MODELS), max_size=4),
    titles=st.integers(0, 500),
)


@settings(max_examples=15)
@any_gateway
@example(
    asked=[{"model": MODELS[0], "tokens": [100, 10, 0, 0, 0], "agent": None, "final": True}],
    mapping={MODELS[0]: MODELS[3]},
    titles=0,
)
@example(  # of two requests of as many tokens, the one that nobody recorded
    asked=[{"model": MODELS[1], "tokens": [1, 1, 0, 0, 0], "agent": None, "final": True}],
    mapping={MODELS[1]: MODELS[0]},
    titles=1,
)
def test_a_gateway_that_maps_models_costs_what_its_answers_cost(asked, mapping, titles):
    mapped(asked, mapping, titles)


@pytest.mark.soak
@settings(max_examples=600)
@any_gateway
def test_many_gateways_that_map_models(asked, mapping, titles):
    mapped(asked, mapping, titles)


def mapped(asked: list[Drawn], mapping: dict[str, str], titles: int) -> None:
    """Of each request it is known who answered, and so what it cost."""
    # A request that nobody recorded is told by its tokens from one whose output is not known.
    assume(titles not in {one["tokens"][0] for one in asked if not one["final"]})
    with tempfile.TemporaryDirectory() as top:
        writer = Writer(Path(top) / "run-1", model=MODELS[0])
        writer.initialize(1)
        told: dict[str, list[int]] = {}
        expected = Decimal(0)
        for number, one in enumerate(asked):
            answering = str(mapping.get(one["model"], one["model"]))
            spend(writer, number, one, answering)
            add(told, one["model"], one["tokens"])
            expected += price(answering, one["tokens"])
        if titles:
            # Nobody recorded it, nor who answered.
            add(told, "claude-3-haiku-20240307", [titles, 7, 0, 0, 0])
            expected += price("claude-3-haiku-20240307", [titles, 7, 0, 0, 0])
        models = figures(told)
        writer.result(9, sum(one["costUSD"] for one in models.values()), models)
        frames = load(writer.write())
    # Output that only the result tells is of one of the models that answered; of which one is not always known.
    if (
        all(one["final"] for one in asked)
        or len({mapping.get(one["model"], one["model"]) for one in asked}) == 1
    ):
        assert agreed(frames) == expected
    else:
        assert agreed(frames) is not None


@st.composite
def folders(draw: st.DrawFn) -> list[Drawn]:
    """Runs of one or two sessions, with all that a recording may suffer and an agent may forge."""
    made: list[Drawn] = []
    for number in range(draw(st.integers(1, 3))):
        answers = draw(st.lists(requests([*MODELS[:3], GPT]), max_size=5))
        for index, one in enumerate(answers):
            # Some ids come twice, in a run and over runs.
            one["id"] = draw(st.sampled_from([f"{number}.{index}", f"{number}.{index}", "0.0", "0.1"]))
            if draw(st.integers(0, 4)) == 0:
                one["usage"] = Writer.usage(*one["tokens"]) | {
                    draw(st.sampled_from(["input_tokens", "output_tokens", "cache_read_input_tokens"])): draw(
                        odd
                    )
                }
            one["silent"] = draw(st.integers(0, 9)) == 0
        made.append(
            {
                "answers": answers,
                "answering": draw(
                    st.dictionaries(st.sampled_from(MODELS[:3]), st.sampled_from([*MODELS, GPT]))
                ),
                "results": draw(
                    st.lists(
                        st.sampled_from(
                            ["honest", "honest", "sum only", "forged", "odd", "older", "nan", "gap"]
                        ),
                        max_size=3,
                    )
                ),
                "amount": draw(amounts),
                "count": draw(odd),
                "cut": draw(st.sampled_from([0, 0, 1, 30, 200])),
                "again": draw(st.booleans()),
                "copies": draw(st.booleans()),
            }
        )
    return made


def record(top: Path, number: int, drawn: Drawn, before: list[Drawn]) -> None:
    """Write the run folder of what was drawn."""
    writer = Writer(top / f"run-{number}", run_id=f"run-{number}", model=MODELS[0])
    writer.meta = {"status": "error"} if not drawn["results"] else {}
    if drawn["copies"]:
        for earlier in before:  # a resumed session's transcript begins with the earlier ones
            for index, one in enumerate(earlier["answers"]):
                spend(writer, index, one, earlier["answering"].get(one["model"], one["model"]))
        writer.lines.clear()
    writer.initialize(1)
    told: dict[str, list[int]] = {}
    for index, one in enumerate(drawn["answers"]):
        spend(writer, index, one, drawn["answering"].get(one["model"], one["model"]))
        if one["silent"]:
            del writer.lines[-1]["message"]["message"]["usage"]
        add(told, one["model"], one["tokens"])
    models = figures(told)
    for index, kind in enumerate(drawn["results"]):
        if index and drawn["again"]:
            writer.initialize(5 + index)
        report(writer, 6 + index, kind, json.loads(json.dumps(models)), drawn)
    stream = writer.write() / "stream.jsonl"
    data = stream.read_bytes()
    stream.write_bytes(data[: len(data) - drawn["cut"]])


def report(writer: Writer, at: float, kind: str, models: Drawn, drawn: Drawn) -> None:
    """A result as the CLI, an older one, or an agent writes it."""
    whole: Any = sum(one["costUSD"] for one in models.values())
    if kind == "sum only":
        writer.result(at, whole)
        del writer.lines[-1]["message"]["modelUsage"]
        return
    if kind == "nan":
        whole = float("nan")
    if kind in ("forged", "odd"):
        whole = drawn["amount"]
        models["claude-opus-4-1"] = Writer.model_usage(5, 5, 0, 0, 0, drawn["amount"])
    for one in models.values():
        if kind == "odd":
            one["inputTokens"] = drawn["count"]
        if kind == "gap":
            del one["outputTokens"]
        if kind == "older":
            del one["cacheCreationEphemeral5mInputTokens"], one["cacheCreationEphemeral1hInputTokens"]
            del one["webSearchRequests"], one["costBasis"]
    writer.result(at, whole, models)


@settings(max_examples=10)
@given(drawn=folders())
def test_all_sums_over_any_run_folders_are_one_sum(drawn):
    one_sum(drawn)


@pytest.mark.soak
@settings(max_examples=400)
@given(drawn=folders())
def test_all_sums_over_many_run_folders_are_one_sum(drawn):
    one_sum(drawn)


def one_sum(drawn: list[Drawn]) -> None:
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        for number, one in enumerate(drawn):
            record(top, number, one, drawn[:number])
        for view in ("corpus", "session"):
            amount = agreed(load(top, view=view))
            if view == "corpus":
                told = command(top)
                assert (told is None) == (amount is None)
                assert amount is None or abs(Decimal(str(told)) - amount) < Decimal("1e-9")


@pytest.mark.parametrize("amount", [-1000, -1e-9, 1e308, 10**6, "x"])
def test_a_forged_amount_is_told_and_changes_no_sum(writer, amount):
    writer.two_turns()
    message = writer.lines[-1]["message"]
    message["total_cost_usd"] = message["modelUsage"][writer.model]["costUSD"] = amount
    frames = load(writer.write())
    assert agreed(frames) == Decimal("0.02121")
    assert frames.problems["reason"].tolist() == ["bad_amount"] * 2
    assert frames.runs["cost_reported_usd"].isna().all()
    message["modelUsage"][writer.model]["inputTokens"] = -120
    frames = load(writer.write())
    assert agreed(frames) == Decimal("0.02121")
    assert "bad_count" in set(frames.problems["reason"])


def test_a_result_that_is_no_json_is_told_and_changes_no_sum(writer):
    writer.two_turns()
    writer.lines[-1]["message"]["total_cost_usd"] = float("nan")
    frames = load(writer.write())
    assert agreed(frames) == Decimal("0.02121")
    assert len(frames.problems) == 1


def test_usage_below_nothing_is_not_taken_off(writer):
    writer.two_turns()
    writer.answer(6, "msg_c", [writer.text("x")], {**writer.usage(5, 5), "cache_read_input_tokens": -7})
    writer.lines.insert(-1, writer.lines.pop())
    for line, (seq, _) in zip(writer.lines, enumerate(writer.lines), strict=True):
        line["seq"] = seq
    frames = load(writer.write())
    assert agreed(frames) is None
    assert frames.problems["reason"].tolist() == ["bad_count"]
    assert frames.costs["cost_usd"].sum() == Decimal("0.02121")


def test_a_response_that_says_nothing_of_its_use_is_missing_in_all_sums(writer):
    writer.two_turns(transcript=False).lines.pop()
    del writer.lines[-1]["message"]["message"]["usage"]
    frames = load(writer.write())
    assert agreed(frames) is None
    silent = frames.costs[frames.costs["cost_usd"].isna()]
    assert silent[["message_id", "component", "session_id"]].to_numpy().tolist() == [
        ["msg_b", "unitemised", SESSION]
    ]
