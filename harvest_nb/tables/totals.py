"""Tokens and cost added up by model, day, session, tool or project, as `harvest-nb costs` shows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

import pandas as pd

from harvest_nb.tables.frames import Frames
from harvest_nb.tables.usage import TOKENS

__all__ = ["BY", "By", "Totals", "totals"]

By = Literal["model", "day", "session", "tool", "project"]
BY: tuple[By, ...] = ("model", "day", "session", "tool", "project")

_UNITS = {name.removesuffix("_tokens"): name for name in TOKENS}
_NONE = {
    "model": "(no model)",
    "day": "(no time)",
    "session": "(no session)",
    "tool": "(no tool)",
    "project": "(no project)",
}
_NOT_RECORDED = "(not recorded)"


@dataclass
class Totals:
    """Rows as the JSON has them, and their sum; `cost_usd` is missing where part of a row has no price.

    A row of which some counts are unknown has `counts_unknown` too: of how many responses, by column. What
    stands in those columns is what is known, a lower bound.
    """

    by: By
    rows: list[dict[str, Any]]
    total_usd: Decimal | None
    """What everything cost; missing if a part of it has no price."""
    priced_usd: Decimal
    """The sum of everything that has a price."""
    unpriced: dict[str, int] = field(default_factory=dict)
    """Responses without a price, by model; 0 where only a result tells of them."""
    not_final: int = 0
    uncounted: int = 0
    """Responses that do not say all their counts."""


@dataclass
class _Sum:
    responses: int = 0
    not_final: int = 0
    unknown: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TOKENS, 0))
    cost: Decimal = Decimal(0)
    priced: bool = True


def totals(frames: Frames, by: By = "model") -> Totals:
    """Add up the tokens of `usage`, and of what results report beyond it, and all of `costs`.

    A response that called several tools stands in a row of its own ("Bash + Read"), so that rows add up.
    Output counts as not final where no result has told the whole.
    """
    sums: dict[str, _Sum] = {}
    uncounted = 0
    told = set(frames.result_usage.loc[frames.result_usage["is_last"], "run_id"]) & _completed(frames)
    key = _keys(frames, by)
    for row in _records(
        frames.usage, ["run_id", "session_id", "turn", "model", "time", "output_final", *TOKENS]
    ):
        group = sums.setdefault(key(row), _Sum())
        group.responses += 1
        group.not_final += not row["output_final"] and row["run_id"] not in told
        missing = [name for name in TOKENS if row[name] is None]
        uncounted += bool(missing)
        for name in missing:
            group.unknown[name] = group.unknown.get(name, 0) + 1
        for name in TOKENS:
            group.tokens[name] += row[name] or 0
    unpriced: dict[str, set[Any]] = {}
    columns = ["run_id", "session_id", "message_id", "iteration", "turn", "model", "time", "source"]
    for row in _records(frames.costs, [*columns, "component", "units", "cost_usd"]):
        beyond = row["source"] == "result"
        group = sums.setdefault(_NOT_RECORDED if by == "tool" and beyond else key(row), _Sum())
        if beyond and row["component"] in _UNITS:
            group.tokens[_UNITS[row["component"]]] += row["units"] or 0
        if row["cost_usd"] is None:
            group.priced = False
            whose = unpriced.setdefault(str(row["model"]), set())
            if not beyond:
                whose.add(tuple(row[name] for name in ("run_id", "message_id", "iteration", "turn", "time")))
        else:
            group.cost += row["cost_usd"]
    ordered = sorted(
        sums.items(), key=(lambda kv: kv[0]) if by == "day" else (lambda kv: (-kv[1].cost, kv[0]))
    )
    rows = [_row(by, name, group) for name, group in ordered]
    priced = sum((group.cost for group in sums.values()), Decimal(0))
    whole = priced if all(group.priced for group in sums.values()) else None
    not_final = sum(group.not_final for group in sums.values())
    counts = {model: len(responses) for model, responses in unpriced.items()}
    return Totals(by, rows, whole, priced, counts, not_final, uncounted)


def _row(by: str, name: str, group: _Sum) -> dict[str, Any]:
    tokens = {key: group.tokens[key] for key in TOKENS}
    return {
        by: name,
        "responses": group.responses,
        "input_tokens": tokens.pop("input_tokens"),
        "output_tokens": tokens.pop("output_tokens"),
        "output_not_final": group.not_final,
        **tokens,
        "cost_usd": group.cost if group.priced else None,
        **({"counts_unknown": group.unknown} if group.unknown else {}),
    }


def _completed(frames: Frames) -> set[str]:
    """Runs whose rows and result together make the whole."""
    good = ~frames.runs["residual_reason"].isin(["count_missing", "unpriced_model"])
    return set(frames.runs.loc[good, "run_id"])


def _keys(frames: Frames, by: By) -> Any:
    if by == "model":
        return lambda row: row["model"] or _NONE[by]
    if by == "day":
        return lambda row: f"{row['time']:%Y-%m-%d}" if row["time"] is not None else _NONE[by]
    if by == "session":
        return lambda row: row["session_id"] or _NONE[by]
    if by == "project":
        runs = _records(frames.runs, ["run_id", "project"])
        projects = {row["run_id"]: row["project"] for row in runs}
        return lambda row: projects.get(row["run_id"]) or _NONE[by]
    called: dict[tuple[Any, Any], set[str]] = {}
    for row in _records(frames.tool_calls, ["run_id", "turn", "tool"]):
        called.setdefault((row["run_id"], row["turn"]), set()).add(row["tool"])
    return lambda row: " + ".join(sorted(called.get((row["run_id"], row["turn"]), ()))) or _NONE[by]


def _records(frame: pd.DataFrame, columns: list[str]) -> Iterator[Mapping[str, Any]]:
    """Rows as dicts of plain values, `None` for what is missing."""
    values = [
        frame[column].astype("object").where(frame[column].notna(), None).tolist() for column in columns
    ]
    return (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))
