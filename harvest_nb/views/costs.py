"""What a run cost: by component, turn by turn, and how far reported and counted figures agree."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from harvest_nb.tables import Frames
from harvest_nb.views.charts import Chart, scale

__all__ = ["cost_by_turn", "cost_table", "reconciliation", "reconciliation_table", "token_and_cost_shares"]

_LABELS = {
    "input": "input",
    "output": "output",
    "cache_write_5m": "cache write 5 min",
    "cache_write_1h": "cache write 1 h",
    "cache_read": "cache read",
    "web_search": "web search",
    "unitemised": "not itemised",
}
_ORDER = tuple(_LABELS)
_SOURCES = {
    "cost_rows_usd": "counted from rows",
    "cost_model_usage_usd": "modelUsage of the result",
    "cost_reported_usd": "total_cost_usd of the result",
}
_WIDTH = 620


def token_and_cost_shares(frames: Frames) -> Chart:
    """What the tokens were, and what the money went to: two bars that rarely look alike."""
    costs = _priced(frames)
    tokens = costs[~costs["component"].isin(["web_search", "unitemised"])]
    bars = {"tokens": tokens.groupby("component")["units"], "cost": costs.groupby("component")["cost_usd"]}
    rows = [
        {
            "bar": f"share of {bar}",
            "component": _LABELS[str(part)],
            "order": _ORDER.index(part),
            "n": float(n),
        }
        for bar, groups in bars.items()
        for part, n in groups.sum().items()
    ]
    data = pd.DataFrame(rows, columns=["bar", "component", "order", "n"])
    spec = (
        alt.Chart(data)
        .mark_bar(height=26)
        .encode(
            x=alt.X("n:Q", stack="normalize", title="share", axis=alt.Axis(format="%")),
            y=alt.Y("bar:N", sort=["share of tokens", "share of cost"], title=None),
            color=alt.Color(
                "component:N", title=None, scale=scale(tuple(_LABELS.values()), data["component"])
            ),
            order=alt.Order("order:Q"),
        )
        .properties(
            width=_WIDTH,
            height=alt.Step(40),
            title=alt.Title("What the tokens were, and what was paid for", subtitle=_totals(costs)),
        )
    )
    return Chart(spec, f"Shares of tokens and of cost by component. {_totals(costs)}.")


def cost_by_turn(frames: Frames, run_id: str) -> Chart:
    """One run: the cost of each turn in US cents, by component."""
    costs = _priced(frames)
    costs = costs[(costs["run_id"] == run_id) & costs["turn"].notna()]
    sums = costs.groupby(["turn", "component"], observed=True)["cost_usd"].sum().reset_index()
    rows = [
        {
            "turn": int(row["turn"]),
            "component": _LABELS[row["component"]],
            "order": _ORDER.index(row["component"]),
            "cents": float(row["cost_usd"]) * 100,
        }
        for row in sums.to_dict("records")
    ]
    data = pd.DataFrame(rows, columns=["turn", "component", "order", "cents"])
    spec = (
        alt.Chart(data)
        .mark_bar()
        .encode(
            x=alt.X("turn:O", title="turn", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("cents:Q", title="cost in US cents"),
            color=alt.Color(
                "component:N", title=None, scale=scale(tuple(_LABELS.values()), data["component"])
            ),
            order=alt.Order("order:Q"),
        )
        .properties(
            width=_WIDTH,
            height=220,
            title=alt.Title("Cost of each turn", subtitle=f"run {run_id}; {_totals(costs)}"),
        )
    )
    return Chart(spec, f"Cost of each turn of run {run_id}, by component. {_totals(costs)}.")


def reconciliation(frames: Frames) -> Chart:
    """Each run's cost from three sources; where the marks lie on each other, they agree."""
    rows: list[dict[str, Any]] = []
    for run in frames.runs.to_dict("records"):
        label = f"{run['run_id']}: {str(run['residual_reason']).replace('_', ' ')}"
        rows += [
            {"run": label, "source": name, "cents": float(run[column]) * 100}
            for column, name in _SOURCES.items()
            if not pd.isna(run[column])
        ]
    data = pd.DataFrame(rows, columns=["run", "source", "cents"])
    names = tuple(_SOURCES.values())
    equal = int((frames.runs["residual_reason"] == "equal").sum())
    subtitle = f"{equal} of {len(frames.runs)} runs agree to a millionth of a dollar"
    spec = (
        alt.Chart(data)
        .mark_bar(height=10)
        .encode(
            x=alt.X("cents:Q", title="cost in US cents"),
            y=alt.Y(
                "run:N", title=None, sort=list(dict.fromkeys(data["run"])), axis=alt.Axis(labelLimit=320)
            ),
            yOffset=alt.YOffset("source:N", sort=list(names)),
            color=alt.Color("source:N", title=None, scale=scale(names, data["source"])),
        )
        .properties(
            width=440,
            height=alt.Step(14),
            title=alt.Title("Three accounts of the same cost", subtitle=subtitle),
        )
    )
    return Chart(spec, f"Cost per run from rows, modelUsage and total_cost_usd: {subtitle}.")


def cost_table(frames: Frames) -> pd.DataFrame:
    """Units, rate and cost by model and component, ready to read. Amounts are exact decimals as text."""
    costs = frames.costs
    rows: list[dict[str, str]] = []
    for (model, part), group in costs.groupby(["model", "component"], observed=True):
        rates = sorted(set(group["rate_usd"].dropna()))
        total = group["cost_usd"].sum(min_count=len(group))
        rows.append(
            {
                "model": str(model),
                "component": _LABELS[str(part)],
                "units": f"{int(group['units'].sum()):,}" if group["units"].notna().all() else "n/a",
                "USD per Mtok (web: per 1,000)": ", ".join(f"{rate.normalize():f}" for rate in rates)
                or "no price",
                "cost [USD]": "n/a" if pd.isna(total) else f"{total:.6f}",
                "": "lower bound" if _is_bound(group) else "",
            }
        )
    columns = ["model", "component", "units", "USD per Mtok (web: per 1,000)", "cost [USD]", ""]
    return pd.DataFrame(rows, columns=columns).set_index(["model", "component"])


def reconciliation_table(frames: Frames) -> pd.DataFrame:
    """One row per run: counted and reported cost, what is left over, and why (`REASONS` says it in full)."""
    runs = frames.runs
    table = pd.DataFrame({"run": runs["run_id"].astype(str)})
    labels = {
        "cost_rows_usd": "counted [USD]",
        "cost_reported_usd": "reported [USD]",
        "residual_usd": "left over [USD]",
    }
    for column, label in labels.items():
        table[label] = ["n/a" if pd.isna(value) else f"{value:.6f}" for value in runs[column]]
    table["reason"] = [str(reason).replace("_", " ") for reason in runs["residual_reason"]]
    return table.set_index("run")


def _is_bound(group: pd.DataFrame) -> bool:
    """Whether a placeholder is in the sum, and no result has said what is missing."""
    told = set(group.loc[group["source"] == "result", "run_id"])
    return bool((~group["is_final"] & ~group["run_id"].isin(told)).any())


def _priced(frames: Frames) -> pd.DataFrame:
    return frames.costs.dropna(subset=["cost_usd"])


def _totals(costs: pd.DataFrame) -> str:
    tokens = int(costs.loc[~costs["component"].isin(["web_search", "unitemised"]), "units"].sum())
    return f"{tokens:,} tokens, {float(costs['cost_usd'].sum()):.4f} USD"
