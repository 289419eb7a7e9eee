"""That all sums of one recording are the same sum."""

from __future__ import annotations

import json
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
from typer.testing import CliRunner

from harvest_nb.cli import app
from harvest_nb.tables import Frames
from harvest_nb.tables.totals import By, totals


def whole(amounts: Iterable[Any]) -> Decimal | None:
    """The sum, or `None` where one is missing."""
    found = list(amounts)
    return None if any(pd.isna(amount) for amount in found) else sum(found, Decimal(0))


def agreed(frames: Frames) -> Decimal | None:
    """What everything cost: by `costs`, by `runs`, by `sessions`, and by totals."""
    amount = whole(frames.costs["cost_usd"])
    assert (frames.costs["cost_usd"].dropna() >= 0).all()
    assert whole(frames.runs["cost_usd"]) == amount
    rows = dict(list(frames.costs.groupby("run_id", observed=True)["cost_usd"]))
    for run in frames.runs.to_dict("records"):
        cost = whole([run["cost_usd"]])
        assert cost == whole(rows.get(run["run_id"], ()))
        assert (run["cost_source"] == "none") == (cost is None)
    # What is missing is said.
    assert amount is not None or not frames.problems.empty
    named = frames.runs[frames.runs["session_id"].notna()]
    assert whole(frames.sessions["cost_usd"]) == whole(named["cost_usd"])
    kinds: tuple[By, ...] = ("model", "tool")
    for by in kinds:
        found = totals(frames, by)
        assert found.total_usd == amount
        assert found.priced_usd == sum(frames.costs["cost_usd"].dropna(), Decimal(0))
        assert whole(row["cost_usd"] for row in found.rows) == amount
    return amount


def command(*paths: Path) -> float | None:
    """What `harvest-nb costs` says."""
    done = CliRunner().invoke(app, ["costs", *map(str, paths), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    amount: float | None = json.loads(done.stdout)["total_usd"]
    return amount
