"""`runs` and `sessions`: one row per run with its provenance, counts and reconciled cost."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from harvest_nb.prices import PriceTable
from harvest_nb.tables.costs import total
from harvest_nb.tables.folder import Run
from harvest_nb.tables.items import Item
from harvest_nb.tables.reconcile import Reconciled
from harvest_nb.tables.results import Report
from harvest_nb.tables.values import (
    as_bool,
    as_dict,
    as_float,
    as_int,
    as_str,
    as_time,
    from_epoch,
    seconds,
    to_json,
)

__all__ = ["project_of", "run_row", "session_rows"]

_ADDED = ("n_prompts", "n_responses", "n_copied", "n_compactions")
_SEPARATORS = re.compile(r"[^A-Za-z0-9]")


def project_of(run: Run) -> str | None:
    """The project's key, as `CLAUDE_CONFIG_DIR` names its folders; made from the working directory elsewhere."""
    parts = run.path.parts
    if "projects" in parts[:-1]:
        after = parts[len(parts) - parts[::-1].index("projects") :]
        if len(after) > 1:
            return after[0]
    cwd = _first(run.items, "cwd")
    return _SEPARATORS.sub("-", cwd) if cwd else None


def run_row(
    run: Run,
    counts: Mapping[str, Any],
    outcome: Reconciled,
    told: Report,
    prices: PriceTable,
    *,
    not_final: int,
    costs: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """The row of `runs`.

    Args:
        counts: its columns that other frames know.
        outcome, told: its account, and the results that it is set against.
        not_final: responses with a placeholder for output tokens.
        costs: its rows of `costs`.
    """
    meta, marks = run.meta, as_dict(run.meta.get("marks"))
    init = next((item for item in run.story if item.subtype == "init"), None)
    opening = init.whole if init else {}
    times = [item.time for item in run.items if item.time is not None]
    ours = run.kind == "run_folder"
    # A run starts with its folder; `started` in run.json is when its CLI was.
    started = (as_time(meta.get("created")) or as_time(meta.get("started"))) or min(times, default=None)
    ended = as_time(meta.get("ended")) if ours else max(times, default=None)
    results = [one.item for one in told.results if one.item.type == "result"]
    last = results[-1].whole if results else {}
    versions = [item.version for item in run.items if item.version]
    costs = list(costs)
    cost = total(row["cost_usd"] for row in costs)
    sources = {row["source"] for row in costs} or {"rows"}
    return {
        "run_id": run.run_id,
        "kind": run.kind,
        "folder": str(run.path if ours else run.path.parent),
        "path": str(run.path),
        "project": project_of(run),
        "cwd": _first(run.items, "cwd"),
        "branch": _first(run.items, "branch"),
        "entrypoint": _first(run.items, "entrypoint"),
        "status": as_str(meta.get("status")) or _status(last),
        "exit_reason": as_str(meta.get("exit_reason")) or as_str(last.get("terminal_reason")),
        "result_subtype": as_str(last.get("subtype")),
        "is_error": as_bool(last.get("is_error")),
        "prompt": _prompt(meta.get("prompt"), run.story),
        **{key: as_str(meta.get(key)) for key in ("provider", "endpoint", "sandbox_id", "sdk_version")},
        "model": as_str(meta.get("model")) or (init.model if init else None) or _main_model(run),
        "models": ", ".join(sorted({item.model for item in run.items if item.model and not item.synthetic})) or None,
        "session_id": run.session_id,
        "image": as_str(meta.get("image")) or as_str(meta.get("image_digest")),
        "manifest_hash": as_str(meta.get("manifest_hash")),
        "cli_version": as_str(opening.get("claude_code_version")) or as_str(meta.get("cli_version"))
        or (versions[-1] if versions else None),
        "cli_version_first": versions[0] if versions else as_str(meta.get("cli_version")),
        "parameters": to_json(as_dict(meta.get("parameters"))) if ours else None,
        "created": as_time(meta.get("created")),
        "started": started,
        "ended": ended,
        "duration_s": seconds(ended, started),
        "sandbox_s": as_float(marks.get("sandbox_created")),
        "cli_s": as_float(marks.get("cli_started")),
        "init_s": as_float(marks.get("init")),
        "first_token_s": _first_token(marks, run.story, started),
        "result_s": as_float(marks.get("result")),
        "n_prompts": max((item.prompt_no for item in run.story), default=0),
        "n_turns_reported": _sum(as_int(item.whole.get("num_turns")) for item in results) if results else None,
        "n_agents": len({item.agent for item in run.story if item.sender == "model"} - {"main"}),
        "n_compactions": sum(item.subtype == "compact_boundary" for item in run.story),
        **counts,
        "n_processes": told.processes,
        "cost_usd": cost,
        "cost_source": "none" if cost is None else "both" if len(sources) > 1 else sources.pop(),
        "cost_is_lower_bound": None if cost is None else _is_bound(outcome, told, not_final),
        "cost_rows_usd": outcome.rows,
        "cost_model_usage_usd": outcome.model_usage,
        "cost_reported_usd": outcome.reported,
        "cost_repriced_usd": outcome.repriced,
        "residual_usd": outcome.residual,
        "residual_tokens_usd": outcome.residual_tokens,
        "residual_prices_usd": outcome.residual_prices,
        "residual_reason": outcome.reason,
        "residual_parts": to_json({key: f"{value:f}" for key, value in outcome.parts.items()})
        if outcome.parts
        else None,
        "price_version": prices.version,
        "price_digest": prices.digest,
    }  # fmt: skip


def session_rows(runs: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of `sessions`, from the rows of `runs`."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in runs:
        if row["session_id"]:
            groups.setdefault(row["session_id"], []).append(row)
    for session, group in groups.items():
        group.sort(key=lambda row: (row["started"] is None, row["started"] or from_epoch(0)))
        starts = [row["started"] for row in group if row["started"] is not None]
        ends = [row["ended"] for row in group if row["ended"] is not None]
        costs = [row["cost_usd"] for row in group]
        yield {
            "session_id": session,
            "project": next((row["project"] for row in group if row["project"]), None),
            "n_runs": len(group),
            "first_run_id": group[0]["run_id"],
            "started": min(starts, default=None),
            "ended": max(ends, default=None),
            **{key: sum(row[key] for row in group) for key in _ADDED},
            "n_agents": max(row["n_agents"] for row in group),
            "resumed_from": next((row["resumed_from"] for row in group if row["resumed_from"]), None),
            "cost_usd": None if any(cost is None for cost in costs) else sum(costs, Decimal(0)),
        }  # fmt: skip


def _is_bound(outcome: Reconciled, told: Report, not_final: int) -> bool:
    """Return whether `cost_usd` leaves out tokens: of a placeholder, a process without a result, a missing count."""
    if told.lone_state:
        return not_final > 0
    if outcome.reported is None:
        return not_final > 0 or bool(outcome.uncounted)
    return bool(outcome.uncounted) or outcome.reason in (
        "rows_after_result",
        "resumed_process",
        "rows_not_in_result",
    )


def _sum(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if None in known else sum(count for count in known if count is not None)


def _status(result: Mapping[str, Any]) -> str | None:
    if not result:
        return None
    return "error" if result.get("is_error") is True or result.get("subtype") != "success" else "success"


def _first(items: Iterable[Item], name: str) -> str | None:
    return next((value for item in items if (value := getattr(item, name))), None)


def _main_model(run: Run) -> str | None:
    models = Counter(
        item.model for item in run.story if item.model and item.agent == "main" and not item.synthetic
    )
    return models.most_common(1)[0][0] if models else None


def _first_token(marks: dict[str, Any], story: list[Item], started: datetime | None) -> float | None:
    recorded = as_float(marks.get("first_token"))
    if recorded is not None:
        return recorded
    times = (item.time for item in story if item.sender == "model")
    return seconds(next((moment for moment in times if moment is not None), None), started)


def _prompt(recorded: Any, story: list[Item]) -> str | None:
    if isinstance(recorded, str):
        return recorded
    first = next((item for item in story if item.sender == "user"), None)
    texts = [block.text for block in first.blocks if block.kind == "text"] if first else []
    return "\n".join(texts) or None
