"""Prices: equal to the CLI's own accounting, or different for a stated reason."""

from __future__ import annotations

import json
import time
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from harvest_nb.errors import SettingsError
from harvest_nb.prices import COMPONENTS, PriceTable, canonical_model, load_prices
from tests.tables.observe_cli_prices import CASES, MODELS, TABLE

# What the real CLI made of scripted usage, each kind of token alone and mixed: `observe_cli_prices` wrote it.
OBSERVED: dict[str, Any] = json.loads(TABLE.read_text())["models"]
# Where this table and the CLI differ, and why this table is kept.
DIFFERENCES: list[dict[str, Any]] = json.loads((TABLE.parent / "cli_differences.json").read_text())
GUESSED = {model for model, seen in OBSERVED.items() if seen["cost_basis"] == "unknown"}
"""Models the CLI does not know; it takes claude-sonnet-5-5's prices and says `costBasis: "unknown"`."""
REPLACED = {model for model, seen in OBSERVED.items() if seen["priced_as"] != model and "[1m]" not in model}
"""Retired models, for which the CLI asks claude-opus-5-5 instead."""


def cost(model: str, case: str) -> Decimal | None:
    units, more = CASES[case]
    names = {"speed": "speed", "inference_geo": "geo", "service_tier": "tier"}
    conditions = {names[key]: value for key, value in more.items()}
    prompt = sum(n for part, n in zip(COMPONENTS, units, strict=True) if part not in {"output", "web_search"})
    rates = load_prices().rates(model, prompt_tokens=prompt, **conditions)
    if rates is None:
        return None
    parts = [rates.cost(part, n) for part, n in zip(COMPONENTS, units, strict=True)]
    return None if None in parts else sum((part for part in parts if part is not None), Decimal(0))


def test_the_observation_covers_every_model_and_case():
    assert set(OBSERVED) == set(MODELS)
    assert all(list(seen["cost_usd"]) == list(CASES) for seen in OBSERVED.values())
    assert {
        "claude-mythos-preview", "claude-3-haiku-20240307", "claude-3-sonnet-20240229",
        "claude-3-opus-20240229", "claude-nonsense-9",
    } == GUESSED  # fmt: skip
    assert {
        "claude-opus-4-0", "claude-opus-4-1", "claude-opus-4-1-20250805", "claude-opus-4-20250514",
    } == REPLACED  # fmt: skip


@pytest.mark.parametrize("model", sorted(set(OBSERVED) - GUESSED))
def test_prices_equal_the_clis_own_to_a_millionth_or_are_listed(model):
    # What was really asked for, and so charged.
    asked = "claude-opus-5-5" if model in REPLACED else model
    listed = {item["case"]: item for item in DIFFERENCES if model in item["models"]}
    for case, reported in OBSERVED[model]["cost_usd"].items():
        ours = cost(asked, case)
        assert ours is not None, case
        if case in listed:
            factor = Decimal(listed[case]["ours_over_cli"])
            assert abs(ours / Decimal(str(reported)) - factor) < Decimal("1e-6"), case
        else:
            assert abs(ours - Decimal(str(reported))) <= Decimal("1e-6"), (case, ours, reported)


def test_every_listed_difference_is_one_and_has_a_reason():
    for item in DIFFERENCES:
        assert item["reason"]
        assert Decimal(item["ours_over_cli"]) != 1
        assert set(item["models"]) <= set(OBSERVED)


@pytest.mark.parametrize("model", sorted(REPLACED))
def test_retired_models_are_priced_as_themselves_where_they_answered(model):
    assert OBSERVED[model]["priced_as"] == "claude-opus-5-5"
    assert cost(model, "input") == Decimal("0.015")


def test_batches_cost_half_at_any_date():
    table = load_prices()
    for model in table.models():
        for day in (datetime(2025, 6, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)):
            full, half = table.rates(model, when=day), table.rates(model, when=day, tier="batch")
            assert full is not None
            assert half is not None
            for part in COMPONENTS:
                whole = full.rate(part)
                assert half.rate(part) == (whole if whole is None or part == "web_search" else whole / 2)


def test_the_table_shows_models_conditions_and_age():
    table = load_prices()
    rows = {(row["model"], row["when"]): row for row in table.rows()}
    assert rows["claude-opus-4-6", "fast"]["input"] == 30
    assert rows["claude-mythos-5", ""]["source"].startswith("prices.toml: ")
    assert ("claude-sonnet-4-5", "prompt > 200k") in rows
    assert table.age_days(date(2026, 12, 25)) == (date(2026, 12, 25) - date.fromisoformat(table.edition)).days
    assert [item["when"] for item in table.modifiers()] == [*["speed=fast"] * 2, "geo=us", "tier=batch"]


@pytest.mark.parametrize(
    "model", ["claude-nonsense-9", "claude-opus-4-10", "claude-haiku-4-55", "<synthetic>", "gpt-5", ""]
)
def test_an_unknown_model_has_no_price(model):
    assert load_prices().rates(model) is None


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("claude-opus-5[1m]", "claude-opus-5"),
        ("us.anthropic.claude-opus-4-5-20251101-v1:0", "claude-opus-4-5-20251101"),
        ("anthropic.claude-sonnet-4-6", "claude-sonnet-4-6"),
        ("claude-opus-4-5@20251101", "claude-opus-4-5-20251101"),
        ("claude-3-5-sonnet-v2@20241022", "claude-3-5-sonnet-v2-20241022"),
        ("global.anthropic.claude-opus-4-6-v1", "claude-opus-4-6"),
        (
            "arn:aws:bedrock:us-east-1:1:inference-profile/us.anthropic.claude-sonnet-4-20250514-v1:0",
            "claude-sonnet-4-20250514",
        ),
        ("publishers/anthropic/models/claude-haiku-4-5@20251001", "claude-haiku-4-5-20251001"),
        ("anthropic/claude-opus-4-5", "claude-opus-4-5"),
        ("claude-haiku-4-5", "claude-haiku-4-5"),
    ],
)
def test_other_clouds_names_are_put_back(name, canonical):
    assert canonical_model(name) == canonical
    assert load_prices().rates(name) is not None


def test_prices_follow_the_date_and_the_length_of_the_prompt():
    table = load_prices()
    before, after = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)
    rates = [table.rates("claude-opus-4-6", when=day, prompt_tokens=200_001) for day in (before, after)]
    assert [rate.input for rate in rates if rate] == [10, 5]
    short = table.rates("claude-opus-4-6", when=before, prompt_tokens=200_000)
    assert short is not None
    assert short.input == 5


def test_overrides_are_dated_and_the_one_that_began_last_holds(tmp_path):
    path = tmp_path / "prices.toml"
    path.write_text(
        'version = "1"\n'
        '[[model]]\nname = "m"\ninput = "1"\nsource = "old"\n'
        '[[model]]\nname = "m"\nfrom = 2026-06-01\ninput = "2"\nsource = "new"\n'
        '[[modifier]]\nwhen = { speed = "fast" }\nmodels = ["m"]\nfactor = "3"\nsource = "s"\n'
    )
    table = load_prices(path)
    old = table.rates("m", when=datetime(2026, 5, 31, 23, 59, tzinfo=UTC))
    new = table.rates("m-20260601", when=datetime(2026, 6, 1, tzinfo=UTC), speed="fast")
    assert old is not None
    assert new is not None
    assert (old.input, new.input) == (Decimal(1), Decimal(6))
    assert old.source == "prices.toml: old"
    assert old.output is None
    assert old.cost("output", 5) is None
    assert old.cost("output", 0) == 0


def test_the_digest_changes_with_the_prices_and_only_then(tmp_path):
    path = tmp_path / "prices.toml"
    path.write_text('version = "1"\n')
    first = load_prices(path).digest
    assert load_prices(path).digest == first
    path.write_text('version = "1"\n[[model]]\nname = "m"\ninput = "1"\nsource = "s"\n')
    assert load_prices(path).digest != first


MODEL = '[[model]]\nname = "m"\ninput = "1"\nsource = "s"\n'
FAST = '[[modifier]]\nwhen = { speed = "fast" }\nfactor = "2"\nsource = "s"\n'


def table(tmp_path: Path, *entries: str) -> PriceTable:
    path = tmp_path / "prices.toml"
    path.write_text('version = "1"\n' + "".join(entries))
    return load_prices(path)


def test_the_order_of_overrides_means_nothing(tmp_path):
    """The very name goes before its undated form, then the later day before the earlier."""
    entries = [
        MODEL.replace("input", "from = 2026-06-01\ninput").replace('"1"', '"3"'),
        MODEL,
        MODEL.replace('"m"', '"m-20260101"').replace('"1"', '"7"'),
        MODEL.replace("input", "from = 2026-03-01\ninput").replace('"1"', '"2"'),
        MODEL.replace('"m"', '"m-20250101"')
        .replace("input", "from = 2027-01-01\ninput")
        .replace('"1"', '"9"'),
        FAST.replace("factor", 'models = ["m"]\nfactor').replace('"2"', '"5"'),
        FAST,
        FAST.replace("speed", "geo").replace("fast", "us").replace('"2"', '"10"'),
    ]
    for order in (entries, entries[::-1], entries[3:] + entries[:3]):
        found = table(tmp_path, *order)

        def price(name: str, month: int, found: PriceTable = found, **given: str) -> Decimal | None:
            rates = found.rates(name, when=datetime(2026, month, 2, tzinfo=UTC), **given)  # type: ignore[arg-type]
            return rates.input if rates else None

        assert [price("m", month) for month in (1, 3, 6)] == [1, 2, 3]
        assert price("m-20260101", 6) == 7
        assert price("m-20250101", 6) == 3  # its own entry holds only from next year on
        assert price("m", 1, speed="fast") == 5
        assert price("m-20260101", 1, speed="fast") == 35
        assert price("m", 1, speed="fast", geo="us") == 50


def test_fast_mode_of_an_overridden_model_has_no_price_until_the_overrides_say_one(tmp_path):
    """What genai-prices has for it goes with the price that is replaced; the standard one would be too low."""
    prices = MODEL.replace('"m"', '"claude-opus-4-8"').replace("source", 'web_search = "10"\nsource')
    found = table(tmp_path, prices).rates("claude-opus-4-8-20260101", speed="fast", geo="us")
    assert found is not None
    assert found.input is None
    assert found.web_search == 10
    assert "speed=fast" in found.source
    for speed in (None, "standard"):
        rates = table(tmp_path, prices).rates("claude-opus-4-8", speed=speed)
        assert rates is not None
        assert rates.input == 1
    named = FAST.replace("factor", 'models = ["claude-opus-4-8"]\nfactor')
    other = FAST.replace("factor", 'models = ["claude-opus-4-7"]\nfactor')
    only_us = FAST.replace('"fast"', '"fast", geo = "us"')
    for modifier, amount in ((FAST, 2), (named, 2), (other, None), (only_us, None)):
        rates = table(tmp_path, prices, modifier).rates("claude-opus-4-8", speed="fast")
        assert rates is not None
        assert rates.input == amount, modifier
    # What is not overridden has the price that genai-prices has for it.
    listed = table(tmp_path, MODEL).rates("claude-opus-4-8", speed="fast")
    assert listed is not None
    assert listed.input == 10


def test_a_time_without_a_zone_is_utc(tmp_path, monkeypatch):
    found = table(tmp_path, MODEL, MODEL.replace("input", "from = 2026-06-01\ninput").replace('"1"', '"2"'))
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    try:
        rates = found.rates("m", when=datetime(2026, 6, 1, 1))
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()
    assert rates is not None
    assert rates.input == 2


def test_what_is_kept_of_prices_is_right_and_stays_small():
    """Prompts of a thousand lengths are one entry, and none gets another's tier."""
    found = load_prices()
    day = datetime(2026, 3, 1, tzinfo=UTC)
    for size in [*range(199_500, 200_500), 1, 10**9, 200_001, 200_000]:
        rates = found.rates("claude-opus-4-6", when=day, prompt_tokens=size)
        assert rates is not None
        assert rates.input == (10 if size > 200_000 else 5)
    kept = found._listed.cache_info()
    assert kept.currsize == 1
    assert kept.maxsize is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("version = ", "not TOML"),
        ("", "version is missing"),
        ("version = 1\n", "version is 1"),
        ('version = "1"\nmodels = 3\n', "models is no key of this file"),
        ('version = "1"\nmodel = 3\n', "model is 3"),
        ('version = "1"\nmodel = ["x"]\n', r"\[\[model\]\] number 1 is 'x'"),
        *(
            ('version = "1"\n' + MODEL + MODEL.replace('"m"', '"n"').replace('input = "1"', given), said)
            for given, said in [
                ('input = "cheap"', r"\[\[model\]\] number 2 \(n\): input is 'cheap', not a decimal"),
                ('input = "NaN"', "input is 'NaN'"),
                ('input = "Infinity"', "input is 'Infinity'"),
                ('input = "-1"', "input is '-1'"),
                ("input = 0.1", "input is 0.1"),
                ("input = 3", "input is 3"),
                ("input = true", "input is True"),
                ('inputs = "1"', "inputs is no key of a"),
                ("", "has no price"),
                ('input = "1"\nfrom = "2026-01-01"', "from is '2026-01-01'"),
                ('input = "1"\nfrom = 2026-01-01T00:00:00Z', "from is datetime"),
            ]
        ),
        ('version = "1"\n' + MODEL.replace('source = "s"', ""), "source is missing"),
        ('version = "1"\n' + MODEL.replace('source = "s"', "source = 7"), "source is 7"),
        ('version = "1"\n' + MODEL.replace('name = "m"', ""), "name is missing"),
        ('version = "1"\n' + MODEL.replace('"m"', '"m[1m]"'), r"looked up as 'm': write that"),
        ('version = "1"\n' + MODEL + MODEL, "number 1 and number 2 both price m without a `from`"),
        ('version = "1"\n' + FAST + FAST, "number 1 and number 2 both hold for all models when speed=fast"),
        *(
            ('version = "1"\n' + FAST.replace(old, new), rf"\[\[modifier\]\] number 1.*{said}")
            for old, new, said in [
                ('"2"', '"0"', "factor is 0"),
                ('"2"', "2.5", "factor is 2.5"),
                ('factor = "2"', "", "factor is missing"),
                ("speed", "pace", "when.pace is no condition"),
                ('"fast"', "1", "when.speed is 1"),
                ('{ speed = "fast" }', "{}", "when is {}"),
                ("factor", 'models = "m"\nfactor', "models is 'm'"),
                ("factor", "models = [1]\nfactor", "models is 1"),
                ("factor", "name = 'x'\nfactor", "name is no key"),
            ]
        ),
    ],
)
def test_a_table_that_cannot_be_used_says_so(tmp_path, content, message):
    path = tmp_path / "prices.toml"
    path.write_text(content)
    with pytest.raises(SettingsError, match=message) as told:
        load_prices(path)
    assert str(path) in str(told.value)


def test_a_missing_table_says_so(tmp_path):
    with pytest.raises(SettingsError, match="Cannot read"):
        load_prices(tmp_path / "nothing.toml")
