"""Figures beyond what a column can hold crash nothing and are told."""

from __future__ import annotations

from decimal import Decimal

from harvest_nb.prices import load_prices
from harvest_nb.tables import load, validate
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


def test_amounts_beyond_a_million_dollars_are_missing_and_told(tmp_path):
    log = Transcript()
    for number in range(30):
        log.answer(number, f"msg_{number}", usage(1, 10**9, 10**9, 0, 10**9), model="claude-opus-4-1")
    frames = load(log.write(tmp_path / "a.jsonl"))
    assert [problem for name, frame in frames for problem in validate(name, frame)] == []
    assert frames.runs[["cost_usd", "cost_rows_usd"]].isna().all(axis=None)
    assert "amount_too_large" in set(frames.problems["reason"])
    # In one frame as in all.
    assert frames.usage["cost_usd"].isna().all()
    assert frames.costs["cost_usd"].isna().all()
    assert totals(frames).total_usd is None
    assert totals(frames).priced_usd == 0
    for view in ("corpus", "session"):
        assert len(load(tmp_path, view=view).runs) == 1


def test_a_process_may_have_read_more_than_a_billion_tokens(tmp_path):
    told = {MODEL: model_usage(1, 0, 0, 0, 3_000_000_000, 900.000003)}
    said = [streamed("msg_1", usage(1)), result(900.000003, told)]
    path = write_lines(tmp_path / "a.jsonl", stream("99999999-0000-4000-8000-000000000001", *said))
    assert load(path).result_usage["cache_read_tokens"].tolist() == [3_000_000_000]


def test_prices_of_many_digits_are_kept_to_twelve(tmp_path):
    (tmp_path / "prices.toml").write_text(
        'version = "1"\n[[model]]\nname = "m"\ninput = "0.123456789012"\nsource = "s"\n'
        '[[modifier]]\nwhen = { speed = "fast" }\nfactor = "1.123456"\nsource = "s"\n'
    )
    log = Transcript()
    log.answer(1, "msg_1", usage(1, speed="fast"), model="m")
    frames = load(log.write(tmp_path / "a.jsonl"), prices=load_prices(tmp_path / "prices.toml"))
    assert frames.costs["cost_usd"].tolist() == [Decimal("0.000000138698")]
