"""The real corpus, where `HARVEST_CORPUS` points at it: equal to its reference, and to a naive second count."""

from __future__ import annotations

import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from harvest_nb.tables import Frames, load, validate
from harvest_nb.tables.totals import totals
from tests.tables.naive import count

CORPUS = Path(os.environ.get("HARVEST_CORPUS", ""))
pytestmark = pytest.mark.skipif(
    not (CORPUS / "reference.json").is_file(), reason="HARVEST_CORPUS names no corpus"
)
COLUMNS = {
    "input": "input_tokens",
    "output": "output_tokens",
    "read": "cache_read_tokens",
    "write_5m": "cache_write_5m_tokens",
    "write_1h": "cache_write_1h_tokens",
}


@pytest.fixture(scope="session")
def frames() -> Frames:
    return load(CORPUS / "projects")


@pytest.fixture(scope="session")
def reference() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((CORPUS / "reference.json").read_text())
    return found


def figures(usage) -> dict[str, Any]:
    return {
        **{name: int(usage[column].sum()) for name, column in COLUMNS.items()},
        "responses": len(usage),
        "not_final": int((~usage["output_final"]).sum()),
        "unpriced": int(usage["cost_usd"].isna().sum()),
    }


def same(usage, expected: dict[str, Any]) -> None:
    assert figures(usage) == {key: value for key, value in expected.items() if key != "cost"}
    # The reference adds up floats.
    assert abs(usage["cost_usd"].sum() - Decimal(str(expected["cost"]))) < Decimal("1e-9")


def test_the_whole(frames, reference):
    same(frames.usage, reference["TOTAL"])
    assert frames.costs["cost_usd"].sum() == frames.usage["cost_usd"].sum()


def test_main_rows_and_nested_rows(frames, reference):
    nested = frames.usage["source"] == "agent_progress"
    same(frames.usage[~nested], reference["TOTAL main rows"])
    same(frames.usage[nested], reference["TOTAL nested only"])


def test_each_model(frames, reference):
    models = {name for name in reference if not name.startswith("TOTAL")}
    assert set(frames.usage["model"].unique()) == models
    for model in models:
        same(frames.usage[frames.usage["model"] == model], reference[model])


def test_a_naive_count_says_the_same(frames):
    naive = count(CORPUS / "projects")
    found = {str(row["model"]): row for row in totals(frames).rows}
    assert found.keys() == naive.keys()
    for model, row in naive.items():
        assert {key: found[model][key] for key in row} == row, model


def test_the_frames_are_whole(frames):
    assert [problem for name, frame in frames for problem in validate(name, frame)] == []
    assert len(frames.records) == frames.files["records"].sum()
    assert frames.problems.empty, frames.problems.to_string()
    whole = load(CORPUS / "projects", view="session")
    assert (~whole.usage["is_copy"]).sum() == len(frames.usage)
    assert whole.usage["is_copy"].sum() == frames.runs["n_copied"].sum() > 0


def test_logs_and_fixtures_crash_nothing():
    frames = load(CORPUS / "logs")
    assert [problem for name, frame in frames for problem in validate(name, frame)] == []
    assert len(frames.records) == frames.files["records"].sum()
    reported = frames.runs.dropna(subset=["cost_reported_usd"])
    assert len(reported) > 40
    assert not (reported["residual_reason"] == "unexplained").any()
